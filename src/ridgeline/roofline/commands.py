"""``ridgeline plan``: its commands; each imports what it needs when it runs."""

from pathlib import Path
from typing import Annotated

import typer

plan_app = typer.Typer(
    help="Which attention, on which machines, at which parallelism.", no_args_is_help=True
)

Model = Annotated[
    str, typer.Option(help="llama-3-8b, deepseek-v2, a config.json, its directory, or TOML.")
]
Variant = Annotated[
    str | None,
    typer.Option(help="Another attention: mha, mqa, mla, gqa-N, gta-N, gla-N (N cached heads)."),
]
Device = Annotated[
    str,
    typer.Option(
        help="H20, A100, H100, H200, B200, MI300X, measured, or a file (CSV, JSON, TOML)."
    ),
]
Shares = Annotated[Path | None, typer.Option(help="TOML of the shares of the roofs reached.")]
Kernels = Annotated[
    Path | None, typer.Option(help="Decode times: a file of `ridgeline bench decode`.")
]
Weights = Annotated[str | None, typer.Option(help="Dtype of weights. [default: the model's]")]
Cache = Annotated[str | None, typer.Option(help="Dtype of the cache. [default: the model's]")]
Tp = Annotated[int, typer.Option(help="Tensor-parallel ranks of a group.")]
Dp = Annotated[int, typer.Option(help="Groups with attention of their own.")]
Prompt = Annotated[str, typer.Option(help="8192, uniform:A-B or lognormal:MEDIAN,SIGMA[,MAX].")]
Output = Annotated[str, typer.Option(help="The same for outputs.")]
File = Annotated[Path | None, typer.Option(help="CSV with the columns prompt and output.")]
Requests = Annotated[int, typer.Option(help="Requests to draw.")]
Rate = Annotated[
    float | None, typer.Option(help="Poisson arrivals a second, in place of --concurrency.")
]
Chunk = Annotated[int, typer.Option(help="Prompt tokens of a step.")]
Mixed = Annotated[bool, typer.Option("--mixed", help="Decode in steps that have a chunk.")]
Reserve = Annotated[
    float, typer.Option(help="Part of outstanding output kept free; below 1 may preempt.")
]
PageSize = Annotated[int, typer.Option(help="Tokens a page of the cache.")]
Draft = Annotated[int, typer.Option(help="Drafted tokens of a sequence and step.")]
Acceptance = Annotated[float, typer.Option(help="Chance that a drafted token is accepted.")]
Seed = Annotated[int, typer.Option(help="Of lengths, arrivals and accepted drafts.")]
Csv = Annotated[Path | None, typer.Option(help="Write rows and provenance to this CSV file.")]
Json = Annotated[Path | None, typer.Option(help="The same as JSON.")]


@plan_app.command()
def show(
    model: Model = "llama-3-8b",
    variant: Variant = None,
    hardware: Device = "H100",
    tp: Tp = 1,
    dp: Dp = 1,
    batch: Annotated[int, typer.Option(help="Sequences of each group.", min=1)] = 32,
    length: Annotated[int, typer.Option(help="Cached tokens of each.", min=1)] = 8192,
    chunk: Chunk = 8192,
    weights: Weights = None,
    cache: Cache = None,
    efficiency: Shares = None,
    kernels: Kernels = None,
    csv: Csv = None,
    json: Json = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the roofline to this file.")] = None,
    plot_cache: Annotated[
        Path | None, typer.Option(help="Draw the cache of all variants against TP.")
    ] = None,
) -> None:
    """Cache bytes, what fits, the roof that binds, and the time of a step in its parts."""
    from ridgeline.bench import files, table
    from ridgeline.roofline import plan, report
    from ridgeline.roofline.assemble import Given

    files.prepare(csv, json, plot, plot_cache)
    given = Given(model, variant, hardware, efficiency, kernels, weights, cache)
    engine = given.engine(tp, dp)
    found = plan.phases(engine, batch, length, chunk)
    report.show(table.console(), engine, found, batch, length)
    files.write_records([plan.record(engine, found)], csv, json)
    if plot is not None or plot_cache is not None:
        report.draw(engine, found, plot, plot_cache)


@plan_app.command()
def serve(
    model: Model = "llama-3-8b",
    variant: Variant = None,
    hardware: Device = "H100",
    tp: Tp = 1,
    dp: Dp = 1,
    prompt: Prompt = "8192",
    output: Output = "1024",
    workload: File = None,
    concurrency: Annotated[
        str | None, typer.Option(help="Clients; comma-separated. [default: 16 without --rate]")
    ] = None,
    rate: Rate = None,
    requests: Requests = 256,
    chunk: Chunk = 8192,
    mixed: Mixed = False,
    reserve: Reserve = 1.0,
    page_size: PageSize = 64,
    draft: Draft = 0,
    acceptance: Acceptance = 0.0,
    seed: Seed = 0,
    weights: Weights = None,
    cache: Cache = None,
    efficiency: Shares = None,
    kernels: Kernels = None,
    csv: Csv = None,
    json: Json = None,
    plot: Annotated[Path | None, typer.Option(help="Draw latency against throughput.")] = None,
) -> None:
    """Simulate a server: throughput, TTFT, time between tokens, queueing and preemption."""
    from ridgeline.bench import arguments, files, table
    from ridgeline.roofline import assemble, report
    from ridgeline.roofline.schedule import Policy
    from ridgeline.roofline.simulate import require_simpy, simulate

    require_simpy()
    files.prepare(csv, json, plot)
    given = assemble.Given(model, variant, hardware, efficiency, kernels, weights, cache)
    engine = given.engine(tp, dp)
    policy = Policy(chunk, mixed, page_size, reserve, draft=draft, acceptance=acceptance)
    if rate is not None and concurrency is not None:
        raise ValueError("--rate: expected without --concurrency")
    clients = (
        (None,) if rate is not None else arguments.integers("--concurrency", concurrency or "16")
    )
    records = []
    for n in clients:
        load = assemble.workload(prompt, output, workload, requests, n, rate, seed)
        served = simulate(engine, load, policy, seed=seed)
        records.append(report.served_record(engine, served, n, rate))
    table.console().print(report.served_table(records))
    files.write_records(records, csv, json)
    if plot is not None:
        report.draw_served(plot, records)


@plan_app.command()
def search(
    model: Model = "llama-3-8b",
    hardware: Device = "H100",
    devices: Annotated[int, typer.Option(help="Of one node, all used.", min=1)] = 8,
    variants: Annotated[
        str, typer.Option(help="As --variant of show; comma-separated.")
    ] = "gqa-8,gta-8,mla,gla-2,gla-8",
    ttft: Annotated[float | None, typer.Option(help="Longest p99 TTFT, seconds.")] = None,
    itl: Annotated[float | None, typer.Option(help="Longest mean time of a token, ms.")] = None,
    prompt: Prompt = "8192",
    output: Output = "1024",
    workload: File = None,
    concurrency: Annotated[
        int | None, typer.Option(help="Clients. [default: 16 without --rate]", min=1)
    ] = None,
    rate: Rate = None,
    requests: Requests = 256,
    chunk: Chunk = 8192,
    mixed: Mixed = False,
    reserve: Reserve = 1.0,
    page_size: PageSize = 64,
    seed: Seed = 0,
    weights: Weights = None,
    cache: Cache = None,
    efficiency: Shares = None,
    csv: Csv = None,
    json: Json = None,
) -> None:
    """Rank every variant at every division into TP and DP for a workload under latency limits."""
    from ridgeline.bench import arguments, files, table
    from ridgeline.roofline import assemble, report
    from ridgeline.roofline.schedule import Policy
    from ridgeline.roofline.search import Target, rank
    from ridgeline.roofline.simulate import require_simpy

    require_simpy()
    files.prepare(csv, json)
    given = assemble.Given(model, None, hardware, efficiency, None, weights, cache)
    if concurrency is None and rate is None:
        concurrency = 16
    load = assemble.workload(prompt, output, workload, requests, concurrency, rate, seed)
    found = rank(
        given.shape(),
        arguments.names(variants),
        given.device(),
        devices,
        load,
        Policy(chunk, mixed, page_size, reserve),
        given.reached(),
        Target(ttft, itl),
        seed=seed,
    )
    records = [report.candidate_record(c) for c in found]
    table.console().print(report.search_table(records))
    files.write_records(records, csv, json)


@plan_app.command()
def validate(
    requests: Annotated[
        int, typer.Option(help="Of each row; the published runs have 1280.", min=1)
    ] = 1280,
    csv: Csv = None,
    json: Json = None,
    kernels_csv: Annotated[Path | None, typer.Option(help="The kernel times, as CSV.")] = None,
) -> None:
    """The planner's predictions beside published serving tables and kernel times."""
    from ridgeline.bench import files, table
    from ridgeline.roofline import published, report
    from ridgeline.roofline.simulate import require_simpy

    require_simpy()
    files.prepare(csv, json, kernels_csv)
    console = table.console()
    with console.status("serving the published loads"):
        found = [published.predict(row, requests) for row in published.ROWS]
    console.print(report.serving_table(found))
    console.print(report.serving_summary(found), soft_wrap=True)
    console.print(report.kernel_table(published.KERNEL_CASES))
    files.write_records([report.serving_record(p) for p in found], csv, json)
    kernel_records = [report.kernel_record(case) for case in published.KERNEL_CASES]
    files.write_records(kernel_records, kernels_csv, None)


@plan_app.command()
def measure(
    variants: Annotated[
        str, typer.Option(help="As --variant of show; comma-separated.")
    ] = "gqa-8,gta-8,gla-2",
    layers: Annotated[int, typer.Option(help="Decoder layers.", min=1)] = 4,
    hidden: Annotated[int, typer.Option(help="Width of the model.", min=1)] = 2048,
    intermediate: Annotated[int, typer.Option(help="Width of the MLP.", min=1)] = 5632,
    heads: Annotated[int, typer.Option(help="Query heads.", min=1)] = 32,
    head_dim: Annotated[int, typer.Option(help="Width of a head.", min=2)] = 64,
    vocab: Annotated[int, typer.Option(help="Vocabulary.", min=2)] = 8192,
    length: Annotated[int, typer.Option(help="Tokens of the prompt.")] = 4096,
    steps: Annotated[int, typer.Option(help="Decode steps that are timed.")] = 24,
    dtype: Annotated[
        str, typer.Option(help="bf16, fp16, fp32, or auto: what torch multiplies faster.")
    ] = "auto",
    threads: Annotated[int, typer.Option(help="Threads; 0 for torch's default.", min=0)] = 0,
    csv: Csv = None,
    json: Json = None,
) -> None:
    """Plan steps of `generate` from roofs measured in the same run, beside their time."""
    from ridgeline.bench import arguments, files, table
    from ridgeline.roofline import measure, report

    arguments.set_threads(threads)
    files.prepare(csv, json)
    options = measure.MeasureOptions(
        variants=arguments.names(variants),
        layers=layers,
        hidden=hidden,
        intermediate=intermediate,
        heads=heads,
        head_dim=head_dim,
        vocab=vocab,
        length=length,
        steps=steps,
        dtype=dtype,
    )
    console = table.console()
    with console.status("measuring"):
        records = [measure.record(p) for p in measure.run(options)]
    console.print(report.measured_table(records))
    files.write_records(records, csv, json)


@plan_app.command("measure-serve")
def measure_serve(
    results: Annotated[
        Path, typer.Argument(help="CSV file of `ridgeline bench serve --overhead`, made here.")
    ],
    threads: Annotated[int, typer.Option(help="Threads; 0 for torch's default.", min=0)] = 0,
    csv: Csv = None,
    json: Json = None,
) -> None:
    """Plan steps of vLLM's server from roofs and its overhead, beside their time in a file."""
    from ridgeline.bench import arguments, files, table
    from ridgeline.roofline import measure, measure_serve, report

    arguments.set_threads(threads)
    files.prepare(csv, json)
    steps = measure_serve.read(results)
    console = table.console()
    with console.status("measuring"):
        records = [measure.record(p) for p in measure_serve.run(steps)]
    console.print(report.measured_table(records))
    files.write_records(records, csv, json)
