"""What is the CPU core's own: instruction sets, prefetch distance, concurrent callers."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from ridgeline.ops.common import core
from ridgeline.testing import assert_matches, paged_case, run, tied_case

MAKERS = [paged_case, tied_case]


def test_core_is_built_and_has_the_portable_path() -> None:
    assert core.missing() is None
    assert core.isas()[-1] == "portable"


@pytest.mark.parametrize("make", MAKERS)
def test_unknown_isa_is_refused(make) -> None:
    with pytest.raises(ValueError, match=r"isa.*avx1024"):
        run(make(0, lengths=[5]), "cpu-avx1024")


@pytest.mark.parametrize("make", MAKERS)
def test_prefetch_changes_no_bit(make, cpu_impl: str) -> None:
    for seed in range(20):
        case = make(seed)
        without = run(case, cpu_impl, prefetch=0)
        for tiles in (1, 2, 50):
            got = run(case, cpu_impl, prefetch=tiles)
            assert all(torch.equal(x, y) for x, y in zip(got, without, strict=True))


@pytest.mark.parametrize("make", MAKERS)
def test_concurrent_callers_do_not_disturb_each_other(make, cpu_impl: str) -> None:
    cases = [make(seed, lengths=[200, 31]) for seed in range(8)]
    alone = [run(case, cpu_impl) for case in cases]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            together = list(pool.map(lambda case: run(case, cpu_impl), cases))
            for case, got, want in zip(cases, together, alone, strict=True):
                assert_matches(case, *got)
                if case.num_splits > 0:
                    assert torch.equal(got[0], want[0])
