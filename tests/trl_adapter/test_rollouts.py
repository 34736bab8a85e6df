"""Packed rollouts have the log-probabilities of their sequences alone."""

import random

import pytest
import torch
from dpo_cases import VOCAB, tiny_model, work_in_float64
from transformers import MambaConfig, MambaForCausalLM

from ridgeline.trl import rollout_logps


def rollouts(seed: int = 0) -> tuple[list, list]:
    rng = random.Random(seed)

    def ids(least: int, most: int) -> list[int]:
        return [rng.randrange(4, VOCAB) for _ in range(rng.randint(least, most))]

    return [ids(2, 9) for _ in range(3)], [[ids(1, 7) for _ in range(g)] for g in (4, 1, 3)]


def alone(model, prompts, groups, temperature: float) -> tuple[list, list]:
    """Log-probabilities and entropies, one sequence a forward."""
    logps, entropies = [], []
    for prompt, group in zip(prompts, groups, strict=True):
        for response in group:
            ids = torch.tensor([prompt + response])
            logits = model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1] / temperature
            found = logits.log_softmax(-1)
            logps.append(found.gather(1, torch.tensor(response)[:, None])[:, 0])
            entropies.append(-(found.exp() * found).sum(1))
    return logps, entropies


@pytest.mark.parametrize("packing_length", [None, 30])
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gla"])
def test_equals_each_sequence_alone(name, packing_length, monkeypatch):
    work_in_float64(monkeypatch)
    model, twin = tiny_model(name), tiny_model(name)
    if name != "gla":
        model.set_attn_implementation("ridgeline")
    prompts, groups = rollouts()
    found = rollout_logps(
        model, prompts, groups, packing_length=packing_length, temperature=0.7, entropy=True
    )
    logps, entropies = alone(twin, prompts, groups, 0.7)
    assert found.mask.sum(1).tolist() == [len(x) for x in logps]
    assert not found.logps[~found.mask].any()
    weights = torch.randn(found.logps.shape, generator=torch.Generator().manual_seed(0)).double()
    (found.logps * weights).sum().backward()
    sum((x * w[: len(x)]).sum() for x, w in zip(logps, weights, strict=True)).backward()
    for i, (x, e) in enumerate(zip(logps, entropies, strict=True)):
        assert (found.logps[i, : len(x)] - x).abs().max() <= 1e-9
        assert (found.entropy[i, : len(e)] - e).abs().max() <= 1e-9
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert (p.grad - q.grad).abs().max() <= 1e-9
    assert found.counts.physical_tokens < found.counts.logical_tokens
    assert found.counts.rows == {None: 1, 30: 3}[packing_length]


def test_bad_input():
    model = tiny_model("llama")
    with pytest.raises(ValueError, match="model: expected the attention 'ridgeline'"):
        rollout_logps(model, [[4]], [[[5]]])
    model.set_attn_implementation("ridgeline")
    with pytest.raises(ValueError, match="rollouts: expected those of 2 prompts, got those of 1"):
        rollout_logps(model, [[4], [5]], [[[5]]])
    with pytest.raises(ValueError, match=r"responses\[1\]: expected at least one token"):
        rollout_logps(model, [[4, 5]], [[[5], []]])
    with pytest.raises(ValueError, match="expected at most 3 tokens, the budget"):
        rollout_logps(model, [[4, 5]], [[[5, 6], [7]]], packing_length=3)


def test_models_that_cannot():
    model = MambaForCausalLM(MambaConfig(vocab_size=44, hidden_size=16, num_hidden_layers=1))
    model.config._attn_implementation = "ridgeline"  # a name that it reports and does not use
    with pytest.raises(ValueError, match="keep sequences of a row apart, got MambaModel"):
        rollout_logps(model, [[4]], [[[5], [6]]])


def test_a_model_is_tried_once(monkeypatch):
    tried = []
    monkeypatch.setattr("ridgeline.trl.rollouts.refuse_leaks", tried.append)
    model = tiny_model("gla")
    for _ in range(2):
        rollout_logps(model, [[4]], [[[5]]])
    assert tried == [model.base_model]
