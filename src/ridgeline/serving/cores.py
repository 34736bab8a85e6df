"""Cores of a CPU for each of several ranks, where the engine would bind them wrongly or not at all.

vLLM 0.32 binds a rank to the cores of a memory node of its own. With fewer nodes it refuses tensor
parallelism, and runs every data-parallel replica on the same cores.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

BIND = "VLLM_CPU_OMP_THREADS_BIND"
# Options whose product is the number of ranks on this machine.
DEGREES = {
    "--tensor-parallel-size": "tensor",
    "-tp": "tensor",
    "--pipeline-parallel-size": "pipeline",
    "-pp": "pipeline",
    "--data-parallel-size": "data",
    "-dp": "data",
}
SYSTEM = Path("/sys/devices/system")


def binding(engine: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """``VLLM_CPU_OMP_THREADS_BIND``, such as ``0,1|2,3``, where the engine's own choice fails.

    Args:
        engine: options of the engine's server.
        environment: a binding that is set there is kept.
    """
    ranks = count_ranks(engine)
    if torch.cuda.is_available() or BIND in environment or ranks <= memory_nodes():
        return {}
    cores = allowed_cores()
    share = len(cores) // ranks
    if share == 0:
        return {}  # the engine says what it needs
    parts = [cores[rank * share : (rank + 1) * share] for rank in range(ranks)]
    return {BIND: "|".join(",".join(map(str, part)) for part in parts)}


def count_ranks(engine: Sequence[str]) -> int:
    """What options of parallelism multiply to; 1 where the engine will refuse them."""
    degrees: dict[str, int] = {}
    for i, given in enumerate(engine):
        name, has_value, value = given.partition("=")
        kind = DEGREES.get(name.replace("_", "-"))
        if kind is not None:
            value = value if has_value else "".join(engine[i + 1 : i + 2])
            degrees[kind] = int(value) if value.isdecimal() else 1
    ranks = 1
    for degree in degrees.values():
        ranks *= max(degree, 1)
    return ranks


def memory_nodes() -> int:
    return max(len(list((SYSTEM / "node").glob("node[0-9]*"))), 1)


def allowed_cores() -> list[int]:
    """One logical CPU of each physical core that this process may use."""
    found: dict[str, int] = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        siblings = SYSTEM / f"cpu/cpu{cpu}/topology/thread_siblings_list"
        found.setdefault(siblings.read_text() if siblings.is_file() else str(cpu), cpu)
    return list(found.values())
