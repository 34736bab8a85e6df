"""The checks of the other tests find bugs that are planted in layouts, packing and losses."""

from collections.abc import Callable

import pytest
from preference_cases import (
    PAD,
    check_batch,
    check_model,
    check_packing,
    check_token_logps,
    check_tree,
    check_trie,
    pair_sequences,
    random_pairs,
    random_sequences,
)
from test_preference_losses import check_loss, check_weights, doubles

from planting import plant
from ridgeline.training.preference import logps, rows, trees

__all__ = ["doubles"]  # TRL's losses are compared in float64


def pair_trees() -> None:
    for pair in random_pairs(0):
        check_tree(trees.of_pair(*pair), pair_sequences([pair]))
    check_tree(trees.of_pair([1], [2], [2]), [([1], [2])] * 2)


def tries() -> None:
    for seed in range(40):
        check_trie(random_sequences(seed))


def batches() -> None:
    for seed in range(3):
        pairs = random_pairs(seed)
        forest = [trees.of_pair(*p) for p in pairs]
        for how in ({}, {"budget": 40}, {"pad_to_multiple_of": 16}):
            batch = rows.collate(forest, pad_token_id=PAD, **how)
            check_batch(batch, pair_sequences(pairs))
            assert batch.input_ids.shape[1] % how.get("pad_to_multiple_of", 1) == 0
            assert batch.counts.physical_tokens == sum(map(len, forest))
            assert batch.counts.equal_responses == 0
    again = rows.collate([trees.of_pair([1], [2], [2])])
    assert again.counts.equal_responses == 1


def bins() -> None:
    check_packing([5, 3, 8, 1, 2, 7, 4, 4, 6], 10)
    check_packing([9, 9, 1, 1, 5, 5, 3, 7, 2, 2, 2], 11)


def models() -> None:
    pairs = random_pairs(4)
    check_model([trees.of_pair(*p) for p in pairs], pair_sequences(pairs), budget=60)


def heads() -> None:
    for kind in ("tensor", "module"):
        check_token_logps(logps.LogitTransform(2.0, 1.7, 0.6), 5, kind)


def loss(name: str, **how: object) -> Callable[[], None]:
    return lambda: check_loss(name, **how)


TREES, ROWS, PACKING, LOGPS, RESPONSES, LOSSES = (
    f"ridgeline.training.preference.{name}"
    for name in ("trees", "rows", "packing", "logps", "responses", "losses")
)
PLANTED = {
    "no-copy-of-the-last-token": (pair_trees, TREES, "torch.cat([prompt[-1:], x])", "x"),
    "copy-of-the-first-token": (pair_trees, TREES, "[prompt[-1:], x]", "[prompt[:1], x]"),
    "last-token-in-the-prompt-too": (pair_trees, TREES, "[prompt[:-1], *br", "[prompt, *br"),
    "branches-in-a-chain": (
        pair_trees,
        TREES,
        "[-1] + [0] * len(branches)",
        "list(range(-1, len(branches)))",
    ),
    "labels-not-shifted": (
        pair_trees,
        TREES,
        "input_ids[at[prompt:]]",
        "input_ids[at[prompt - 1 : -1]]",
    ),
    "first-token-not-scored": (
        pair_trees,
        TREES,
        "score_index.append(at[prompt - 1 : -1])",
        "score_index.append(at[prompt:-1])",
    ),
    "logical-tokens-of-one": (pair_trees, TREES, "+ 2).sum())", "+ 2).max())"),
    "chosen-as-rejected": (
        pair_trees,
        TREES,
        'ids("rejected", rejected)',
        'ids("rejected", chosen)',
    ),
    "no-copy-in-a-trie": (tries, TREES, "if scored > 1:", "if scored > 9:"),
    "always-a-copy-in-a-trie": (tries, TREES, "if scored > 1:", "if scored > 0:"),
    "ended-stay-behind": (tries, TREES, "leaf[i] = this + 1", "leaf[i] = this"),
    "branches-reversed": (
        tries,
        TREES,
        "for group in reversed(groups)]",
        "for group in groups]",
    ),
    "common-to-the-first-two": (tries, TREES, "for i in members[1:]:", "for i in members[1:2]:"),
    "common-beyond-the-shortest": (tries, TREES, "min(len(whole[i])", "max(len(whole[i])"),
    "ends-not-moved": (batches, ROWS, "tree.subtree_end + start", "tree.subtree_end"),
    "padding-sees-padding": (
        batches,
        ROWS,
        "ends = torch.arange(1, length + 1",
        "ends = torch.full((length,), length",
    ),
    "padding-is-labelled": (batches, ROWS, "IGNORE, dtype", "0, dtype"),
    "rows-in-place-of-trees": (
        batches,
        ROWS,
        "zip(trees, origin, strict=True)",
        "zip(trees, sorted(origin), strict=True)",
    ),
    "scores-of-the-first-row": (
        batches,
        ROWS,
        "origin[i] = b * length + start",
        "origin[i] = start",
    ),
    "positions-of-the-row": (
        batches,
        ROWS,
        "= tree.position_ids\n",
        "= torch.arange(sizes[i]) + start\n",
    ),
    "not-padded-to-a-multiple": (batches, ROWS, "length += -length % pad_to_multiple_of", "pass"),
    "tokens-counted-with-padding": (
        batches,
        ROWS,
        "physical_tokens=sum(sizes)",
        "physical_tokens=input_ids.numel()",
    ),
    "responses-numbered-by-tree": (
        batches,
        ROWS,
        "torch.arange(responses).repeat",
        "(torch.arange(responses) // 2).repeat",
    ),
    "equal-responses-not-counted": (
        batches,
        ROWS,
        "sum(tree.equal_responses for tree in trees)",
        "0",
    ),
    "next-fit": (
        bins,
        PACKING,
        "node += self.most[node] < tokens",
        "node += self.most[node] <= tokens",
    ),
    "increasing": (bins, PACKING, "key=lambda i: -lengths[i]", "key=lambda i: lengths[i]"),
    "room-not-taken": (bins, PACKING, "max(self.most[2 * node]", "min(self.most[2 * node]"),
    "unordered-rows": (bins, PACKING, "[sorted(row) for row in rows]", "rows"),
    "softmax-not-subtracted": (heads, LOGPS, ".exp_().neg_()", ".exp_()"),
    "gradient-of-ones": (heads, LOGPS, "g.mul_(grad[some, None])", "g.mul_(1.0)"),
    "slope-forgotten": (heads, LOGPS, ".mul_(slope)", ""),
    "slope-without-temperature": (
        heads,
        LOGPS,
        "self.temperature / self.softcap",
        "1 / self.softcap",
    ),
    "softcap-of-the-product": (
        heads,
        LOGPS,
        "(x / self.softcap).tanh()",
        "(y / self.softcap).tanh()",
    ),
    "bias-learns-a-chunk": (heads, LOGPS, "grad_bias += g", "grad_bias = g"),
    "weight-learns-a-chunk": (heads, LOGPS, "grad_weight += g.T", "grad_weight = g.T"),
    "the-first-token-for-all": (
        heads,
        LOGPS,
        "x.gather(1, targets[:, None])",
        "x.gather(1, targets[:, None] * 0)",
    ),
    "temperature-forgotten": (heads, LOGPS, "return x / self.temperature", "return x"),
    "tokens-of-one-response": (
        models,
        RESPONSES,
        "batch.response_ids, found)",
        "batch.response_ids * 0, found)",
    ),
    "masked-labels-scored": (models, LOGPS, "(labels != IGNORE)", "(labels != 0)"),
    "weights-ignored": (
        check_weights,
        RESPONSES,
        "found = found * weights.to(found.dtype)",
        "pass",
    ),
    "ld-of-the-longer": (check_weights, RESPONSES, "torch.minimum(", "torch.maximum("),
    "ld-one-token-early": (check_weights, RESPONSES, "< shorter[", "< -1 + shorter["),
    "wpo-of-sums": (check_weights, RESPONSES, "/ batch.response_lengths\n", "\n"),
    "mean-over-the-micro-batch": (
        check_weights,
        LOSSES,
        "if step_pairs is None else step_pairs",
        "if True else step_pairs",
    ),
    "tokens-over-pairs": (
        check_weights,
        LOSSES,
        'step_chosen_tokens if name == "sft"',
        'step_pairs if name == "sft"',
    ),
    "ipo-of-sums": (loss("ipo"), LOSSES, "chosen / pairs.chosen_lengths", "chosen"),
    "ipo-lengths-swapped": (
        loss("ipo"),
        LOSSES,
        "rejected / pairs.rejected_lengths",
        "rejected / pairs.chosen_lengths",
    ),
    "robust-sign": (loss("robust"), LOSSES, "(margin) + flipped", "(margin) - flipped"),
    "robust-scale": (loss("robust"), LOSSES, "(1 - 2 * flipped)", "(1 - flipped)"),
    "aot-unsorted": (loss("aot"), LOSSES, "ref_rejected).sort(0).values", "ref_rejected)"),
    "aot-unpaired-unsorted": (loss("aot_unpaired"), LOSSES, "rejected.sort(0).values", "rejected"),
    "smoothing-forgotten": (loss("aot"), LOSSES, "(margin) - flipped *", "(margin) - 0 *"),
    "apo-without-beta": (
        loss("apo_down"),
        LOSSES,
        "torch.sigmoid(chosen - rejected)",
        "torch.sigmoid(pairs.chosen_logratios - rejected)",
    ),
    "nca-half": (loss("nca_pair"), LOSSES, "- 0.5 * (F", "- 1.0 * (F"),
    "sppo-goal": (
        loss("sppo_hard"),
        LOSSES,
        "rejected_logratios + goal",
        "rejected_logratios - goal",
    ),
    "exo-epsilons-swapped": (loss("exo_pair"), LOSSES, "math.log1p(-epsilon)", "math.log(epsilon)"),
    "discopop-blend": (loss("discopop"), LOSSES, "margin / options.discopop_tau", "margin"),
    "reward-without-reference": (
        loss("bco_pair"),
        LOSSES,
        "return self.chosen - self.ref_chosen",
        "return self.chosen",
    ),
    "js-sign": (
        loss("hinge", f_divergence="js_divergence"),
        LOSSES,
        "F.logsigmoid(x) for x",
        "F.logsigmoid(-x) for x",
    ),
    "forward-kl-sign": (
        loss("sigmoid", f_divergence="forward_kl"),
        LOSSES,
        "(-x).exp() for",
        "x.exp() for",
    ),
}


def test_without_bugs_every_check_passes():
    for check in dict.fromkeys(check for check, *_ in PLANTED.values()):
        check()


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_found(name, monkeypatch):
    check, module, old, new = PLANTED[name]
    new = {"list(range(-1, len(branches)))": "list(range(-1, len(branches)))"}.get(
        new, new.replace("PAD, dtype", "99, dtype")
    )
    plant(monkeypatch, module, old, new, "ridgeline.training.preference")
    with pytest.raises((AssertionError, RuntimeError, IndexError, ValueError)):
        check()
