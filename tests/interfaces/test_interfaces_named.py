"""What a random case says too quietly: results that are related, and corners with a name."""

import pytest
import torch
from torch import Tensor

import ridgeline
from ridgeline.cache import CacheSpec, PagedCache
from ridgeline.flash_attn_interface import (
    flash_attn_combine,
    flash_attn_func,
    flash_attn_varlen_func,
    flash_attn_with_kvcache,
    get_scheduler_metadata,
)
from ridgeline.flash_attn_interface.pages import CachedSequences
from ridgeline.flash_mla_interface import flash_mla_with_kvcache, get_mla_metadata
from ridgeline.testing.layouts import far_along

INT32 = torch.int32


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=INT32)


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_chunks_of_a_prefill_and_decode_steps_are_the_whole() -> None:
    """Prefill, chunk and steps through one cache, as one causal pass without it."""
    q, k, v = normal(2, 9, 4, 8), normal(2, 9, 2, 8, seed=1), normal(2, 9, 2, 5, seed=2)
    k_cache = torch.full((2, 16, 2, 8), torch.nan, dtype=torch.float64)
    v_cache = torch.full((2, 16, 2, 5), torch.nan, dtype=torch.float64)
    outs = []
    for first, last in ((0, 4), (4, 7), (7, 8), (8, 9)):
        now = (x[:, first:last] for x in (q, k, v))
        outs.append(_append(*now, k_cache, v_cache, first))
    close(torch.cat(outs, 1), flash_attn_func(q, k, v, causal=True))


def _append(q, k, v, k_cache, v_cache, length) -> Tensor:
    return flash_attn_with_kvcache(q, k_cache, v_cache, k, v, cache_seqlens=length, causal=True)


def test_rotation_depends_on_distances_alone() -> None:
    """Scores of rotated queries and keys do not change if all positions shift."""
    angle = torch.arange(30)[:, None] * torch.tensor([1.0, 0.1, 0.01], dtype=torch.float64)
    q, k, v = normal(1, 4, 2, 8), normal(1, 4, 1, 8, seed=1), normal(1, 4, 1, 8, seed=2)
    for interleaved in (True, False):
        results = []
        for shift in (0, 11):
            caches = torch.zeros(2, 1, 8, 1, 8, dtype=torch.float64)
            results.append(
                flash_attn_with_kvcache(
                    q,
                    *caches,
                    k,
                    v,
                    rotary_cos=angle.cos(),
                    rotary_sin=angle.sin(),
                    cache_seqlens=0,
                    rotary_seqlens=int32(shift),
                    causal=True,
                    rotary_interleaved=interleaved,
                )
            )
        close(*results)


@pytest.mark.parametrize(
    ("options", "moves"),
    [
        ({}, False),
        ({"causal": True}, True),
        ({"window_size": (-1, 0)}, True),
        ({"window_size": (40, -1)}, True),
        ({"window_size": (-1, 40)}, True),
        ({"causal": True, "attention_chunk": 64}, True),
    ],
    ids=str,
)
def test_which_queries_turn_by_their_own_position(options: dict, moves: bool) -> None:
    """The second of two queries, against it alone turned by the row it should turn by."""
    q, cache = normal(1, 2, 1, 4), normal(1, 8, 1, 4, seed=1)
    angle = torch.arange(9)[:, None] * torch.tensor([0.5, 0.3], dtype=torch.float64)
    none = torch.zeros(1, 0, 1, 4, dtype=torch.float64)
    call = {"cache_seqlens": 5, "rotary_cos": angle.cos(), "rotary_sin": angle.sin()} | options
    two = flash_attn_with_kvcache(q, cache, cache, none, none, **call)
    alone = [
        flash_attn_with_kvcache(q[:, 1:], cache, cache, none, none, rotary_seqlens=row, **call)
        for row in (int32(5), int32(6))
    ]
    close(two[:, 1:], alone[moves])
    assert (two[:, 1:] - alone[not moves]).abs().max() > 1e-3


@pytest.mark.parametrize("num_splits", [0, 1])
def test_a_prefill_over_a_cache(num_splits: int) -> None:
    """Enough rows for the other operation, among decode steps; left pads and a window too."""
    lengths = [70, 1, 70]
    cu = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=INT32)
    q, k, v = normal(141, 4, 8), normal(3, 90, 2, 8, seed=1), normal(3, 90, 2, 5, seed=2)
    n, leftpad, options = int32(80, 90, 60), [3, 0, 7], {"causal": True, "window_size": (9, 0)}
    out, lse, *_ = flash_attn_with_kvcache(
        q,
        k,
        v,
        cache_seqlens=n,
        cache_leftpad=int32(*leftpad),
        cu_seqlens_q=cu,
        num_splits=num_splits,
        return_softmax_lse=True,
        **options,
    )
    for b in range(3):
        rows, now = slice(cu[b], cu[b + 1]), slice(leftpad[b], n[b])
        want, want_lse = flash_attn_func(
            q[None, rows], k[b : b + 1, now], v[b : b + 1, now], return_attn_probs=True, **options
        )
        close(out[rows], want[0])
        close(lse[:, rows], want_lse[0])


def test_tokens_may_move_within_a_cache() -> None:
    """Where the new tokens are and where they go overlap, each in the other's cache too."""
    cache = normal(2, 1, 9, 1, 4)
    before = cache.clone()
    flash_attn_with_kvcache(
        normal(1, 1, 1, 4), *cache, cache[1, :, 2:6], cache[0, :, 1:5], cache_seqlens=3
    )
    assert torch.equal(cache[0, :, 3:7], before[1, :, 2:6])
    assert torch.equal(cache[1, :, 3:7], before[0, :, 1:5])


def test_a_left_pad_is_a_shorter_sequence() -> None:
    q, k, v = normal(2, 2, 2, 4), normal(2, 12, 2, 4, seed=1), normal(2, 12, 2, 4, seed=2)
    options = {"causal": True, "window_size": (5, 0), "return_softmax_lse": True}
    got = flash_attn_with_kvcache(
        q, k, v, cache_seqlens=int32(12, 9), cache_leftpad=int32(3, 9), **options
    )
    first = flash_attn_with_kvcache(q[:1], k[:1, 3:], v[:1, 3:], cache_seqlens=9, **options)
    close(got[0][:1], first[0])
    close(got[1][:1], first[1])
    assert (got[0][1] == 0).all()
    assert (got[1][1] == -torch.inf).all()


def test_a_left_pad_copies_no_cache() -> None:
    cache = normal(3, 8, 2, 4)
    leftpad = int32(1, 7, 0)
    table = torch.arange(3, dtype=INT32)[:, None]
    sequences = CachedSequences(cache, cache, table, int32(8, 8, 8), leftpad).without_leftpad()
    assert sequences.k_cache.untyped_storage().data_ptr() == cache.untyped_storage().data_ptr()
    assert sequences.page_size == 1
    tokens = [sequences.k_cache[sequences.table[b, 0], 0] for b in range(3)]
    for b, token in enumerate(tokens):
        assert torch.equal(token, cache[b, leftpad[b]])


def test_a_left_pad_in_a_cache_of_odd_strides() -> None:
    """Strides that no table can express: tokens are gathered, with the same result."""
    plain = normal(3, 8, 2, 4)
    odd = torch.empty(3, 8 * 8 + 3, dtype=torch.float64)[:, :64].unflatten(1, (8, 2, 4))
    odd.copy_(plain)
    q, options = normal(3, 2, 2, 4, seed=1), {"cache_leftpad": int32(1, 7, 0), "causal": True}
    table = torch.arange(3, dtype=INT32)[:, None]
    sequences = CachedSequences(odd, odd, table, int32(8, 8, 8), int32(1, 7, 0))
    assert sequences.without_leftpad() is None
    want = flash_attn_with_kvcache(q, plain, plain, cache_seqlens=8, **options)
    close(flash_attn_with_kvcache(q, odd, odd, cache_seqlens=8, **options), want)


def test_a_cache_beyond_2_to_the_31_elements() -> None:
    """Left pads make ids of tokens; appended slots are offsets of their own."""
    plain = normal(3, 4, 1, 8, dtype=torch.bfloat16)
    far = far_along(plain, 0)
    q, new = normal(3, 1, 1, 8, dtype=torch.bfloat16), normal(3, 1, 1, 8, dtype=torch.bfloat16)
    for leftpad in (None, int32(1, 0, 2)):
        want, got = (
            flash_attn_with_kvcache(
                q, cache, cache, new, new, cache_seqlens=int32(3, 3, 3), cache_leftpad=leftpad
            )
            for cache in (plain, far)
        )
        assert torch.equal(got, want)
        assert torch.equal(far, plain)


@pytest.mark.parametrize("keys", [0, 3])
def test_a_query_that_sees_nothing(keys: int) -> None:
    """0 and -inf; FlashAttention-3 gives -inf, and +inf where a whole batch has no key."""
    q, k, v = normal(1, 5, 2, 4), normal(1, keys, 1, 4), normal(1, keys, 1, 6)
    out, lse = flash_attn_func(q, k, v, causal=True, return_attn_probs=True)
    assert (out[:, : 5 - keys] == 0).all()
    assert (lse[:, :, : 5 - keys] == -torch.inf).all()
    assert lse[:, :, 5 - keys :].isfinite().all()
    cache = normal(1, 3, 1, 4)
    out, lse, *_ = flash_attn_with_kvcache(
        q, cache, cache, cache_seqlens=keys, causal=True, return_softmax_lse=True
    )
    assert (out[:, : 5 - keys] == 0).all()
    assert (lse[:, :, : 5 - keys] == -torch.inf).all()


def test_what_is_returned() -> None:
    q, k = normal(2, 3, 4, 8, dtype=torch.float32), normal(2, 5, 2, 8, dtype=torch.float32)
    assert isinstance(flash_attn_func(q, k, k), Tensor)
    out, lse = flash_attn_func(q, k, k, return_attn_probs=True)
    assert (out.shape, lse.shape, lse.dtype) == ((2, 3, 4, 8), (2, 4, 3), torch.float32)
    assert lse.is_contiguous()
    cu, packed = int32(0, 3, 6), (x.flatten(0, 1) for x in (q, k, k))
    out, lse = flash_attn_varlen_func(*packed, cu, int32(0, 5, 10), 3, 5, return_attn_probs=True)
    assert (out.shape, lse.shape) == ((6, 4, 8), (4, 6))
    assert lse.is_contiguous()
    assert isinstance(flash_attn_with_kvcache(q, k, k), Tensor)
    out, lse, *rest = flash_attn_with_kvcache(q, k, k, return_softmax_lse=True)
    assert (out.shape, lse.shape, lse.dtype) == ((2, 3, 4, 8), (2, 4, 3), torch.float32)
    assert [x.numel() for x in rest] == [0, 0]
    out, lse, *_ = flash_attn_with_kvcache(
        q.flatten(0, 1), k, k, cu_seqlens_q=cu, return_softmax_lse=True
    )
    assert (out.shape, lse.shape) == ((6, 4, 8), (4, 6))


def test_halves_combine_to_the_whole() -> None:
    q, k, v = normal(2, 3, 4, 8), normal(2, 9, 2, 8, seed=1), normal(2, 9, 2, 8, seed=2)
    whole, lse = flash_attn_func(q, k, v, return_attn_probs=True)
    halves = [
        flash_attn_func(q, k[:, part], v[:, part], return_attn_probs=True)
        for part in (slice(0, 4), slice(4, 9))
    ]
    outs = torch.stack([out for out, _ in halves])
    lses = torch.stack([lse.transpose(1, 2) for _, lse in halves])
    out, combined = flash_attn_combine(outs, lses)
    close(out, whole)
    close(combined, lse.transpose(1, 2))


def test_combine_writes_to_out() -> None:
    parts, lses = normal(2, 1, 3, 2, 5, dtype=torch.float32), normal(2, 1, 3, 2).float()
    out = torch.full((1, 3, 2, 5), torch.nan, dtype=torch.bfloat16)
    result, _ = flash_attn_combine(parts, lses, out, torch.bfloat16)
    assert result is out
    assert torch.equal(out, flash_attn_combine(parts, lses)[0].bfloat16())


def test_metadata_are_a_hint() -> None:
    q, cache = normal(2, 1, 4, 8), normal(2, 5, 2, 8)
    hint = get_scheduler_metadata(2, 1, 5, 4, 2, 8, int32(5, 3), num_splits=2, causal=True)
    assert (hint.dtype, hint.shape) == (INT32, (0,))
    call = {"cache_seqlens": int32(5, 3), "causal": True}
    want = flash_attn_with_kvcache(q, cache, cache, **call)
    got = flash_attn_with_kvcache(q, cache, cache, scheduler_metadata=hint, **call)
    assert torch.equal(got, want)


def test_given_splits_make_a_result_independent_of_its_batch() -> None:
    q = normal(3, 2, 4, 8, dtype=torch.float32)
    cache = normal(3, 300, 2, 8, dtype=torch.float32)
    lengths = int32(300, 7, 123)
    whole = flash_attn_with_kvcache(q, cache, cache, cache_seqlens=lengths, num_splits=3)
    for b in range(3):
        one = flash_attn_with_kvcache(
            q[b : b + 1],
            cache[b : b + 1],
            cache[b : b + 1],
            cache_seqlens=lengths[b : b + 1],
            num_splits=3,
        )
        assert torch.equal(one[0], whole[b])


def test_cache_functions_have_no_gradient() -> None:
    q = normal(1, 1, 1, 4).requires_grad_()
    cache = normal(1, 3, 1, 4).requires_grad_()
    assert not flash_attn_with_kvcache(q, cache, cache).requires_grad
    new = normal(1, 1, 1, 4, seed=1).requires_grad_()
    flash_attn_with_kvcache(q, cache, cache.detach().clone(), new, new, cache_seqlens=1)
    assert torch.equal(cache[:, 1], new[:, 0])


def test_prefill_and_decode_in_one_call_pad_nothing() -> None:
    """Each length of queries goes to the operation once, in its own rows."""
    lengths = [1, 40, 1, 0, 3, 40]
    cu = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=INT32)
    q, cache = normal(sum(lengths), 2, 4), normal(6, 50, 1, 4, seed=1)
    n = int32(50, 41, 3, 7, 2, 40)
    out = flash_attn_with_kvcache(
        q, cache, cache, cache_seqlens=n, cu_seqlens_q=cu, max_seqlen_q=40, causal=True
    )
    for b in range(6):
        rows = q[cu[b] : cu[b + 1]]
        keys = cache[b : b + 1, : n[b]]
        close(out[cu[b] : cu[b + 1]], flash_attn_func(rows[None], keys, keys, causal=True)[0])


def test_qv_is_absorbed_mla() -> None:
    """The same record read through both interfaces; K is the RoPE key, V the latent."""
    record = normal(5, 4, 1, 20)
    table, lengths = int32(3, 1, 4, 0).view(2, 2), int32(7, 5)
    q = normal(2, 3, 4, 20, seed=1)
    want, lse = flash_mla_with_kvcache(
        q, record, table, lengths, 16, *get_mla_metadata(), causal=True
    )
    out, got, *_ = flash_attn_with_kvcache(
        q[..., 16:],
        record[..., 16:],
        record[..., :16],
        qv=q[..., :16],
        page_table=table,
        cache_seqlens=lengths,
        causal=True,
        return_softmax_lse=True,
    )
    assert torch.equal(out, want)
    assert torch.equal(got, lse)


def test_mla_reads_the_record_of_the_library_s_cache() -> None:
    """A GLA layer's pages as they are stored, latents then one RoPE key."""
    cache = PagedCache(CacheSpec.gla(2, 8, 4), 1, 3, 5, dtype=torch.float64)
    state, rope = cache.layer(0)
    state.copy_(normal(*state.shape))
    rope.copy_(normal(*rope.shape, seed=1))
    width = state.shape[3] + rope.shape[2]
    sizes = (3, 5, 2 * state.shape[3] + rope.shape[2])
    record = state.as_strided(sizes, (state.stride(0), state.stride(1), 1))
    q, table, lengths = normal(1, 2, 4, width, seed=2), int32(2, 0).view(1, 2), int32(8)
    d_c = state.shape[3]
    out, lse = flash_mla_with_kvcache(
        q, record, table, lengths, d_c, *get_mla_metadata(), softmax_scale=0.3, causal=True
    )
    want, want_lse = ridgeline.tied_decode(
        q[..., :d_c],
        q[..., d_c:],
        state,
        rope,
        table,
        lengths,
        softmax_scale=0.3,
        return_lse=True,
    )
    assert torch.equal(out, want)
    assert torch.equal(lse, want_lse.transpose(1, 2))


def test_mla_of_an_empty_sequence_is_plus_infinity() -> None:
    out, lse = flash_mla_with_kvcache(
        normal(2, 2, 2, 6),
        normal(1, 4, 1, 6),
        int32(0, 0).view(2, 1),
        int32(0, 1),
        4,
        *get_mla_metadata(int32(0, 1), 4, 1),
        causal=True,
    )
    assert (out[0] == 0).all()
    assert (out[1, 0] == 0).all()
    assert (lse[0] == torch.inf).all()
    assert (lse[1, :, 0] == torch.inf).all()
    assert lse[1, :, 1].isfinite().all()
