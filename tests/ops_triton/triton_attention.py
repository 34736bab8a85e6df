"""Running ``attention``'s Triton kernels with chosen tiles, as they are or with a bug planted."""

import sys
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ridgeline import attention
from ridgeline.ops.attention.triton import backward, forward, tiles
from ridgeline.ops.attention.triton.config import AttentionConfig
from ridgeline.testing import AttentionCase, attention_case
from ridgeline.testing.layouts import clone
from ridgeline.testing.run import _on

PACKAGE = "ridgeline.ops.attention.triton"
TILES = [AttentionConfig(*shape, 4, 1) for shape in ((16, 16), (32, 16), (16, 32))]
PLAIN = {"magnitude": 1.0, "softcap": 0.0, "window": None, "softmax_scale": None, "tree": None}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KERNELS = (forward, backward)


def run_tiles(
    case: AttentionCase,
    config: AttentionConfig | None = TILES[0],
    *,
    gradients: bool = True,
    fill: float = torch.nan,
    kernels: tuple[Any, Any] = KERNELS,
) -> tuple[Tensor, ...]:
    """``out``, ``lse``, ``dq``, ``dk`` and ``dv``, in outputs that were filled with ``fill``."""
    case = _on(DEVICE, case)
    q, k, v = case.q, case.k, case.v
    layout = (case.cu_seqlens_q, case.cu_seqlens_k, case.subtree_end)
    left, right = (-1 if side is None else side for side in case.window or (None, None))
    options = (case.scale, case.causal, left, right, case.softcap)
    out, lse = (
        q.new_full(case.dout.shape, fill),
        q.new_full(q.shape[:-1], fill, dtype=torch.float32),
    )
    kernels[0].forward(q, k, v, *layout, *options, out, lse, config=config)
    results = [out, lse]
    if gradients:
        filled = [x.new_full(x.shape, fill) for x in (q, k, v)]
        upstream = (case.dout, case.dlse, q, k, v, out, lse)
        kernels[1].backward(*upstream, *layout, *options, *filled, config=config)
        results += filled
    return tuple(x.cpu() for x in results)


def run_public(case: AttentionCase) -> tuple[Tensor, ...]:
    """As ``run_tiles``, through the public function and autograd."""
    case = _on(DEVICE, case)
    leaves = [x.detach().requires_grad_() for x in (case.q, case.k, case.v)]
    out, lse = attention(*leaves, **case.options(), return_lse=True, impl="triton")
    ends = [out] if case.dlse is None else [out, lse]
    gradients = torch.autograd.grad(ends, leaves, [case.dout, case.dlse][: len(ends)])
    return tuple(x.detach().cpu() for x in (out, lse, *gradients))


def small(seed: int, **chosen: Any) -> AttentionCase:
    """A case of three short sequences that still have several tiles."""
    shape = {"kv_heads": 1, "group": 2, "dim": 24, "value_dim": 40, "dtype": torch.float32}
    shape |= {"packed": True, "lengths": [(33, 33), (0, 3), (20, 37)], "with_dlse": True}
    return attention_case(seed, **PLAIN | shape | {"strides": True, "causal": True} | chosen)


def changed(case: AttentionCase, **garbage: tuple[Any, float]) -> AttentionCase:
    """The case with ``x[index] = value`` for every ``x=(index, value)``, strides kept."""
    made = {}
    for name, (index, value) in garbage.items():
        made[name] = clone(getattr(case, name))
        made[name][index] = value
    return replace(case, **made)


@dataclass(frozen=True)
class Bug:
    """``old`` becomes ``new`` in one of the kernels' files."""

    name: str
    module: str
    old: str
    new: str

    def kernels(self, folder: Path) -> tuple[Any, Any]:
        """The forward and backward modules, compiled again with the bug from files in a folder."""
        made = {}
        for name in ("tiles", "forward", "backward"):
            source = Path(import_module(f"{PACKAGE}.{name}").__file__).read_text()
            if name == self.module:
                assert source.count(self.old) == 1, f"{self.name}: {self.old!r} is not one place"
                source = source.replace(self.old, self.new)
            path = folder / f"planted_{self.name.replace('-', '_')}_{name}.py"
            if name != "tiles":
                source = source.replace(f"{PACKAGE}.tiles", made["tiles"].__name__)
            path.write_text(source)
            spec = spec_from_file_location(path.stem, path)
            made[name] = sys.modules[path.stem] = module_from_spec(spec)
            spec.loader.exec_module(made[name])
        made["tiles"].CHUNK = tiles.CHUNK
        return made["forward"], made["backward"]
