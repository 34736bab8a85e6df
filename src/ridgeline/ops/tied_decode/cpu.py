"""``tied_decode`` by the compiled CPU core."""

from torch import Tensor

from ridgeline.ops.common import core


def unsupported(q_nope: Tensor, state_cache: Tensor) -> str | None:
    """Why this implementation cannot run the call, or ``None``."""
    return core.unsupported(q_nope, state_cache)


def tied_decode(
    q_nope: Tensor,
    q_rope: Tensor,
    state_cache: Tensor,
    rope_cache: Tensor,
    block_table: Tensor,
    cache_seqlens: Tensor,
    softmax_scale: float,
    causal: bool,
    num_splits: int,
    out: Tensor,
    lse: Tensor,
    *,
    isa: str = "auto",
    prefetch: int = core.PREFETCH_TILES,
) -> None:
    """Fills ``out [B, L_q, h_q, d_s]`` and ``lse [B, L_q, h_q]``; options as in paged_decode."""
    core.load().tied_decode(
        core.view(q_nope),
        core.view(q_rope),
        core.view(state_cache),
        core.view(rope_cache),
        core.view(block_table),
        core.view(cache_seqlens),
        core.view(out),
        core.view(lse),
        core.dtype_name(q_nope),
        softmax_scale,
        causal,
        num_splits,
        core.num_threads(),
        isa,
        prefetch,
    )
