"""Log-probabilities of labelled tokens, their gradients, and what they need of memory."""

import copy

import pytest
import torch
from preference_cases import VOCAB, WIDTH, LargestTensor, check_token_logps, random_pairs
from torch import nn
from trl.kernels import ChunkedLogProbFunction

from ridgeline.training.preference import (
    LogitTransform,
    collate,
    ld_weights,
    of_pair,
    of_sequences,
    pairs,
    per_response,
    scored,
    token_logps,
    wpo_weights,
)
from ridgeline.training.preference.logps import METRICS

TRANSFORMS = {
    "plain": LogitTransform(),
    "gemma": LogitTransform(softcap=1.5),
    "cohere": LogitTransform(scale=0.3),
    "all": LogitTransform(softcap=2.0, scale=1.7, temperature=0.6),
}


def inputs(dtype=torch.float64, rows=(2, 13), width=WIDTH, vocab=VOCAB, seed=0):
    """Hidden states, a head and labels of which about half are -100."""
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(*rows, width, generator=g, dtype=dtype).requires_grad_()
    head = nn.Linear(width, vocab, dtype=dtype)
    with torch.no_grad():
        head.weight.copy_(torch.randn(vocab, width, generator=g))
        head.bias.copy_(torch.randn(vocab, generator=g))
    labels = torch.randint(vocab, rows, generator=g)
    return hidden, head, labels.masked_fill(torch.rand(rows, generator=g) < 0.5, -100)


@pytest.mark.parametrize("kind", ["tensor", "linear", "module"])
@pytest.mark.parametrize("chunk", [1, 5, None])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_equals_a_log_softmax_in_fp64(transform, chunk, kind):
    check_token_logps(TRANSFORMS[transform], chunk, kind)


def test_gradients_by_finite_differences():
    hidden, head, labels = inputs(rows=(1, 7))
    weight, bias = head.weight.detach().requires_grad_(), head.bias.detach().requires_grad_()

    def of(hidden, weight, bias):
        transform = TRANSFORMS["all"]
        return token_logps(hidden, weight, labels, bias=bias, transform=transform, chunk=3).logps

    assert torch.autograd.gradcheck(of, (hidden, weight, bias))


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_metrics_are_those_of_trl(transform):
    hidden, head, labels = inputs(torch.float32, rows=(3, 40))
    how = TRANSFORMS[transform]
    ours = token_logps(hidden, head, labels, transform=how, metrics=METRICS, chunk=7)
    at = labels != -100
    theirs = ChunkedLogProbFunction.apply(
        hidden[at], head.weight, head.bias, labels[at], how.temperature, 4, how.softcap or None,
        how.scale, METRICS,
    )  # fmt: skip
    for name, want in zip(("logps", *METRICS), _in_order(*theirs), strict=True):
        got = ours.logps if name == "logps" else ours.metrics[name]
        assert not got[~at].any()
        assert got.dtype == want.dtype
        torch.testing.assert_close(got[at], want, rtol=1e-5, atol=1e-5)
    assert 0 < ours.metrics["is_top1"].sum() < at.sum()


def _in_order(logps, entropy, log_sum_sq_probs, mean_logits, is_top1):
    return logps, entropy, mean_logits, is_top1, log_sum_sq_probs


@pytest.mark.parametrize("kind", ["linear", "module"])
def test_no_tensor_of_tokens_times_vocabulary(kind):
    hidden, head, labels = inputs(rows=(1, 200), vocab=64)
    chunk, labelled = 8, int((labels != -100).sum())
    module = head if kind == "linear" else nn.Sequential(head)
    saved = []
    keep = torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x)
    with LargestTensor() as largest:
        with keep:
            value = token_logps(hidden, module, labels, chunk=chunk, metrics=METRICS).logps.sum()
        value.backward()
    most = max(chunk * 64, hidden.numel(), head.weight.numel())
    assert largest.elements <= most < labelled * 64
    assert max(x.numel() for x in saved) <= most


def test_frozen_heads_get_no_gradient():
    hidden, head, labels = inputs()
    head.requires_grad_(False)
    assert head.weight.grad is None
    (got,) = torch.autograd.grad(token_logps(hidden, head, labels).logps.sum(), hidden)
    head.requires_grad_(True)
    (want,) = torch.autograd.grad(token_logps(hidden, head, labels).logps.sum(), hidden)
    assert torch.equal(got, want)


def test_only_the_adapter_of_a_head_learns():
    hidden, head, labels = inputs()
    adapted = nn.Sequential(head)
    adapted.adapter = nn.Linear(WIDTH, VOCAB, bias=False, dtype=torch.float64)
    adapted.forward = lambda x: head(x) + adapted.adapter(x)
    head.requires_grad_(False)
    got = token_logps(hidden, adapted, labels, chunk=3).logps.sum()
    want = (head(hidden) + adapted.adapter(hidden)).log_softmax(-1)
    want = want[labels != -100].gather(1, labels[labels != -100, None]).sum()
    torch.testing.assert_close(got, want, rtol=1e-13, atol=0)
    learned = hidden, adapted.adapter.weight
    torch.testing.assert_close(
        torch.autograd.grad(got, learned),
        torch.autograd.grad(want, learned),
        rtol=1e-12,
        atol=1e-14,
    )


@pytest.mark.parametrize("change", ["hook", "forward", "subclass"])
def test_a_changed_linear_is_called(change):
    hidden, head, labels = inputs()
    doubled = copy.deepcopy(head)
    with torch.no_grad():
        doubled.weight *= 2
        doubled.bias *= 2
    want = token_logps(hidden, doubled, labels).logps
    if change == "hook":
        head.register_forward_hook(lambda module, args, out: 2 * out)
    elif change == "forward":
        plain = head.forward
        head.forward = lambda x: 2 * plain(x)
    else:
        head.__class__ = type("Doubled", (nn.Linear,), {"forward": lambda s, x: 2 * s._plain(x)})
        head._plain = lambda x: nn.functional.linear(x, head.weight, head.bias)
    torch.testing.assert_close(token_logps(hidden, head, labels).logps, want, rtol=1e-13, atol=0)


@pytest.mark.parametrize("kind", ["linear", "module"])
def test_without_labels_everything_is_zero(kind):
    hidden, head, labels = inputs()
    module = head if kind == "linear" else nn.Sequential(head)
    found = token_logps(hidden, module, torch.full_like(labels, -100), metrics=METRICS)
    found.logps.sum().backward()
    assert not found.logps.any()
    assert not any(x.any() for x in found.metrics.values())
    assert not hidden.grad.any()


def test_bf16_is_no_worse_than_full_logits():
    hidden, head, labels = inputs(torch.float32, rows=(4, 100), width=64, vocab=128)
    at = labels != -100
    exact = copy.deepcopy(head).double()(hidden.double()).log_softmax(-1)
    exact = exact[at].gather(1, labels[at, None])[:, 0]
    leaves = (hidden, head.weight)
    want = torch.autograd.grad(exact.sum(), hidden)[0]
    with torch.autocast("cpu", torch.bfloat16):
        ours = token_logps(hidden, head, labels).logps[at]
        theirs = head(hidden).float().log_softmax(-1)[at].gather(1, labels[at, None])[:, 0]
    assert ours.dtype == torch.float32
    errors = [
        [(x - exact).norm(), (torch.autograd.grad(x.sum(), leaves)[0] - want).norm()]
        for x in (ours, theirs)
    ]
    for got, budget in zip(*errors, strict=True):
        assert got <= 2 * budget


def test_responses_add_up_in_fp32():
    batch = collate([of_sequences([([1, 2], [3, 4]), ([1, 2], [3, 5])]), of_pair([1], [2], [3, 4])])
    values = torch.zeros(batch.input_ids.shape, dtype=torch.bfloat16)
    values[0, :4] = torch.tensor([8.0, 1.0, 256.0, 2.0])
    values[1, :5] = torch.tensor([16.0, 32.0, 64.0, 128.0, 512.0])
    total = per_response(values, batch)
    assert total.dtype == torch.float32
    # Row 0 is 1 2 | 3 4 | 3 5, where 2 predicts 3 for both.
    assert [x.tolist() for x in scored(values, batch).split(batch.response_lengths.tolist())] == [
        [1.0, 256.0], [1.0, 0.0], [16.0], [64.0, 128.0],
    ]  # fmt: skip
    assert total.tolist() == [257.0, 1.0, 16.0, 192.0]
    weights = torch.tensor([1.0, 0.5, 2.0, 0, 1, 1, 1])
    assert per_response(values, batch, weights).tolist() == [129.0, 2.0, 16.0, 192.0]
    assert per_response(values.double(), batch).dtype == torch.float64


def test_ld_weights():
    batch = collate(
        [of_pair([1], [2, 2, 2], [3]), of_pair([1], [2], [3, 3]), of_pair([1], [4], [5])]
    )
    assert ld_weights(batch, 0.25).tolist() == [1, 0.25, 0.25, 1, 1, 1, 0.25, 1, 1]
    with pytest.raises(ValueError, match="alpha: expected 0 to 1, got"):
        ld_weights(batch, 1.5)


def test_wpo_weights():
    batch = collate([of_pair(*p) for p in random_pairs(2)])
    g = torch.Generator().manual_seed(0)
    logps, sums = (-torch.rand(batch.input_ids.shape, generator=g) for _ in range(2))
    logps.requires_grad_()
    found = wpo_weights(logps, sums, batch)
    assert not found.requires_grad
    each = scored(logps - sums, batch).split(batch.response_lengths.tolist())
    means = torch.stack([x.mean() for x in each])
    torch.testing.assert_close(found, (means[::2] + means[1::2]).exp())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"hidden": torch.ones(3, 8)}, ValueError, r"hidden: expected shape \[B, L, hidden_size\]"),
        ({"hidden": torch.ones(1, 3, 8).long()}, TypeError, "hidden: expected dtype"),
        ({"shift_labels": torch.ones(1, 4).long()}, ValueError, r"shift_labels: .* \[1, 3\], got"),
        ({"shift_labels": torch.ones(1, 3)}, TypeError, "shift_labels: expected dtype int64"),
        (
            {"head": torch.ones(8, 11)},
            ValueError,
            r"head: expected shape \[vocab, 8\], got",
        ),
        ({"bias": torch.ones(8)}, ValueError, r"bias: expected shape \[11\], got \[8\]"),
        ({"head": nn.Linear(8, 11), "bias": torch.ones(11)}, ValueError, "bias: expected None"),
        ({"metrics": ("entropy", "top2")}, ValueError, "metrics: expected some of entropy.*'top2'"),
        ({"chunk": 0}, ValueError, "chunk: expected at least 1, got 0"),
    ],
    ids=lambda x: "+".join(x) if isinstance(x, dict) else None,
)
def test_bad_arguments_are_named(change, error, message):
    good = {
        "hidden": torch.ones(1, 3, 8),
        "head": torch.ones(11, 8),
        "shift_labels": torch.ones(1, 3).long(),
    }
    with pytest.raises(error, match=message):
        token_logps(**(good | change))


@pytest.mark.parametrize("name", ["softcap", "temperature"])
def test_bad_transforms_are_named(name):
    with pytest.raises(ValueError, match=name):
        LogitTransform(**{name: -1.0})


def test_pairs_need_two_responses_each():
    with pytest.raises(ValueError, match="responses: expected two a pair, got 3"):
        pairs(torch.ones(3))
