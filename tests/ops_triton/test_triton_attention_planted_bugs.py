"""A few cases that find bugs planted in the kernels of ``attention``, and none in what is right."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from triton_attention import KERNELS, TILES, Bug, changed, run_tiles, small

from ridgeline.ops.attention.triton import tiles
from ridgeline.testing import violations

BUGS = [
    Bug("causal-top-left", "forward", "position = len_k - len_q + row", "position = row"),
    Bug(
        "gradient-top-left",
        "backward",
        "    position = len_k - len_q + row // GROUP\n    given",
        "    position = row // GROUP\n    given",
    ),
    Bug("causal-excludes-itself", "tiles", "n - right if RIGHT", "n - right + 1 if RIGHT"),
    Bug("window-left-off-by-one", "tiles", "n + left + 1 if LEFT", "n + left if LEFT"),
    Bug(
        "subtree-includes-its-end",
        "tiles",
        "high = tl.minimum(high, end)",
        "high = tl.minimum(high, end + 1)",
    ),
    Bug("subtree-ignored", "tiles", "high = tl.minimum(high, end)", "high = high"),
    Bug("tile-skipped-too-early", "tiles", "(most > first)", "(most > last)"),
    Bug("tile-whole-too-early", "tiles", "(least > last)", "(least > first)"),
    Bug("listed-twice", "tiles", "1 + cut_count + tl", "1 + tl"),
    Bug(
        "largest-end-is-the-least",
        "tiles",
        "extents + tiles + t, tl.max(",
        "extents + tiles + t, tl.min(",
    ),
    Bug(
        "full-tiles-begin-early",
        "tiles",
        "tl.cdiv(tl.maximum(last - left, 0), BLOCK_N)",
        "tl.maximum(last - left, 0) // BLOCK_N",
    ),
    Bug(
        "full-tiles-end-late",
        "tiles",
        "full_end = tl.maximum(full_stop, 0) // BLOCK_N",
        "full_end = tl.cdiv(tl.maximum(full_stop, 0), BLOCK_N)",
    ),
    Bug(
        "full-rows-begin-early",
        "tiles",
        "full_begin = tl.minimum(tl.cdiv(full_begin * GROUP, BLOCK_M), end)",
        "full_begin = tl.minimum(full_begin * GROUP // BLOCK_M, end)",
    ),
    Bug("last-rows-dropped", "tiles", "tl.cdiv(stop * GROUP, BLOCK_M)", "stop * GROUP // BLOCK_M"),
    Bug("gap-forgotten", "tiles", "tl.where(i < jump, 0, gap)", "0"),
    Bug(
        "keys-of-the-next-sequence",
        "forward",
        "len_k, ends, stride_el, left",
        "len_k + 1, ends, stride_el, left",
    ),
    Bug("sum-not-rescaled", "forward", "l = l * alpha + tl.sum(p, 1)", "l = l + tl.sum(p, 1)"),
    Bug(
        "output-not-rescaled", "forward", "acc0 = acc0 * alpha[:, None] + dot", "acc0 = acc0 + dot"
    ),
    Bug("masked-row-is-nan", "forward", 'tl.where(m_new == float("-inf"), 0.0, m_new)', "m_new"),
    Bug("scale-dropped", "tiles", "else softmax_scale * LOG2_E.value", "else LOG2_E.value"),
    Bug("negative-scale-as-a-factor", "tiles", "or not softmax_scale > 1e-30", ""),
    Bug(
        "softcap-in-base-e",
        "tiles",
        "(scale / softcap)) * (softcap * LOG2_E)",
        "(scale / softcap)) * softcap",
    ),
    Bug("slope-of-the-cap-dropped", "tiles", "return 1.0 - t * t", "return 1.0"),
    Bug(
        "heads-of-a-group-swapped",
        "tiles",
        "(head * GROUP + row % GROUP) * stride_h",
        "(row % GROUP) * stride_h",
    ),
    Bug("delta-dropped", "backward", "dp - row_delta[None, :]", "dp"),
    Bug("dlse-has-the-wrong-sign", "backward", "total -= tl.load(dlse", "total += tl.load(dlse"),
    Bug("dq-without-its-scale", "backward", "dq0 * scale, real, 0", "dq0, real, 0"),
    Bug("dk-without-its-scale", "backward", "dk0 * scale, real, 0", "dk0, real, 0"),
    Bug(
        "second-columns-of-dv",
        "backward",
        "dv1 += dot(p.to(d1.dtype), d1)",
        "dv1 += dot(p.to(d1.dtype), d0)",
    ),
    Bug(
        "unseen-keys-are-read",
        "forward",
        "needed = (low <= last) & (high > first)",
        "needed = n < len_k",
    ),
    Bug("blind-rows-are-read", "backward", "needed & (position >= tl.min(low, 0))", "needed"),
    Bug("sequences-past-the-first-lost", "tiles", "        b -= 1\n", "        b = b * 0\n"),
]

CASES = [
    small(0, lengths=[(3, 6), (33, 40)]),
    small(1, lengths=[(20, 37)], causal=False, window=(9, 3), dim=16),
    small(2, lengths=[(34, 34), (0, 2)], tree="nested", group=1),
    small(3, lengths=[(18, 20)], softcap=0.5, magnitude=3.0, kv_heads=2),
    small(4, lengths=[(20, 9)], softmax_scale=-0.3, group=1, packed=False),
    small(5, lengths=[(40, 40)], causal=False, window=(20, None), group=1, with_dlse=False),
    small(6, lengths=[(17, 60)], tree="any", group=2, dim=16),
]


def problem(kernels, gradients: bool = True) -> str | None:
    for case in CASES:
        try:
            results = run_tiles(case, TILES[0], kernels=kernels, gradients=gradients)
            wrong = violations(case, *results)
        except Exception as e:
            wrong = f"raised {type(e).__name__}: {e}"
        if wrong:
            return wrong
    return reads_garbage(kernels, gradients)


def reads_garbage(kernels, gradients: bool) -> str | None:
    """Keys behind the window of every query, rows before the first key."""
    behind = small(7, lengths=[(9, 33)], window=(3, None))
    blind = small(8, lengths=[(35, 9)])
    spoilt = [
        (behind, {name: (slice(0, 21), torch.nan) for name in ("k", "v")}),
        (blind, {name: (slice(0, 26), torch.nan) for name in ("q", "dout")}),
    ]
    for case, garbage in spoilt:
        clean = run_tiles(case, kernels=kernels, gradients=gradients)
        got = run_tiles(changed(case, **garbage), kernels=kernels, gradients=gradients)
        if not all(torch.equal(x, y) for x, y in zip(got, clean, strict=True)):
            return "the result depends on what nobody sees"
    return None


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the modules with a bug, which take it from the right one."""
    monkeypatch.setattr(tiles, "CHUNK", 2)


@pytest.fixture(autouse=True)
def _fresh_memory() -> Iterator[None]:
    """New tensors are filled, so that what an earlier call left in their memory hides no bug."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_found(bug: Bug, tmp_path: Path) -> None:
    kernels = bug.kernels(tmp_path)
    assert problem(kernels, gradients=bug.module != "forward") is not None


def test_nothing_is_found_in_what_is_right() -> None:
    assert problem(KERNELS) is None
