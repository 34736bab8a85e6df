"""Adapters of other people's decode functions, against modules with their signatures.

Each stand-in computes its result from the arguments as that package documents them, by our
reference: an argument in the wrong place or a wrong layout gives a wrong result.
"""

from contextlib import suppress
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from ridgeline.bench.cuda import decode_peers, packages
from ridgeline.bench.cuda.decode import truth
from ridgeline.bench.inputs import DecodeInputs
from ridgeline.bench.shapes import DecodeShape
from ridgeline.bench.verify import PEER_BUDGET, ROUNDING, relative_error
from ridgeline.ops.paged_decode import paged_decode
from ridgeline.ops.tied_decode import tied_decode

GQA = DecodeShape("gqa", 4, 2, 16, 3, 37, query_len=2)
MLA = DecodeShape("mla", 4, 1, 16, 3, 37, query_len=2)
ONE = DecodeShape("gqa", 4, 2, 16, 3, 37)


def _paged(q, k, v, table, lengths, scale, causal):
    assert causal
    return paged_decode(q, k, v, table, lengths, softmax_scale=scale, impl="reference")


class Flash2:
    @staticmethod
    def flash_attn_with_kvcache(
        q,
        k_cache,
        v_cache,
        k=None,
        v=None,
        rotary_cos=None,
        rotary_sin=None,
        cache_seqlens=None,
        cache_batch_idx=None,
        cache_leftpad=None,
        block_table=None,
        softmax_scale=None,
        causal=False,
    ):
        assert k is v is None
        return _paged(q, k_cache, v_cache, block_table, cache_seqlens, softmax_scale, causal)


class Flash3:
    @staticmethod
    def flash_attn_with_kvcache(
        q,
        k_cache,
        v_cache,
        k=None,
        v=None,
        qv=None,
        cache_seqlens=None,
        page_table=None,
        softmax_scale=None,
        causal=False,
    ):
        if qv is None:
            return _paged(q, k_cache, v_cache, page_table, cache_seqlens, softmax_scale, causal)
        assert causal
        rope = k_cache[:, :, 0]
        table = (page_table, cache_seqlens)
        scale = {"softmax_scale": softmax_scale}
        return tied_decode(qv, q, v_cache, rope, *table, **scale, impl="reference")


def _varlen(q, k, v, cu_seqlens_q, seqused_k, table, scale, causal):
    starts = cu_seqlens_q.tolist()
    assert cu_seqlens_q.dtype == torch.int32
    assert starts[-1] == q.shape[0]
    (step,) = {b - a for a, b in pairwise(starts)}
    q = q.unflatten(0, (-1, step))
    return _paged(q, k, v, table, seqused_k, scale, causal).flatten(0, 1)


class Flash4:
    @staticmethod
    def flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens_q=None,
        cu_seqlens_k=None,
        seqused_q=None,
        seqused_k=None,
        page_table=None,
        softmax_scale=None,
        causal=False,
    ):
        assert cu_seqlens_k is seqused_q is None
        out = _varlen(q, k, v, cu_seqlens_q, seqused_k, page_table, softmax_scale, causal)
        return out, torch.zeros(q.shape[:2])


class Vllm:
    @staticmethod
    def is_fa_version_supported(version):
        return version == 2

    @staticmethod
    def flash_attn_varlen_func(
        q,
        k,
        v,
        max_seqlen_q,
        cu_seqlens_q,
        max_seqlen_k,
        cu_seqlens_k=None,
        seqused_k=None,
        softmax_scale=None,
        causal=False,
        block_table=None,
        fa_version=0,
    ):
        assert (max_seqlen_q, max_seqlen_k, fa_version) == (2, 37, 2)
        return _varlen(q, k, v, cu_seqlens_q, seqused_k, block_table, softmax_scale, causal)


class _DecodeWrapper:
    def __init__(self, float_workspace_buffer, kv_layout, use_tensor_cores):
        assert float_workspace_buffer.dtype == torch.uint8
        assert kv_layout == "NHD"
        assert use_tensor_cores

    def plan(
        self,
        indptr,
        indices,
        last_page_len,
        num_qo_heads,
        num_kv_heads,
        head_dim,
        page_size,
        q_data_type,
        kv_data_type,
        sm_scale,
    ):
        assert {x.dtype for x in (indptr, indices, last_page_len)} == {torch.int32}
        assert (num_qo_heads, num_kv_heads, head_dim) == (4, 2, 16)
        assert q_data_type == kv_data_type == torch.bfloat16
        self.table = indices.view(indptr.shape[0] - 1, -1)
        self.lengths = (indptr.diff() - 1) * page_size + last_page_len
        self.scale = sm_scale

    def run(self, q, paged_kv_cache):
        table = (self.table, self.lengths.to(torch.int32))
        return _paged(q[:, None], *paged_kv_cache, *table, self.scale, True)[:, 0]


class _MlaWrapper:
    def __init__(self, float_workspace_buffer):
        pass

    def plan(
        self,
        qo_indptr,
        kv_indptr,
        kv_indices,
        kv_len_arr,
        num_heads,
        head_dim_ckv,
        head_dim_kpe,
        page_size,
        causal,
        sm_scale,
        q_data_type,
        kv_data_type,
    ):
        assert causal
        assert (num_heads, head_dim_ckv, head_dim_kpe) == (4, 64, 8)
        assert kv_indptr.diff().tolist() == [-(-37 // page_size)] * 3
        self.rows, self.lengths = int(qo_indptr[1]), kv_len_arr
        self.table, self.scale = kv_indices.view(3, -1), sm_scale

    def run(self, q_nope, q_pe, ckv_cache, kpe_cache):
        q_nope, q_pe = (x.unflatten(0, (-1, self.rows)) for x in (q_nope, q_pe))
        state = ckv_cache[:, :, None]
        table = (self.table, self.lengths)
        scale = {"softmax_scale": self.scale}
        out = tied_decode(q_nope, q_pe, state, kpe_cache, *table, **scale, impl="reference")
        return out.flatten(0, 1)


FLASHINFER = SimpleNamespace(
    BatchDecodeWithPagedKVCacheWrapper=_DecodeWrapper,
    mla=SimpleNamespace(BatchMLAPagedAttentionWrapper=_MlaWrapper),
)


class FlashMla:
    @staticmethod
    def get_mla_metadata(cache_seqlens, num_q_tokens_per_head_k, num_heads_k):
        assert (num_q_tokens_per_head_k, num_heads_k) == (8, 1)
        return "schedule", None

    @staticmethod
    def flash_mla_with_kvcache(
        q,
        k_cache,
        block_table,
        cache_seqlens,
        head_dim_v,
        tile_scheduler_metadata,
        num_splits=None,
        softmax_scale=None,
        causal=False,
    ):
        assert causal
        assert (tile_scheduler_metadata, num_splits) == ("schedule", None)
        assert k_cache.shape[2:] == (1, q.shape[-1])
        q_nope, q_rope = q[..., :head_dim_v], q[..., head_dim_v:]
        state, rope = k_cache[..., :head_dim_v], k_cache[:, :, 0, head_dim_v:]
        table = (block_table, cache_seqlens)
        scale = {"softmax_scale": softmax_scale}
        out = tied_decode(q_nope, q_rope, state, rope, *table, **scale, impl="reference")
        return out, torch.zeros(q.shape[:3])


@pytest.mark.parametrize(
    ("peer", "module", "shape"),
    [
        pytest.param("flash-attn 2", Flash2, GQA, id="flash-attn-2"),
        pytest.param("flash-attn 3", Flash3, GQA, id="flash-attn-3"),
        pytest.param("flash-attn 3", Flash3, MLA, id="flash-attn-3-mla"),
        pytest.param("sglang", Flash3, GQA, id="sglang"),
        pytest.param("flash-attn 4", Flash4, GQA, id="flash-attn-4"),
        pytest.param("vllm", Vllm, GQA, id="vllm"),
        pytest.param("flashinfer", FLASHINFER, ONE, id="flashinfer"),
        pytest.param("flashinfer", FLASHINFER, MLA, id="flashinfer-mla"),
        pytest.param("flashmla", FlashMla, MLA, id="flashmla"),
    ],
)
def test_arguments_are_where_the_package_has_them(peer, module, shape) -> None:
    inputs = DecodeInputs(shape, page_size=4, cold_bytes=0)
    call = decode_peers.ADAPTERS[peer](module, inputs)
    relative_error(peer, call(), truth(inputs), PEER_BUDGET * ROUNDING["bf16"])
    assert torch.equal(call(), inputs.decode("reference"))


@pytest.mark.parametrize(
    ("peer", "shape", "reason"),
    [
        ("flash-attn 2", MLA, "its paged decode has K and V apart"),
        ("flashmla", GQA, "it takes one latent head"),
        ("flash-attn 3", DecodeShape("gla", 4, 2, 16, 1, 9), "it takes one latent head"),
        ("flashinfer", GQA, "its decode takes one query token"),
        ("vllm", DecodeShape("gqa", 4, 2, 16, 1, 9, dtype="fp8"), "FP8 caches differ"),
    ],
    ids=["paired", "latent", "two-latents", "one-token", "fp8"],
)
def test_what_a_package_does_not_compute_is_said(peer, shape, reason) -> None:
    inputs = DecodeInputs(shape, page_size=4, cold_bytes=0)
    with pytest.raises(ValueError, match=f"^{reason}"):
        decode_peers.ADAPTERS[peer](SimpleNamespace(), inputs)


@pytest.mark.parametrize("variant", ["gqa", "gta", "mla"])
@pytest.mark.parametrize("query_len", [1, 3])
def test_torch_computes_the_same(variant, query_len) -> None:
    kv_heads = 1 if variant == "mla" else 2
    shape = DecodeShape(variant, 4, kv_heads, 16, 2, 21, query_len=query_len)
    inputs = DecodeInputs(shape, page_size=4, cold_bytes=0)
    found = decode_peers.torch_peers(inputs)
    assert list(found)[:3] == ["sdpa cudnn", "sdpa flash", "sdpa efficient"]
    assert ("eager dense" in found) == (variant != "gqa")
    want, right = truth(inputs), set()
    for name, (call, canonical) in found.items():
        with suppress(RuntimeError):  # of SDPA a CPU has the flash backend alone
            relative_error(name, canonical(call()), want, PEER_BUDGET * ROUNDING["bf16"])
            right.add(name)
    # Flash takes no keys wider than values.
    flash = set() if variant == "mla" else {"sdpa flash"}
    assert right == flash | ({"eager dense"} if variant != "gqa" else set())


def test_packages_that_are_not_there_are_listed(monkeypatch) -> None:
    assert set(decode_peers.ADAPTERS) == set(packages.MODULES)
    monkeypatch.setattr(packages, "find_spec", lambda name: name == "vllm" or None)
    lines = list(packages.lines())
    assert len(lines) == len(packages.MODULES)
    assert "vllm               installed (vllm.vllm_flash_attn)" in lines
    assert "flash-attn 3       not installed (flash_attn_interface)" in lines
    (note,) = packages.missing_note()
    assert note.startswith("Not installed, so not timed: flash-attn 2, flash-attn 3, ")
    assert "vllm" not in note
    monkeypatch.setattr(packages, "find_spec", lambda name: True)
    assert packages.missing_note() == []
    monkeypatch.setattr(packages, "MODULES", {"peer": "json.decoder"})
    assert packages.load("peer").__name__ == "json.decoder"
