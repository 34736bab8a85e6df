"""The forward kernel on Hopper against the float64 oracle, and what must not change a bit."""

import pytest
import torch
from hopper_attention_cases import PACKED, drawn, plain, run

from ridgeline.testing import assert_matches


def equal(a, b) -> bool:
    return all(torch.equal(x, y) and not x.isnan().any() for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("seed", range(14))
def test_any_case(seed: int) -> None:
    case = drawn(seed)
    assert_matches(case, *run(case, seed))


MASKS = {
    "full": {},
    "causal": {"causal": True},
    "window": {"causal": True, "window": (70, None)},
    "both-sides": {"window": (40, 90)},
    "softcap": {"softcap": 3.0, "causal": True},
    "tree": {"tree": "nested", "lengths": [(170, 170)]},
    "any-tree": {"tree": "any", "lengths": [(170, 170)]},
    "packed": PACKED | {"causal": True},
    "packed-tree": PACKED | {"tree": "nested"},
}
DIMS = [(64, 64), (96, 96), (128, 128), (192, 128), (256, 256)]


@pytest.mark.parametrize("name", MASKS)
def test_every_mask(name: str) -> None:
    case = plain(1, **MASKS[name])
    assert_matches(case, *run(case, block_n=64))


@pytest.mark.parametrize("name", ["causal", "packed-tree"])
@pytest.mark.parametrize(("dim", "value_dim"), DIMS)
def test_every_width(name: str, dim: int, value_dim: int) -> None:
    case = plain(dim, dim=dim, value_dim=value_dim, **MASKS[name])
    assert_matches(case, *run(case))


@pytest.mark.parametrize("name", ["causal", "packed-tree"])
def test_the_same_bits_under_other_schedules(name: str) -> None:
    case = plain(3, dim=128, **MASKS[name])
    first = run(case)
    for seed in (1, 2, 3):
        assert equal(run(case, seed, fill=0.0), first)


@pytest.mark.parametrize("name", ["full", "causal", "packed-tree"])
def test_turns_change_no_bit(name: str) -> None:
    case = plain(4, dim=64, **MASKS[name])
    assert equal(run(case, ping_pong=True), run(case, ping_pong=False))


@pytest.mark.parametrize("consumers", [1, 2])
@pytest.mark.parametrize("pack", [1, 4])
def test_other_tilings(consumers: int, pack: int) -> None:
    case = plain(5, group=4, causal=True, lengths=[(90, 200)] * 2)
    assert_matches(case, *run(case, 1, consumers=consumers, pack=pack, stages=2, block_n=64))
