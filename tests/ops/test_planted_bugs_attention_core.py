"""The suite finds bugs that are planted in the C++ kernels of attention."""

from functools import partial
from pathlib import Path

import pytest
from attention_core_cases import core_problem
from core_mutation import CoreMutation, instruction_sets

from ridgeline.ops.common import core
from ridgeline.testing import run

BF16 = "avx512_bf16"
PLAN, PACK = "attention.cpp", "attention_pack.h"
FORWARD, BACKWARD = "attention_forward.h", "attention_backward.h"
Bug = partial(CoreMutation, operation="attention")
PLANTED = [
    Bug("causal-top-left", PLAN, "shift = s.key_len - s.query_len", "shift = 0"),
    Bug("window-left-off-by-one", PLAN, "key + a.window_left + 1 - shift", "key + a.window_left"),
    Bug(
        "window-right-off-by-one", PLAN, "key - a.window_right - shift", "key - a.window_right + 1"
    ),
    Bug("window-right-0-is-none", PLAN, "a.window_right >= 0", "a.window_right > 0"),
    Bug("tree-sees-the-future", PLAN, "a.causal || a.subtree_end) lo", "a.causal) lo"),
    Bug("tree-end-of-the-first-sequence", PLAN, "(s.k_begin + key) * a.subtree_col", "key"),
    Bug("panel-full-if-one-is", PLAN, "std::max(full[p].lo, rows.lo)", "full[p].lo"),
    Bug("panel-seen-too-late", PLAN, "std::min(seen[p].lo, rows.lo)", "rows.lo"),
    Bug("packed-keys-at-the-queries", PLAN, "q[0], k[0],", "q[0], q[0],"),
    Bug("a-part-of-dq-too-few", BACKWARD, "i < sum.count", "i < sum.count - 1"),
    Bug("every-row-of-the-first-head", PACK, "r - token * group_", "0 * group_"),
    Bug("nan-of-a-later-key", FORWARD, "masked && kv.spoilt[p]", "false"),
    Bug("unseen-keys-in-gradients", BACKWARD, "s_.visible.lo[key] < s_.visible.hi[key]", "true"),
    Bug("no-rescaling", FORWARD, "if (i == 0 && rescale)", "if (false)"),
    Bug("earlier-sum-forgotten", FORWARD, "mine.l[row + r] * correction[r] + ", ""),
    Bug("mask-of-the-next-query", FORWARD, "lo + j, hi + j, query)", "lo + j, hi + j, query + 1)"),
    Bug("mask-ignores-the-group", FORWARD, "int(begin % group)}", "0}"),
    Bug("last-panel-dropped", FORWARD, "i < count; i += kStepPanels", "i + 1 < count; i += 1"),
    Bug("empty-row-is-nan", FORWARD, "l == 0.0f ? 0.0f : 1.0f / l", "1.0f / l"),
    Bug("lse-in-base-2", FORWARD, "(m + std::log2(l)) * kLn2", "m + std::log2(l)"),
    Bug("negative-scale-by-the-maximum", FORWARD, "|| !(a.scale > 0)", ""),
    Bug("softcap-without-slope", BACKWARD, "CAPPED ? x[j] * slope : x[j]", "x[j]"),
    Bug("gradients-unmasked", BACKWARD, "full ? nullptr : keys.rows", "true ? nullptr : keys.rows"),
    Bug("dlse-forgotten", BACKWARD, "dlse_ ? *dlse_(r) : 0.0f", "0.0f"),
    Bug("dlse-with-the-wrong-sign", BACKWARD, "0.0f) - sum.sum()", "0.0f) + sum.sum()"),
    Bug("dk-without-scale", BACKWARD, "f_.key_, a_.scale, a_.dk", "f_.key_, 1.0f, a_.dk"),
    Bug("dq-without-scale", BACKWARD, "(x[i] * scale).store_first", "x[i].store_first"),
    Bug(
        "dv-of-the-first-strip",
        BACKWARD,
        "keys.begin - b_.begin + i * kRows",
        "keys.begin - b_.begin",
    ),
    Bug("strips-between-not-cleared", BACKWARD, "std::memset(steps, 0,", "std::memset(steps, 65,"),
    Bug("dq-of-an-untouched-panel", BACKWARD, "m_.packed[r / kPanel] ?", "true ?"),
    Bug("unseen-rows-have-gradients", BACKWARD, "&& *lse_(begin + i) != -kInf", ""),
    Bug(
        "bf16-pairs-swapped",
        "attention_bf16.h",
        "put_pairs(out, raw(row[0]",
        "put_pairs(out, raw(row[1]",
        BF16,
    ),
    Bug("bf16-last-dims-dropped", "attention_bf16.h", "(dim - d)) - 1", "(dim - d - 1)) - 1", BF16),
    Bug(
        "bf16-odd-dims-even",
        "attention_bf16.h",
        "odd = _mm512_add_epi16(even, _mm512_set1_epi16(1))",
        "odd = even",
        BF16,
    ),
]


def planted() -> list[CoreMutation]:
    """Those for instruction sets that this machine has or can emulate."""
    return [bug for bug in PLANTED if core.missing() or bug.isa in instruction_sets()]


@pytest.mark.parametrize("bug", planted(), ids=[bug.name for bug in planted()])
def test_a_planted_bug_is_found(
    bug: CoreMutation, core_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = bug.build(core_base, tmp_path)
    monkeypatch.setattr(core, "load", lambda: module)
    assert core_problem(lambda case: run(case, f"cpu-{bug.isa}"))


def test_nothing_is_found_in_the_core(cpu_impl: str) -> None:
    assert core_problem(lambda case: run(case, cpu_impl)) is None
