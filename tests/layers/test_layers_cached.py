"""The cached forward: prefill, chunks and decode give the forward without a cache."""

import pytest
import torch
from layer_cases import CachedRun, forward, inputs, make, oracle

from ridgeline.cache import CacheSpec, CacheStep, PagedCache

SCHEDULES = {
    "one-shot": [13],
    "token by token": [1] * 13,
    "prefill, decode": [9, 1, 1, 1, 1],
    "chunks, L_q 3": [5, 5, 3],
}


@pytest.mark.parametrize("page_size", [1, 3, 16])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_equals_the_full_forward(variant, schedule, page_size):
    layer, x = make(variant), inputs(3, 13)
    out = CachedRun(layer, 3, 13, page_size).run(x, SCHEDULES[schedule], impl="reference")
    torch.testing.assert_close(out, forward(layer, x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_absorbed_decode_is_as_accurate_as_the_expanded_form(variant, dtype, impl):
    layer, x = make(variant, dtype), inputs(4, 24, dtype)
    with torch.no_grad():
        expanded = forward(layer, x)
        absorbed = CachedRun(layer, 4, 24).run(x, [10, 1, 1, 4, 8], impl=impl)
        exact = oracle(layer.double(), x.double())
    new = slice(10, None)  # what the decode operation computed

    def error(actual: torch.Tensor) -> float:
        return float((actual.double() - exact)[:, new].norm() / exact[:, new].norm())

    assert absorbed.dtype == dtype
    assert error(absorbed) <= 2 * error(expanded) + torch.finfo(dtype).eps / 2


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_left_padded_batch_equals_each_sequence_alone(variant, impl):
    layer, x = make(variant, torch.float64), inputs(3, 12)
    steps = [[5, 2, 4], [3, 1, 2], [1, 1, 1], [0, 2, 3]]
    batch = CachedRun(layer, 3, 12)
    taken, outs = [0, 0, 0], [[], [], []]
    for lens in steps:
        query_len = max(lens)
        # NaN padding: what it touches shows.
        new = torch.full((3, query_len, x.shape[-1]), torch.nan, dtype=x.dtype)
        for b, n in enumerate(lens):
            new[b, query_len - n :] = x[b, taken[b] : taken[b] + n]
        out = batch.step(new, lens, impl)
        for b, n in enumerate(lens):
            outs[b].append(out[b, query_len - n :])
            taken[b] += n
    for b, parts in enumerate(outs):
        alone = forward(layer, x[b : b + 1, : taken[b]])[0]
        torch.testing.assert_close(torch.cat(parts), alone, rtol=0, atol=1e-10)


def test_padding_rows_of_a_prefill_give_zero(variant):
    layer, x = make(variant), inputs(2, 6)
    out = CachedRun(layer, 2, 6).step(x, [6, 2])
    assert out[1, :4].abs().max() == 0
    assert out[1, 4:].abs().min() > 0


def test_latents_are_cached_after_their_norm_and_rope_keys_rotated():
    layer, x = make("gla"), inputs(1, 3)
    run = CachedRun(layer, 1, 3, page_size=4)
    run.step(x)
    state, rope = (view[run.table[0, 0], :3] for view in run.cache.layer(run.index))
    raw = (x[0] @ layer.kv_down.weight.T)[:, : -layer.rope_dim].unflatten(1, (2, -1))
    normed = raw / (raw.pow(2).mean(-1, keepdim=True) + layer.eps).sqrt() * layer.kv_norm.weight
    torch.testing.assert_close(state, normed.detach(), rtol=0, atol=1e-12)
    keys = (x[0] @ layer.kv_down.weight.T)[:, -layer.rope_dim :]
    torch.testing.assert_close(rope[0], keys[0].detach(), rtol=0, atol=1e-12)  # position 0
    assert (rope[1:] - keys[1:]).abs().min() > 1e-6
    torch.testing.assert_close(rope.norm(dim=1), keys.norm(dim=1).detach(), rtol=1e-6, atol=0)


def test_tied_state_is_cached_as_projected():
    layer, x = make("gta"), inputs(1, 3)
    run = CachedRun(layer, 1, 3, page_size=4)
    run.step(x)
    state, _ = (view[run.table[0, 0], :3] for view in run.cache.layer(run.index))
    expected = (x[0] @ layer.kv_proj.weight.T).unflatten(1, (2, -1)).detach()
    torch.testing.assert_close(state, expected, rtol=0, atol=1e-12)


def test_other_layers_of_the_cache_stay_untouched(variant):
    layer = make(variant)
    run = CachedRun(layer, 2, 5, layers=3)
    run.run(inputs(2, 5), [4, 1])
    assert all(view.isnan().all() for i in (0, 1) for view in run.cache.layer(i))


def test_an_empty_batch_gives_an_empty_result(variant):
    layer, x = make(variant), inputs(0, 3)
    assert forward(layer, x).shape == x.shape
    run = CachedRun(layer, 0, 3)
    assert run.run(x, [2, 1]).shape == x.shape


def test_a_cache_of_another_layer_is_refused(variant):
    layer, x = make(variant), inputs(1, 1)
    cache = PagedCache(CacheSpec.gqa(3, 10), 1, 1, 4, dtype=torch.float64)
    step = CacheStep(
        cache,
        torch.zeros(1, 1, dtype=torch.int32),
        torch.ones(1, dtype=torch.int32),
        torch.zeros(1, dtype=torch.int64),
        None,
        is_prefill=False,
    )
    tables = (torch.ones(1, 1, layer.rope_dim // 2),) * 2
    with pytest.raises(ValueError, match="expected shape"):
        layer(x, tables, cache=step)


def test_an_explicit_implementation_never_falls_back(variant):
    run = CachedRun(make(variant), 1, 3)
    run.step(inputs(1, 2))
    with pytest.raises(ValueError, match="impl="):
        run.step(inputs(1, 1), impl="triton")
