"""Bringing the cache into L2 ahead of its copy (Dong et al., arXiv 2504.06319).

One instruction of one thread asks for a whole run of bytes: a page, or a tile's part of one, where
its tokens lie side by side and the program reads all of them, else one token's heads.
"""

from torch import Tensor

from ridgeline.ops.common.gluon import gl, gluon

LANES = gl.constexpr(128)  # threads of the producer


@gluon.jit
def prefetch_tile(ring, queries, pages, k, rope, v, b, item, tile, first, stop):
    """Asks for tokens ``first : stop`` of a tile, of every cache that has runs of its own."""
    lane = gl.arange(0, LANES, gl.BlockedLayout([1], [32], [gl.num_warps()], [0]))
    token = tile * ring.BLOCK_N + lane
    wanted = (lane < ring.BLOCK_N) & (token >= first) & (token < stop)
    page = pages.of(b, token, wanted)
    wanted = wanted & (page < pages.num_pages)
    token = token % pages.PAGE_SIZE
    head = queries.head(item, 0)
    prefetch_runs(k, page, token, head, wanted, lane)
    if not ring.TIED:
        prefetch_runs(v, page, token, head, wanted, lane)
    if ring.HAS_ROPE:
        prefetch_runs(rope, page, token, item * 0, wanted, lane)


@gluon.jit
def prefetch_runs(cache, page, token, head, wanted, lane):
    """The first token of each run asks for all of it."""
    if cache.RUN_BYTES > 0:
        leads = wanted & (lane % cache.RUN_TOKENS == 0)
        gl.inline_asm_elementwise(
            "{ .reg .pred p; setp.ne.s32 p, $2, 0; "
            "@p cp.async.bulk.prefetch.L2.global [$1], $3; mov.u32 $0, 0; }",
            "=r,l,r,r",
            [
                cache.at(page, token, head).to(gl.int64),
                leads.to(gl.int32),
                gl.full_like(lane, cache.RUN_BYTES),
            ],
            dtype=gl.int32,
            is_pure=False,
            pack=1,
        )


def run_of(
    cache: Tensor, heads: int, block: int, *, joined: Tensor | None = None
) -> tuple[int, int]:
    """Tokens and bytes of one run of a cache ``[num_pages, page_size, h, d]``.

    ``heads``: of an item. ``block``: tokens of a page that a tile holds. ``joined``: a cache whose
    tokens may follow those of ``cache`` in one record: the run covers it too, but for the last
    token's. No bytes where an item's heads are apart: there is no run.
    """
    dim, size = cache.shape[-1], cache.element_size()
    if heads > 1 and cache.stride(2) != dim:
        return 1, 0
    width = record = heads * dim
    if joined is not None and follows(joined, cache):
        record += joined.shape[-1]
    if heads == cache.shape[2] and cache.stride(1) == record:
        return block, ((block - 1) * record + width) * size
    return 1, width * size


def follows(cache: Tensor, other: Tensor) -> bool:
    """Whether each token of ``cache`` begins where that of ``other`` ends."""
    end = other.data_ptr() + other.shape[2] * other.shape[3] * other.element_size()
    heads_together = other.shape[2] == 1 or other.stride(2) == other.shape[3]
    return heads_together and cache.data_ptr() == end and cache.stride()[:2] == other.stride()[:2]
