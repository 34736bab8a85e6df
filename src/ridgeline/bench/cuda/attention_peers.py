"""Other implementations of attention on a GPU: torch's by backend, and packages if installed.

An adapter takes a loaded module and the row's inputs, and returns a function of ``q, k, v
[B, L, h, d]`` with the output ``[B, L, h_q, d_v]``; what it plans stays outside the clock.
"""

from collections.abc import Callable, Iterator
from functools import cache, partial
from types import ModuleType

import torch
from torch import Tensor

from ridgeline.bench.attention import peers as torch_peers
from ridgeline.bench.attention.calls import Call, Inputs
from ridgeline.bench.cuda import packages
from ridgeline.bench.cuda.decode_peers import BACKENDS, WORKSPACE_BYTES

Function = Callable[[Tensor, Tensor, Tensor], Tensor]


def peers(inputs: Inputs) -> Iterator[Call]:
    """Those of torch, then the packages, which compute full and causal rows alone.

    Of a tree torch has FlexAttention, and SDPA of every response behind a prompt of its own.
    """
    dtype = inputs.shape.dtype
    if inputs.shape.mask == "tree":
        yield torch_peers.sdpa_unpacked(inputs, dtype)
    else:
        for backend in BACKENDS.items():
            yield torch_peers.sdpa(inputs, dtype, backend)
        for name, adapter in ADAPTERS.items():
            if packages.installed(name):
                yield _call(name, adapter, inputs)
    yield torch_peers.flex(inputs)


def flash_attn(module: ModuleType, inputs: Inputs) -> Function:
    """flash-attn 2, 3 and 4: the same names, output alone or before an lse."""
    causal = inputs.shape.mask == "causal"

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        found = module.flash_attn_func(q, k, v, causal=causal)
        return found[0] if isinstance(found, tuple) else found

    return function


def flashinfer(module: ModuleType, inputs: Inputs) -> Function:
    """FlashInfer's ragged prefill."""
    shape, starts = inputs.shape, _starts(inputs)
    workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=inputs.where)
    wrapper = module.BatchPrefillWithRaggedKVCacheWrapper(workspace, "NHD")
    wrapper.plan(
        qo_indptr=starts,
        kv_indptr=starts,
        num_qo_heads=shape.heads,
        num_kv_heads=shape.kv_heads,
        head_dim_qk=shape.head_dim,
        head_dim_vo=shape.width,
        causal=shape.mask == "causal",
        q_data_type=shape.torch_dtype,
    )
    return partial(_packed, wrapper.run, shape.batch)


def vllm(module: ModuleType, inputs: Inputs) -> Function:
    """vLLM's build of flash-attn: version 3 on Hopper, 2 elsewhere."""
    version = 3 if module.is_fa_version_supported(3) else 2
    return _varlen(module, inputs, fa_version=version)


def sglang(module: ModuleType, inputs: Inputs) -> Function:
    """SGLang's build of flash-attn 3."""
    return _varlen(module, inputs)


ADAPTERS: dict[str, Callable[[ModuleType, Inputs], Function]] = {
    "flash-attn 2": flash_attn,
    "flash-attn 3": flash_attn,
    "flash-attn 4": flash_attn,
    "flashinfer": flashinfer,
    "vllm": vllm,
    "sglang": sglang,
}
_TRAINING = ("flash-attn 2", "flash-attn 3", "flash-attn 4")


def _call(name: str, adapter: Callable[[ModuleType, Inputs], Function], inputs: Inputs) -> Call:
    """The peer as a call that loads its package when it first runs."""

    @cache
    def function() -> Function:
        return adapter(packages.load(name), inputs)

    *qkv, dout = (x.clone() for x in inputs.all())
    return Call(
        name,
        lambda q, k, v: (function()(q, k, v),),
        tuple(qkv),
        (dout,),
        optional=True,
        forward_only=None if name in _TRAINING else "it is for inference",
    )


def _varlen(module: ModuleType, inputs: Inputs, **options: int) -> Function:
    starts, shape = _starts(inputs), inputs.shape
    call = partial(
        module.flash_attn_varlen_func,
        max_seqlen_q=shape.length,
        cu_seqlens_q=starts,
        max_seqlen_k=shape.length,
        cu_seqlens_k=starts,
        causal=shape.mask == "causal",
        **options,
    )
    return partial(_packed, call, shape.batch)


def _starts(inputs: Inputs) -> Tensor:
    """``[B + 1]`` int32: where each row of tokens starts when packed."""
    steps = torch.arange(inputs.shape.batch + 1, device=inputs.where, dtype=torch.int32)
    return steps * inputs.shape.length


def _packed(call: Callable[..., Tensor], batch: int, *qkv: Tensor) -> Tensor:
    """``call`` on ``[B * L, h, d]``, its output as ``[B, L, h, d_v]``."""
    return call(*(x.flatten(0, 1) for x in qkv)).unflatten(0, (batch, -1))
