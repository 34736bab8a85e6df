"""The suite finds bugs that are planted in the C++ core, and none in the core as it is."""

from pathlib import Path

import pytest
from core_mutation import CoreMutation, instruction_sets

from ridgeline.ops.common import core
from ridgeline.testing import problem, run

BF16 = "avx512_bf16"
LOOP, FP32, DOT = "decode_isa.cpp", "engine_fp32.h", "engine_bf16.h"
PLANTED = [
    CoreMutation(
        "first-token-too-late",
        "decode.h",
        "length(b) - query_len - window_left",
        "length(b) - window_left",
    ),
    CoreMutation("pages-behind-window-read", "decode.h", "window_left < 0 || t < 0 ? 0 : t", "0"),
    CoreMutation(
        "page-stride-in-int32",
        "paging.h",
        "page * a.key.page_stride",
        "int32_t(page * a.key.page_stride)",
    ),
    CoreMutation(
        "token-stride-in-int32",
        "paging.h",
        "offset * a.value.token_stride",
        "int32_t(offset * a.value.token_stride)",
    ),
    CoreMutation("page-offset-dropped", "paging.h", "offset = begin % a.page_size", "offset = 0"),
    CoreMutation(
        "value-at-the-key's-head",
        "paging.h",
        "piece.head_begin * a.value.head_stride",
        "piece.head_begin * a.key.head_stride",
    ),
    CoreMutation(
        "rope-of-the-page's-start", "paging.h", "rope + offset * a.rope.token_stride", "rope"
    ),
    CoreMutation("causal-top-left", LOOP, "position = length - a.query_len + i", "position = i"),
    CoreMutation("causal-excludes-itself", LOOP, "? position + 1 : length", "? position : length"),
    CoreMutation(
        "window-left-off-by-one", LOOP, "position - a.window_left)", "position - a.window_left + 1)"
    ),
    CoreMutation(
        "window-right-off-by-one",
        LOOP,
        "position + a.window_right + 1)",
        "position + a.window_right)",
    ),
    CoreMutation("window-right-0-is-none", LOOP, "a.window_right >= 0", "a.window_right > 0"),
    CoreMutation("tile's-end-unmasked", LOOP, "bool edge = tokens < s_.tile", "bool edge = false"),
    CoreMutation(
        "query-rows-interleaved",
        LOOP,
        "head = int64_t(h) * group + r % group",
        "head = int64_t(r % group) * a_.kv_heads + h",
    ),
    CoreMutation(
        "value-head-by-key's-stride",
        LOOP,
        "h * a_.value.head_stride, grew",
        "h * a_.key.head_stride, grew",
    ),
    CoreMutation(
        "merge-without-weights", LOOP, "den += w * l_of(part, h)[q]", "den += l_of(part, h)[q]"
    ),
    CoreMutation("lse-in-base-2", LOOP, "(top + std::log2(den)) * kLn2", "top + std::log2(den)"),
    CoreMutation("empty-row-is-nan", LOOP, "den == 0.0f ? 0.0f : 1.0f / den", "1.0f / den"),
    CoreMutation("no-rescaling", "softmax.h", "std::exp2(m_old - m_new)", "1.0f"),
    CoreMutation("masked-row-is-nan", "softmax.h", "return m == -kInf ? 0.0f : m", "return m"),
    CoreMutation(
        "softcap-in-base-e", "softmax.h", "Vec::set(softcap * kLog2e)", "Vec::set(softcap)"
    ),
    CoreMutation("softcap-dropped", "softmax.h", "if (softcap <= 0)", "if (true)"),
    CoreMutation(
        "exp2-to-the-2nd-order",
        "softmax.h",
        "p = Vec::fma(p, f, Vec::set(5.55073358e-2f))",
        "p = Vec::set(0.0f)",
    ),
    CoreMutation(
        "empty-sequence-not-written",
        "schedule.cpp",
        "(tokens + per - 1) / per : 1",
        "(tokens + per - 1) / per : 0",
    ),
    CoreMutation(
        "two-splits-not-merged",
        "schedule.cpp",
        "if (count > 1) s.groups",
        "if (count > 2) s.groups",
    ),
    CoreMutation("split-ends-early", "schedule.cpp", "begin + tokens)", "tokens)"),
    CoreMutation(
        "rope-forgotten", FP32, "pack(q + pad(nope_), rope, rope_)", "pack(q + pad(nope_), rope, 0)"
    ),
    CoreMutation("earlier-sum-forgotten", FP32, "l[r] = l[r] * c + sum.sum()", "l[r] = sum.sum()"),
    CoreMutation("mask-off-by-one", FP32, "hi[r] - t)", "hi[r] - t + 1)"),
    CoreMutation(
        "value-rounded-down", "simd.h", "(u + 0x7fff + (u >> 16 & 1)) >> 16", "(u - 0xffff) >> 16"
    ),
    CoreMutation(
        "subnormal-half-is-zero", "simd.h", "abs < 0x38800000", "abs < 0x38800000 && false"
    ),
    CoreMutation("bf16-rope-forgotten", DOT, "if (rope_) dot", "if (false) dot", BF16),
    CoreMutation(
        "bf16-second-chain-dropped",
        DOT,
        "acc[0][i][j], acc[CHAINS - 1][i][j]",
        "acc[0][i][j], acc[0][i][j]",
        BF16,
    ),
    CoreMutation(
        "bf16-lanes-as-they-lie",
        DOT,
        "row[d - i + (within / 4) * 16 + lane * 4 + within % 4]",
        "row[d]",
        BF16,
    ),
    CoreMutation(
        "bf16-mask-off-by-one",
        DOT,
        "_mm512_cmplt_epi32_mask(i, high)",
        "_mm512_cmple_epi32_mask(i, high)",
        BF16,
    ),
    CoreMutation(
        "bf16-correction-of-row-0",
        DOT,
        "_mm512_set1_ps(x.corr[r + i])",
        "_mm512_set1_ps(x.corr[r])",
        BF16,
    ),
    CoreMutation(
        "bf16-last-dims-dropped", DOT, "(1u << (n - d)) - 1", "(1u << (n - d - 1)) - 1", BF16
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
    ops = ("paged_decode", "tied_decode")
    assert any(problem(lambda case: run(case, f"cpu-{bug.isa}"), op) for op in ops)


@pytest.mark.parametrize("op", ["paged_decode", "tied_decode"])
def test_nothing_is_found_in_the_core(op, cpu_impl: str) -> None:
    assert problem(lambda case: run(case, cpu_impl), op) is None
