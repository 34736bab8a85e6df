"""Every synchronising line is needed: without it, or with a weaker one, some seed fails."""

from collections.abc import Callable
from functools import cache

import pytest
import torch
from hopper_cases import run

from ridgeline.ops.common.triton import INTERPRETED
from ridgeline.testing import TiedCase, assert_matches, tied_case

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="mutations are for the interpreter")

PLAIN = {
    "dtype": torch.bfloat16,
    "dim": 64,
    "kv_heads": 1,
    "group": 8,
    "query_len": 1,
    "strides": False,
    "num_splits": 0,
    "magnitude": 1.0,
}
LONG = {"lengths": [460, 330, 64]}


@cache
def case(page_size: int) -> TiedCase:
    return tied_case(0, page_size=page_size, nope_dim=64, rope_dim=16, **PLAIN | LONG)


def checked(page_size: int, **changes: int) -> Callable[[int], None]:
    def check(seed: int) -> None:
        assert_matches(case(page_size), *run(case(page_size), seed, **changes))

    return check


# By TMA, and by threads.
CHECKS = (checked(64, stages=2, q_stages=1), checked(7, stages=4, q_stages=1))


def test_no_synchronising_line_is_idle() -> None:
    """A line that one case can do without, as a later fence covers it, another needs."""
    from ridgeline.testing.gluon.mutations import found_by, outcome

    found = {mutation: None for check in CHECKS for mutation in found_by(check)}
    assert len(found) > 40
    for check in CHECKS:
        check(1)
    for check in CHECKS:
        found = [m for m in found if outcome(check, m, range(5)).caught is None]
    for check in CHECKS:
        found = [m for m in found if outcome(check, m, range(5, 20)).caught is None]
    assert not [str(mutation) for mutation in found]
