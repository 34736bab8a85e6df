"""One forward: the loss, the cached forms against the full one, padding, checkpointing."""

import pytest
import torch
import torch.nn.functional as F
from model_cases import FP64_ROUNDING, VARIANTS, VOCAB, left_padded, tiny_model, tokens

from ridgeline.models.cache import RidgelineCache


def close(a, b):
    return (a - b).abs().max() <= FP64_ROUNDING * b.abs().max()


@pytest.mark.parametrize("attention", VARIANTS)
def test_prefill_then_decode_equals_the_full_forward(attention):
    model, ids = tiny_model(attention), tokens(2, 75)
    with torch.no_grad():
        full = model(ids, use_cache=False).logits
        # Across the edge of a page; then one token, several at once, one.
        out, pieces, start = None, [], 0
        for stop in (62, 63, 64, 65, 72, 73, 75):
            past = None if out is None else out.past_key_values
            out = model(ids[:, start:stop], past_key_values=past, use_cache=True, impl="reference")
            pieces.append(out.logits)
            start = stop
    assert close(torch.cat(pieces, dim=1), full)


@pytest.mark.parametrize("attention", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_the_best_implementation_keeps_to_the_error_of_the_full_forward(attention, dtype):
    """As far from float64 as twice the full forward of the same precision, plus rounding."""
    ids = tokens(2, 90)
    low = tiny_model(attention, dtype)
    # The same weights: those that the low precision can hold.
    exact = tiny_model(attention)
    exact.load_state_dict(low.state_dict())
    with torch.no_grad():
        truth = exact(ids, use_cache=False).logits
        full = low(ids, use_cache=False).logits
        out = low(ids[:, :70], use_cache=True)
        steps = []
        for i in range(70, 90):
            out = low(ids[:, i : i + 1], past_key_values=out.past_key_values)
            steps.append(out.logits)
    truth = truth[:, 70:]
    error = (torch.cat(steps, dim=1) - truth).abs().max()
    budget = 2 * (full[:, 70:] - truth).abs().max() + torch.finfo(dtype).eps * truth.abs().max()
    assert error <= budget


@pytest.mark.parametrize("attention", VARIANTS)
@pytest.mark.parametrize("use_cache", [False, True])
def test_left_padding_changes_no_logit(attention, use_cache):
    model = tiny_model(attention)
    rows = [tokens(n, seed=n) for n in (9, 14, 1)]
    ids, mask = left_padded(rows)
    with torch.no_grad():
        out = model(ids, attention_mask=mask, use_cache=use_cache, output_hidden_states=True)
        for b, row in enumerate(rows):
            alone = model(row[None], use_cache=False, output_hidden_states=True)
            assert close(out.logits[b, -len(row) :], alone.logits[0])
            for ours, theirs in zip(out.hidden_states, alone.hidden_states, strict=True):
                assert close(ours[b, -len(row) :], theirs[0])


@pytest.mark.parametrize("attention", VARIANTS)
def test_padding_never_enters_the_cache(attention):
    model = tiny_model(attention)
    rows = [tokens(n, seed=n) for n in (5, 12)]
    ids, mask = left_padded(rows)
    with torch.no_grad():
        cache = model(ids, attention_mask=mask, use_cache=True).past_key_values
        assert cache.lengths(2) == [5, 12]
        assert cache.get_seq_length() == 12
        # A second turn, shorter in the other row.
        second, second_mask = left_padded([tokens(4, seed=1), tokens(2, seed=2)])
        both = torch.cat((mask, second_mask), dim=1)
        out = model(second, attention_mask=both, past_key_values=cache, impl="reference")
        assert cache.lengths(2) == [9, 14]
        for b, n in enumerate((4, 2)):
            whole = torch.cat((rows[b], second[b, -n:]))
            alone = model(whole[None], use_cache=False).logits
            assert close(out.logits[b, -n:], alone[0, -n:])


def test_right_padding_is_harmless_without_a_cache_and_refused_with_one():
    model, ids = tiny_model(), tokens(2, 8)
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    with torch.no_grad():
        padded = model(ids, attention_mask=mask, use_cache=False).logits
        assert close(padded[0, :5], model(ids[:1, :5], use_cache=False).logits[0])
        with pytest.raises(ValueError, match="attention_mask: expected padding on the left only"):
            model(ids, attention_mask=mask, use_cache=True)


@pytest.mark.parametrize("attention", VARIANTS)
def test_loss_is_that_of_the_next_token_and_reaches_every_weight(attention):
    model, ids = tiny_model(attention).train(), tokens(2, 10)
    labels = ids.clone()
    labels[0, :4] = -100
    out = model(ids, labels=labels)
    expected = F.cross_entropy(
        out.logits[:, :-1].reshape(-1, VOCAB).float(), labels[:, 1:].reshape(-1), ignore_index=-100
    )
    torch.testing.assert_close(out.loss, expected, rtol=1e-6, atol=0)
    assert out.past_key_values is None
    out.loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_loss_of_a_bfloat16_model_is_computed_in_float32():
    model, ids = tiny_model(dtype=torch.bfloat16), tokens(2, 10)
    out = model(ids, labels=ids)
    assert out.loss.dtype == torch.float32
    expected = F.cross_entropy(out.logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(out.loss, expected, rtol=1e-6, atol=0)


def test_labels_never_make_a_cache():
    model, ids = tiny_model(), tokens(1, 6)
    assert model(ids, labels=ids, use_cache=True).past_key_values is None
    assert isinstance(model(ids).past_key_values, RidgelineCache)
    assert model.train()(ids).past_key_values is None


def test_activation_checkpointing_gives_the_same_gradients():
    ids = tokens(2, 12)
    grads, calls = [], []
    for checkpointing in (False, True):
        model = tiny_model().train()
        if checkpointing:
            model.activation_checkpointing_enable()
        calls.append(0)

        def count(*_):
            calls[-1] += 1

        model.model.layers[0].self_attn.register_forward_hook(count)
        model(ids, labels=ids).loss.backward()
        grads.append([p.grad for p in model.parameters()])
    assert calls == [1, 2]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_gradients_pass_through_a_prefill_with_a_cache():
    model, ids = tiny_model(), tokens(1, 6)
    out = model(ids, use_cache=True)
    out.logits.sum().backward()
    assert model.model.embed_tokens.weight.grad.abs().sum() > 0
    # The cache holds plain numbers, so it can be read without any graph.
    assert not any(t.requires_grad for t in out.past_key_values.pages.layer(0))


def test_embeddings_in_place_of_tokens():
    model, ids = tiny_model(), tokens(2, 6)
    embeds = model.get_input_embeddings()(ids)
    with torch.no_grad():
        assert torch.equal(model(inputs_embeds=embeds).logits, model(ids).logits)


def test_logits_to_keep():
    model, ids = tiny_model(), tokens(2, 6)
    with torch.no_grad():
        assert close(model(ids, logits_to_keep=2).logits, model(ids).logits[:, -2:])


def test_tuple_output():
    model, ids = tiny_model(), tokens(1, 4)
    with torch.no_grad():
        logits, cache = model(ids, return_dict=False)
        assert torch.equal(logits, model(ids).logits)
    assert isinstance(cache, RidgelineCache)


@pytest.mark.parametrize("use_cache", [False, True])
def test_an_empty_batch_gives_empty_logits(use_cache):
    with torch.no_grad():
        assert tiny_model()(tokens(0, 5), use_cache=use_cache).logits.shape == (0, 5, VOCAB)


def test_tied_embeddings_are_one_weight():
    model = tiny_model(tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert tiny_model().lm_head.weight is not tiny_model().model.embed_tokens.weight


@pytest.mark.parametrize("attention", VARIANTS)
def test_initial_weights_have_the_configured_range(attention):
    model = tiny_model(attention, initializer_range=0.02)
    for name, weight in model.named_parameters():
        if "norm" in name:
            assert torch.equal(weight, torch.ones_like(weight)), name
        else:
            # Five standard errors of a standard deviation from n samples.
            assert abs(weight.std() / 0.02 - 1) < 5 / (2 * weight.numel()) ** 0.5, name


def test_the_implementation_is_chosen_by_the_model_or_the_call():
    model, ids = tiny_model(), tokens(1, 5)
    with torch.no_grad():
        cache = model(ids).past_key_values
        with pytest.raises(ValueError, match="impl='hopper'"):
            model(ids[:, :1], past_key_values=cache, impl="hopper")
        model.set_decode_impl("hopper")
        with pytest.raises(ValueError, match="impl='hopper'"):
            model(ids[:, :1], past_key_values=model(ids).past_key_values)
    with pytest.raises(ValueError, match="impl: expected one of"):
        model.set_decode_impl("fast")


BAD_CALLS = {
    "nothing": ({}, "input_ids"),
    "both": ({"input_ids": tokens(1, 3), "inputs_embeds": torch.zeros(1, 3, 32)}, "input_ids"),
    "embeds of another width": ({"inputs_embeds": torch.zeros(1, 3, 31)}, "inputs_embeds"),
    "short mask": (
        {"input_ids": tokens(1, 3), "attention_mask": torch.ones(1, 2)},
        "attention_mask",
    ),
    "4d mask": (
        {"input_ids": tokens(1, 3), "attention_mask": torch.ones(1, 1, 3, 3)},
        "attention_mask",
    ),
    "hole in the mask": (
        {"input_ids": tokens(1, 3), "attention_mask": torch.tensor([[1, 0, 1]])},
        "attention_mask",
    ),
    "another cache": (
        {"input_ids": tokens(1, 3), "past_key_values": ("k", "v")},
        "past_key_values",
    ),
    "positions": ({"input_ids": tokens(2, 3), "position_ids": torch.ones(2, 4)}, "position_ids"),
    "labels": ({"input_ids": tokens(2, 3), "labels": tokens(2, 4)}, "labels"),
    "attentions": ({"input_ids": tokens(1, 3), "output_attentions": True}, "output_attentions"),
}


@pytest.mark.parametrize(("call", "culprit"), BAD_CALLS.values(), ids=BAD_CALLS.keys())
def test_bad_calls_name_the_argument(call, culprit):
    with pytest.raises((ValueError, TypeError), match=f"^{culprit}"):
        tiny_model()(**call)


def test_a_cache_of_another_batch_is_refused_and_stays_usable():
    model, ids = tiny_model(), tokens(2, 5)
    with torch.no_grad():
        cache = model(ids).past_key_values
        with pytest.raises(ValueError, match="past_key_values: expected a cache of the 3 rows"):
            model(tokens(3, 1), past_key_values=cache)
        model(ids[:, :1], past_key_values=cache)
    assert cache.lengths(2) == [6, 6]
