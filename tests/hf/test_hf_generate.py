"""``generate`` through the decode kernels: the tokens and logits of eager attention."""

from itertools import pairwise

import pytest
import torch
from hf_cases import EXACT, MODELS, TOLERANCE, VOCAB, exactly, tiny, tokens
from torch import Tensor
from transformers import PreTrainedModel, StaticCache

from ridgeline.transformers import GrowingCache, decode

PROMPT, NEW = 12, 9  # past every window of the tests
CACHES = ["dynamic", "static", "growing"]
GREEDY = {"do_sample": False, "pad_token_id": 0, "eos_token_id": VOCAB, "disable_compile": True}


@pytest.fixture(scope="module", params=list(MODELS))
def model(request: pytest.FixtureRequest):
    return tiny(request.param, torch.float32)


def cache_of(model: PreTrainedModel, kind: str) -> dict[str, object]:
    """Keywords of ``generate``."""
    match kind:
        case "growing":
            return {"past_key_values": GrowingCache(model.config)}
        case "static":
            return {"cache_implementation": "static"}
    return {}


def left_padded() -> tuple[Tensor, Tensor]:
    ids, mask = tokens(3, PROMPT), torch.ones(3, PROMPT, dtype=torch.int64)
    mask[0, :5], mask[1, :9] = 0, 0
    return ids, mask


def generate(model: PreTrainedModel, impl: str, ids: Tensor, **kwargs: object) -> Tensor:
    model.set_attn_implementation(impl)
    try:
        return model.generate(ids, max_new_tokens=NEW, **GREEDY, **kwargs)
    finally:
        model.set_attn_implementation("ridgeline")


def count_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Query tokens of every call of the decode kernel from now on."""
    calls = []
    kernel = decode.paged_decode

    def count(q: Tensor, *args: object, **kwargs: object) -> Tensor:
        calls.append(q.shape[1])
        return kernel(q, *args, **kwargs)

    monkeypatch.setattr(decode, "paged_decode", count)
    return calls


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    return count_calls(monkeypatch)


@pytest.mark.parametrize("kind", CACHES)
def test_greedy_tokens(model, kind: str, decoded: list[int]) -> None:
    """One row, and rows with padding on their left."""
    ids, mask = left_padded()
    want = generate(model, "eager", ids, attention_mask=mask)
    got = generate(model, "ridgeline", ids, attention_mask=mask, **cache_of(model, kind))
    assert torch.equal(got, want)
    assert decoded == [1] * (NEW - 1) * model.config.num_hidden_layers
    want = generate(model, "eager", ids[2:])
    assert torch.equal(generate(model, "ridgeline", ids[2:], **cache_of(model, kind)), want)


@pytest.mark.parametrize("kind", CACHES)
def test_beams(model, kind: str, decoded: list[int]) -> None:
    ids, mask = left_padded()
    want = generate(model, "eager", ids, attention_mask=mask, num_beams=3)
    cache = cache_of(model, kind)
    got = generate(model, "ridgeline", ids, attention_mask=mask, num_beams=3, **cache)
    assert torch.equal(got, want)
    assert decoded


def test_without_cache(model) -> None:
    ids, mask = left_padded()
    want = generate(model, "eager", ids, attention_mask=mask)
    assert torch.equal(
        generate(model, "ridgeline", ids, attention_mask=mask, use_cache=False), want
    )


def test_assisted_decoding(model, decoded: list[int]) -> None:
    """Several tokens a step, some of them taken back."""
    ids = tokens(1, PROMPT, seed=2)
    want = generate(model, "eager", ids)
    got = generate(model, "ridgeline", ids, prompt_lookup_num_tokens=4)
    assert torch.equal(got, want)
    assert max(decoded) > 1


def steps(model: PreTrainedModel, kind: str, ids: Tensor, mask: Tensor) -> Tensor:
    """Logits ``[real tokens, vocab]`` of the prompt and then one, three, one and four tokens."""
    cache = cache_of(model, kind).get("past_key_values")
    if kind == "static":
        cache = StaticCache(config=model.config, max_cache_len=40)
    logits = []
    for start, stop in pairwise([0, PROMPT, PROMPT + 1, PROMPT + 4, PROMPT + 5, PROMPT + 9]):
        with torch.no_grad():
            out = model(
                ids[:, start:stop],
                attention_mask=mask[:, :stop],
                past_key_values=cache,
                use_cache=True,
            )
        cache = out.past_key_values
        logits.append(out.logits)
    return torch.cat(logits, dim=1)[mask == 1]


def longer() -> tuple[Tensor, Tensor]:
    ids, mask = left_padded()
    ids = torch.cat((ids, tokens(3, 9, seed=5)), dim=1)
    return ids, torch.nn.functional.pad(mask, (0, 9), value=1)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3"])
@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize("padded", [True, False], ids=["padded", "whole"])
def test_logits_of_steps(kind: str, name: str, padded: bool) -> None:
    """float64: those of whole rows."""
    model, (ids, mask) = tiny(name), longer()
    if not padded:
        mask = torch.ones_like(mask)
    want = exactly(model, ids, attention_mask=mask, use_cache=False)[mask == 1]
    got = steps(model, kind, ids, mask)
    torch.testing.assert_close(got, want, atol=TOLERANCE, rtol=TOLERANCE)


def test_holes_among_cached_tokens(model) -> None:
    """Padding right of a prompt that goes on: no span, but still seen by nothing."""
    ids, mask = tokens(2, PROMPT + 3), torch.ones(2, PROMPT + 3, dtype=torch.int64)
    mask[0, 8:PROMPT] = 0
    model = model.double()
    with torch.no_grad():
        cache = model(ids[:, :PROMPT], attention_mask=mask[:, :PROMPT]).past_key_values
        got = model(ids[:, PROMPT:], attention_mask=mask, past_key_values=cache).logits
    want = exactly(model, ids, attention_mask=mask, use_cache=False)[:, PROMPT:]
    model.float()
    # The norms of this model round to float32.
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", CACHES)
def test_bfloat16_is_as_near_as_eager(kind: str) -> None:
    """The error against float32 is at most twice that of eager attention in bfloat16."""
    ids, mask = longer()
    model = tiny("llama", torch.bfloat16)
    ours = steps(model, kind, ids, mask)
    model.set_attn_implementation("eager")
    eager = steps(model, kind, ids, mask)
    exact = steps(model.float(), kind, ids, mask)
    assert (ours - exact).norm() <= 2 * (eager - exact).norm()


@pytest.mark.parametrize("padded", [True, False], ids=["padded", "whole"])
def test_a_step_that_learns(padded: bool, decoded: list[int]) -> None:
    """With gradients wanted a step leaves the decode kernels, which have none."""
    model, (ids, mask) = tiny("gemma2"), left_padded()
    if not padded:
        mask = torch.ones_like(mask)
    results = []
    for impl in ("ridgeline", EXACT):
        model.set_attn_implementation(impl)
        model.zero_grad()
        cache = model(ids[:, :-2], attention_mask=mask[:, :-2], use_cache=True).past_key_values
        logits = model(ids[:, -2:], attention_mask=mask, past_key_values=cache).logits
        logits.square().sum().backward()
        gradient = model.model.layers[0].self_attn.k_proj.weight.grad
        results.append((logits.detach(), gradient / gradient.abs().max()))
    model.set_attn_implementation("ridgeline")
    torch.testing.assert_close(results[0], results[1], atol=TOLERANCE, rtol=TOLERANCE)
    assert not decoded
