"""``paged_decode`` by the compiled CPU core."""

from torch import Tensor

from ridgeline.ops.common import core


def unsupported(q: Tensor, k_cache: Tensor) -> str | None:
    """Why this implementation cannot run the call, or ``None``."""
    return core.unsupported(q, k_cache)


def paged_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    cache_seqlens: Tensor,
    softmax_scale: float,
    causal: bool,
    window_left: int,
    window_right: int,
    softcap: float,
    num_splits: int,
    out: Tensor,
    lse: Tensor,
    *,
    isa: str = "auto",
    prefetch: int = core.PREFETCH_TILES,
) -> None:
    """Fills ``out [B, L_q, h_q, d_v]`` and ``lse [B, L_q, h_q]``.

    ``isa`` forces an instruction set (see ``core.isas()``); ``prefetch`` is the distance in tiles
    of the software prefetch into L2, 0 for none. Neither changes what is computed: ``prefetch``
    gives the same bits, ``isa`` the same result within rounding.
    """
    core.load().paged_decode(
        core.view(q),
        core.view(k_cache),
        core.view(v_cache),
        core.view(block_table),
        core.view(cache_seqlens),
        core.view(out),
        core.view(lse),
        core.dtype_name(q),
        softmax_scale,
        causal,
        window_left,
        window_right,
        softcap,
        num_splits,
        core.num_threads(),
        isa,
        prefetch,
    )
