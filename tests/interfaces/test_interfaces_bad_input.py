"""Wrong arguments raise an error that names the argument, and no token is written before it."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ridgeline import flash_attn_interface as fa
from ridgeline import flash_mla_interface as mla
from ridgeline.testing.layouts import clone

INT32, FP8 = torch.int32, torch.float8_e4m3fn


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=INT32)


def dense() -> dict[str, Any]:
    return {
        "q": torch.randn(2, 3, 4, 8),
        "k": torch.randn(2, 5, 2, 8),
        "v": torch.randn(2, 5, 2, 6),
    }


def varlen() -> dict[str, Any]:
    tensors = {name: x.flatten(0, 1) for name, x in dense().items()}
    starts = {"cu_seqlens_q": int32(0, 2, 6), "cu_seqlens_k": int32(0, 7, 10)}
    return tensors | starts | {"max_seqlen_q": 4, "max_seqlen_k": 7}


def stacked() -> dict[str, Any]:
    return {"qkv": torch.randn(2, 5, 3, 2, 8)}


def grouped() -> dict[str, Any]:
    return {"qkv": torch.randn(2, 5, 8, 8), "num_heads_q": 4}


def contiguous() -> dict[str, Any]:
    return {
        "q": torch.randn(2, 3, 4, 8),
        "k_cache": torch.randn(3, 10, 2, 8),
        "v_cache": torch.randn(3, 10, 2, 6),
        "k": torch.randn(2, 2, 2, 8),
        "v": torch.randn(2, 2, 2, 6),
        "cache_seqlens": int32(5, 8),
        "cache_batch_idx": int32(2, 0),
        "rotary_cos": torch.randn(12, 4),
        "rotary_sin": torch.randn(12, 4),
        "causal": True,
    }


def paged() -> dict[str, Any]:
    arguments = contiguous() | {
        "k_cache": torch.randn(6, 4, 2, 8),
        "v_cache": torch.randn(6, 4, 2, 6),
        "page_table": int32(5, 1, 9999, 0, 3, 2).view(2, 3),
        "cache_leftpad": int32(1, 8),
        "cu_seqlens_q": int32(0, 1, 4),
        "cu_seqlens_k_new": int32(0, 1, 3),
    }
    del arguments["cache_batch_idx"]
    arguments["q"] = torch.randn(4, 4, 8)
    arguments["k"], arguments["v"] = torch.randn(3, 2, 8), torch.randn(3, 2, 6)
    return arguments


def reading() -> dict[str, Any]:
    arguments = contiguous() | {"causal": False}
    for name in ("k", "v", "rotary_cos", "rotary_sin"):
        del arguments[name]
    return arguments


def fp8() -> dict[str, Any]:
    arguments = reading()
    for name in ("q", "k_cache", "v_cache"):
        arguments[name] = arguments[name].to(FP8)
    return arguments | {"q_descale": torch.ones(2, 2)}


def combine() -> dict[str, Any]:
    return {"out_partial": torch.randn(3, 2, 5, 4, 6), "lse_partial": torch.randn(3, 2, 5, 4)}


def metadata() -> dict[str, Any]:
    sizes = {"batch_size": 2, "max_seqlen_q": 1, "max_seqlen_k": 9, "num_heads_q": 4}
    return sizes | {"num_heads_kv": 2, "headdim": 8, "cache_seqlens": int32(9, 5)}


def latent() -> dict[str, Any]:
    return {
        "q": torch.randn(2, 2, 4, 12),
        "k_cache": torch.randn(4, 3, 2, 12),
        "block_table": int32(3, 1, 0, 2).view(2, 2),
        "cache_seqlens": int32(6, 4),
        "head_dim_v": 8,
        "tile_scheduler_metadata": mla.FlashMLASchedMeta(),
    }


def record() -> dict[str, Any]:
    return latent() | {"k_cache": torch.randn(4, 3, 20)}


FUNCTIONS: dict[Callable[[], dict[str, Any]], Callable] = {
    dense: fa.flash_attn_func,
    varlen: fa.flash_attn_varlen_func,
    stacked: fa.flash_attn_qkvpacked_func,
    grouped: fa.flash_attn_qkvpacked_func,
    contiguous: fa.flash_attn_with_kvcache,
    paged: fa.flash_attn_with_kvcache,
    reading: fa.flash_attn_with_kvcache,
    fp8: fa.flash_attn_with_kvcache,
    combine: fa.flash_attn_combine,
    metadata: fa.get_scheduler_metadata,
    latent: mla.flash_mla_with_kvcache,
    record: mla.flash_mla_with_kvcache,
}
V, T, N = ValueError, TypeError, NotImplementedError


def every_other(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, -1)[..., ::2]


def expanded(x: Tensor) -> Tensor:
    return x[:1].expand(x.shape)


def inference(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x.clone()


# arguments, the one made wrong, how (a value, or a function of it), the error, its message
Change = Any
BAD: list[tuple[Callable, str, Change, type[Exception], str]] = [
    *((make, "window_size", 3, T, "window_size: expected") for make in (dense, varlen, contiguous)),
    *((make, "window_size", (1.5, 0), T, r"window_size\[0\]") for make in (dense, contiguous)),
    *((make, "window_size", (1, 2, 3), T, "window_size") for make in (dense, reading)),
    *((make, "causal", 1, T, "causal: expected a bool") for make in (dense, contiguous, latent)),
    *((make, "softcap", -1.0, V, "softcap: expected") for make in (dense, varlen, contiguous)),
    *((make, "softmax_scale", "1", T, "softmax_scale") for make in (dense, contiguous, latent)),
    *((make, "softmax_scale", float("nan"), V, "softmax_scale") for make in (contiguous, record)),
    *((make, "attention_chunk", -1, V, "attention_chunk") for make in (dense, contiguous)),
    *((make, "attention_chunk", 4, N, "pass causal=True") for make in (dense, varlen, reading)),
    *((make, "num_splits", -1, V, "num_splits") for make in (dense, contiguous, metadata)),
    *((make, "pack_gqa", 1, T, "pack_gqa") for make in (varlen, contiguous, metadata)),
    *((make, "sm_margin", -1, V, "sm_margin") for make in (stacked, contiguous, metadata)),
    *((make, "q_descale", torch.ones(2, 2), V, "q_descale: .*unless q") for make in (dense, paged)),
    *((make, "v_descale", 2.0, T, "v_descale") for make in (dense, contiguous)),
    *((make, "q", None, T, "q: expected a torch.Tensor") for make in (dense, paged, latent)),
    *((make, "return_attn_probs", 1, T, "return_") for make in (dense, varlen, stacked)),
    (dense, "q", lambda x: x[0], V, "q: expected shape"),
    (dense, "q", lambda x: x[..., :7], V, "k: expected shape"),
    (dense, "q", lambda x: x[:, :, :3], V, r"k.shape\[2\]: expected a divisor"),
    (dense, "q", lambda x: x[:1], V, "k: expected shape"),
    (dense, "q", lambda x: x.double(), T, "k: expected dtype"),
    (dense, "k", lambda x: x.int(), T, "k: expected dtype"),
    (dense, "v", lambda x: x[:, :4], V, "v: expected shape"),
    (dense, "v", lambda x: x.to("meta"), V, "v: expected device"),
    (dense, "qv", torch.randn(2, 3, 4, 5), V, "qv: expected shape"),
    (dense, "qv", torch.randn(2, 3, 4, 6).double(), T, "qv: expected dtype"),
    (dense, "deterministic", 1, T, "deterministic"),
    (varlen, "q", lambda x: x[None], V, "q: expected shape"),
    (varlen, "cu_seqlens_q", None, T, "cu_seqlens_q"),
    (varlen, "cu_seqlens_k", None, T, "cu_seqlens_k"),
    (varlen, "cu_seqlens_q", int32(0, 2, 5), V, "cu_seqlens_q: expected to rise from 0 to 6"),
    (varlen, "cu_seqlens_k", int32(0, 11, 10), V, "cu_seqlens_k: expected to rise"),
    (varlen, "cu_seqlens_k", int32(0, 10), V, "cu_seqlens_k: expected shape"),
    (varlen, "cu_seqlens_k", lambda x: x.long(), T, "cu_seqlens_k: expected dtype int32"),
    (varlen, "max_seqlen_q", 3, V, "max_seqlen_q: expected at least 4"),
    (varlen, "seqused_q", int32(2, 5), V, r"seqused_q: .*\[2, 4\]"),
    (varlen, "seqused_k", int32(-1, 3), V, "seqused_k: expected between"),
    (varlen, "seqused_k", int32(1), V, "seqused_k: expected shape"),
    (varlen, "seqused_k", torch.tensor([1, 1]), T, "seqused_k: expected dtype int32"),
    (varlen, "qv", torch.randn(6, 4, 8), V, "qv: expected shape"),
    (stacked, "qkv", lambda x: x[:, :, :2], V, "qkv: expected shape"),
    (stacked, "qkv", [1], T, "qkv: expected a torch.Tensor"),
    (stacked, "num_heads_q", 1, V, "num_heads_q: expected None or 2"),
    (grouped, "num_heads_q", None, V, "num_heads_q: expected an int"),
    (grouped, "num_heads_q", 5, V, "qkv: expected num_heads_q"),
    (grouped, "num_heads_q", 8, V, "qkv: expected num_heads_q"),
    (contiguous, "q", lambda x: x[0], V, "q: expected shape"),
    (contiguous, "q", lambda x: x[:, :, :3], V, r"k_cache.shape\[2\]: expected a divisor"),
    (contiguous, "q", lambda x: x.double(), T, "k_cache: expected dtype"),
    (contiguous, "q", lambda x: x[..., :7], V, "k_cache: expected shape"),
    (contiguous, "q", lambda x: x[:, :, :0], V, "q: expected at least one head"),
    (contiguous, "k_cache", lambda x: x[0], V, "k_cache: expected shape"),
    (contiguous, "k_cache", every_other, V, "k_cache: expected a contiguous last dim"),
    (contiguous, "k_cache", expanded, V, "k_cache: expected memory of its own"),
    (contiguous, "k_cache", inference, V, "k_cache: expected a tensor that can be written"),
    (contiguous, "v_cache", inference, V, "v_cache: expected a tensor that can be written"),
    (contiguous, "v_cache", expanded, V, "v_cache: expected memory of its own"),
    (contiguous, "v_cache", lambda x: x[:, :9], V, "v_cache: expected shape"),
    (contiguous, "v_cache", lambda x: x.half(), T, "v_cache: expected dtype"),
    (contiguous, "v_cache", lambda x: x.to("meta"), V, "v_cache: expected device"),
    (contiguous, "v", None, T, "v: expected a torch.Tensor"),
    (contiguous, "k", None, V, "v: expected None without k"),
    (contiguous, "k", lambda x: x[:1], V, "k: expected shape"),
    (contiguous, "k", lambda x: x[..., :6], V, "k: expected shape"),
    (contiguous, "k", lambda x: x.half(), T, "k: expected dtype"),
    (contiguous, "v", lambda x: x[:, :1], V, "v: expected shape"),
    (contiguous, "v", lambda x: x.half(), T, "v: expected dtype"),
    (contiguous, "cache_seqlens", int32(5, 9), V, "cache_seqlens: .*10 - 2 new.*got 9"),
    (contiguous, "cache_seqlens", int32(5, 2**31 - 1), V, "cache_seqlens: .*got 2147483647"),
    (contiguous, "cache_seqlens", int32(-1, 3), V, "cache_seqlens: .*got -1 for sequence 0"),
    (contiguous, "cache_seqlens", 9, V, "cache_seqlens: .*got 9"),
    (contiguous, "cache_seqlens", -1, V, "cache_seqlens: expected at least 0"),
    (contiguous, "cache_seqlens", 5.0, T, "cache_seqlens"),
    (contiguous, "cache_seqlens", None, V, "cache_seqlens: expected an int or a tensor with k"),
    (contiguous, "cache_seqlens", int32(5), V, "cache_seqlens: expected shape"),
    (contiguous, "cache_seqlens", torch.tensor([5, 8]), T, "cache_seqlens: expected dtype int32"),
    (contiguous, "cache_batch_idx", None, V, "k_cache: expected 2 rows"),
    (contiguous, "cache_batch_idx", int32(0, 3), V, "cache_batch_idx: .*got 3"),
    (contiguous, "cache_batch_idx", int32(-1, 0), V, "cache_batch_idx: .*got -1"),
    (contiguous, "cache_batch_idx", int32(1, 1), V, "cache_batch_idx: expected distinct"),
    (contiguous, "cache_batch_idx", torch.tensor([2, 0]), T, "cache_batch_idx: expected dtype"),
    (contiguous, "cache_leftpad", int32(6, 0), V, r"cache_leftpad: .*\[5, 8\], got \[6, 0\]"),
    (contiguous, "cache_leftpad", int32(-1, 0), V, "cache_leftpad: expected between"),
    (contiguous, "cache_leftpad", int32(0), V, "cache_leftpad: expected shape"),
    (contiguous, "max_seqlen_q", 2, V, "max_seqlen_q: expected at least 3"),
    (contiguous, "rotary_cos", None, T, "rotary_cos: expected a torch.Tensor"),
    (contiguous, "rotary_sin", None, T, "rotary_sin: expected a torch.Tensor"),
    (contiguous, "rotary_cos", lambda x: x[:10], V, "rotary_sin: expected shape"),
    (contiguous, "rotary_cos", lambda x: x.half(), T, "rotary_cos: expected dtype"),
    (contiguous, "rotary_cos", torch.randn(12, 5), V, "rotary_sin: expected shape"),
    (contiguous, "rotary_seqlens", int32(0, 10), V, "rotary_cos: .*position up to 12, got 12"),
    (contiguous, "rotary_seqlens", int32(0, -1), V, "rotary_seqlens: expected at least 0"),
    (contiguous, "rotary_seqlens", int32(0), V, "rotary_seqlens: expected shape"),
    (contiguous, "rotary_interleaved", 1, T, "rotary_interleaved"),
    (contiguous, "qv", torch.randn(2, 3, 4, 5), V, "qv: expected shape"),
    (contiguous, "scheduler_metadata", 3, T, "scheduler_metadata"),
    (contiguous, "scheduler_metadata", torch.ones(2), T, "scheduler_metadata: expected dtype"),
    (contiguous, "return_softmax_lse", 1, T, "return_softmax_lse"),
    (contiguous, "cu_seqlens_k_new", int32(0, 2, 4), V, "k: expected shape"),
    (reading, "rotary_cos", torch.randn(12, 4), T, "rotary_sin: expected a torch.Tensor"),
    (reading, "cu_seqlens_k_new", int32(0, 2, 4), V, "cu_seqlens_k_new: expected None without k"),
    (paged, "page_table", lambda x: x[:1], V, "page_table: expected 2 rows"),
    (paged, "page_table", lambda x: x[0], V, "page_table: expected shape"),
    (paged, "page_table", lambda x: x.long(), T, "page_table: expected dtype int32"),
    (paged, "page_table", int32(5, 6, 9, 0, 3, 2).view(2, 3), V, "page_table: .*got 6.*sequence 0"),
    (paged, "page_table", int32(5, 1, 9, 0, 3, -1).view(2, 3), V, "page_table: .*got -1.*seq"),
    (paged, "page_table", int32(5, 2, 9, 0, 3, 2).view(2, 3)[:, :2], V, "cache_seqlens: .*8 - 2"),
    (paged, "cu_seqlens_q", int32(0, 1, 5), V, "cu_seqlens_q: expected to rise from 0 to 4"),
    (paged, "cu_seqlens_q", int32(0, 4), V, "page_table: expected 1 rows|k_new: expected shape"),
    (paged, "cu_seqlens_q", lambda x: x.long(), T, "cu_seqlens_q: expected dtype int32"),
    (paged, "cu_seqlens_q", None, V, "q: expected shape"),
    (paged, "cu_seqlens_k_new", int32(0, 2, 2), V, "cu_seqlens_k_new: expected to rise"),
    (paged, "cu_seqlens_k_new", int32(0, 4, 3), V, "cu_seqlens_k_new: expected to rise"),
    (paged, "cu_seqlens_k_new", int32(0, 3), V, "cu_seqlens_k_new: expected shape"),
    (paged, "cache_seqlens", int32(5, 11), V, "cache_seqlens: .*12 - 2 new tokens, got 11"),
    (fp8, "q_descale", torch.ones(2, 4), V, "q_descale: expected shape"),
    (fp8, "k_descale", torch.ones(2, 2).double(), T, "k_descale: expected dtype float32"),
    (fp8, "v_descale", torch.full((2, 2), torch.inf), V, "v_descale: expected finite"),
    (fp8, "qv", torch.randn(2, 3, 4, 6).to(FP8), N, "qv with float8.*dequantize"),
    (combine, "out_partial", lambda x: x[0], V, "out_partial: expected shape"),
    (combine, "out_partial", lambda x: x.int(), T, "out_partial: expected dtype"),
    (combine, "lse_partial", lambda x: x[..., :3], V, "lse_partial: expected shape"),
    (combine, "lse_partial", lambda x: x.half(), T, "lse_partial: expected dtype"),
    (combine, "out", torch.empty(2, 5, 4, 5), V, "out: expected shape"),
    (combine, "out", torch.empty(2, 5, 4, 6).half(), T, "out: expected dtype float32"),
    (combine, "out_dtype", torch.int32, T, "out_dtype: expected"),
    (metadata, "cache_seqlens", lambda x: x[:1], V, "cache_seqlens: expected shape"),
    (metadata, "cache_seqlens", lambda x: x.long(), T, "cache_seqlens: expected dtype"),
    (metadata, "num_heads_kv", 3, V, "num_heads_kv: expected a divisor"),
    (metadata, "headdim", 8.0, T, "headdim"),
    (latent, "q", lambda x: x[0], V, "q: expected shape"),
    (latent, "q", lambda x: x[:, :, :3], V, r"k_cache.shape\[2\]: expected a divisor"),
    (latent, "q", lambda x: x.half(), T, "k_cache: expected dtype"),
    (latent, "k_cache", lambda x: x[..., :11], V, "k_cache: expected shape"),
    (latent, "k_cache", lambda x: x.view(4, 3, 24)[..., :23], V, "k_cache: expected records"),
    (latent, "k_cache", every_other, V, "k_cache: expected a contiguous last dim"),
    (latent, "block_table", None, T, "block_table: expected a torch.Tensor"),
    (latent, "block_table", lambda x: x + 9, V, "block_table: .*got 12"),
    (latent, "cache_seqlens", None, T, "cache_seqlens: expected a torch.Tensor"),
    (latent, "cache_seqlens", int32(7, 1), V, "cache_seqlens: .*got 7"),
    (latent, "head_dim_v", 13, V, "head_dim_v: expected at most 12"),
    (latent, "head_dim_v", 0, V, "head_dim_v: expected at least 1"),
    (latent, "tile_scheduler_metadata", None, T, "tile_scheduler_metadata"),
    (latent, "num_splits", int32(0, 1), T, "num_splits: expected None"),
    (latent, "is_fp8_kvcache", True, N, "is_fp8_kvcache: .*ridgeline.tied_decode"),
    (latent, "indices", int32(1), N, "indices ask for sparse attention"),
    (latent, "attn_sink", torch.ones(4), N, "attn_sink is not supported: multiply"),
    (latent, "extra_k_cache", torch.ones(4), N, "extra_k_cache belongs to sparse"),
    (latent, "extra_indices_in_kvcache", int32(1), N, "extra_indices_in_kvcache belongs"),
    (latent, "topk_length", int32(1), N, "topk_length belongs to sparse"),
    (latent, "extra_topk_length", int32(1), N, "extra_topk_length belongs to sparse"),
    (record, "k_cache", lambda x: x[..., :19], V, "k_cache: expected records of h_kv"),
    (record, "k_cache", lambda x: x[..., :4], V, "k_cache: expected records of h_kv"),
    (record, "q", lambda x: x[:, :, :1], V, "h_kv of k_cache: expected a divisor"),
]
IDS = [re.sub(r"[^\w\-]+", "-", f"{m.__name__}-{n}-{text}")[:60] for m, n, _, _, text in BAD]


@pytest.mark.parametrize("make", FUNCTIONS, ids=lambda make: make.__name__)
def test_the_arguments_are_right_before_they_are_made_wrong(make: Callable) -> None:
    FUNCTIONS[make](**make())


@pytest.mark.parametrize(("make", "name", "change", "error", "message"), BAD, ids=IDS)
def test_bad_input(make, name: str, change: Change, error: type[Exception], message: str) -> None:
    arguments = make()
    arguments[name] = change(arguments[name]) if callable(change) else change
    tensors = {n: x for n, x in arguments.items() if isinstance(x, Tensor)}
    before = {n: clone(x) for n, x in tensors.items() if x.device.type == "cpu"}
    with pytest.raises(error, match=message):
        FUNCTIONS[make](**arguments)
    for n, x in before.items():
        storages = (y.untyped_storage() for y in (tensors[n], x))
        got, want = (torch.empty(0, dtype=torch.uint8).set_(s) for s in storages)
        assert torch.equal(got, want), f"{n} was written"


def test_two_sequences_may_not_append_to_one_place() -> None:
    """Pages may be shared to read, not to write."""
    arguments = paged()
    arguments["page_table"] = int32(5, 2, 9999, 0, 3, 2).view(2, 3)
    arguments |= {"cache_seqlens": int32(5, 8), "cu_seqlens_k_new": int32(0, 1, 3)}
    fa.flash_attn_with_kvcache(**arguments | {"cache_seqlens": int32(6, 8)})
    k_cache = arguments["k_cache"].clone()
    with pytest.raises(ValueError, match="page_table: expected a place of its own"):
        fa.flash_attn_with_kvcache(**arguments)
    assert torch.equal(arguments["k_cache"], k_cache)


def test_inference_caches_are_written_inside_inference_mode() -> None:
    arguments = contiguous()
    for name in ("k_cache", "v_cache"):
        arguments[name] = inference(arguments[name])
    with torch.inference_mode():
        fa.flash_attn_with_kvcache(**arguments)
    assert torch.equal(arguments["v_cache"][2, 5:7], arguments["v"][0])


def test_pages_that_no_query_sees_may_be_anything() -> None:
    """Before the left pad, behind the window, after the end."""
    table = int32(2147480000, 1, 0, -5).view(1, 4)
    cache = torch.randn(2, 4, 1, 8)
    q, options = torch.randn(1, 1, 2, 8), {"page_table": table, "cache_seqlens": int32(11)}
    fa.flash_attn_with_kvcache(q, cache, cache, cache_leftpad=int32(4), **options)
    fa.flash_attn_with_kvcache(q, cache, cache, window_size=(6, 0), **options)
    for hidden in ({"window_size": (7, 0)}, {"cache_leftpad": int32(3)}):
        with pytest.raises(ValueError, match=r"page_table: .*got 2147480000"):
            fa.flash_attn_with_kvcache(q, cache, cache, **options, **hidden)


@pytest.mark.parametrize("make", FUNCTIONS, ids=lambda make: make.__name__)
def test_no_value_is_asked_of_a_device(make: Callable) -> None:
    """Tensors without values: only packed queries of a cache need their lengths."""
    arguments = make()
    for name, x in arguments.items():
        if isinstance(x, Tensor):
            arguments[name] = x.to("meta")
    if make is paged:
        for name in ("cu_seqlens_q", "cu_seqlens_k_new"):
            del arguments[name]
        arguments["q"] = arguments["q"][:2, None]
        arguments["k"], arguments["v"] = (arguments[name][:2, None] for name in ("k", "v"))
    result = FUNCTIONS[make](**arguments)
    assert (result[0] if isinstance(result, tuple) else result).device.type == "meta"
