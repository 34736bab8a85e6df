"""Whole rows against float64 attention with explicit masks: dense, padded, packed, varlen."""

import pytest
import torch
from hf_cases import MODELS, TOLERANCE, exactly, tiny, tokens
from torch import Tensor

BATCH, LENGTH = 2, 21
HALVES = torch.cat((torch.arange(9), torch.arange(12)))[None]


def padding(*gaps: slice) -> Tensor:
    """``[2, LENGTH]``, 0 where a row of the two has padding."""
    mask = torch.ones(BATCH, LENGTH, dtype=torch.int64)
    for row, gap in zip(mask, gaps, strict=True):
        row[gap] = 0
    return mask


PADDED = {
    "left": padding(slice(0, 6), slice(0)),
    "right": padding(slice(0), slice(-5, None)),
    "both": padding(slice(0, 4), slice(-3, None)),
    "hole": padding(slice(5, 9), slice(0, 2)),
    "none": padding(slice(0), slice(0)),
}


@pytest.fixture(scope="module", params=list(MODELS))
def model(request: pytest.FixtureRequest):
    return tiny(request.param)


def check(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("use_cache", [False, True], ids=["uncached", "prefill"])
def test_dense_rows(model, use_cache: bool) -> None:
    ids = tokens(BATCH, LENGTH)
    check(model(ids, use_cache=use_cache).logits, exactly(model, ids, use_cache=False))


@pytest.mark.parametrize("use_cache", [False, True], ids=["uncached", "prefill"])
@pytest.mark.parametrize("kind", list(PADDED))
def test_padded_rows(model, kind: str, use_cache: bool) -> None:
    ids, mask = tokens(BATCH, LENGTH), PADDED[kind]
    got = model(ids, attention_mask=mask, use_cache=use_cache).logits
    want = exactly(model, ids, attention_mask=mask, use_cache=False)
    check(got[mask == 1], want[mask == 1])
    assert got.isfinite().all()


def test_padding_changes_no_real_token(model) -> None:
    ids, mask = tokens(BATCH, LENGTH), PADDED["both"]
    other = torch.where(mask == 1, ids, tokens(BATCH, LENGTH, seed=1))
    got = [model(x, attention_mask=mask, use_cache=False).logits for x in (ids, other)]
    assert torch.equal(got[0][mask == 1], got[1][mask == 1])


@pytest.mark.parametrize("use_cache", [False, True], ids=["uncached", "prefill"])
@pytest.mark.parametrize("rows", [1, BATCH])
def test_positions_that_restart_are_documents(model, rows: int, use_cache: bool) -> None:
    """With a cache transformers' own masks would let the second see the first."""
    ids = tokens(rows, LENGTH)
    got = model(ids, position_ids=HALVES, use_cache=use_cache).logits
    check(got, exactly(model, ids, position_ids=HALVES, use_cache=False))
    check(got[:, 9:], exactly(model, ids[:, 9:], use_cache=False))


def test_documents_in_padded_rows(model) -> None:
    """A mask that says which tokens are real does not say that documents see one another."""
    ids, mask = tokens(BATCH, LENGTH), PADDED["both"]
    positions = HALVES.repeat(BATCH, 1)
    positions[0, :9] = torch.tensor([0, 0, 0, 0, *range(5)])
    got = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    for row, document in ((0, slice(4, 9)), (0, slice(9, None)), (1, slice(9)), (1, slice(9, -3))):
        want = exactly(model, ids[row : row + 1, document], use_cache=False)[0]
        check(got[row, document], want)


@pytest.mark.parametrize("positions", [None, HALVES], ids=["no-positions", "positions"])
def test_cu_seq_lens(model, positions: Tensor | None) -> None:
    ids = tokens(1, LENGTH)
    starts = torch.tensor([0, 9, LENGTH])
    lens = {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts, "max_length_q": 12}
    got = model(ids, position_ids=HALVES if positions is None else positions, **lens).logits
    check(got, exactly(model, ids, position_ids=HALVES, use_cache=False))


@pytest.mark.parametrize("kind", ["none", "left", "hole"])
def test_a_chunk_behind_cached_tokens(model, kind: str) -> None:
    """18 tokens behind 21: more than a decode step takes."""
    ids, mask = tokens(BATCH, 39), torch.nn.functional.pad(PADDED[kind], (0, 18), value=1)
    want = exactly(model, ids, attention_mask=mask, use_cache=False)[:, -18:]
    with torch.no_grad():
        first = model(ids[:, :-18], attention_mask=mask[:, :-18], use_cache=True)
        got = model(ids[:, -18:], attention_mask=mask, past_key_values=first.past_key_values)
    check(got.logits, want)


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_a_window_of_one_token(packed: bool) -> None:
    """Where a token sees itself alone, no neighbour tells what a document is."""
    model, ids = tiny("mistral"), tokens(1, LENGTH)
    model.config.sliding_window = 1
    kwargs = {"position_ids": HALVES} if packed else {}
    got = model(ids, use_cache=False, **kwargs).logits
    check(got, exactly(model, ids, use_cache=False, **kwargs))


def test_gradients(model) -> None:
    """Of every parameter, through padding, documents and windows."""
    ids, mask = tokens(BATCH, LENGTH), PADDED["both"]
    gradients = []
    for forward in (lambda **x: model(**x).logits, lambda **x: exactly(model, **x)):
        model.zero_grad()
        padded = forward(input_ids=ids, attention_mask=mask, use_cache=False)
        packed = forward(input_ids=ids, position_ids=HALVES, use_cache=False)
        loss = padded[mask == 1].square().sum() + packed.square().sum()
        loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, got in gradients[0].items():
        want = gradients[1][name]
        assert (got - want).abs().max() <= TOLERANCE * want.abs().max().clamp(min=1), name
