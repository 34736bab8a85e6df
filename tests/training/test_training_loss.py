"""The chunked cross-entropy against torch's, and the optimizer's groups."""

import pytest
import torch
import torch.nn.functional as F

from ridgeline.models import RidgelineConfig, RidgelineForCausalLM
from ridgeline.training import loss as loss_module
from ridgeline.training.loss import linear_cross_entropy
from ridgeline.training.optimizer import make_optimizer


def inputs(dtype=torch.float64, rows=13, vocab=11, width=6):
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, width, generator=g, dtype=dtype).requires_grad_()
    weight = torch.randn(vocab, width, generator=g, dtype=dtype).requires_grad_()
    return hidden, weight, torch.randint(vocab, (rows,), generator=g)


@pytest.mark.parametrize("chunk", [1, 4, 13, 100])
def test_equals_torch_in_fp64(chunk, monkeypatch):
    monkeypatch.setattr(loss_module, "CHUNK", chunk)
    hidden, weight, targets = inputs()
    ours = linear_cross_entropy(hidden, weight, targets)
    theirs = F.cross_entropy(hidden @ weight.T, targets)
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=0)
    got = torch.autograd.grad(3 * ours, (hidden, weight))
    expected = torch.autograd.grad(3 * theirs, (hidden, weight))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-15)


def test_gradients_by_finite_differences(monkeypatch):
    monkeypatch.setattr(loss_module, "CHUNK", 5)
    hidden, weight, targets = inputs()
    assert torch.autograd.gradcheck(linear_cross_entropy, (hidden, weight, targets))


def test_logits_of_any_size():
    hidden = torch.tensor([[1e4, -1e4], [1e4, 1e4]], requires_grad=True)
    weight = torch.eye(2, requires_grad=True)
    value = linear_cross_entropy(hidden, weight, torch.tensor([1, 0]))
    assert value.item() == pytest.approx((2e4 + torch.log(torch.tensor(2.0))) / 2)
    value.backward()
    assert hidden.grad.isfinite().all()


def test_autocast_is_no_worse_than_torchs():
    hidden, weight, targets = inputs(torch.float32, rows=256, vocab=128, width=64)
    exact_inputs = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    exact = F.cross_entropy(exact_inputs[0] @ exact_inputs[1].T, targets)
    expected = torch.autograd.grad(exact, exact_inputs)

    def errors(loss):
        grads = torch.autograd.grad(loss, (hidden, weight))
        return [
            abs(loss.item() - exact.item()),
            *((a - b).norm().item() for a, b in zip(grads, expected, strict=True)),
        ]

    with torch.autocast("cpu", torch.bfloat16):
        ours = errors(linear_cross_entropy(hidden, weight, targets))
        theirs = errors(F.cross_entropy((hidden @ weight.T).float(), targets))
    band = 2.0**-9 * exact.item()  # half a bfloat16 step of the loss itself
    assert ours[0] <= 2 * theirs[0] + band
    assert ours[1] <= 2 * theirs[1]
    assert ours[2] <= 2 * theirs[2]


@pytest.mark.parametrize("attention", ["gla", "gta"])
def test_norms_and_embeddings_are_not_decayed(attention):
    config = RidgelineConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        attention=attention,
        **({"q_rank": 8} if attention == "gla" else {"num_key_value_heads": 2}),
    )
    model = RidgelineForCausalLM(config)
    decayed, free = make_optimizer(model, 0.1).param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    free_ids = {id(parameter) for parameter in free["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in free_ids}
    layer = "model.layers.0."
    expected = {
        "model.embed_tokens.weight",
        "lm_head.weight",
        "model.norm.weight",
        f"{layer}input_layernorm.weight",
        f"{layer}post_attention_layernorm.weight",
    }
    if attention == "gla":
        expected |= {f"{layer}self_attn.q_norm.weight", f"{layer}self_attn.kv_norm.weight"}
    assert names == expected
    total = len(list(model.parameters()))
    assert len(decayed["params"]) + len(free["params"]) == total
