"""Random calls against a plain statement of what they promise; bits that nobody may touch."""

import inspect

import pytest
import torch
from interface_cases import MAKERS, violation

from ridgeline import flash_attn_interface as fa
from ridgeline.flash_attn_interface import attend

CASES = {"dense": 120, "varlen": 120, "qkvpacked": 80, "combine": 60, "kvcache": 300, "mla": 100}
SEEDS = [pytest.param(name, n, id=f"{name}-{n}") for name in CASES for n in range(CASES[name])]


@pytest.mark.parametrize(("name", "seed"), SEEDS)
def test_what_is_promised(name: str, seed: int) -> None:
    case = MAKERS[name](seed)
    why = violation(case)
    assert why is None, f"{why}\n{case.function}({sorted(case.arguments)})"


@pytest.mark.parametrize("seed", range(300, 360))
def test_chunks_of_a_prefill(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same calls as if any number of queries were many."""
    monkeypatch.setattr(attend, "PREFILL_ROWS", 1)
    case = MAKERS["kvcache"](seed)
    why = violation(case)
    assert why is None, f"{why}\n{case.function}({sorted(case.arguments)})"


@pytest.mark.parametrize("name", ["dense", "varlen", "qkvpacked", "kvcache"])
def test_the_cases_use_every_argument(name: str) -> None:
    """Each argument takes a value that is not its default, many times."""
    cases = [MAKERS[name](seed) for seed in range(CASES[name])]
    function = getattr(fa, cases[0].function)
    used = dict.fromkeys(inspect.signature(function).parameters, 0)
    for argument, parameter in inspect.signature(function).parameters.items():
        for case in cases:
            value = case.arguments.get(argument, parameter.default)
            used[argument] += isinstance(value, torch.Tensor) or value != parameter.default
    assert {argument for argument, n in used.items() if n < 5} == {cases[0].lse_flag}
