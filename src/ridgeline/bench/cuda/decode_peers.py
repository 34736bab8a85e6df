"""Other implementations of the same decode step, on the same paged cache where they take one.

An adapter takes a loaded module and the inputs, arranges arguments outside the clock, and returns
the call, whose result is ``[B, L_q, h_q, d_v]``; ``ValueError`` says what it does not compute.
Arguments go by name wherever the package allows it: positions are what versions change.
"""

from collections.abc import Callable
from functools import partial
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ridgeline.bench.inputs import DecodeInputs
from ridgeline.bench.peers import Dense

Call = Callable[[], Tensor]
Adapter = Callable[[ModuleType, DecodeInputs], Call]
BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
WORKSPACE_BYTES = 128 << 20  # what FlashInfer recommends


def torch_peers(inputs: DecodeInputs) -> dict[str, tuple[Call, Callable[[Tensor], Tensor]]]:
    """SDPA by backend over a dense cache, query heads packed as rows; tied: matmuls too.

    With each call, how its result becomes ``[B, L_q, h_q, d_v]``. The dense cache, and the RoPE
    keys repeated for every head, are made outside the clock.
    """
    dense = Dense(inputs, inputs.shape.torch_dtype)
    key, mask = dense.full_key(), dense.packed_mask()

    def sdpa(backend: SDPBackend) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(
                dense.q, key, dense.value, attn_mask=mask, scale=inputs.shape.softmax_scale
            )

    found = {f"sdpa {name}": (partial(sdpa, x), dense.unpack) for name, x in BACKENDS.items()}
    if inputs.shape.spec.kind == "tied":
        found["eager dense"] = (dense.eager, dense.unpack)
    return found


def flash_attn_2(module: ModuleType, inputs: DecodeInputs) -> Call:
    """Dao-AILab's flash-attn 2: K and V apart, pages of a multiple of 256 tokens."""
    k, v = _paired(inputs)
    return partial(
        module.flash_attn_with_kvcache,
        inputs.q_nope,
        k,
        v,
        cache_seqlens=inputs.cache_seqlens,
        block_table=inputs.block_table,
        softmax_scale=inputs.shape.softmax_scale,
        causal=True,
    )


def flash_attn_3(module: ModuleType, inputs: DecodeInputs) -> Call:
    """flash-attn 3 (and SGLang's build of it); MLA as its ``qv``: latents are the values."""
    if inputs.shape.spec.kind == "paired":
        q, options = inputs.q_nope, {}
        k, v = _paired(inputs)
    else:
        v, rope = _one_latent(inputs)
        q, k, options = inputs.q_rope, rope[:, :, None], {"qv": inputs.q_nope}
    return partial(
        module.flash_attn_with_kvcache,
        q,
        k,
        v,
        cache_seqlens=inputs.cache_seqlens,
        page_table=inputs.block_table,
        softmax_scale=inputs.shape.softmax_scale,
        causal=True,
        **options,
    )


def flash_attn_4(module: ModuleType, inputs: DecodeInputs) -> Call:
    """flash-attn 4 (CuTe DSL): packed queries over a paged cache."""
    k, v = _paired(inputs)
    call = partial(
        module.flash_attn_varlen_func,
        inputs.q_nope.flatten(0, 1),
        k,
        v,
        cu_seqlens_q=_starts(inputs),
        seqused_k=inputs.cache_seqlens,
        page_table=inputs.block_table,
        softmax_scale=inputs.shape.softmax_scale,
        causal=True,
    )
    return partial(_unpacked, call, inputs)


def flashinfer(module: ModuleType, inputs: DecodeInputs) -> Call:
    """FlashInfer's wrappers, planned outside the clock; queries of one token where K, V apart."""
    workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=inputs.q_nope.device)
    shape, pages = inputs.shape, inputs.block_table.shape[1]
    starts = torch.arange(shape.batch + 1, device=inputs.q_nope.device, dtype=torch.int32) * pages
    dtype = shape.torch_dtype
    if shape.spec.kind == "tied":
        state, rope = _one_latent(inputs)
        wrapper = module.mla.BatchMLAPagedAttentionWrapper(workspace)
        wrapper.plan(
            qo_indptr=_starts(inputs),
            kv_indptr=starts,
            kv_indices=inputs.block_table.flatten(),
            kv_len_arr=inputs.cache_seqlens,
            num_heads=shape.heads,
            head_dim_ckv=shape.spec.dim,
            head_dim_kpe=shape.rope_dim,
            page_size=state.shape[1],
            causal=True,
            sm_scale=shape.softmax_scale,
            q_data_type=dtype,
            kv_data_type=dtype,
        )
        queries = inputs.q_nope.flatten(0, 1), inputs.q_rope.flatten(0, 1)
        return partial(_unpacked, partial(wrapper.run, *queries, state[:, :, 0], rope), inputs)
    k, v = _paired(inputs)
    if shape.query_len > 1:
        raise ValueError("its decode takes one query token")
    wrapper = module.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", use_tensor_cores=True)
    page_size = k.shape[1]
    wrapper.plan(
        indptr=starts,
        indices=inputs.block_table.flatten(),
        last_page_len=(inputs.cache_seqlens - 1) % page_size + 1,
        num_qo_heads=shape.heads,
        num_kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        page_size=page_size,
        q_data_type=dtype,
        kv_data_type=dtype,
        sm_scale=shape.softmax_scale,
    )
    return partial(_unpacked, partial(wrapper.run, inputs.q_nope[:, 0], (k, v)), inputs)


def flashmla(module: ModuleType, inputs: DecodeInputs) -> Call:
    """DeepSeek's FlashMLA: one record of 512 + 64 a token, pages of 64 tokens."""
    state, rope = _one_latent(inputs)
    shape, width = inputs.shape, inputs.shape.spec.elements_per_token
    records = state.as_strided((*state.shape[:3], width), (*state.stride()[:2], width, 1))
    if rope.data_ptr() != records[..., shape.spec.dim :].data_ptr():
        raise ValueError("it takes state and RoPE key as one record")
    rows = shape.query_len * shape.heads
    schedule = module.get_mla_metadata(inputs.cache_seqlens, rows, 1)
    call = partial(
        module.flash_mla_with_kvcache,
        torch.cat([inputs.q_nope, inputs.q_rope], -1),
        records,
        inputs.block_table,
        inputs.cache_seqlens,
        shape.spec.dim,
        *schedule,
        softmax_scale=shape.softmax_scale,
        causal=True,
    )
    return lambda: call()[0]


def vllm(module: ModuleType, inputs: DecodeInputs) -> Call:
    """vLLM's build of flash-attn: version 3 on Hopper, 2 elsewhere."""
    k, v = _paired(inputs)
    call = partial(
        module.flash_attn_varlen_func,
        inputs.q_nope.flatten(0, 1),
        k,
        v,
        max_seqlen_q=inputs.shape.query_len,
        cu_seqlens_q=_starts(inputs),
        max_seqlen_k=inputs.shape.length,
        seqused_k=inputs.cache_seqlens,
        softmax_scale=inputs.shape.softmax_scale,
        causal=True,
        block_table=inputs.block_table,
        fa_version=3 if module.is_fa_version_supported(3) else 2,
    )
    return partial(_unpacked, call, inputs)


ADAPTERS: dict[str, Adapter] = {
    "flash-attn 2": flash_attn_2,
    "flash-attn 3": flash_attn_3,
    "flash-attn 4": flash_attn_4,
    "flashinfer": flashinfer,
    "flashmla": flashmla,
    "vllm": vllm,
    "sglang": flash_attn_3,
}


def _paired(inputs: DecodeInputs) -> tuple[Tensor, ...]:
    if inputs.shape.spec.kind != "paired":
        raise ValueError("its paged decode has K and V apart")
    return _unscaled(inputs)


def _one_latent(inputs: DecodeInputs) -> tuple[Tensor, ...]:
    """``state [num_pages, page_size, 1, d_s]`` and ``rope [num_pages, page_size, d_r]`` of MLA."""
    if inputs.shape.variant != "mla":
        raise ValueError("it takes one latent head")
    return _unscaled(inputs)


def _unscaled(inputs: DecodeInputs) -> tuple[Tensor, ...]:
    if inputs.scales:
        raise ValueError("FP8 caches differ in their scales, so they are not compared")
    return inputs.next_views()


def _starts(inputs: DecodeInputs) -> Tensor:
    """``[B + 1]`` int32: where each sequence's query tokens start when packed."""
    steps = torch.arange(inputs.shape.batch + 1, device=inputs.q_nope.device, dtype=torch.int32)
    return steps * inputs.shape.query_len


def _unpacked(call: Callable[[], Tensor | tuple], inputs: DecodeInputs) -> Tensor:
    """``[B * L_q, h_q, d_v]``, alone or before an lse, as ``[B, L_q, h_q, d_v]``."""
    found = call()
    out = found[0] if isinstance(found, tuple) else found
    return out.unflatten(0, (-1, inputs.shape.query_len))
