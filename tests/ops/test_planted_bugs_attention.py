"""The suite finds bugs planted in ``attention`` and ``subtree_end``, and none in what is right."""

import random

import pytest
from mutation import Mutation
from trees import layout_problem, random_segments

from ridgeline import subtree_end
from ridgeline.testing import problem, run
from ridgeline.testing.cases import AttentionCase

REFERENCE, TREE = "attention.reference", "attention.subtree_end"
MASKS, SOFTMAX = "common.masks", "common.softmax"
BUGS = [
    Mutation(
        "causal-top-left",
        MASKS,
        "arange(length - query_len, length)[:, None]\n    token",
        "arange(query_len)[:, None]\n    token",
    ),
    Mutation("causal-excludes-itself", MASKS, "token <= position\n", "token < position\n"),
    Mutation("causal-dropped", MASKS, "    if causal:", "    if False:"),
    Mutation(
        "window-left-off-by-one", MASKS, "position - window_left\n", "position - window_left + 1\n"
    ),
    Mutation("window-left-0-is-none", MASKS, "if window_left >= 0", "if window_left > 0"),
    Mutation("window-right-0-is-none", MASKS, "if window_right >= 0", "if window_right > 0"),
    Mutation(
        "window-right-off-by-one", MASKS, "position + window_right", "position + window_right - 1"
    ),
    Mutation(
        "subtree-not-causal",
        MASKS,
        "(key <= position) & (position < subtree_end)",
        "position < subtree_end",
    ),
    Mutation(
        "subtree-includes-its-end", MASKS, "position < subtree_end)", "position <= subtree_end)"
    ),
    Mutation(
        "subtree-top-left",
        MASKS,
        "arange(length - query_len, length, device=subtree_end.device)",
        "arange(query_len, device=subtree_end.device)",
    ),
    Mutation(
        "subtree-of-the-query",
        MASKS,
        "position < subtree_end)",
        "position < subtree_end[position.clamp(0)])",
    ),
    Mutation(
        "subtree-ignored",
        REFERENCE,
        "    if subtree_end is not None:\n        mask",
        "    if False:\n        mask",
    ),
    Mutation(
        "subtree-instead-of-the-window",
        REFERENCE,
        "mask &= masks.in_subtree",
        "mask = masks.in_subtree",
    ),
    Mutation("masked-row-is-nan", SOFTMAX, "total.clamp(min=1.0)", "total"),
    Mutation("finite-minus-infinity", SOFTMAX, "~mask, -torch.inf", "~mask, -1e4"),
    Mutation(
        "no-max-subtracted", SOFTMAX, "scores - top.masked_fill(top == -torch.inf, 0.0)", "scores"
    ),
    Mutation("lse-base-2", SOFTMAX, "total.log()", "total.log2()"),
    Mutation("scale-dropped", REFERENCE, "q, k) * scale\n", "q, k)\n"),
    Mutation("scale-positive-only", REFERENCE, "q, k) * scale\n", "q, k) * abs(scale)\n"),
    Mutation("default-scale-always", REFERENCE, "q, k) * scale\n", "q, k) * q.shape[-1] ** -0.5\n"),
    Mutation("scale-dropped-from-the-gradient", REFERENCE, " * slope * softmax_scale", " * slope"),
    Mutation("softcap-dropped", REFERENCE, "if softcap == 0:", "if True:"),
    Mutation("softcap-slope-dropped", REFERENCE, "softcap * t, 1 - t * t", "softcap * t, 1.0"),
    Mutation(
        "softcap-slope-of-the-capped-score",
        REFERENCE,
        "softcap * t, 1 - t * t",
        "softcap * t, 1 - (softcap * t) ** 2",
    ),
    Mutation(
        "softcap-slope-linear", REFERENCE, "softcap * t, 1 - t * t", "softcap * t, 1 - t.abs()"
    ),
    Mutation(
        "heads-interleaved",
        REFERENCE,
        "unflatten(1, (kv_heads, x.shape[1] // kv_heads))",
        "unflatten(1, (x.shape[1] // kv_heads, kv_heads)).transpose(1, 2)",
    ),
    Mutation(
        "gradient-heads-interleaved",
        REFERENCE,
        "grad = _grouped(dout[rows], kv_heads, dtype)",
        "grad = dout[rows].to(dtype).unflatten(1, (-1, kv_heads)).transpose(1, 2)",
    ),
    Mutation(
        "dk-of-the-first-head-of-a-group",
        REFERENCE,
        'torch.einsum("hgij,ihgd->jhd", ds, queries)',
        'torch.einsum("hgij,ihgd->jhd", ds[:, :1], queries[:, :, :1])',
    ),
    Mutation(
        "dv-of-the-first-head-of-a-group",
        REFERENCE,
        'torch.einsum("hgij,ihgd->jhd", p, grad)',
        'torch.einsum("hgij,ihgd->jhd", p[:, :1], grad[:, :, :1])',
    ),
    Mutation("delta-dropped", REFERENCE, "dp = dp - (p * dp).sum(-1, keepdim=True)", "dp = dp"),
    Mutation(
        "delta-is-the-mean",
        REFERENCE,
        "(p * dp).sum(-1, keepdim=True)",
        "dp.mean(-1, keepdim=True)",
    ),
    Mutation("lse-gradient-dropped", REFERENCE, "if dlse is not None", "if False"),
    Mutation("lse-gradient-subtracted", REFERENCE, "dp = dp + row", "dp = dp - row"),
    Mutation(
        "lse-gradient-of-other-heads",
        REFERENCE,
        "dlse[rows].to(dtype).T.unflatten(0, (kv_heads, -1))",
        "dlse[rows].to(dtype).T.unflatten(0, (-1, kv_heads)).transpose(0, 1)",
    ),
    Mutation(
        "dv-through-ds", REFERENCE, '"hgij,ihgd->jhd", p, grad)', '"hgij,ihgd->jhd", p * p, grad)'
    ),
    Mutation("scores-in-half", REFERENCE, "q, k) * scale\n", "q, k).half().to(q.dtype) * scale\n"),
    Mutation(
        "lse-of-other-heads",
        REFERENCE,
        "row_lse.flatten(0, 1).T",
        "row_lse.transpose(0, 1).flatten(0, 1).T",
    ),
    Mutation(
        "keys-of-the-queries-sequence",
        REFERENCE,
        "slice(starts_q[b], starts_q[b + 1]), slice(starts_k[b], starts_k[b + 1])",
        "slice(starts_q[b], starts_q[b + 1]), slice(starts_q[b], starts_q[b + 1])",
    ),
    Mutation(
        "last-sequence-dropped", REFERENCE, "range(len(starts_q) - 1)", "range(len(starts_q) - 2)"
    ),
    Mutation("batch-sees-the-first-keys", REFERENCE, "((b, b) for b", "((b, 0) for b"),
]
LAYOUT_BUGS = [
    Mutation("ends-of-children-forgotten", TREE, "ends[ancestor] = stops[i]", "pass"),
    Mutation(
        "only-the-parent's-end-moves", TREE, "for ancestor in path:", "for ancestor in path[-1:]:"
    ),
    Mutation("siblings-see-each-other", TREE, "path[-1] != parent:", "path[-1] > len(counts):"),
    Mutation(
        "positions-of-the-row",
        TREE,
        "torch.arange(len(end)) + shift.repeat_interleave(sizes)",
        "torch.arange(len(end))",
    ),
    Mutation(
        "a-child-starts-at-its-parent",
        TREE,
        "first[parent] + counts[parent] if path",
        "first[parent] if path",
    ),
    Mutation("repeated-token-forgotten", TREE, "[1 + n for n in", "[n for n in"),
    Mutation("prompt-keeps-its-last-token", TREE, "[prompt - 1, *branches]", "[prompt, *branches]"),
    Mutation(
        "rejected-follows-chosen", TREE, "[-1] + [0] * len(branches)", "[-1, *range(len(branches))]"
    ),
    Mutation("row-offset-forgotten", TREE, "x.subtree_end + start", "x.subtree_end + 0 * start"),
    Mutation("row-offset-twice", TREE, "x.subtree_end + start", "x.subtree_end + 2 * start"),
    Mutation(
        "documents-nest",
        TREE,
        "[-1] * len(_counts",
        "[-1, *range(99)][: len(lengths)] * bool(_counts",
    ),
]


def reference(case: AttentionCase):
    return run(case, "reference")


def layouts_problem() -> str | None:
    """What is wrong with the functions of ``subtree_end``, or ``None``."""
    rng = random.Random(0)
    for seed in range(10):
        p, *responses = (rng.randint(1, 5) for _ in range(4))
        pair = [(-1, p - 1), *((0, 1 + n) for n in responses[:2])]
        group = [(-1, p - 1), *((0, 1 + n) for n in responses)]
        tree = random_segments(seed)
        made = [
            (subtree_end.of_pair(p, *responses[:2]), pair),
            (subtree_end.of_responses(p, responses), group),
            (subtree_end.of_documents(responses), [(-1, n) for n in responses]),
            (subtree_end.of_tree(*zip(*tree, strict=True)), tree),
        ]
        row = []
        for _, segments in made:
            row += [(q + len(row) if q >= 0 else -1, n) for q, n in segments]
        made.append((subtree_end.concat([layout for layout, _ in made]), row))
        for layout, segments in made:
            if wrong := layout_problem(layout, segments):
                return wrong
    return None


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_found(bug: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    bug.plant(monkeypatch)
    assert problem(reference, "attention") is not None


@pytest.mark.parametrize("bug", LAYOUT_BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_in_the_layouts_is_found(
    bug: Mutation, monkeypatch: pytest.MonkeyPatch
) -> None:
    bug.plant(monkeypatch)
    try:
        wrong = layouts_problem()
    except Exception as e:
        wrong = f"raised {type(e).__name__}: {e}"
    assert wrong is not None


def test_nothing_is_found_in_what_is_right() -> None:
    assert problem(reference, "attention") is None
    assert layouts_problem() is None
