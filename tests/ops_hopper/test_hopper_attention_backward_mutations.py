"""Every synchronising line of the backward kernels is needed, and planted bugs are found."""

from collections.abc import Callable
from functools import cache

import pytest
from hopper_attention_backward_cases import SHARED, Replayed, gradients, small

from ridgeline.ops.attention.hopper import backward
from ridgeline.ops.common.triton import INTERPRETED
from ridgeline.testing import AttentionCase, assert_matches

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="mutations are for the interpreter")

# Three tiles of queries go round the ring of two; the first kernel's second tile of keys is cut.
LENGTHS = {"dim": 32, "value_dim": 32, "strides": False, "softcap": 0.0}


@cache
def case(lengths: tuple[int, int]) -> AttentionCase:
    return small(0, lengths=[lengths], **LENGTHS)


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backward, "prepare_kernel", Replayed())


def checked(lengths: tuple[int, int], **changes: object) -> Callable[[int], None]:
    def check(seed: int) -> None:
        assert_matches(case(lengths), *gradients(case(lengths), seed, **changes))

    return check


CHECKS = {
    "registers": checked((150, 130), block_m=64),
    "shared": checked((210, 200), **SHARED),
    "ordered": checked((260, 200), deterministic=True, dq_stages=3),
}


@pytest.mark.parametrize("name", CHECKS)
def test_no_synchronising_line_is_idle(name: str, replayed: None) -> None:
    from ridgeline.testing.gluon.mutations import found_by, outcome

    check = CHECKS[name]
    found = found_by(check)
    check(1)
    idle = [m for m in found if outcome(check, m, range(3)).caught is None]
    idle = [m for m in idle if outcome(check, m, range(3, 20)).caught is None]
    assert len(found) > 20
    assert not [str(mutation) for mutation in idle]
