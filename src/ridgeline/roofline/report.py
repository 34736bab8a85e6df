"""Plans as tables on a console and as rows of files."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ridgeline.bench.files import Record
from ridgeline.bench.grid import Grid, Terminal
from ridgeline.roofline import configs, plan, published
from ridgeline.roofline.cost import Engine
from ridgeline.roofline.search import Candidate
from ridgeline.roofline.simulate import Served

COMPARED = ("gqa-8", "gta-8", "mla", "gla-2", "gla-8")
TPS = (1, 2, 4, 8)
METRICS = {"e2e": "s", "ttft": "s", "itl": "ms", "throughput": "tokens/s"}


def grid(columns: Iterable[str], rows: Iterable[Sequence[object]]) -> Grid:
    """The first column to the left, the others to the right."""
    found = Grid()
    for i, name in enumerate(columns):
        found.add_column(name, justify="right" if i else "left")
    for row in rows:
        found.add_row(*(x if isinstance(x, str) else f"{x:,.4g}" for x in row))
    return found


def show(
    console: Terminal, engine: Engine, phases: Sequence[plan.Phase], batch: int, length: int
) -> None:
    m, p = engine.model, engine.parallel
    lines = [
        ("parameters", f"{m.parameters / 1e9:.2f} B, {m.active_parameters / 1e9:.2f} B active"),
        ("weights a device", f"{engine.weight_bytes / 1e9:.2f} GB"),
        ("cache a token and device", f"{engine.cache_bytes_per_token:,} bytes"),
        (
            "tokens that fit",
            f"{engine.cache_tokens:,} a group, {engine.cache_tokens * p.dp:,} in all",
        ),
    ]
    console.print(f"{m.name} ({m.variant}) on {p.devices} x {engine.hardware.name}, {p.label}")
    console.print(grid(("", ""), lines))
    if batch * length > engine.cache_tokens:
        console.print(
            f"Beyond the cache: {batch} sequences of {length:,} tokens a group need more than "
            f"{engine.cache_tokens:,} tokens.",
            soft_wrap=True,
        )
    columns = ("phase", "FLOP/B", "roof", "weights\nms", "attention\nms", "collectives\nms")
    rows = [
        (
            phase.name,
            phase.intensity,
            phase.binding,
            *(1e3 * x for x in (phase.cost.weights, phase.cost.attention, phase.cost.collectives)),
            1e3 * phase.cost.overhead,
            1e3 * phase.cost.total,
            phase.tokens / phase.cost.total,
        )
        for phase in phases
    ]
    console.print(grid((*columns, "overhead\nms", "step\nms", "tokens/s"), rows))


def draw(
    engine: Engine, phases: Sequence[plan.Phase], roofline: Path | None, cache: Path | None
) -> None:
    from ridgeline.roofline import plots

    if roofline is not None:
        label = f"{engine.model.name} {engine.parallel.label}"
        plots.roofline(roofline, engine.hardware, {label: phases})
    if cache is not None:
        shapes = {engine.model.name: engine.model}
        for label in COMPARED:
            shapes[label] = configs.with_attention(engine.model, label)
        lines = {label: plan.cache_by_tp(shape, TPS) for label, shape in shapes.items()}
        plots.cache_against_tp(cache, lines)


def served_record(
    engine: Engine, served: Served, concurrency: int | None, rate: float | None
) -> Record:
    load: Record = {"rate": rate} if concurrency is None else {"concurrency": concurrency}
    return {
        "model": engine.model.name,
        "hardware": engine.hardware.name,
        "parallel": engine.parallel.label,
        **load,
        **_served(served),
    }


def _served(served: Served) -> Record:
    return {
        "tokens/s": round(served.throughput, 2),
        "ttft_p50_s": round(float(np.median(served.ttft)), 4),
        "ttft_p99_s": round(float(np.percentile(served.ttft, 99)), 4),
        "itl_p50_ms": round(served.itl(50) * 1e3, 3),
        "itl_mean_ms": round(served.mean_itl * 1e3, 3),
        "itl_p99_ms": round(served.itl(99) * 1e3, 3),
        "e2e_p50_s": round(float(np.median(served.e2e)), 3),
        "e2e_p99_s": round(float(np.percentile(served.e2e, 99)), 3),
        "mean_waiting": round(served.mean_waiting, 2),
        "peak_cached_tokens": served.peak_tokens,
        "preemptions": served.preemptions,
    }


def served_table(records: Sequence[Record]) -> Grid:
    in_files_alone = ("model", "hardware", "itl_p99_ms", "e2e_p99_s", "peak_cached_tokens")
    columns = [x for x in records[0] if x not in in_files_alone]
    titles = [x.replace("_", "\n") for x in columns]
    return grid(titles, ([str(r[x]) for x in columns] for r in records))


def draw_served(path: Path, records: Sequence[Record]) -> None:
    from ridgeline.roofline import plots

    label = f"{records[0]['model']} {records[0]['parallel']}"
    points = [(r["tokens/s"], r["itl_mean_ms"], r.get("concurrency", "")) for r in records]
    plots.latency_against_throughput(path, {label: points})


def candidate_record(c: Candidate) -> Record:
    verdict = c.refused or ("yes" if c.meets else "no")
    head: Record = {"variant": c.variant, "parallel": c.parallel.label, "meets": verdict}
    return head | (_served(c.served) if c.served else {})


def search_table(records: Sequence[Record]) -> Grid:
    columns = ("variant", "parallel", "meets", "tokens/s", "ttft_p99_s", "itl_mean_ms", "e2e_p50_s")
    rows = []
    for r in records:
        reason = str(r["meets"]).split(":")[0]
        rows.append([str({**r, "meets": reason}.get(x, "")) for x in columns])
    return grid(columns, rows)


def serving_record(p: published.Prediction) -> Record:
    row = p.row
    columns: Record = {
        "prompt": row.prompt,
        "output": row.output,
        "concurrency": row.concurrency,
        "variant": row.variant,
        "parallel": row.parallel.label,
        "fitted": int(row.fitted),
    }
    for name, unit in METRICS.items():
        columns[f"{name}_published_{unit}"] = getattr(row.published, name)
        columns[f"{name}_planned_{unit}"] = round(getattr(p.planned, name), 2)
        columns[f"{name}_error_percent"] = round(100 * p.error(name), 1)
    return columns


def serving_table(found: Sequence[published.Prediction]) -> Grid:
    titles = [f"{name}\n{unit}" for name, unit in METRICS.items()]
    rows = []
    for p in found:
        load = f"{p.row.prompt}/{p.row.output}, {p.row.concurrency}"
        rows.append((load, p.row.label + (" *" if p.row.fitted else ""), *_metrics(p)))
    return grid(("prompt/output, clients", "attention", *titles), rows)


def _metrics(p: published.Prediction) -> list[str]:
    pairs = {x: (getattr(p.planned, x), getattr(p.row.published, x)) for x in METRICS}
    return [f"{a:.4g}/{b:.4g} {100 * p.error(x):+.0f}%" for x, (a, b) in pairs.items()]


def serving_summary(found: Sequence[published.Prediction]) -> str:
    errors = ", ".join(f"{x} {100 * published.median_error(found, x):.1f}%" for x in METRICS)
    wrong = published.wrong_orders(found)
    pairs = "; ".join(f"{a.row.label} and {b.row.label} at {a.row.group}" for a, b in wrong)
    return (
        f"Each cell: planned/published. * a constant was fitted to it. Median error of the other "
        f"rows: {errors}. Pairs of a load in the wrong order: {pairs or 'none'}."
    )


def kernel_record(case: published.KernelCase) -> Record:
    return {
        "variant": case.model.variant,
        "parallel": case.parallel.label,
        "batch": case.batch,
        "length": case.length,
        "query_len": case.query_len,
        "fitted": int(case.fitted),
        "unit": case.unit,
        "published": case.published,
        "planned": round(case.planned, 1),
        "error_percent": round(100 * case.error, 1),
    }


def kernel_table(cases: Sequence[published.KernelCase]) -> Grid:
    rows = [
        (
            case.label + (" *" if case.fitted else ""),
            case.unit,
            f"{case.planned:.1f}",
            f"{case.published:.1f}",
            f"{100 * case.error:+.0f}%",
        )
        for case in cases
    ]
    return grid(("decode kernel", "", "planned", "published", "error"), rows)


def measured_table(records: Sequence[Record]) -> Grid:
    """Of ``measure.record``: plan and step, then what the plan was made from."""
    hidden = ("length", "layers", "dtype", "parameters", "cache_bytes_per_token")
    columns = [x for x in records[0] if x not in hidden]
    titles = [x.replace("_", "\n") for x in columns]
    return grid(titles, ([str(r[x]) for x in columns] for r in records))
