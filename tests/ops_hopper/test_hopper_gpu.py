"""What only a Hopper GPU can show: the public functions, graphs, the same bits every time."""

import pytest
import torch
from hopper_cases import MAKERS, run, small

import ridgeline
from ridgeline.testing import assert_matches, paged_case
from ridgeline.testing.run import on_device

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a Hopper GPU")


def public(case):
    options = case.options() | {"return_lse": True, "impl": "hopper"}
    tables = (case.block_table, case.cache_seqlens)
    if hasattr(case, "k_cache"):
        inputs = (case.q, case.k_cache, case.v_cache, *tables)
        return lambda: ridgeline.paged_decode(*inputs, **options)
    inputs = (case.q_nope, case.q_rope, case.state_cache, case.rope_cache, *tables)
    return lambda: ridgeline.tied_decode(*inputs, **options)


@pytest.mark.parametrize("num_splits", [0, 1, 3])
@pytest.mark.parametrize("make", MAKERS)
def test_a_graph_replays_with_other_lengths(make, num_splits: int) -> None:
    case = on_device("cuda", small(make, 0, lengths=[900, 7, 4000], num_splits=num_splits))
    call = public(case)
    assert_matches(on_device("cpu", case), *(x.cpu() for x in call()))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    for lengths in ([900, 7, 4000], [3, 3999, 0]):
        case.cache_seqlens.copy_(torch.tensor(lengths, dtype=torch.int32))
        graph.replay()
        assert all(torch.equal(x, y) for x, y in zip(results, call(), strict=True))


def test_a_thousand_times_the_same_bits() -> None:
    case = small(paged_case, 5, lengths=[900, 7, 4000])
    first = run(case)
    for _ in range(1000):
        assert all(torch.equal(x, y) for x, y in zip(run(case), first, strict=True))
