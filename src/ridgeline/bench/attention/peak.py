"""The peak memory of one pass, in this process: what ``memory`` runs as a process of its own.

A call on one token loads the code first. Then the kernel's mark of the largest resident size is
reset, and read behind the call (Linux).
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from ridgeline.bench.attention import peers
from ridgeline.bench.attention.calls import Call, Inputs, ours
from ridgeline.bench.attention.shapes import AttentionShape
from ridgeline.ops.common.dispatch import Impl

CLEAR_REFS = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")


def peak_of(shape: AttentionShape, which: str, who: str, impl: Impl) -> int:
    """Bytes beyond what was there before the pass ``which``; ``who`` is "ours" or "sdpa"."""
    start_threads()
    _call(replace(shape, length=1, batch=1), who, impl).run(which)
    call = _call(shape, who, impl)
    if which == "backward":
        call.record()
    CLEAR_REFS.write_text("5")  # resets VmHWM, see proc(5)
    before = _status("VmRSS")
    results = call.run(which)
    peak = _status("VmHWM") - before
    del results
    return peak


def start_threads() -> None:
    x = torch.ones(512, 512)
    x @ x


def _call(shape: AttentionShape, who: str, impl: Impl) -> Call:
    inputs = Inputs(shape)
    return ours(inputs, impl) if who == "ours" else peers.sdpa(inputs, shape.dtype)


def _status(name: str) -> int:
    lines = STATUS.read_text().splitlines()
    return 1024 * int(next(x for x in lines if x.startswith(f"{name}:")).split()[1])


def main() -> None:
    """Reads ``[shape, which, who, impl, threads]`` as JSON from the command line."""
    shape, which, who, impl, threads = json.loads(sys.argv[1])
    shape["pairs"] = tuple(tuple(pair) for pair in shape["pairs"])
    torch.set_num_threads(threads)
    print(peak_of(AttentionShape(**shape), which, who, impl))


if __name__ == "__main__":
    main()
