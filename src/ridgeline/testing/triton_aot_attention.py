"""As ``triton_aot``, of ``attention``: its kernels compiled ahead of time, and what they take.

``python -m ridgeline.testing.triton_aot_attention`` prints the resources of every kernel for
representative calls and architectures; ``--write PATH`` writes them. Must not run under Triton's
interpreter.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch

from ridgeline.ops.attention.triton import backward, forward
from ridgeline.testing.triton_aot import Resources, compiled, recorded, resources

ARCHS = (80, 90, 100)
BF16, F16 = torch.bfloat16, torch.float16
CALLS = {
    "mha-16-d128-causal": lambda: call(16, 16, 128, 128, BF16),
    "gqa-32-8-d64-tree-packed": lambda: call(32, 8, 64, 64, BF16, tree=True, packed=True),
    "mqa-4-d32-v80-window-softcap": lambda: call(
        4, 1, 32, 80, F16, causal=False, window=1024, softcap=30.0
    ),
}


def call(
    heads: int,
    kv_heads: int,
    dim: int,
    value_dim: int,
    dtype: torch.dtype,
    *,
    causal: bool = True,
    tree: bool = False,
    packed: bool = False,
    window: int = -1,
    softcap: float = 0.0,
    gradients: bool = True,
) -> None:
    """Two sequences of 2,048 tokens, or as many packed ones."""
    lead = (4096,) if packed else (2, 2048)
    q = torch.empty(*lead, heads, dim, dtype=dtype)
    k = torch.empty(*lead, kv_heads, dim, dtype=dtype)
    v = torch.empty(*lead, kv_heads, value_dim, dtype=dtype)
    starts = torch.zeros(3, dtype=torch.int32) if packed else None
    ends = torch.zeros(lead, dtype=torch.int32) if tree else None
    layout, options = (starts, starts, ends), (dim**-0.5, causal, window, -1, softcap)
    out, lse = torch.empty(*lead, heads, value_dim, dtype=dtype), torch.empty(*lead, heads)
    forward.forward(q, k, v, *layout, *options, out, lse)
    if gradients:
        upstream = (out, lse, q, k, v, out, lse)
        filled = (torch.empty_like(x) for x in (q, k, v))
        backward.backward(*upstream, *layout, *options, *filled)


def report(name: str, arch: int) -> dict[str, Resources]:
    """The resources of every kernel that a call of ``CALLS`` launches."""
    return {
        f"{name}/{launch.kernel.__name__}/sm_{arch}": resources(compiled(launch, arch))
        for launch in recorded(CALLS[name], arch)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="JSON file to write")
    parser.add_argument("--arch", type=int, nargs="*", default=ARCHS)
    options = parser.parse_args()
    found = {}
    for name in CALLS:
        for arch in options.arch:
            found |= {key: asdict(value) for key, value in report(name, arch).items()}
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in found.items()]
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    if options.write:
        options.write.write_text(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
