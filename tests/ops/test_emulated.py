"""The AVX-512 kernels on a machine that lacks their instructions, by emulation."""

from pathlib import Path
from types import ModuleType

import pytest
from attention_core_cases import core_problem
from core_mutation import load_base, missing_instruction_sets

from ridgeline.ops.common import core
from ridgeline.testing import (
    assert_matches,
    attention_case,
    paged_case,
    problem,
    run,
    tied_case,
)
from ridgeline.testing.generate import KERNEL_DTYPES

MISSING = missing_instruction_sets()


@pytest.fixture(scope="module")
def emulated(core_base: Path, tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    return load_base(core_base, tmp_path_factory.mktemp("emulated"))


@pytest.fixture(autouse=True)
def _use(emulated: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "load", lambda: emulated)


@pytest.mark.parametrize("isa", MISSING)
@pytest.mark.parametrize("op", ["paged_decode", "tied_decode"])
def test_the_suite_finds_nothing(op, isa: str) -> None:
    assert problem(lambda case: run(case, f"cpu-{isa}"), op) is None


@pytest.mark.parametrize("isa", MISSING)
@pytest.mark.parametrize("make", [paged_case, tied_case])
@pytest.mark.parametrize("seed", range(30))
def test_random_cases(make, seed: int, isa: str) -> None:
    case = make(9000 + seed)
    assert_matches(case, *run(case, f"cpu-{isa}"))


@pytest.mark.parametrize("isa", MISSING)
@pytest.mark.parametrize("seed", range(60))
def test_random_attention(seed: int, isa: str) -> None:
    case = attention_case(9000 + seed, dtypes=KERNEL_DTYPES)
    assert_matches(case, *run(case, f"cpu-{isa}"))


@pytest.mark.parametrize("isa", MISSING)
def test_nothing_is_found_in_attention(isa: str) -> None:
    assert core_problem(lambda case: run(case, f"cpu-{isa}")) is None
