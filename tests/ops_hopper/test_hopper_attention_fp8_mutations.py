"""Every line that awaits FP8 products is needed, and planted bugs of scales and order are found."""

from functools import cache

import pytest
from hopper_attention_cases import PACKED
from hopper_attention_fp8_cases import odd, quantized, run, violation
from hopper_planting import planted
from torch import Tensor

from ridgeline.ops.common.triton import INTERPRETED
from ridgeline.testing import AttentionCase

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="bugs are for the interpreter")

Quantized = tuple[AttentionCase, AttentionCase, dict[str, Tensor]]


@cache
def case() -> Quantized:
    """More tiles than stages, and an output of three parts in two tiles of columns."""
    shape = {"lengths": [(66, 150)], "group": 2, "dim": 32, "value_dim": 144}
    return quantized(0, (64, 64, 64), **shape)


def check(seed: int) -> None:
    inputs, meant, scales = case()
    found = run(inputs, scales, seed, block_n=32, stages=2, consumers=2)
    assert violation(meant, *found) is None


def test_no_synchronising_line_is_idle() -> None:
    from ridgeline.testing.gluon.mutations import found_by, outcome

    # Whose turn it is decides speed alone: nobody waits for data there.
    found = [m for m in found_by(check) if m.function.__qualname__ != "Turns.wait"]
    assert len(found) >= 18
    check(1)
    for seeds in (range(5), range(5, 20)):
        found = [m for m in found if outcome(check, m, seeds).caught is None]
    assert not [str(mutation) for mutation in found]


# Module, what is right, what is wrong.
BUGS = {
    "scale-of-the-last-keys": (
        "consumer",
        "self.scaling.keys(rows, self.work, item, j)",
        "self.scaling.keys(rows, self.work, item, j - 1)",
    ),
    "keys-of-the-first-tile-not-scaled": (
        "consumer",
        "self.scaling.keys(rows, self.work, item, 0)",
        "(rows.scale, rows.negative)",
    ),
    "scale-of-the-next-values": ("consumer", "self.work, item, j - 1)", "self.work, item, j)"),
    "scale-of-the-first-values": ("consumer", "item, item.count - 1)", "item, 0)"),
    "sums-not-scaled-back": ("consumer", "m -= P_EXPONENT", "m -= 0.0"),
    "probabilities-not-scaled": ("consumer", "base -= P_EXPONENT", "base -= 0.0"),
    "values-not-scaled": ("consumer", "os = times(os, unit)", "os = times(os, 1.0)"),
    "values-far-apart-not-scaled": ("consumer", "n, alpha, weight)", "n, alpha, 1.0)"),
    "values-far-apart-twice": ("consumer", "p = gl.zeros_like(p)", "p = p + 0"),
    "negative-scores": (
        "consumer",
        "gl.where(factor < 0.0, -1.0, 1.0)",
        "gl.abs(factor * 0.0 + 1.0)",
    ),
    "unseen-times-zero": (
        "consumer",
        "gl.where(factor == 0.0, TINY, gl.abs(factor))",
        "gl.abs(factor)",
    ),
    "ratio-upside-down": ("scales", "ratio = unit / scale", "ratio = scale / unit"),
    "unit-of-what-is-far": ("scales", "gl.where(near, scale, unit)", "scale"),
    "negative-keys-unnoticed": ("scales", "negative | (of_keys < 0.0)", "negative"),
    "negative-queries-unnoticed": ("scales", "gl.min(scale, 0) < 0.0", "gl.min(scale, 0) < -9e9"),
    "scale-of-queries-for-values": ("scales", "self.of_tile(self.v", "self.of_tile(self.q"),
    "scale-of-keys-for-values": ("scales", "self.of_tile(self.v", "self.of_tile(self.k"),
    "scale-of-values-for-keys": ("scales", "self.of_tile(self.k", "self.of_tile(self.v"),
    "queries-not-scaled": ("scales", "scale = scale * of_keys", "scale = scale * 0.0 + of_keys"),
    "scale-of-the-first-query": ("scales", "row // work.PACK, head)", "row * 0, head)"),
    "scale-of-another-head": ("scales", "head * self.stride_h", "head * 0 * self.stride_h"),
    "scale-of-the-query-head": ("scales", "work.kv_head(item)", "item.entity"),
    "scale-of-another-sequence": (
        "scales",
        "b.to(gl.int64) * self.stride_b",
        "b.to(gl.int64) * 0 * self.stride_b",
    ),
    "scale-of-the-first-block": ("scales", "(row >> self.shift)", "(row * 0)"),
    "scale-of-the-tile": ("scales", "(row >> self.shift)", "(row >> 5)"),
    "keys-in-their-order": ("values", "permute((0, 1, 3, 2, 4))", "permute((0, 1, 2, 3, 4))"),
    "bytes-in-another-order": ("values", "((p0, p1, p2, p3))", "((p0, p2, p1, p3))"),
    "columns-of-the-first-part": ("values", ".slice(PART[1], PART[2]", ".slice(0, PART[2]"),
    "outputs-not-rescaled": ("values", "os[i] * by_row + found", "os[i] + found"),
    "packed-values-side-by-side": (
        "forward",
        "start = (start // 16 + item.b) * 16",
        "start = start",
    ),
}


@pytest.fixture(scope="module")
def made() -> list[Quantized]:
    shape = {"kv_heads": 2, "group": 2, "dim": 32}
    packed = PACKED | {"lengths": [(70, 90), (9, 40)]}
    return [
        quantized(1, (64, 64, 64), **shape, value_dim=144, lengths=[(70, 150)] * 2),
        quantized(2, ("sequence", "tensor", "head"), **shape, **packed, causal=True),
        odd(3),
    ]


def problem(made: list[Quantized]) -> str | None:
    for inputs, meant, scales in made:
        try:
            wrong = violation(meant, *run(inputs, scales, block_n=32))
        except Exception as error:
            wrong = f"raised {type(error).__name__}: {error}"
        if wrong:
            return wrong
    return None


def test_nothing_is_found_in_what_is_right(made: list[Quantized]) -> None:
    assert problem(made) is None


@pytest.mark.parametrize("name", BUGS)
def test_a_bug_is_found(name: str, made: list[Quantized]) -> None:
    with planted(*BUGS[name]):
        assert problem(made) is not None
