"""A few cases that find bugs planted in the kernels of ``attention``, and none in what is right."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from triton_attention import changed, small
from triton_planting import ATTENTION, Bug

from ridgeline.testing import AttentionCase, run, violations

TILES, FORWARD, BACKWARD = ATTENTION


BUGS = [
    Bug(
        "causal-top-left",
        "attention",
        FORWARD,
        "position = len_k - len_q + row",
        "position = row",
    ),
    Bug(
        "gradient-top-left",
        "attention",
        BACKWARD,
        "    position = len_k - len_q + row // GROUP\n    given",
        "    position = row // GROUP\n    given",
    ),
    Bug(
        "causal-excludes-itself", "attention", TILES, "n - right if RIGHT", "n - right + 1 if RIGHT"
    ),
    Bug("window-left-off-by-one", "attention", TILES, "n + left + 1 if LEFT", "n + left if LEFT"),
    Bug(
        "subtree-includes-its-end",
        "attention",
        TILES,
        "high = tl.minimum(high, end)",
        "high = tl.minimum(high, end + 1)",
    ),
    Bug("subtree-ignored", "attention", TILES, "high = tl.minimum(high, end)", "high = high"),
    Bug("tile-skipped-too-early", "attention", TILES, "(most > first)", "(most > last)"),
    Bug("tile-whole-too-early", "attention", TILES, "(least > last)", "(least > first)"),
    Bug("listed-twice", "attention", TILES, "1 + cut_count + tl", "1 + tl"),
    Bug(
        "largest-end-is-the-least",
        "attention",
        TILES,
        "extents + tiles + t, tl.max(",
        "extents + tiles + t, tl.min(",
    ),
    Bug(
        "full-tiles-begin-early",
        "attention",
        TILES,
        "tl.cdiv(tl.maximum(last - left, 0), BLOCK_N)",
        "tl.maximum(last - left, 0) // BLOCK_N",
    ),
    Bug(
        "full-tiles-end-late",
        "attention",
        TILES,
        "full_end = tl.maximum(full_stop, 0) // BLOCK_N",
        "full_end = tl.cdiv(tl.maximum(full_stop, 0), BLOCK_N)",
    ),
    Bug(
        "full-rows-begin-early",
        "attention",
        TILES,
        "full_begin = tl.minimum(tl.cdiv(full_begin * GROUP, BLOCK_M), end)",
        "full_begin = tl.minimum(full_begin * GROUP // BLOCK_M, end)",
    ),
    Bug(
        "last-rows-dropped",
        "attention",
        TILES,
        "tl.cdiv(stop * GROUP, BLOCK_M)",
        "stop * GROUP // BLOCK_M",
    ),
    Bug("gap-forgotten", "attention", TILES, "tl.where(i < jump, 0, gap)", "0"),
    Bug(
        "keys-of-the-next-sequence",
        "attention",
        FORWARD,
        "len_k, ends, stride_el, left",
        "len_k + 1, ends, stride_el, left",
    ),
    Bug(
        "sum-not-rescaled",
        "attention",
        FORWARD,
        "l = l * alpha + tl.sum(p, 1)",
        "l = l + tl.sum(p, 1)",
    ),
    Bug(
        "output-not-rescaled",
        "attention",
        FORWARD,
        "acc0 = acc0 * alpha[:, None] + dot",
        "acc0 = acc0 + dot",
    ),
    Bug(
        "masked-row-is-nan",
        "attention",
        FORWARD,
        'tl.where(m_new == float("-inf"), 0.0, m_new)',
        "m_new",
    ),
    Bug(
        "scale-dropped",
        "attention",
        TILES,
        "else softmax_scale * LOG2_E.value",
        "else LOG2_E.value",
    ),
    Bug("negative-scale-as-a-factor", "attention", TILES, "or not softmax_scale > 1e-30", ""),
    Bug(
        "softcap-in-base-e",
        "attention",
        TILES,
        "(scale / softcap)) * (softcap * LOG2_E)",
        "(scale / softcap)) * softcap",
    ),
    Bug("slope-of-the-cap-dropped", "attention", TILES, "return 1.0 - t * t", "return 1.0"),
    Bug(
        "heads-of-a-group-swapped",
        "attention",
        TILES,
        "(head * GROUP + row % GROUP) * stride_h",
        "(row % GROUP) * stride_h",
    ),
    Bug("delta-dropped", "attention", BACKWARD, "dp - row_delta[None, :]", "dp"),
    Bug(
        "dlse-has-the-wrong-sign",
        "attention",
        TILES,
        "delta -= tl.load(dlse",
        "delta += tl.load(dlse",
    ),
    Bug("dq-without-its-scale", "attention", BACKWARD, "dq0 * scale, real, 0", "dq0, real, 0"),
    Bug("dk-without-its-scale", "attention", BACKWARD, "dk0 * scale, real, 0", "dk0, real, 0"),
    Bug(
        "second-columns-of-dv",
        "attention",
        BACKWARD,
        "dv1 += dot(p.to(d1.dtype), d1)",
        "dv1 += dot(p.to(d1.dtype), d0)",
    ),
    Bug(
        "unseen-keys-are-read",
        "attention",
        FORWARD,
        "needed = (low <= last) & (high > first)",
        "needed = n < len_k",
    ),
    Bug(
        "blind-rows-are-read",
        "attention",
        BACKWARD,
        "needed & (position >= tl.min(low, 0))",
        "needed",
    ),
    Bug(
        "values-of-unseen-keys",
        "attention",
        FORWARD,
        "        if spoilt:",
        "        if not spoilt:",
    ),
    Bug(
        "lists-of-the-first-band", "attention", TILES, "band + tl.program_id(0)", "tl.program_id(0)"
    ),
    Bug("rows-of-the-first-band", "attention", FORWARD, "band + tile,", "tile,"),
    Bug("gradients-of-the-first-band", "attention", BACKWARD, "band + tile,", "tile,"),
    Bug(
        "sequences-past-the-first-lost",
        "attention",
        TILES,
        "        b -= 1\n",
        "        b = b * 0\n",
    ),
]


def documents() -> AttentionCase:
    """Two in one row: the first rows see no tile that the last ones see."""
    case = small(10, lengths=[(33, 33)], tree="nested", group=1, dim=16, value_dim=16)
    ends = torch.tensor([16] * 16 + [33] * 17, dtype=torch.int32)
    return replace(case, subtree_end=ends)


CASES = [
    small(0, lengths=[(3, 6), (33, 40)]),
    small(1, lengths=[(20, 37)], causal=False, window=(9, 3), dim=16),
    small(2, lengths=[(34, 34), (0, 2)], tree="nested", group=1),
    small(3, lengths=[(18, 20)], softcap=0.5, magnitude=3.0, kv_heads=2),
    small(4, lengths=[(20, 9)], softmax_scale=-0.3, group=1, packed=False),
    small(5, lengths=[(40, 40)], causal=False, window=(20, None), group=1, with_dlse=False),
    small(6, lengths=[(17, 60)], tree="any", group=2, dim=16),
    documents(),
]


def problem(gradients: bool) -> str | None:
    for case in CASES:
        try:
            wrong = violations(case, *run(case, "triton-16", gradients=gradients))
        except Exception as e:
            wrong = f"raised {type(e).__name__}: {e}"
        if wrong:
            return wrong
    return reads_garbage(gradients)


def reads_garbage(gradients: bool) -> str | None:
    """Keys behind the window of every query, rows before the first key; a value of a late key."""
    behind = small(7, lengths=[(9, 33)], window=(3, None))
    blind = small(8, lengths=[(35, 9)])
    spoilt = [
        (behind, {name: (slice(0, 21), torch.nan) for name in ("k", "v")}),
        (blind, {name: (slice(0, 26), torch.nan) for name in ("q", "dout")}),
    ]
    for case, garbage in spoilt:
        clean = run(case, "triton-16", gradients=gradients)
        got = run(changed(case, **garbage), "triton-16", gradients=gradients)
        if not all(torch.equal(x, y) for x, y in zip(got, clean, strict=True)):
            return "the result depends on what nobody sees"
    late = changed(small(9, lengths=[(9, 9)], group=1), v=(7, torch.nan))
    if run(late, "triton-16", gradients=False)[0][:7].isnan().any():
        return "a value reaches rows that do not see its key"
    return None


@pytest.fixture(autouse=True)
def _fresh_memory() -> Iterator[None]:
    """New tensors are filled, so that what an earlier call left in their memory hides no bug."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def planted(bug: Bug, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """What is wrong with the kernels, few tiles listed at a time and in a launch, or ``None``."""
    bug.plant(folder, monkeypatch)
    tiles = sys.modules[f"ridgeline.ops.{TILES}"]
    monkeypatch.setattr(tiles, "CHUNK", 2)
    monkeypatch.setattr(tiles, "BAND", 12)
    # The forward alone is quicker, and finds most bugs of what both share.
    passes = {FORWARD: (False,), BACKWARD: (True,)}.get(bug.module, (False, True))
    return next(filter(None, map(problem, passes)), None)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_found(bug: Bug, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert planted(bug, tmp_path, monkeypatch) is not None


def test_nothing_is_found_in_what_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert planted(Bug("none", "attention", "", "", ""), tmp_path, monkeypatch) is None
