"""The serving tests run in an environment of their own, `make test-serving`: here vLLM is there."""

import os
from importlib.util import find_spec

if find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]

# Read when vLLM is imported. A worker of pytest-xdist keeps to a core of its own.
_cores = sorted(os.sched_getaffinity(0))
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
os.environ.update(
    HF_HUB_OFFLINE="1",
    VLLM_NO_USAGE_STATS="1",
    VLLM_LOGGING_LEVEL="ERROR",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_CPU_OMP_THREADS_BIND=str(_cores[_worker % len(_cores)]),
)
