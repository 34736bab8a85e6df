"""The decode table of a GPU, and its notes."""

from collections.abc import Sequence

from ridgeline.bench.compare import size
from ridgeline.bench.cuda import packages
from ridgeline.bench.cuda.compare import comparisons
from ridgeline.bench.cuda.decode import Row
from ridgeline.bench.grid import Grid
from ridgeline.bench.table import span, times
from ridgeline.bench.timing import MAX_DRIFT


def line(row: Row) -> str:
    """What is printed as soon as a row is there."""
    s = row.shape
    what = (
        f"{s.label} {s.dtype} {size(row)} L_q {s.query_len}, pages of {row.page_size}, {row.impl}"
    )
    if row.failure is not None:
        return f"{what}: FAILED: {row.failure}"
    return f"{what}: {row.seconds * 1e3:.3f} ms, {row.percent:.0f}% of the roof"


def decode_table(rows: Sequence[Row]) -> Grid:
    """One line a row; the last columns are how many times longer each peer took."""
    table = Grid()
    for name in ("attention", "batch x\nlength", "L_q,\ndtype", "page", "impl"):
        table.add_column(name)
    for name in ("ms", "GB/s", "TFLOP\n/s", "% of\nroof"):
        table.add_column(name, justify="right")
    distances = sorted({n for row in rows for n in row.prefetch})
    for n in distances:
        table.add_column(f"L2 pre-\nfetch {n}", justify="right")
    peers = list(dict.fromkeys(name for row in rows for name in row.peers))
    for name in peers:
        table.add_column(name.replace(" ", "\n"), justify="right")
    previous = None
    for row in rows:
        s = row.shape
        if previous not in (None, s):
            table.add_section()
        previous = s
        head = (s.label, size(row), f"{s.query_len}, {s.dtype}", str(row.page_size), row.impl)
        if row.failure is not None:
            table.add_row(*head, "failed", *[""] * (3 + len(distances) + len(peers)))
            continue
        table.add_row(
            *head,
            f"{row.seconds * 1e3:.3f}",
            f"{row.bandwidth / 1e9:.0f}",
            f"{row.flop_rate / 1e12:.0f}",
            f"{row.percent:.0f} {'mem ' if row.binding == 'memory' else 'gemm'}",
            *(_part(row, n) for n in distances),
            *(times(row.speedup(name) if name in row.peers else None) for name in peers),
        )
    return table


def _part(row: Row, distance: int) -> str:
    """The time with a prefetch distance, over the time without prefetch where there is one."""
    if distance not in row.prefetch:
        return ""
    return f"{row.prefetch[distance] / row.prefetch.get(0, row.seconds):.3f}"


def notes(rows: Sequence[Row]) -> list[str]:
    """What the table's numbers are measured against, what failed, and what rows say together."""
    timed = [row for row in rows if row.failure is None]
    lines = [
        "Medians; L2 cold before every call. Columns with x: how many times longer it took. "
        "L2 prefetch: time with that distance in tiles over the time without."
    ]
    if timed:
        lines.append(
            "Roofs, measured between the calls: copy "
            f"{span([row.roofs.memory for row in timed], digits=0)} GB/s read and written, GEMM "
            f"{span([row.roofs.gemm for row in timed], digits=0)} GFLOP/s in the queries' dtype."
        )
    lines += [f"FAILED {line(row)}" for row in rows if row.failure is not None]
    for what, found in (
        ("not timed", {(n, why) for row in rows for n, why in row.absent.items()}),
        ("timed without a CUDA graph", {(n, why) for row in rows for n, why in row.eager.items()}),
    ):
        lines += [f"{name}: {what} in some rows: {why}" for name, why in sorted(found)]
    lines += [
        f"{line(row)}: the roofs drifted by {100 * row.drift:.0f}%"
        for row in timed
        if row.drift > MAX_DRIFT
    ]
    return lines + packages.missing_note() + comparisons(rows)
