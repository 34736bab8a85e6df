"""The serving tests run in an environment of their own, `make test-serving`: here vLLM is there."""

from importlib.util import find_spec

if find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]
