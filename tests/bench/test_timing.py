import pytest

from ridgeline.bench import timing


def test_calls_take_turns():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    samples = timing.interleave(calls, reps=9)
    rounds = ["".join(order[i : i + 3]) for i in range(0, 27, 3)]
    assert {"".join(sorted(x)) for x in rounds} == {"abc"}
    assert len({x[0] for x in rounds}) > 1
    assert {name: len(x) for name, x in samples.items()} == {"a": 9, "b": 9, "c": 9}


def test_median_ignores_a_stall():
    assert timing.medians({"a": [1.0, 1.1, 50.0]}) == {"a": 1.1}


def test_drift_is_between_halves():
    assert timing.drift([1.0, 1.0, 1.2, 1.2]) == pytest.approx(0.2)
    assert timing.drift([1.2, 1.2, 1.0, 1.0]) == pytest.approx(0.2)
    assert timing.drift([1.0, 9.0, 1.0, 1.0, 1.0, 1.0]) == 0.0
    assert timing.drift([3.0]) == 0.0
