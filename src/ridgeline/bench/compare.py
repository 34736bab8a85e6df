"""What rows say about each other: one long sequence against many, and GTA against GQA."""

from collections import defaultdict
from collections.abc import Sequence

from ridgeline.bench.decode import Row


def comparisons(rows: Sequence[Row]) -> list[str]:
    return one_against_many(rows) + gta_against_gqa(rows)


def one_against_many(rows: Sequence[Row]) -> list[str]:
    """How well a single sequence uses all cores, beside as many tokens in the largest batch.

    Shares of the roof are compared, each measured beside its row: two rows are minutes apart.
    """
    groups = defaultdict(list)
    for row in rows:
        s = row.shape
        groups[s.label, s.dtype, s.query_len, s.batch * s.length].append(row)
    lines = []
    for (label, dtype, query_len, _), group in groups.items():
        one, many = (pick(group, key=lambda row: row.shape.batch) for pick in (min, max))
        if one.shape.batch == 1 < many.shape.batch:
            reads = ", ".join(
                f"{size(row)} {row.bandwidth / 1e9:.1f} GB/s ({row.percent:.0f}% of its roof)"
                for row in (one, many)
            )
            ratio = one.percent / many.percent
            lines.append(f"{label} {dtype} L_q {query_len}: {reads}: {ratio:.2f}")
    return lines


def gta_against_gqa(rows: Sequence[Row]) -> list[str]:
    """Time and bytes of GTA over those of GQA with the same heads."""
    gqa = {_setting(row): row for row in rows if row.shape.variant == "gqa"}
    lines = []
    for row in rows:
        other = gqa.get(_setting(row))
        if row.shape.variant == "gta" and other is not None:
            bytes_ratio = row.shape.bytes_per_token / other.shape.bytes_per_token
            lines.append(
                f"GTA / GQA {row.shape.dtype} L_q {row.shape.query_len} {size(row)}: "
                f"{row.seconds / other.seconds:.2f} of the time, {bytes_ratio:.2f} of the bytes"
            )
    return lines


def size(row: Row) -> str:
    return f"{row.shape.batch}x{row.shape.length}"


def _setting(row: Row) -> tuple:
    s = row.shape
    return s.heads, s.kv_heads, s.head_dim, s.batch, s.length, s.query_len, s.dtype
