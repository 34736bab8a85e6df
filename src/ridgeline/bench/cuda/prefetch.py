"""Our decode kernels with a chosen distance of their L2 prefetch, for the ablation."""

from dataclasses import replace
from importlib import import_module

from torch import Tensor

from ridgeline.bench.inputs import DecodeInputs
from ridgeline.ops.common.dispatch import empty_outputs


def decode(inputs: DecodeInputs, impl: str, distance: int) -> Tensor:
    """``inputs.decode(impl)`` that prefetches ``distance`` tiles ahead; 0 for not at all.

    ``impl`` is one whose launcher takes a ``config`` with ``prefetch``: "triton" or "hopper".
    """
    shape, scales = inputs.shape, dict(inputs.scales)
    operation = "paged_decode" if shape.spec.kind == "paired" else "tied_decode"
    module = import_module(f"ridgeline.ops.{operation}.{impl}")
    views = inputs.next_views()
    if operation == "paged_decode":
        queries = (inputs.q_nope,)
        config = module.config_for(*queries, views[0], shape.spec.dim, **scales)
        options = {"window_left": -1, "window_right": -1, "softcap": 0.0}
        options |= {"k_scale": None, "v_scale": None}
    else:
        queries = (inputs.q_nope, inputs.q_rope)
        config = module.config_for(*queries, views[0], **scales)
        options = {"state_scale": None}
    out, lse = empty_outputs(inputs.q_nope, shape.spec.dim)
    getattr(module, operation)(
        *queries,
        *views,
        inputs.block_table,
        inputs.cache_seqlens,
        shape.softmax_scale,
        True,
        num_splits=0,
        out=out,
        lse=lse,
        config=replace(config, prefetch=distance),
        **options | scales,
    )
    return out
