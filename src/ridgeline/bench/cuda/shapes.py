"""The shapes that are timed on a GPU where the command line names none."""

from collections.abc import Sequence

from ridgeline.bench.attention.shapes import AttentionShape
from ridgeline.bench.shapes import VARIANTS, DecodeShape, all_shapes

LENGTHS = (4096, 8192, 16384, 32768, 65536)
PAGE_SIZES = (64, 1)
WIDTHS = ("kv_heads", "latent_heads", "head_dim")
TOKENS = 16384  # of an attention row, as FlashAttention's tables have them
HIDDEN = 2048  # their heads times head dim


def decode_shapes() -> list[DecodeShape]:
    """GQA and GTA of a Llama, MLA of DeepSeek at tensor parallel 8 and 1, GLA-2 beside it.

    The largest caches, of 128 sequences of 65,536 tokens, take 9.7 GB.
    """
    found = [DecodeShape(variant, 32, 8, 128, 64, 8192) for variant in ("gqa", "gta")]
    for n in LENGTHS:
        found += [DecodeShape("mla", 16, 1, 128, 128, n, query_len) for query_len in (1, 2, 4)]
        found += [
            DecodeShape(variant, 128, in_cache, 128, 128, n, query_len)
            for query_len in (1, 2)
            for variant, in_cache in (("mla", 1), ("gla", 2))
        ]
    found += [
        DecodeShape(variant, 128, in_cache, 128, 1, 2048, query_len)
        for query_len in (1, 2)
        for variant, in_cache in (("mla", 1), ("gla", 2))
    ]
    return found


def chosen_decode(
    *,
    variants: Sequence[str] | None = None,
    sizes: Sequence[tuple[int, int]] = (),
    query_lens: Sequence[int] | None = None,
    dtypes: Sequence[str] = ("bf16",),
    heads: tuple[int, ...] | None = None,
    **widths: int | None,
) -> list[DecodeShape]:
    """With ``sizes``, every combination; without, those of ``decode_shapes`` that were asked for.

    Raises:
        ValueError: names the option that needs ``sizes``, or says that nothing is left.
    """
    given = {name: x for name, x in widths.items() if x is not None}
    if sizes:
        return all_shapes(variants or VARIANTS, sizes, query_lens or (1,), dtypes, heads, **given)
    if given:
        option = "--" + next(iter(given)).replace("_", "-")
        raise ValueError(f"{option}: expected together with --batch and --length")
    found = [
        DecodeShape(s.variant, s.heads, s.kv_heads, s.head_dim, s.batch, s.length, s.query_len, d)
        for d in dtypes
        for s in decode_shapes()
        if (variants is None or s.variant in variants)
        and (heads is None or s.heads in heads)
        and (query_lens is None or s.query_len in query_lens)
    ]
    if not found:
        raise ValueError(
            "--variants: expected some of the default shapes (see benchmarks/README.md), or "
            "--batch and --length; got none"
        )
    return found


def attention_shapes() -> list[AttentionShape]:
    """16,384 tokens in rows of 2K to 16K, hidden 2048; GQA; two rows of preference pairs."""
    found = []
    for head_dim in (64, 128, 256):
        heads = HIDDEN // head_dim
        for length in (2048, 4096, 8192, 16384):
            found += [
                AttentionShape(TOKENS // length, length, heads, heads, head_dim, mask=mask)
                for mask in ("full", "causal")
            ]
    d128 = {"heads": 16, "kv_heads": 16, "head_dim": 128}
    return [
        *found,
        AttentionShape(2, 8192, **d128 | {"heads": 32, "kv_heads": 8}),
        AttentionShape.tree([(1024, 512, 512)] * 8, **d128),
        AttentionShape.tree([(256, 64, 64)] * 42, **d128),
    ]
