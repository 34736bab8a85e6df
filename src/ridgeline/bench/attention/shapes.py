"""The shapes of attention rows, with visible pairs and FLOPs counted from them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ridgeline.bench import arguments
from ridgeline.bench.shapes import DTYPES
from ridgeline.ops.attention import subtree_end
from ridgeline.ops.common import check

MASKS = ("full", "causal", "tree")
PASSES = ("forward", "backward")
Pair = tuple[int, int, int]  # tokens of prompt, chosen and rejected


@dataclass(frozen=True)
class AttentionShape:
    """Self-attention of ``batch`` rows of ``length`` tokens.

    ``mask``: "full", "causal", or "tree", which is one row of preference ``pairs`` that share their
    prompts (``subtree_end.of_pair``). ``value_dim`` 0 is ``head_dim``.
    """

    batch: int
    length: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int = 0
    mask: str = "causal"
    dtype: str = "bf16"
    pairs: tuple[Pair, ...] = ()

    def __post_init__(self) -> None:
        if self.mask not in MASKS:
            raise ValueError(f"mask: expected one of {', '.join(MASKS)}, got {self.mask!r}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {self.dtype!r}")
        for name in ("batch", "length", "heads", "kv_heads", "head_dim"):
            check.count(name, getattr(self, name), minimum=1)
        check.count("value_dim", self.value_dim)
        check.divides("kv_heads", self.kv_heads, "heads", self.heads)
        if (self.mask == "tree") != bool(self.pairs):
            raise ValueError(f"pairs: expected some for a tree and none else, got {self.pairs}")
        if self.pairs and (self.batch, self.length) != (1, _tokens(self.pairs)):
            raise ValueError(
                f"length: expected one row of {_tokens(self.pairs)} tokens, the pairs', "
                f"got {self.batch} of {self.length}"
            )

    @classmethod
    def tree(cls, pairs: Sequence[Pair], **given: object) -> "AttentionShape":
        """One row that holds ``pairs``."""
        return cls(batch=1, length=_tokens(pairs), mask="tree", pairs=tuple(pairs), **given)

    @property
    def width(self) -> int:
        """``d_v``."""
        return self.value_dim or self.head_dim

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def label(self) -> str:
        dims = f"d {self.head_dim}" + (f"/{self.width}" if self.width != self.head_dim else "")
        heads = f"{self.heads}" + (f"/{self.kv_heads}" if self.kv_heads != self.heads else "")
        return f"{self.batch} x {self.length}, {heads} heads, {dims}"

    @cached_property
    def subtree_end(self) -> Tensor | None:
        """``[1, length]`` int32 of a tree."""
        if not self.pairs:
            return None
        return subtree_end.concat([subtree_end.of_pair(*p) for p in self.pairs]).subtree_end[None]

    @property
    def visible_pairs(self) -> int:
        """(query, key) pairs of one row and head that the mask leaves."""
        match self.mask:
            case "full":
                return self.length**2
            case "causal":
                return self.length * (self.length + 1) // 2
        return int((self.subtree_end.long() - torch.arange(self.length)).sum())

    def visible(self) -> Tensor:
        """``[length, length]`` bool."""
        if self.mask == "full":
            return torch.ones(self.length, self.length, dtype=torch.bool)
        query, key = torch.arange(self.length)[:, None], torch.arange(self.length)
        if self.mask == "causal":
            return key <= query
        return (key <= query) & (query < self.subtree_end[0])

    def flops(self, which: str) -> int:
        """Multiply-adds of the matrix products over visible pairs, times two.

        A pair of a query and a key costs 2 (d + d_v) forward: q·k and p v. Backward it costs
        2 (3 d + 2 d_v): q·k again, dout·v, p dout, dscore k and dscore q; 2.5 times as much where
        d = d_v.
        """
        d, width = self.head_dim, self.width
        each = 2 * (d + width) if which == "forward" else 2 * (3 * d + 2 * width)
        return each * self.batch * self.heads * self.visible_pairs

    def causal(self) -> "AttentionShape":
        """The same rows of tokens, plainly causal."""
        return replace(self, mask="causal", pairs=())

    def branches(self) -> list[Tensor]:
        """Of a tree, the tokens of each response with its whole prompt, as indices of the row."""
        found, start = [], 0
        for prompt, chosen, rejected in self.pairs:
            first = torch.arange(prompt + chosen)
            shared = torch.arange(prompt - 1)
            second = torch.cat([shared, torch.arange(rejected + 1) + prompt + chosen])
            found += [start + first, start + second]
            start += prompt + chosen + 1 + rejected
        return found


def _tokens(pairs: Sequence[Pair]) -> int:
    return sum(prompt + chosen + 1 + rejected for prompt, chosen, rejected in pairs)


def chosen(quick: bool = False, **given: str | int | None) -> tuple[AttentionShape, ...]:
    """The shapes that a command line asks for; the published ones if it asks for none.

    ``given``: ``batch``, ``length``, ``mask``, ``dtype`` and ``pair`` as text, lists
    comma-separated; ``heads``, ``kv_heads``, ``head_dim``, ``value_dim`` and ``pairs``.

    Raises:
        ValueError: names the option and what came.
    """
    asked = {name: x for name, x in given.items() if x is not None}
    if not asked:
        return tuple(quick_look() if quick else published())
    if "length" not in asked and "pairs" not in asked:
        option = "--" + next(iter(asked)).replace("_", "-")
        raise ValueError(f"{option}: expected together with --length or --pairs")
    heads = asked.get("heads", 16)
    common = {
        "heads": heads,
        "kv_heads": asked.get("kv_heads", heads),
        "head_dim": asked.get("head_dim", 128),
        "value_dim": asked.get("value_dim", 0),
    }
    found = []
    for dtype in arguments.names(asked.get("dtype", "bf16")):
        if "length" in asked:
            sizes = arguments.sizes(asked.get("batch", "1"), asked["length"], ())
            masks = arguments.names(asked.get("mask", "full,causal"))
            found += [
                AttentionShape(*size, **common, mask=mask, dtype=dtype)
                for size in sizes
                for mask in masks
            ]
        if "pairs" in asked:
            pair = arguments.integers("--pair", asked.get("pair", "256,64,64"))
            if len(pair) != 3:
                raise ValueError(f"--pair: expected prompt,chosen,rejected, got {asked['pair']!r}")
            count = check.count("pairs", asked["pairs"], minimum=1)
            found.append(AttentionShape.tree([pair] * count, **common, dtype=dtype))
    return tuple(found)


def published() -> list[AttentionShape]:
    """The rows of the project's table."""
    d128 = {"batch": 1, "length": 2048, "heads": 16, "kv_heads": 16, "head_dim": 128}
    d64 = {"heads": 8, "kv_heads": 8, "head_dim": 64}
    return [
        AttentionShape(**d128, mask="full"),
        AttentionShape(**d128),
        AttentionShape(**d128 | {"heads": 32, "kv_heads": 8}),
        AttentionShape(**d128, dtype="fp16"),
        AttentionShape(**d128, dtype="fp32"),
        AttentionShape(4, 512, **d64),
        AttentionShape(**d128 | {"length": 8192}),
        AttentionShape(**d128 | {"head_dim": 192}, value_dim=128),
        AttentionShape.tree([(256, 64, 64)] * 8, **d64),
        AttentionShape.tree([(256, 64, 64)] * 8, **d64 | {"head_dim": 128}),
    ]


def quick_look() -> list[AttentionShape]:
    """For a first look in seconds."""
    d64 = {"heads": 8, "kv_heads": 8, "head_dim": 64}
    return [
        AttentionShape(1, 1024, 8, 8, 128),
        AttentionShape(4, 512, **d64),
        AttentionShape.tree([(256, 64, 64)] * 4, **d64),
    ]
