"""The suite finds bugs that are planted on purpose, and none in what is right.

Each mutation is one plausible slip, most of them bugs that users of attention libraries have met:
a top-left causal limit, a dropped scale, a page tail that is read, a merge that forgets a weight.
"""

import pytest
from mutation import Mutation
from torch import Tensor

from ridgeline.ops.merge import reference as merge_reference
from ridgeline.testing import problem, run
from ridgeline.testing.cases import DecodeCase, MergeCase

MASKS, PAGING, SOFTMAX = "common.masks", "common.paging", "common.softmax"
PAGED, TIED, MERGE = "paged_decode.reference", "tied_decode.reference", "merge.reference"
BOTH = [
    Mutation("causal-top-left", MASKS, "arange(length - query_len, length)", "arange(query_len)"),
    Mutation("causal-excludes-itself", MASKS, "token <= position\n", "token < position\n"),
    Mutation("causal-one-too-many", MASKS, "token <= position\n", "token <= position + 1\n"),
    Mutation("causal-dropped", MASKS, "    if causal:", "    if False:"),
    Mutation("causal-always", MASKS, "    if causal:", "    if True:"),
    Mutation("page-off-by-one", PAGING, "tokens % page_size]", "(tokens + 1) % page_size]"),
    Mutation("page-order-reversed", PAGING, "pages[tokens", "pages.flip(0)[tokens"),
    Mutation(
        "page-ids-ignored", PAGING, "pages[tokens // page_size].long()", "tokens // page_size"
    ),
    Mutation("reads-a-page-tail", PAGING, "arange(start, stop,", "arange(start + 1, stop + 1,"),
    Mutation("last-token-dropped", PAGING, "arange(start, stop,", "arange(start, stop - 1,"),
    Mutation("scale-dropped", PAGING, "return x * scale.to(dtype).reshape(-1, 1)", "return x"),
    Mutation(
        "block-scale-dropped",
        PAGING,
        "return x * s.repeat_interleave(",
        "return x + 0 * s.repeat_interleave(",
    ),
    Mutation(
        "block-scale-interleaved",
        PAGING,
        "s.repeat_interleave(x.shape[-1] // s.shape[-1], dim=-1)",
        "s.tile(x.shape[-1] // s.shape[-1])",
    ),
    Mutation(
        "block-scale-of-page-0", PAGING, "s = gather(scale, pages,", "s = gather(scale, pages * 0,"
    ),
    Mutation(
        "no-max-subtracted", SOFTMAX, "scores - top.masked_fill(top == -torch.inf, 0.0)", "scores"
    ),
    Mutation("mask-after-max", SOFTMAX, "scores.masked_fill(~mask, -torch.inf)", "scores * mask"),
    Mutation("finite-minus-infinity", SOFTMAX, "~mask, -torch.inf", "~mask, -1e4"),
    Mutation("not-normalised", SOFTMAX, "e / total.clamp(min=1.0)", "e"),
    Mutation("lse-without-max", SOFTMAX, "top + total.log()", "total.log()"),
    Mutation("lse-base-2", SOFTMAX, "total.log()", "total.log2()"),
    Mutation("masked-row-is-nan", SOFTMAX, "total.clamp(min=1.0)", "total"),
]
ONLY_PAGED = [
    Mutation(
        "window-left-off-by-one", MASKS, "position - window_left\n", "position - window_left + 1\n"
    ),
    Mutation(
        "window-left-wide",
        MASKS,
        "token >= position - window_left\n",
        "token >= position - window_left - 1\n",
    ),
    Mutation("window-left-0-is-none", MASKS, "if window_left >= 0", "if window_left > 0"),
    Mutation("window-right-0-is-none", MASKS, "if window_right >= 0", "if window_right > 0"),
    Mutation(
        "window-right-off-by-one", MASKS, "position + window_right", "position + window_right - 1"
    ),
    Mutation("window-right-dropped", MASKS, "if window_right >= 0", "if False"),
    Mutation(
        "window-start-too-late", MASKS, "length - query_len - window_left)", "length - window_left)"
    ),
    Mutation(
        "pages-behind-window-read",
        MASKS,
        "return 0 if window_left < 0 else max(0, length - query_len - window_left)",
        "return 0",
    ),
    Mutation(
        "v-scale-is-k-scale", PAGED, 'v_cache, v_scale, "v_scale"', 'v_cache, k_scale, "v_scale"'
    ),
    Mutation("softcap-dropped", PAGED, "if softcap > 0", "if False"),
    Mutation(
        "softcap-before-scale",
        PAGED,
        "softcap * torch.tanh(scores / softcap)",
        "softcap * torch.tanh(scores / softcap / softmax_scale) * softmax_scale",
    ),
    Mutation("scale-dropped-from-scores", PAGED, " * softmax_scale\n", "\n"),
    Mutation("scale-positive-only", PAGED, " * softmax_scale\n", " * abs(softmax_scale)\n"),
    Mutation("default-scale-always", PAGED, " * softmax_scale\n", " * q.shape[-1] ** -0.5\n"),
    Mutation(
        "heads-interleaved",
        PAGED,
        "unflatten(1, (kv_heads, heads // kv_heads))",
        "unflatten(1, (heads // kv_heads, kv_heads)).transpose(1, 2)",
    ),
    Mutation(
        "first-kv-head-only",
        PAGED,
        '"ihgd,nhd->ihgn", rows, k)',
        '"ihgd,nhd->ihgn", rows, k[:, :1].expand_as(k))',
    ),
    Mutation(
        "scores-in-half",
        PAGED,
        " * softmax_scale\n",
        " * softmax_scale\n        scores = scores.half().to(dtype)\n",
    ),
    Mutation("lse-of-first-query", PAGED, "row_lse.flatten(1, 2)", "row_lse.flatten(1, 2)[:1]"),
    Mutation(
        "empty-sequence-skipped",
        PAGED,
        "        start, stop = first[b], lengths[b]\n",
        "        start, stop = first[b], lengths[b]\n        if stop == 0:\n            continue\n",
    ),
]
ONLY_TIED = [
    Mutation(
        "rope-dropped", TIED, '(scores + torch.einsum("ihgd,nd->ihgn", rope_rows, rope))', "scores"
    ),
    Mutation(
        "rope-unscaled",
        TIED,
        '(scores + torch.einsum("ihgd,nd->ihgn", rope_rows, rope)) * softmax_scale',
        'scores * softmax_scale + torch.einsum("ihgd,nd->ihgn", rope_rows, rope)',
    ),
    Mutation("key-is-the-state's-end", TIED, "state[..., :nope_dim]", "state[..., -nope_dim:]"),
    Mutation(
        "value-is-the-key",
        TIED,
        '"ihgn,nhd->ihgd", p, state)',
        '"ihgn,nhd->ihgd", p, state * (torch.arange(state.shape[-1]) < nope_dim))',
    ),
    Mutation(
        "tied-scale-from-width",
        TIED,
        " * softmax_scale\n",
        " * (nope_dim + q_rope.shape[-1]) ** -0.5\n",
    ),
    Mutation(
        "state-heads-interleaved",
        TIED,
        "groups = lse.dtype, (state_heads, heads // state_heads)",
        "groups = lse.dtype, (heads // state_heads, state_heads)",
    ),
    Mutation("state-scale-dropped", TIED, "state_cache, state_scale,", "state_cache, None,"),
]
ONLY_MERGE = [
    Mutation("plain-mean", MERGE, "(w * parts).sum(0).to", "parts.mean(0).to"),
    Mutation(
        "unseen-part-used",
        MERGE,
        "    parts = outs.to(lses.dtype).masked_fill(_unseen(lses), 0.0)\n    return",
        "    parts = outs.to(lses.dtype)\n    return",
    ),
    Mutation(
        "lse-is-the-largest",
        MERGE,
        ", lse.contiguous()\n\n\ndef merge_backward",
        ", lses.amax(0)\n\n\ndef merge_backward",
    ),
    Mutation(
        "weights-in-base-2",
        MERGE,
        "masked_softmax(lses.movedim(0, -1)",
        "masked_softmax(0.6931 * lses.movedim(0, -1)",
    ),
    Mutation(
        "first-part-dropped",
        MERGE,
        "(w * parts).sum(0).to",
        "(w * parts)[len(w) > 1 :].sum(0).to",
    ),
]
PLANTED = [
    *(("paged_decode", m) for m in BOTH + ONLY_PAGED),
    *(("tied_decode", m) for m in BOTH + ONLY_TIED),
    *(("merge", m) for m in ONLY_MERGE),
]


def reference(case: DecodeCase | MergeCase) -> tuple[Tensor, Tensor]:
    if isinstance(case, MergeCase):
        return merge_reference.merge(case.outs, case.lses)
    return run(case, "reference")


@pytest.mark.parametrize(("op", "bug"), PLANTED, ids=[f"{op}-{bug.name}" for op, bug in PLANTED])
def test_a_planted_bug_is_found(op, bug: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    bug.plant(monkeypatch)
    assert problem(reference, op, fp8=True) is not None


@pytest.mark.parametrize("op", ["paged_decode", "tied_decode", "merge"])
def test_nothing_is_found_in_the_reference(op) -> None:
    assert problem(reference, op, fp8=True) is None
