"""Ridgeline's own models on rows that share prefixes: every variant against each sequence alone."""

import pytest
import torch
from model_cases import FP64_ROUNDING, VARIANTS, tiny_model, tokens
from torch import Tensor

from ridgeline import subtree_end

# A pair and a document, padded: sequences as their places in the row.
LAYOUT = subtree_end.concat([subtree_end.of_pair(6, 4, 5), subtree_end.of_documents([7])])
LENGTH = len(LAYOUT.subtree_end)
PROMPT = list(range(5))
SEQUENCES = [[*PROMPT, *range(5, 10)], [*PROMPT, *range(10, 16)], list(range(16, 23))]
TREE = {"position_ids": LAYOUT.position_ids[None], "subtree_end": LAYOUT.subtree_end[None]}
PADDING = 3


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest):
    return tiny_model(request.param)


def check(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, atol=FP64_ROUNDING, rtol=FP64_ROUNDING)


@pytest.mark.parametrize("positions", [True, False], ids=["positions", "default-positions"])
def test_each_sequence_is_as_alone(model, positions: bool) -> None:
    ids = tokens(1, LENGTH)
    tree = dict(TREE) if positions else {"subtree_end": TREE["subtree_end"]}
    got = model(ids, **tree).logits[0]
    for places in SEQUENCES:
        check(got[places], model(ids[:, places], use_cache=False).logits[0])


def test_padding_right_of_a_row(model) -> None:
    """Its ends may be any that ``attention`` takes: the mask says that nothing sees it."""
    ids = tokens(1, LENGTH + PADDING)
    mask = torch.ones_like(ids)
    mask[:, LENGTH:] = 0
    pad = torch.nn.functional.pad
    tree = {
        "position_ids": pad(TREE["position_ids"], (0, PADDING)),
        "subtree_end": pad(TREE["subtree_end"], (0, PADDING), value=LENGTH + PADDING + 1),
    }
    got = model(ids, attention_mask=mask, **tree).logits[0]
    for places in SEQUENCES:
        check(got[places], model(ids[:, places], use_cache=False).logits[0])


@pytest.mark.parametrize("side", ["unpadded", "left", "right"])
def test_positions_that_restart_are_documents(model, side: str) -> None:
    ids = tokens(1, 15)
    positions = torch.cat((torch.arange(6), torch.arange(9)))[None]
    want = [model(x, use_cache=False).logits for x in ids.split([6, 9], dim=1)]
    kwargs = {"position_ids": positions, "use_cache": False}
    if side != "unpadded":
        width = (PADDING, 0) if side == "left" else (0, PADDING)
        ids, kwargs["position_ids"] = (
            torch.nn.functional.pad(x, width) for x in (ids, kwargs["position_ids"])
        )
        kwargs["attention_mask"] = torch.nn.functional.pad(torch.ones_like(positions), width)
    got = model(ids, **kwargs).logits
    real = slice(PADDING, None) if side == "left" else slice(15)
    check(got[:, real], torch.cat(want, dim=1))


def gradients(model, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def loss_of_row(model) -> Tensor:
    logits = model(tokens(1, LENGTH), **TREE).logits[0]
    return sum(logits[places[-3:]].square().sum() for places in SEQUENCES)


def test_gradients(model) -> None:
    alone = (model(tokens(1, LENGTH)[:, places], use_cache=False).logits for places in SEQUENCES)
    want = gradients(model, sum(x[0, -3:].square().sum() for x in alone))
    for name, got in gradients(model, loss_of_row(model)).items():
        error = (got - want[name]).abs().max()
        assert error <= FP64_ROUNDING * want[name].abs().max().clamp(min=1), name


@pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "reentrant"])
def test_gradient_checkpointing(model, reentrant: bool) -> None:
    want = gradients(model, loss_of_row(model))
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    try:
        if reentrant:
            model.enable_input_require_grads()
        got = gradients(model, loss_of_row(model))
    finally:
        model.gradient_checkpointing_disable()
        if reentrant:
            model.disable_input_require_grads()
        model.eval()
    for name, g in got.items():
        torch.testing.assert_close(g, want[name], atol=0, rtol=FP64_ROUNDING)


BAD = {
    "cache": ({**TREE, "use_cache": True}, ValueError, r"^subtree_end: expected no cache"),
    "lost": ({"position_ids": TREE["position_ids"]}, ValueError, r"^position_ids: .*subtree_end"),
    "positions": (
        {**TREE, "position_ids": torch.arange(LENGTH)[None]},
        ValueError,
        r"^position_ids: .*as subtree_end has it",
    ),
    "dtype": ({"subtree_end": LAYOUT.subtree_end[None].long()}, TypeError, r"^subtree_end"),
    "shape": ({"subtree_end": LAYOUT.subtree_end}, ValueError, r"^subtree_end: expected shape"),
    "left-padding": (
        {**TREE, "attention_mask": torch.tensor([[0] + [1] * (LENGTH - 1)])},
        ValueError,
        r"^attention_mask: expected padding right",
    ),
}


def check_bad_input(model, name: str) -> None:
    kwargs, error, message = BAD[name]
    with pytest.raises(error, match=message):
        model(tokens(1, LENGTH), **({"use_cache": False} | kwargs))


@pytest.mark.parametrize("name", list(BAD))
def test_bad_input(name: str) -> None:
    check_bad_input(tiny_model("gqa"), name)


def check_layers_refuse(model) -> None:
    cache = model.model.new_cache(1)
    x = torch.zeros(1, LENGTH, model.config.hidden_size, dtype=torch.float64)
    rotary = model.model.rotary(TREE["position_ids"])
    attention = model.model.layers[0].self_attn
    with (
        cache.step(1, LENGTH, None) as step,
        pytest.raises(ValueError, match=r"^subtree_end: expected None with a cache"),
    ):
        attention(x, rotary, cache=step, subtree_end=TREE["subtree_end"])


def test_layers_refuse_a_cache_beside_a_tree() -> None:
    check_layers_refuse(tiny_model("gqa"))
