"""Representative launches of the Hopper backward kernels, to compile ahead of time."""

import json
import re
import sys
from dataclasses import asdict
from unittest import mock

import torch

from ridgeline.ops.attention.hopper import backward
from ridgeline.testing.gluon.versions import GluonJITFunction
from ridgeline.testing.gluon_aot import (
    Launch,
    compiled,
    disassembled,
    instructions,
    launch,
    loops,
    resources,
)

BF16 = torch.bfloat16


def recorded(
    dim: int,
    value_dim: int,
    *,
    causal: bool = False,
    softcap: float = 0.0,
    packed: bool = False,
    tree: bool = False,
    group: int = 1,
    needed: str = "qkv",
    deterministic: bool = False,
) -> Launch:
    """The last launch of a Gluon kernel in a backward; nothing runs."""
    found = []
    lead, heads = ((4096,) if packed else (2, 4096)), 8
    q, k = (torch.empty(*lead, h, dim, dtype=BF16) for h in (heads, heads // group))
    v = torch.empty(*k.shape[:-1], value_dim, dtype=BF16)
    out = torch.empty(*q.shape[:-1], value_dim, dtype=BF16)
    starts = torch.zeros(3, dtype=torch.int32) if packed else None
    ends = torch.zeros(k.shape[:-2], dtype=torch.int32) if tree else None
    gradients = [x if name in needed else None for x, name in ((q, "q"), (k, "k"), (v, "v"))]

    def run(self, *args, grid, warmup, **kwargs):
        found.append(launch(self, *args, **kwargs))

    with (
        mock.patch.object(GluonJITFunction, "run", run),
        mock.patch.multiple(
            backward, prepare_kernel=mock.MagicMock(), finish_kernel=mock.MagicMock()
        ),
        mock.patch("ridgeline.ops.attention.tiles.ends_kernel", mock.MagicMock()),
        mock.patch("ridgeline.ops.attention.tiles.lists_kernel", mock.MagicMock()),
    ):
        backward.backward(
            out,
            None,
            q,
            k,
            v,
            out,
            torch.empty(q.shape[:-1]),
            starts,
            starts,
            ends,
            0.1,
            causal,
            -1,
            -1,
            softcap,
            *gradients,
            deterministic=deterministic,
        )
    return found[-1]


CALLS = {
    "64": {"dim": 64, "value_dim": 64, "causal": True},
    "96": {"dim": 96, "value_dim": 96, "causal": True},
    "128": {"dim": 128, "value_dim": 128},
    "128-causal": {"dim": 128, "value_dim": 128, "causal": True},
    "128-tree-packed-gqa": {"dim": 128, "value_dim": 128, "tree": True, "packed": True, "group": 4},
    "192-128": {"dim": 192, "value_dim": 128, "causal": True},
    "256": {"dim": 256, "value_dim": 256, "causal": True},
    "128-dkdv": {"dim": 128, "value_dim": 128, "causal": True, "needed": "kv"},
    "64-dq": {"dim": 64, "value_dim": 64, "causal": True, "deterministic": True},
    "128-dq": {"dim": 128, "value_dim": 128, "causal": True, "deterministic": True},
    "192-128-dq": {"dim": 192, "value_dim": 128, "causal": True, "deterministic": True},
    "256-dq": {"dim": 256, "value_dim": 256, "causal": True, "deterministic": True},
}


def launches() -> dict[str, Launch]:
    return {name: recorded(**call) for name, call in CALLS.items()}


def waits(loop: str) -> list[tuple[int, dict[str, int]]]:
    """Of each wait for products in SASS: how many it leaves in flight, and the instructions from
    there to the next."""
    parts = re.split(r"WARPGROUP\.DEPBAR\.LE gsb0, 0x", loop)[1:]
    return [(int(part[0], 16), instructions(part)) for part in parts]


def report(name: str) -> dict:
    """What a kernel takes, and of its loops over tiles the instructions and ``waits``."""
    binary = compiled(recorded(**CALLS[name]))
    found = [(instructions(x), waits(x)) for x in loops(disassembled(binary)[1], "HGMMA")]
    return {"resources": asdict(resources(binary)), "loops": found}


if __name__ == "__main__":
    print(json.dumps({name: report(name) for name in sys.argv[1:]}))
