import pytest
import torch
from transformers import AttentionInterface

from ridgeline.bench import decoders, end_to_end
from ridgeline.bench.decoders import ModelShape

TINY = ModelShape(
    layers=2,
    hidden=64,
    intermediate=96,
    heads=8,
    kv_heads=2,
    head_dim=16,
    vocab=101,
    length=70,
    reps=1,
    variants=("mha", "gta", "mla", "gla"),
)


def test_every_decoder_is_measured(monkeypatch):
    monkeypatch.setattr(end_to_end, "BALLAST", 1024)
    steps = end_to_end.run(TINY)
    assert [step.name for step in steps] == [
        "transformers sdpa",
        "transformers sdpa, StaticCache",
        "transformers ridgeline, DynamicCache",
        "transformers ridgeline, GrowingCache",
        "ridgeline gqa",
        "ridgeline mha",
        "ridgeline gta",
        "ridgeline mla",
        "ridgeline gla",
    ]
    for step in steps:
        assert 0 < step.attention_share < 1, step.name
        assert 0 < step.linears < step.seconds, step.name
    # 2 layers, BF16: GQA 2 * 2 * 16, MHA 2 * 8 * 16, GTA 2 * 16 + 8, MLA 64 + 8, GLA-2 2 * 32 + 8
    per_token = [step.cache_bytes_per_token // 4 for step in steps]
    assert per_token == [64, 64, 64, 64, 64, 256, 40, 72, 72]
    gqa = steps[4]
    weights = 2 * (64 * (128 + 32 + 32) + 128 * 64 + 3 * 64 * 96) + 64 * 101
    assert gqa.linear_bytes == 2 * weights
    found = end_to_end.record(gqa, steps[0], TINY)
    assert found["times_transformers"] == pytest.approx(steps[0].seconds / gqa.seconds, abs=0.01)


def test_different_logits_are_not_timed(monkeypatch):
    step = decoders.RidgelineForCausalLM.forward

    def wrong(*args, **kwargs):
        out = step(*args, **kwargs)
        out.logits *= 1.1
        return out

    monkeypatch.setattr(decoders.RidgelineForCausalLM, "forward", wrong)
    with pytest.raises(RuntimeError, match="logits after a prompt"):
        next(decoders.decoders(TINY))


def test_different_logits_of_our_attention_in_transformers_are_not_timed():
    right = AttentionInterface()["ridgeline"]

    def wrong(*args, **kwargs):
        out, weights = right(*args, **kwargs)
        return 2 * out, weights

    AttentionInterface.register("ridgeline", wrong)
    try:
        with pytest.raises(RuntimeError, match="logits after a full cache of transformers"):
            next(decoders.decoders(TINY))
    finally:
        AttentionInterface.register("ridgeline", right)


def test_stopwatch_adds_up_what_it_watches():
    linear, weight = torch.nn.functional.linear, torch.ones(3, 3)
    with end_to_end.Stopwatch(linear) as watch:
        linear(weight, weight)
        after_one = watch.seconds[linear]
        torch.relu(weight)
    assert 0 < after_one == watch.seconds[linear]
