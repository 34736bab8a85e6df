"""Every synchronising line of the forward kernel is needed: without it some seed fails."""

from functools import cache

import pytest
import torch
from hopper_attention_cases import plain, run

from ridgeline.ops.common.triton import INTERPRETED
from ridgeline.testing import AttentionCase, assert_matches

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="mutations are for the interpreter")


@cache
def case() -> AttentionCase:
    """Several items a program, more tiles than stages, and two tiles of columns."""
    shape = {"lengths": [(66, 150)], "group": 4, "dim": 48, "dtype": torch.bfloat16}
    return plain(0, **shape)


def check(seed: int) -> None:
    assert_matches(case(), *run(case(), seed, block_n=32, stages=2, pack=1, consumers=2))


def test_no_synchronising_line_is_idle() -> None:
    from ridgeline.testing.gluon.mutations import found_by, outcome

    # Whose turn it is decides speed alone: nobody waits for data there.
    found = [m for m in found_by(check) if m.function.__qualname__ != "Turns.wait"]
    assert len(found) >= 20
    check(1)
    for seeds in (range(5), range(5, 20)):
        found = [m for m in found if outcome(check, m, seeds).caught is None]
    assert not [str(mutation) for mutation in found]
