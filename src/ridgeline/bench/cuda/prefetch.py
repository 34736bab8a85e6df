"""Our decode kernels with a chosen distance of their L2 prefetch, for the ablation."""

from dataclasses import replace

from torch import Tensor

from ridgeline.bench.inputs import DecodeInputs
from ridgeline.ops.common.dispatch import empty_outputs

IMPL = "triton"  # whose schedule has the prefetch as an option that a caller may set


def decode(inputs: DecodeInputs, distance: int) -> Tensor:
    """``inputs.decode("triton")`` that prefetches ``distance`` tiles ahead; 0 for not at all."""
    shape, scale = inputs.shape, inputs.scales.get
    out, lse = empty_outputs(inputs.q_nope, shape.spec.dim)
    views, table = inputs.next_views(), (inputs.block_table, inputs.cache_seqlens)
    if shape.spec.kind == "paired":
        from ridgeline.ops.paged_decode import triton as paged

        scales = scale("k_scale"), scale("v_scale")
        config = paged.config_for(inputs.q_nope, views[0], shape.spec.dim, *scales)
        options = (shape.softmax_scale, True, -1, -1, 0.0, *scales, 0)
        config = replace(config, prefetch=distance)
        paged.paged_decode(inputs.q_nope, *views, *table, *options, out, lse, config=config)
    else:
        from ridgeline.ops.tied_decode import triton as tied

        queries = inputs.q_nope, inputs.q_rope
        config = tied.config_for(*queries, views[0], scale("state_scale"))
        options = (shape.softmax_scale, True, scale("state_scale"), 0)
        config = replace(config, prefetch=distance)
        tied.tied_decode(*queries, *views, *table, *options, out, lse, config=config)
    return out
