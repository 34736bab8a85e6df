"""Engines in the test's process, and what the same checkpoint gives in transformers."""

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import torch
from torch import set_num_threads  # vLLM replaces the one in torch by one that does nothing
from transformers import AutoModelForCausalLM
from vllm import LLM, ModelRegistry, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.platforms import current_platform
from vllm.plugins import load_general_plugins

from ridgeline.vllm.model import RidgelineForCausalLM

BLOCK = 16  # tokens of a page

# The plugin gives the model's name, which vLLM looks at in a process of its own: as much time as
# all else that an engine does here. The servers of the other tests start that way.
load_general_plugins()
ModelRegistry.register_model("RidgelineForCausalLM", RidgelineForCausalLM)
# An engine collects garbage eight times, which takes seconds among all that is imported by now.
gc.collect()
gc.freeze()


def _in_process() -> dict[str, str]:
    """The engine in this process; a worker of pytest-xdist keeps to a core of its own."""
    cores = sorted(os.sched_getaffinity(0))
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    core = str(cores[worker % len(cores)])
    return {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": os.environ.get("VLLM_CPU_OMP_THREADS_BIND", core),
    }


def _frozen() -> ExitStack:
    """The engine neither thaws what is frozen nor freezes what ends with it."""
    stack = ExitStack()
    for name in ("freeze", "unfreeze"):
        stack.enter_context(mock.patch.object(gc, name))
    return stack


@contextmanager
def engine(path: Path, **options: object) -> Iterator[LLM]:
    defaults = {
        "dtype": "float32",
        "enforce_eager": True,
        "block_size": BLOCK,
        "kv_cache_memory_bytes": 16 << 20,
        "disable_log_stats": False,
    }
    with mock.patch.dict(os.environ, _in_process()), _frozen():
        llm = LLM(str(path), **(defaults | options))
    # Each start puts vLLM's kernels in place by a scan of all modules, which stumbles over those of
    # numba that n-gram drafts load. They are in place since the first.
    type(current_platform).register_triton_kernel_overrides = classmethod(lambda cls: None)
    threads = torch.get_num_threads()
    try:
        yield llm
    finally:
        set_num_threads(threads)  # as the next engine has to have: numba, for drafts, changed them
        with _frozen():
            llm.llm_engine.engine_core.shutdown()
            del llm
            cleanup_dist_env_and_memory()


def greedy(llm: LLM, prompts: Sequence[list[int]], tokens: int) -> list[list[int]]:
    sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], sampling, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def reference(
    path: Path, prompts: Sequence[list[int]], tokens: Sequence[list[int]]
) -> list[list[int]]:
    """What transformers chooses after each prompt, and after each of the ``tokens`` behind it.

    Tokens are greedy where they are the same: each then is the choice after those before it.
    """
    model = AutoModelForCausalLM.from_pretrained(path)
    chosen = []
    with torch.no_grad():
        for prompt, given in zip(prompts, tokens, strict=True):
            logits = model(torch.tensor([prompt + given[:-1]])).logits[0, len(prompt) - 1 :]
            chosen.append(logits.argmax(-1).tolist())
    return chosen


def counter(llm: LLM, name: str) -> int:
    """The engine's own count, such as ``num_preemptions``."""
    found = [metric.value for metric in llm.get_metrics() if metric.name == f"vllm:{name}"]
    assert found, f"the engine counts no {name}"
    return sum(found)


def tokens_cached(llm: LLM, memory: int) -> int:
    """Tokens that the engine's own accounting fits into ``memory`` bytes of a rank."""
    from vllm.v1.core.kv_cache_utils import get_kv_cache_configs

    specs = llm.llm_engine.model_executor.get_kv_cache_specs()
    config = llm.llm_engine.vllm_config
    configs = get_kv_cache_configs(config, specs, [memory] * len(specs))
    return configs[0].num_blocks * BLOCK


def random_prompts(lengths: Sequence[int], shared: int, vocab: int = 257) -> list[list[int]]:
    """Prompts with a prefix of ``shared`` tokens in common, whose text repeats itself."""
    draw = torch.Generator().manual_seed(3)
    prefix = torch.randint(1, vocab, (shared,), generator=draw).tolist()
    prompts = []
    for length in lengths:
        own = torch.randint(1, vocab, (5,), generator=draw).tolist()
        prompts.append((prefix + own * length)[:length])
    return prompts
