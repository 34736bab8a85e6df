"""The attention table in a terminal, and its notes."""

from collections.abc import Callable, Sequence

from ridgeline.bench import table
from ridgeline.bench.attention import accuracy
from ridgeline.bench.attention.measure import Row
from ridgeline.bench.grid import Grid
from ridgeline.bench.timing import MAX_DRIFT

PEERS = {
    "causal": "plain\ncausal",
    "unpacked": "un-\npacked",
    "sdpa": "torch\nSDPA",
    "sdpa fp32": "SDPA\nfp32",
    "flex": "Flex-\nAttention",
}


def kind(row: Row, peer: str) -> str:
    """The column of a peer: SDPA of a row's own dtype, or of float32 beside it."""
    words = peer.split()
    if words[0] == "flex" or (words[0] == "sdpa" and words[-1] == row.shape.dtype):
        return words[0]
    return f"sdpa {words[-1]}" if words[0] == "sdpa" else peer


def line(row: Row) -> str:
    """What is printed as soon as a row is there."""
    what = f"{row.shape.label}, {row.shape.mask}, {row.shape.dtype} {row.which}"
    what += f", {row.impl}" if row.impl else ""
    if row.failure is not None:
        return f"{what}: FAILED: {row.failure}"
    return f"{what}: {row.seconds * 1e3:.2f} ms, {row.percent:.0f}% of the GEMM rate"


def attention_table(rows: Sequence[Row]) -> Grid:
    """One line a row; the last columns are how many times longer each peer took."""
    found = Grid()
    impls = any(row.impl for row in rows)
    for name in ("attention", "mask", "dtype", "pass", *(["impl"] if impls else [])):
        found.add_column(name)
    for name in ("ms", "GFLOP\n/s", "% of\nGEMM"):
        found.add_column(name, justify="right")
    present = {kind(row, name) for row in rows for name in (*row.peers, *row.absent)}
    peers = [name for name in PEERS if name in present] + sorted(present - set(PEERS))
    for name in peers:
        found.add_column(PEERS.get(name, name.replace(" ", "\n")), justify="right")
    previous = None
    for row in rows:
        if previous not in (None, row.shape):
            found.add_section()
        cells = {kind(row, name): table.times(row.speedup(name)) for name in row.peers}
        cells |= {kind(row, name): "no" for name in row.absent}
        new = previous != row.shape
        numbers = (f"{row.seconds * 1e3:.2f}", f"{row.flop_rate / 1e9:.0f}", f"{row.percent:.0f}")
        if row.failure is not None:
            numbers, cells = ("failed", "", ""), {}
        found.add_row(
            *((row.shape.label, row.shape.mask, row.shape.dtype) if new else ("", "", "")),
            row.which,
            *([row.impl] if impls else []),
            *numbers,
            *(cells.get(name, "") for name in peers),
        )
        previous = row.shape
    return found


def notes(
    rows: Sequence[Row], gemm_note: Callable[[str, Sequence[float]], str] = table.gemm_note
) -> list[str]:
    """What the table's numbers are measured against; ``gemm_note`` names the GEMM of a dtype."""
    rates = {
        dtype: [row.gemm for row in rows if row.shape.dtype == dtype]
        for dtype in dict.fromkeys(row.shape.dtype for row in rows)
    }
    gemm = "; ".join(gemm_note(dtype, x) for dtype, x in rates.items())
    lines = [
        f"Measured between the calls: {gemm}.",
        "Medians. FLOPs of visible pairs alone. Columns with x: how many times longer it took.",
    ]
    if any(row.shape.mask == "tree" for row in rows):
        lines.append(
            "Trees: responses share their prompt. Plain causal: the same row of tokens. Unpacked: "
            "every response with a prompt of its own, in our kernel and in SDPA."
        )
    absent = {(name, row.which): why for row in rows for name, why in row.absent.items()}
    lines += [f"{name}, {which}: no. {why}" for (name, which), why in absent.items()]
    lines += [line(row) for row in rows if row.failure is not None]
    lines += [_rmse_note(row) for row in rows if row.rmse]
    drifts = {row.shape: row.drift for row in rows if row.drift > MAX_DRIFT}
    return lines + [
        f"{shape.label}, {shape.mask}: the GEMM's rate drifted by {100 * drift:.0f}% in its run."
        for shape, drift in drifts.items()
    ]


def _rmse_note(row: Row) -> str:
    errors = {name: x for name, x in row.rmse.items() if name.startswith("fp8")}
    gain = errors[accuracy.BASELINE] / min(errors.values())
    found = "; ".join(f"{name} {x:.1e}" for name, x in errors.items())
    return (
        f"{row.shape.label}, {row.shape.mask}, {row.impl}: RMSE on inputs with outliers: {found}: "
        f"{gain:.2f}x (FlashAttention-3: {accuracy.PUBLISHED}x)."
    )
