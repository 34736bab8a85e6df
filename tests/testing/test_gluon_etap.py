"""A warp-specialised transposed decode kernel on the interpreter, and every mutation of it."""

import pytest
from gluon_etap import decode, expected, problem

from ridgeline.testing import gluon as interp
from ridgeline.testing.gluon import mutations

LENGTHS = [(1,), (64,), (65, 300), (383, 7, 128)]


def check(seed: int, lengths: tuple[int, ...] = (300, 65)) -> interp.Report:
    arguments, constants = problem(lengths, seed=seed)
    report = interp.run(decode, (len(lengths),), *arguments, seed=seed, **constants)
    out, lse = expected(arguments, constants)
    assert (arguments[2].base.double() - out).abs().max() < 0.02
    assert (arguments[3].double() - lse).abs().max() < 1e-3
    return report


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_it_is_right_on_every_schedule(lengths: tuple[int, ...]) -> None:
    for seed in range(5):
        check(seed, lengths)


def test_every_synchronising_call_is_needed() -> None:
    found = mutations.outcomes(check)
    assert len(found) >= 35
    assert not [str(o.mutation) for o in found if o.caught is None]
