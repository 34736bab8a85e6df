"""The suite finds bugs that are planted in the kernels' sources, one line each."""

from pathlib import Path

import pytest
import torch
from triton_cases import compact
from triton_planting import Bug

from ridgeline.testing import MergeCase, poisoned, run, violations
from ridgeline.testing.poison import ENTRIES

TILES, SPLITS = "common.triton", "common.triton_splits"
PAGED, TIED, MERGE = "paged_decode.triton", "tied_decode.triton", "merge.triton"

BUGS = [
    Bug("causal-one-too-many", "paged_decode", TILES, "(distance <= 0)", "(distance <= 1)"),
    Bug("causal-dropped", "tied_decode", TILES, "    if CAUSAL:", "    if CAUSAL and WINDOW:"),
    Bug("causal-top-left", "paged_decode", SPLITS, "length - query_len + row //", "row //"),
    Bug(
        "queries-by-head",
        "tied_decode",
        SPLITS,
        "length - query_len + row // GROUP",
        "length - query_len + row % 3",
    ),
    Bug("window-left-wide", "paged_decode", TILES, "-distance <= win", "-distance - 1 <= win"),
    Bug(
        "window-right-0-is-none", "paged_decode", TILES, "(window_right < 0)", "(window_right < 1)"
    ),
    Bug(
        "window-skips-too-much",
        "paged_decode",
        TILES,
        "tl.maximum(length - query_len, window_left)",
        "tl.maximum(length, window_left)",
    ),
    Bug("int32-page-offset", "paged_decode", TILES, "other=0).to(tl.int64)\n\n", "other=0)\n\n"),
    Bug(
        "int32-token-offset",
        "paged_decode",
        PAGED,
        "token = (n % PAGE_SIZE).to(tl.int64)\n            k_rows",
        "token = n % PAGE_SIZE\n            k_rows",
    ),
    Bug("tail-is-read", "tied_decode", TIED, "needed = n < length", "needed = n < length + 1"),
    Bug(
        "v-lanes-not-zeroed",
        "paged_decode",
        PAGED,
        "v0 = load_tile(v_rows, needed,",
        "v0 = load_tile(v_rows, n >= 0,",
    ),
    Bug(
        "finite-minus-infinity",
        "paged_decode",
        PAGED,
        'seen, scores, float("-inf")',
        "seen, scores, -1e4",
    ),
    Bug(
        "no-guard-of-minus-infinity",
        "paged_decode",
        TILES,
        'tl.where(m_new == float("-inf"), 0.0, m_new)',
        "m_new",
    ),
    Bug("sum-not-rescaled", "paged_decode", TILES, "l * alpha + ", "l + "),
    Bug("output-not-rescaled", "tied_decode", TIED, "acc0 = acc0 * alpha[:, None]", "acc0 = acc0"),
    Bug("lse-in-base-2", "tied_decode", TILES, ") * LN_2)", "))"),
    Bug("not-normalised", "paged_decode", TILES, "acc0 / total", "acc0"),
    Bug(
        "second-key-tile-dropped",
        "paged_decode",
        PAGED,
        "scores += dot(q1,",
        "scores += 0 * dot(q1,",
    ),
    Bug(
        "second-value-tile-dropped",
        "tied_decode",
        TILES,
        "        if W1 > 0:\n            store_columns(out_rows",
        "        if W1 < 0:\n            store_columns(out_rows",
    ),
    Bug("rope-dropped", "tied_decode", TIED, "scores += dot(r0,", "scores += 0 * dot(r0,"),
    Bug(
        "rope-scaled-as-state",
        "tied_decode",
        TIED,
        "scores += dot(r0, tl.trans(k0))",
        "scores += dot(r0, tl.trans(k0)) * scale_of_state",
    ),
    Bug(
        "softcap-dropped",
        "paged_decode",
        PAGED,
        "            if SOFTCAP:",
        "            if SOFTCAP and K1 < 0:",
    ),
    Bug("tanh-without-tail", "paged_decode", TILES, "tl.abs(x) < 0.6", "tl.abs(x) < 6"),
    Bug(
        "v-scale-is-k-scale",
        "paged_decode",
        PAGED,
        "tl.load(v_scale + head * stride_vsh)",
        "tl.load(k_scale + head * stride_ksh)",
    ),
    Bug(
        "state-scale-not-in-values",
        "tied_decode",
        TIED,
        "            acc0 *= scale_of_state",
        "            acc0 *= 1.0",
    ),
    Bug("block-scale-interleaved", "tied_decode", TILES, "d // (DIM // BLOCKS)", "d % BLOCKS"),
    Bug(
        "heads-interleaved",
        "paged_decode",
        PAGED,
        "(head * GROUP + row % GROUP) * stride_qh",
        "(row % GROUP * KV_HEADS + head) * stride_qh",
    ),
    Bug(
        "chunk-too-short",
        "paged_decode",
        SPLITS,
        "tl.minimum(t + chunk, total * heads)",
        "tl.minimum(t + chunk - 1, total * heads)",
    ),
    Bug(
        "parts-unweighted", "paged_decode", SPLITS, "weight[:, :, None] * tl.load", "1.0 * tl.load"
    ),
    Bug(
        "last-part-dropped",
        "tied_decode",
        SPLITS,
        "parts = tl.cdiv(count, tl.cdiv(count, launched))",
        "parts = tl.cdiv(count, tl.cdiv(count, launched)) - 1",
    ),
    Bug(
        "slots-collide",
        "paged_decode",
        SPLITS,
        "slot = 2 * program + (begin == 0).to(tl.int32)",
        "slot = 2 * program",
    ),
    Bug("unseen-part-is-read", "merge", MERGE, '(part_lse != float("-inf"))', "(part < parts)"),
    Bug("merge-in-base-2", "merge", MERGE, "tl.exp(part_lse - base)", "tl.exp2(part_lse - base)"),
    Bug(
        "merge-takes-16-parts",
        "merge",
        MERGE,
        "    l = 0.0\n",
        "    l = 0.0\n    parts = tl.minimum(parts, 16)\n",
    ),
]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: f"{bug.op}-{bug.name}")
def test_a_planted_bug_is_found(bug: Bug, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bug.plant(tmp_path, monkeypatch)
    assert found(bug.op) is not None


@pytest.mark.parametrize("op", ["paged_decode", "tied_decode", "merge"])
def test_nothing_is_found_without_a_bug(
    op: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Bug("none", op, "", "", "").plant(tmp_path, monkeypatch)
    assert found(op) is None


def found(op: str) -> str | None:
    """What is wrong with the kernels of ``op``, or ``None``; an exception counts."""
    for i, case in enumerate(compact(op)):
        try:
            result = run(case, "triton-16")
            wrong = violations(case, *result)
            if wrong is None and not isinstance(case, MergeCase) and i == 0:
                again = run(poisoned(case, torch.nan, ENTRIES[0]), "triton-16")
                same = all(torch.equal(x, y) for x, y in zip(again, result, strict=True))
                wrong = None if same else "the result depends on memory that no query sees"
        except Exception as e:
            wrong = f"raised {type(e).__name__}: {e}"
        if wrong:
            return f"{wrong}\n{case}"
    return None
