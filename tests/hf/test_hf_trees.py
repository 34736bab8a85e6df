"""Rows that share prefixes, by ``subtree_end``, against each sequence alone."""

import pytest
import torch
from hf_cases import MODELS, TOLERANCE, VOCAB, exactly, tiny, tokens
from torch import Tensor

from ridgeline import subtree_end
from ridgeline.ops.attention.subtree_end import Layout


def tree(name: str) -> tuple[Layout, list[list[int]]]:
    """A layout, and for each sequence in it the places of its tokens in the row."""
    match name:
        case "pair":  # 9 tokens of prompt: past every window of the tests
            shared = list(range(8))
            return subtree_end.of_pair(9, 4, 6), [
                [*shared, *range(8, 13)],
                [*shared, *range(13, 20)],
            ]
        case "short":  # no sequence is longer than a window
            return subtree_end.of_pair(3, 2, 3), [[0, 1, *range(2, 5)], [0, 1, *range(5, 9)]]
        case "edge":  # one token past the windows of the tests
            shared = list(range(3))
            return subtree_end.of_pair(4, 4, 3), [[*shared, *range(3, 8)], [*shared, *range(8, 12)]]
        case "rollouts":
            shared = list(range(4))
            return subtree_end.of_responses(5, [3, 4, 9]), [
                [*shared, *range(4, 8)],
                [*shared, *range(8, 13)],
                [*shared, *range(13, 23)],
            ]
        case "deep":
            layout = subtree_end.of_tree([-1, 0, 1, 1, 0], [4, 3, 5, 2, 6])
            return layout, [
                [*range(4), *range(4, 7), *range(7, 12)],
                [*range(4), *range(4, 7), *range(12, 14)],
                [*range(4), *range(14, 20)],
            ]
        case "documents":
            return subtree_end.of_documents([9, 11]), [list(range(9)), list(range(9, 20))]
    raise ValueError(name)


TREES = ["pair", "short", "edge", "rollouts", "deep", "documents"]


def row_of(layout: Layout) -> Tensor:
    """Token ids ``[1, L]``."""
    return tokens(1, len(layout.subtree_end))


def keywords(layout: Layout) -> dict[str, Tensor]:
    return {"position_ids": layout.position_ids[None], "subtree_end": layout.subtree_end[None]}


@pytest.fixture(scope="module", params=list(MODELS))
def model(request: pytest.FixtureRequest):
    return tiny(request.param)


def check(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("use_cache", [False, True], ids=["uncached", "prefill"])
@pytest.mark.parametrize("name", TREES)
def test_each_sequence_is_as_alone(model, name: str, use_cache: bool) -> None:
    layout, sequences = tree(name)
    ids = row_of(layout)
    got = model(ids, **keywords(layout), use_cache=use_cache).logits[0]
    for places in sequences:
        check(got[places], exactly(model, ids[:, places], use_cache=False)[0])


@pytest.mark.parametrize("padding", ["own-ends", "right", "left"])
def test_rows_of_different_trees_and_padding(model, padding: str) -> None:
    """Padding as tokens that only themselves see, or by an attention mask whatever their ends."""
    names, length = ("pair", "short"), 24
    ids, positions = tokens(2, length), torch.zeros(2, length, dtype=torch.int64)
    ends = torch.arange(1, length + 1, dtype=torch.int32).repeat(2, 1)
    if padding != "own-ends":
        ends.fill_(length + 1)
    mask, starts = torch.zeros_like(ids), []
    for b, name in enumerate(names):
        layout = tree(name)[0]
        n = len(layout.subtree_end)
        start = length - n if padding == "left" else 0
        row = slice(start, start + n)
        positions[b, row], mask[b, row] = layout.position_ids, 1
        # A tree may end with its row.
        open_end = layout.subtree_end == n if padding == "right" else torch.zeros(n, dtype=bool)
        ends[b, row] = (layout.subtree_end + start).masked_fill(open_end, length)
        starts.append(start)
    kwargs = {} if padding == "own-ends" else {"attention_mask": mask}
    got = model(ids, position_ids=positions, subtree_end=ends, use_cache=False, **kwargs).logits
    assert got.isfinite().all()
    for b, (name, start) in enumerate(zip(names, starts, strict=True)):
        for places in tree(name)[1]:
            alone = ids[b : b + 1, start:][:, places]
            want = exactly(model, alone, use_cache=False)[0]
            check(got[b, start:][places], want)


def test_one_branch_never_reaches_another(model) -> None:
    """Not by a bit: what changes in one sequence changes nothing in the others."""
    layout, (chosen, rejected) = tree("pair")
    ids = row_of(layout)
    other = ids.clone()
    alone = [i for i in chosen if i not in rejected]
    other[0, alone] = 1 + other[0, alone] % (VOCAB - 1)
    first, second = (model(x, **keywords(layout)).logits[0] for x in (ids, other))
    assert torch.equal(first[rejected], second[rejected])
    assert not torch.equal(first[alone], second[alone])


def gradients(model, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def same_gradients(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    for name, g in got.items():
        scale = want[name].abs().max().clamp(min=1)
        assert (g - want[name]).abs().max() <= TOLERANCE * scale, name


def loss_of_row(model, name: str) -> Tensor:
    """A loss of each sequence's last three predictions."""
    layout, sequences = tree(name)
    logits = model(row_of(layout), **keywords(layout), use_cache=False).logits[0]
    return sum(logits[places[-3:]].square().sum() for places in sequences)


def loss_alone(model, name: str) -> Tensor:
    layout, sequences = tree(name)
    ids = row_of(layout)
    return sum(
        exactly(model, ids[:, places], use_cache=False)[0, -3:].square().sum()
        for places in sequences
    )


@pytest.mark.parametrize("name", ["pair", "deep"])
def test_gradients(model, name: str) -> None:
    got = gradients(model, loss_of_row(model, name))
    same_gradients(got, gradients(model, loss_alone(model, name)))


@pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "reentrant"])
def test_gradient_checkpointing(model, reentrant: bool) -> None:
    want = gradients(model, loss_of_row(model, "pair"))
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    try:
        if reentrant:
            model.enable_input_require_grads()
        same_gradients(gradients(model, loss_of_row(model, "pair")), want)
    finally:
        model.gradient_checkpointing_disable()
        if reentrant:
            model.disable_input_require_grads()
        model.eval()


@pytest.mark.parametrize("name", ["mistral", "gemma2"])
def test_autocast(name: str) -> None:
    """float32 weights under autocast to bfloat16: the kernels get one dtype."""
    model = tiny(name, torch.float32)
    layout, sequences = tree("pair")
    ids = row_of(layout)
    with torch.autocast("cpu", torch.bfloat16):
        # Without a cache q and k come wider than v: the rotation is float32.
        got = model(ids, **keywords(layout), use_cache=False).logits[0]
        for places in sequences:
            model.set_attn_implementation("eager")
            want = model(ids[:, places]).logits[0]
            model.set_attn_implementation("ridgeline")
            assert (got[places] - want).norm() <= 0.05 * want.norm()


def test_explicit_mask_of_the_tree(model) -> None:
    """The same row by a square mask, which only the oracle takes. Windows count in sequences."""
    layout, _ = tree("short" if getattr(model.config, "sliding_window", None) else "deep")
    end, place = layout.subtree_end, torch.arange(len(layout.subtree_end))
    visible = (place[None] <= place[:, None]) & (place[:, None] < end[None])
    ids = row_of(layout)
    masks = visible[None, None]
    if "gemma" in model.config.model_type:
        masks = {"full_attention": masks, "sliding_attention": masks}
    want = exactly(model, ids, attention_mask=masks, position_ids=layout.position_ids[None])
    check(model(ids, **keywords(layout)).logits, want)
