"""Packed trees through attention against every sequence alone: log-probabilities and gradients."""

import pytest
import torch
from preference_cases import (
    Model,
    check_model,
    pair_sequences,
    random_pairs,
    random_sequences,
)

from ridgeline.training.preference import collate, of_pair, of_responses, of_sequences

LAYOUTS = {
    "a-pair-a-row": {},
    "padded": {"pad_to_multiple_of": 64},
    "packed": {"budget": 70},
    "packed-and-padded": {"budget": 40, "length": 45},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pairs(layout):
    pairs = random_pairs(4, 6)
    check_model([of_pair(*p) for p in pairs], pair_sequences(pairs), **LAYOUTS[layout])


def test_groups():
    pairs = [random_pairs(seed, 2) for seed in range(3)]
    groups = [(one[0][0], [x for p in one for x in p[1:]]) for one in pairs]
    sequences = [(prompt, response) for prompt, group in groups for response in group]
    check_model([of_responses(*group) for group in groups], sequences, budget=90)


@pytest.mark.parametrize("seed", range(8))
def test_tries(seed):
    forest = [random_sequences(100 + 3 * seed + i) for i in range(3)]
    sequences = [one for some in forest for one in some]
    check_model([of_sequences(some) for some in forest], sequences, budget=100)


@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_no_contamination(impl):
    """What chosen says changes no bit of rejected, nor of another pair, nor of padding's row."""
    model = Model(dtype=torch.float32)
    pairs = random_pairs(5, 4)
    changed = [
        (p, [(x + 1) % 11 for x in c] if i == 1 else c, r) for i, (p, c, r) in enumerate(pairs)
    ]

    def logps(some, pad):
        batch = collate([of_pair(*p) for p in some], budget=60, pad_token_id=pad, length=60)
        return model.response_logps(batch, impl)

    before, after, padded = logps(pairs, 0), logps(changed, 0), logps(pairs, 7)
    same = torch.tensor([r for r in range(8) if r != 2])
    assert torch.equal(before[same], after[same])
    assert before[2] != after[2]
    assert torch.equal(before, padded)
