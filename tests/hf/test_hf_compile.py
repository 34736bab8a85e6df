"""``torch.compile`` with one graph: trees, padding and packed rows, and the refusal at run time."""

import pytest
import torch
from hf_cases import tiny, tokens
from torch import Tensor
from transformers import StaticCache

from ridgeline import subtree_end

PAIR = subtree_end.of_pair(3, 2, 1)
LENGTH = len(PAIR.subtree_end)
POSITIONS = PAIR.position_ids[None]


@pytest.fixture(scope="module")
def models():
    """Gemma 2: a full layer and a sliding one, and a soft cap."""
    model = tiny("gemma2")
    yield model, torch.compile(model, backend="eager", fullgraph=True)
    torch._dynamo.reset()


def test_trees_and_their_gradients(models) -> None:
    kwargs = {"position_ids": POSITIONS, "subtree_end": PAIR.subtree_end[None], "use_cache": False}
    results = []
    for call in models:
        models[0].zero_grad()
        logits = call(tokens(1, LENGTH), **kwargs).logits
        logits.square().sum().backward()
        results.append((logits, [p.grad.clone() for p in models[0].parameters()]))
    torch.testing.assert_close(results[1], results[0], atol=0, rtol=0)


def test_padding(models) -> None:
    mask = torch.ones(2, LENGTH, dtype=torch.int64)
    mask[0, :2], mask[1, -3:] = 0, 0
    got, want = (
        call(tokens(2, LENGTH), attention_mask=mask, use_cache=False).logits[mask == 1]
        for call in models[::-1]
    )
    assert torch.equal(got, want)


def test_documents_and_lost_trees(models) -> None:
    def logits(call, positions: Tensor) -> Tensor:
        return call(tokens(1, LENGTH), position_ids=positions, use_cache=False).logits

    halves = torch.cat((torch.arange(3), torch.arange(LENGTH - 3)))[None]
    model, compiled = models
    torch.testing.assert_close(logits(compiled, halves), logits(model, halves), atol=0, rtol=0)
    with pytest.raises(RuntimeError, match=r"^position_ids: .*subtree_end"):
        logits(compiled, POSITIONS)


def test_steps_over_a_static_cache(models) -> None:
    """The graph reads the length that the cache holds, of rows with padding on their left."""
    mask = torch.ones(2, LENGTH, dtype=torch.int64)
    mask[0, :2] = 0
    logits = []
    for call in models:
        cache = StaticCache(config=models[0].config, max_cache_len=2 * LENGTH)
        with torch.no_grad():
            models[0](tokens(2, LENGTH), attention_mask=mask, past_key_values=cache)
            grown = torch.nn.functional.pad(mask, (0, 1), value=1)
            out = call(tokens(2, 1), attention_mask=grown, past_key_values=cache)
        logits.append(out.logits)
    assert torch.equal(*logits)
