"""Tables in a terminal: their look, and the decode table."""

from collections.abc import Sequence

from ridgeline.bench.compare import size
from ridgeline.bench.decode import Row
from ridgeline.bench.grid import Grid, PlainConsole, Terminal
from ridgeline.bench.shapes import DTYPES
from ridgeline.bench.timing import MAX_DRIFT
from ridgeline.roofline import gemm_dtype

MIN_WIDTH = 125


def console() -> Terminal:
    """A console that does not wrap tables where the output is no terminal; plain without rich."""
    try:
        from rich.console import Console
    except ModuleNotFoundError:
        return PlainConsole()
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=MIN_WIDTH)


def decode_table(rows: Sequence[Row]) -> Grid:
    """One line a shape; the last columns are how many times longer each peer took."""
    table = Grid()
    for name in ("attention", "batch x\nlength"):
        table.add_column(name)
    if several := len({(r.shape.query_len, r.shape.dtype) for r in rows}) > 1:
        table.add_column("L_q,\ndtype")
    for name in ("bytes/\ntoken", "ms", "GB/s", "GFLOP\n/s", "% of\nroof", "no pre-\nfetch"):
        table.add_column(name, justify="right")
    # "sdpa gqa bf16" and the like, those of one dtype together, "eager" last.
    found = {name for row in rows for name in row.peers}
    peers = sorted(found, key=lambda x: (x.split()[-1], "eager" in x, x))
    for name in peers:
        table.add_column(name.replace(" ", "\n"), justify="right")
    previous = None
    for row in rows:
        s = row.shape
        if previous not in (None, (s.batch, s.length)):
            table.add_section()
        previous = s.batch, s.length
        table.add_row(
            s.label,
            size(row),
            *([f"{s.query_len}, {s.dtype}"] if several else []),
            str(s.bytes_per_token),
            f"{row.seconds * 1e3:.2f}",
            f"{row.bandwidth / 1e9:.1f}",
            f"{row.flop_rate / 1e9:.0f}",
            f"{row.percent:.0f} {'mem ' if row.binding == 'memory' else 'gemm'}",
            times(row.prefetch_gain),
            *(times(row.speedup(name) if name in row.peers else None) for name in peers),
        )
    return table


def decode_notes(rows: Sequence[Row]) -> list[str]:
    """What the table's numbers are measured against."""
    lines = [f"Memory read by all threads {span([r.roofs.memory for r in rows])} GB/s"]
    for dtype in dict.fromkeys(r.shape.dtype for r in rows):
        rates = [r.roofs.gemm for r in rows if r.shape.dtype == dtype]
        lines.append(gemm_note(dtype, rates))
    head = "Roofs, measured between the calls: " + "; ".join(lines) + "."
    what = "Medians; each call finds its cache cold. Columns with x: how many times longer it took"
    found = [head, what + (" without prefetch, and in PyTorch." if _has_peers(rows) else ".")]
    found += [
        f"{row.shape.label} {size(row)}: the roofs drifted by {100 * row.drift:.0f}% in its run."
        for row in rows
        if row.drift > MAX_DRIFT
    ]
    return found


def _has_peers(rows: Sequence[Row]) -> bool:
    return any(row.peers for row in rows)


def gemm_note(dtype: str, rates: Sequence[float]) -> str:
    """The rate of torch's GEMM that rows of ``dtype`` are held against."""
    used = str(gemm_dtype(DTYPES[dtype])).removeprefix("torch.")
    return f"torch GEMM in {used} for {dtype} {span(rates, digits=0)} GFLOP/s"


def times(ratio: float | None) -> str:
    """``12.3x``, or nothing."""
    if ratio is None:
        return ""
    return f"{ratio:.1f}x" if ratio < 100 else f"{ratio:.0f}x"


def span(values: Sequence[float], digits: int = 1) -> str:
    """``low to high`` in units of 10^9."""
    low, high = (f"{f(values) / 1e9:.{digits}f}" for f in (min, max))
    return low if low == high else f"{low} to {high}"
