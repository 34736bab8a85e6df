"""The command line: each command imports what it needs when it runs, so that --help is fast."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ridgeline import __version__
from ridgeline.bench import commands
from ridgeline.bench.options import for_typer
from ridgeline.roofline.commands import plan_app

app = typer.Typer(
    name="ridgeline",
    help="Exact attention that does more work per byte.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

bench_app = typer.Typer(help="Measure speed beside its roofs and PyTorch.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")
app.add_typer(plan_app, name="plan")
for _name, _function in commands.COMMANDS.items():
    bench_app.command(_name)(for_typer(_function))

Threads = Annotated[int, typer.Option(help="Threads; 0 for torch's default.", min=0)]
Csv = Annotated[Path | None, typer.Option(help="Write rows and provenance to this CSV file.")]
Json = Annotated[Path | None, typer.Option(help="The same as JSON.")]
Plot = Annotated[Path | None, typer.Option(help="Draw the rows to this file.")]
TrainDevice = Annotated[str, typer.Option(help="cpu, or cuda for the current GPU.")]
AttentionImpl = Annotated[str, typer.Option(help="Implementation of attention.")]


def _version(show: bool) -> None:
    if show:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    pass


@app.command()
def demo(
    plot: Annotated[Path, typer.Option(help="Where the plot goes.")] = Path("ridgeline-demo.png"),
    tokens: Annotated[int, typer.Option(help="Tokens to decode.", min=1)] = 150,
    threads: Threads = 0,
) -> None:
    """Decode text with the GLA model that Ridgeline ships, then show why it is fast."""
    from ridgeline.bench import arguments, demo, table

    arguments.set_threads(threads)
    demo.demo(table.console(), plot, tokens=tokens)


@app.command()
def info() -> None:
    """List every implementation, why one is not usable here, and what this machine has."""
    from ridgeline.bench.info import lines

    for line in lines():
        typer.echo(line)


@bench_app.command("memory")
def bench_memory(
    length: Annotated[str, typer.Option(help="Tokens; comma-separated.")] = "8192,32768",
    heads: Annotated[int, typer.Option(help="Query heads.")] = 1,
    kv_heads: Annotated[int | None, typer.Option(help="[default: as many]")] = None,
    head_dim: Annotated[int, typer.Option(help="Of q, k and v.")] = 64,
    mask: Annotated[str, typer.Option(help="full, causal; comma-separated.")] = "causal",
    dtype: Annotated[str, typer.Option(help="bf16, fp16, fp32; comma-separated.")] = "bf16",
    threads: Threads = 0,
    peers: Annotated[bool, typer.Option(help="PyTorch too.")] = True,
    impl: AttentionImpl = "auto",
    csv: Csv = None,
    json: Json = None,
) -> None:
    """Peak memory of attention beyond its inputs, each pass in a fresh process."""
    from ridgeline.bench import arguments, table
    from ridgeline.bench.attention import run, shapes
    from ridgeline.bench.attention.memory import MemoryOptions

    arguments.set_threads(threads)
    found = shapes.chosen(
        length=length, heads=heads, kv_heads=kv_heads, head_dim=head_dim, mask=mask, dtype=dtype
    )
    run.bench_memory(MemoryOptions(found, peers, impl), table.console(), csv=csv, json=json)


@bench_app.command("accuracy")
def bench_accuracy(
    length: Annotated[str, typer.Option(help="Tokens; comma-separated.")] = "2048,4096",
    heads: Annotated[int, typer.Option(help="Heads.")] = 2,
    head_dim: Annotated[int, typer.Option(help="A power of two.")] = 128,
    causal: Annotated[bool, typer.Option("--causal", help="Causal in place of full.")] = False,
    seeds: Annotated[int, typer.Option(help="Inputs drawn.")] = 8,
    block: Annotated[int, typer.Option(help="Rows that share a scale, a power of two.")] = 128,
    threads: Threads = 0,
    impl: AttentionImpl = "auto",
    csv: Csv = None,
    json: Json = None,
    plot: Plot = None,
) -> None:
    """Errors of FP16 and FP8 attention against float64 on inputs with outliers."""
    from ridgeline.bench import arguments, table
    from ridgeline.bench.attention import run
    from ridgeline.bench.attention.accuracy import AccuracyOptions

    arguments.set_threads(threads)
    lengths = arguments.integers("--length", length)
    options = AccuracyOptions(lengths, heads, head_dim, causal, seeds, block, impl)
    run.bench_accuracy(options, table.console(), csv=csv, json=json, plot_file=plot)


@bench_app.command("dpo")
def bench_dpo(
    profiles: Annotated[
        str | None, typer.Option(help="Datasets whose lengths are drawn. [default: all six]")
    ] = None,
    pairs: Annotated[int, typer.Option(help="Preference pairs of a step.")] = 8,
    tokens: Annotated[
        int, typer.Option(help="Of a step without sharing; lengths are scaled down to it.")
    ] = 960,
    spread: Annotated[float, typer.Option(help="Deviation of the lengths' logarithms.")] = 0.5,
    hidden: Annotated[int, typer.Option(help="Width of the model.", min=1)] = 768,
    intermediate: Annotated[int, typer.Option(help="Width of the MLP.", min=1)] = 2048,
    layers: Annotated[int, typer.Option(help="Decoder layers.", min=1)] = 6,
    heads: Annotated[int, typer.Option(help="Heads.", min=1)] = 12,
    vocab: Annotated[int, typer.Option(help="Vocabulary.", min=2)] = 8192,
    reps: Annotated[int, typer.Option(help="Steps of each way.")] = 3,
    threads: Threads = 0,
    peers: Annotated[bool, typer.Option(help="Time TRL and PyTorch too.")] = True,
    csv: Csv = None,
    json: Json = None,
    plot: Plot = None,
) -> None:
    """Time training steps on preference pairs, with and without shared prefixes."""
    from ridgeline.bench import arguments, table
    from ridgeline.bench.dpo import run
    from ridgeline.bench.dpo.measure import DpoOptions
    from ridgeline.bench.dpo.profiles import PROFILES, chosen
    from ridgeline.bench.dpo.ways import ModelShape

    arguments.set_threads(threads)
    options = DpoOptions(
        profiles=chosen(tuple(PROFILES) if profiles is None else arguments.names(profiles)),
        pairs=pairs,
        tokens=tokens,
        spread=spread,
        model=ModelShape(hidden, intermediate, layers, heads, vocab),
        reps=reps,
        with_peers=peers,
    )
    run.bench_dpo(options, table.console(), csv=csv, json=json, plot_file=plot)


@app.command()
def generate(
    model: Annotated[
        Path | None, typer.Argument(help="A model's directory. [default: the one shipped]")
    ] = None,
    prompt: Annotated[str, typer.Option(help="Text to continue.")] = "def read_text(path):\n",
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to add.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.8,
    top_p: Annotated[float, typer.Option(help="Sample from this much probability.")] = 0.95,
    seed: Annotated[int | None, typer.Option(help="Of the samples. [default: a new one]")] = None,
    impl: Annotated[str, typer.Option(help="Implementation of decode attention.")] = "auto",
    threads: Threads = 0,
) -> None:
    """Continue a text, then print the speed and the bytes of the cache (to stderr)."""
    import torch
    from transformers.utils import logging

    from ridgeline.models.generate import load, stream

    if threads:
        torch.set_num_threads(threads)
    logging.disable_progress_bar()
    text = stream(
        *load(model),
        prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        impl=impl,
    )
    typer.echo(prompt, nl=False)
    for piece in text:
        typer.echo(piece, nl=False)
        sys.stdout.flush()
    typer.echo()
    typer.echo(text.stats.summary(), err=True)


@app.command()
def train(
    ctx: typer.Context,
    out_dir: Annotated[Path, typer.Argument(help="Folder of the run.")],
    texts: Annotated[
        list[Path] | None,
        typer.Argument(help="UTF-8 text files. [default: Python's standard library]"),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option("--from", help="Begin with this model's weights, sizes and tokenizer."),
    ] = None,
    attention: Annotated[str, typer.Option(help="mha, mqa, gqa, gta, mla or gla.")] = "gla",
    hidden_size: Annotated[int, typer.Option(help="Width of the model.")] = 256,
    intermediate_size: Annotated[int, typer.Option(help="Width of the MLP.")] = 704,
    num_hidden_layers: Annotated[int, typer.Option("--layers", help="Decoder layers.")] = 4,
    num_attention_heads: Annotated[int, typer.Option("--heads", help="Query heads.")] = 4,
    head_dim: Annotated[int | None, typer.Option(help="[default: width / heads]")] = None,
    num_key_value_heads: Annotated[
        int | None, typer.Option("--kv-heads", help="Cached heads of gqa and gta.")
    ] = None,
    num_latent_heads: Annotated[
        int | None, typer.Option("--latent-heads", help="Latent heads of gla. [default: 2]")
    ] = None,
    latent_dim: Annotated[
        int | None, typer.Option(help="Width of a latent. [default: gla 2, mla 4 heads' width]")
    ] = None,
    rope_dim: Annotated[
        int | None, typer.Option(help="Width of the RoPE key. [default: half a head]")
    ] = None,
    q_rank: Annotated[int | None, typer.Option(help="Rank of the query of mla and gla.")] = None,
    tie_word_embeddings: Annotated[
        bool, typer.Option("--tie/--no-tie", help="One matrix for embeddings and logits.")
    ] = True,
    vocab_size: Annotated[int, typer.Option(help="Tokens of the byte-level BPE.")] = 4096,
    context: Annotated[int, typer.Option(help="Tokens of a training window.")] = 512,
    batch: Annotated[int, typer.Option(help="Windows of a forward pass.")] = 8,
    grad_accum: Annotated[int, typer.Option(help="Forward passes of a step.")] = 1,
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 1000,
    tokens: Annotated[
        int | None, typer.Option(help="Training tokens, in place of --steps.", min=1)
    ] = None,
    lr: Annotated[float, typer.Option(help="Peak of the learning rate.")] = 1e-3,
    warmup: Annotated[int, typer.Option(help="Steps until the peak.")] = 100,
    lr_floor: Annotated[float, typer.Option(help="Last rate, as a part of the peak.")] = 0.01,
    weight_decay: Annotated[float, typer.Option(help="Of the matrices.")] = 0.1,
    clip: Annotated[float, typer.Option(help="Largest norm of the gradient.")] = 1.0,
    dtype: Annotated[str, typer.Option(help="bf16 (float32 master weights) or fp32.")] = "bf16",
    eval_fraction: Annotated[float, typer.Option(help="Part of the text held out.")] = 0.05,
    eval_every: Annotated[int, typer.Option(help="Steps between evaluations.")] = 100,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the first weights and of the data's order.")] = 0,
    threads: Threads = 0,
    device: TrainDevice = "cpu",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the latest checkpoint of OUT_DIR.")
    ] = False,
    checkpoint: Annotated[
        str | None, typer.Option(help="Go on from this checkpoint, such as step-00000100.")
    ] = None,
    extend: Annotated[
        bool, typer.Option("--extend", help="With --resume: --steps may be more than before.")
    ] = False,
) -> None:
    """Pretrain any variant on text files; a killed run goes on with --resume, bit for bit."""
    import torch

    from ridgeline.training import cli

    settings = {name: value for name, value in locals().items() if name in ctx.params}
    given = {name for name in ctx.params if ctx.get_parameter_source(name).name == "COMMANDLINE"}
    settings["texts"] = tuple(str(path.absolute()) for path in texts or ())
    settings["start"] = None if start is None else str(start.absolute())
    settings["threads"] = threads or torch.get_num_threads()
    rest = {name: settings.pop(name) for name in ("tokens", "resume", "checkpoint", "extend")}
    del settings["out_dir"]
    cli.run(out_dir, settings, given, **rest)


@app.command()
def dpo(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="A directory, a name on the Hub, or 'shipped'.")],
    data: Annotated[str, typer.Argument(help="JSONL of prompt, chosen and rejected, or 'stdlib'.")],
    out_dir: Annotated[Path, typer.Argument(help="Folder of the run.")],
    batch: Annotated[int, typer.Option(help="Pairs of a micro-batch.", min=1)] = 8,
    grad_accum: Annotated[int, typer.Option(help="Micro-batches of a step.", min=1)] = 1,
    steps: Annotated[
        int | None, typer.Option(help="Optimizer steps, in place of --epochs.", min=1)
    ] = None,
    epochs: Annotated[float, typer.Option(help="Passes over the pairs.")] = 1.0,
    pairs: Annotated[int | None, typer.Option(help="Training pairs. [default: all]", min=1)] = None,
    lr: Annotated[float, typer.Option(help="Peak of the learning rate.")] = 1e-6,
    warmup: Annotated[int, typer.Option(help="Steps until the peak.", min=0)] = 0,
    beta: Annotated[float, typer.Option(help="Strength of the tie to the reference.")] = 0.1,
    loss: Annotated[str, typer.Option(help="TRL's loss types; comma-separated.")] = "sigmoid",
    label_smoothing: Annotated[float, typer.Option(help="Of robust and exo_pair.")] = 0.0,
    max_length: Annotated[int, typer.Option(help="Tokens of a sequence.", min=2)] = 1024,
    prefix_sharing: Annotated[
        bool, typer.Option("--sharing/--no-sharing", help="Compute a prompt once.")
    ] = True,
    packing: Annotated[
        bool, typer.Option("--packing/--no-packing", help="Several pairs a row, no padding.")
    ] = True,
    packing_length: Annotated[
        int | None, typer.Option(help="Most tokens of a row. [default: a micro-batch is one row]")
    ] = None,
    lora: Annotated[int | None, typer.Option(help="Rank of adapters to train.", min=1)] = None,
    precompute_ref: Annotated[
        bool, typer.Option("--precompute-ref", help="Run the reference once, before training.")
    ] = False,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Recompute activations in the backward pass.")
    ] = False,
    dtype: Annotated[str, typer.Option(help="bf16 (float32 master weights) or fp32.")] = "bf16",
    eval_fraction: Annotated[float, typer.Option(help="Part of the pairs held out.")] = 0.05,
    eval_every: Annotated[int, typer.Option(help="Steps between evaluations.", min=1)] = 50,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.", min=1)] = 100,
    log_every: Annotated[int, typer.Option(help="Steps that a row of the log sums.", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="Of the data's order.")] = 0,
    threads: Threads = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint of OUT_DIR.")
    ] = False,
) -> None:
    """Direct preference optimization with TRL's trainer, every prompt computed once."""
    import torch

    from ridgeline.trl import command

    if threads:
        torch.set_num_threads(threads)
    apart = {"model", "data", "out_dir", "threads", "resume"}
    given = locals()
    options = command.DPOOptions(**{name: given[name] for name in ctx.params if name not in apart})
    command.run(model, data, out_dir, options, resume=resume)


@app.command()
def serve(
    model: Annotated[Path, typer.Argument(help="A model's directory.")],
    engine: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- [OPTIONS OF THE ENGINE]", help="Passed on to vLLM's server."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; beyond loopback it takes a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port.")] = 8000,
    max_queue: Annotated[
        int, typer.Option(help="Requests that wait or run at once; more get 503.")
    ] = 256,
    drain: Annotated[
        int, typer.Option(help="Seconds for requests in flight to finish after SIGTERM.")
    ] = 30,
    key_file: Annotated[
        Path | None,
        typer.Option(help="Holds the key that requests must bring. [default: VLLM_API_KEY]"),
    ] = None,
) -> None:
    """Serve a model by vLLM's own server, with safe defaults and a key on every path."""
    from ridgeline.serving.launch import ServeOptions
    from ridgeline.serving.launch import serve as become_server

    options = ServeOptions(model, host, port, max_queue, drain, tuple(engine or ()))
    become_server(options, key_file)


@bench_app.command("e2e")
def bench_e2e(
    variants: Annotated[
        str, typer.Option(help="Run beside GQA, which transformers runs too.")
    ] = "gta,mla,gla",
    layers: Annotated[int, typer.Option(min=1)] = 8,
    hidden: Annotated[int, typer.Option(min=1)] = 2048,
    intermediate: Annotated[int, typer.Option(min=1)] = 5632,
    heads: Annotated[int, typer.Option(min=1)] = 32,
    kv_heads: Annotated[int, typer.Option(min=1)] = 8,
    head_dim: Annotated[int, typer.Option(min=1)] = 64,
    vocab: Annotated[int, typer.Option(min=2)] = 32000,
    length: Annotated[int, typer.Option(help="Cached tokens.")] = 16384,
    reps: Annotated[int, typer.Option(help="Steps of each model.", min=1)] = 7,
    threads: Threads = 0,
    csv: Csv = None,
    json: Json = None,
) -> None:
    """Time whole decode steps of a model, beside transformers with the same weights."""
    from ridgeline.bench import arguments, table
    from ridgeline.bench.decoders import ModelShape
    from ridgeline.bench.end_to_end import bench_end_to_end

    arguments.set_threads(threads)
    shape = ModelShape(
        layers=layers,
        hidden=hidden,
        intermediate=intermediate,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=vocab,
        length=length,
        reps=reps,
        variants=arguments.names(variants),
    )
    bench_end_to_end(shape, table.console(), csv=csv, json=json)


@app.command("convert")
def convert_model(
    src: Annotated[Path, typer.Argument(help="Folder of an mha, mqa, gqa or Llama model.")],
    dst: Annotated[Path, typer.Argument(help="New folder of the converted model.")],
    to: Annotated[str, typer.Option(help="gta, mla or gla.")],
    text: Annotated[
        Path | None, typer.Option(help="UTF-8 text whose activations weigh the errors.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens of the text to use.", min=1)] = 8192,
    kv_heads: Annotated[int | None, typer.Option(help="Tied heads. [default: as before]")] = None,
    latent_heads: Annotated[
        int | None, typer.Option(help="Latent heads of gla. [default: 2]")
    ] = None,
    latent_dim: Annotated[
        int | None, typer.Option(help="Width of a latent. [default: gla 2, mla 4 heads' width]")
    ] = None,
    rope_dim: Annotated[
        int | None, typer.Option(help="Width of the RoPE key. [default: half a head]")
    ] = None,
) -> None:
    """Turn a model's attention into GTA, MLA or GLA, to be fine-tuned by `train --from`."""
    from transformers.utils import logging

    from ridgeline.training import convert

    logging.disable_progress_bar()
    sizes = {"num_key_value_heads": kv_heads, "num_latent_heads": latent_heads}
    sizes |= {"latent_dim": latent_dim, "rope_dim": rope_dim}
    for line in convert.run(src, dst, to, text=text, tokens=tokens, **sizes):
        typer.echo(line)


study_app = typer.Typer(help="Train many small models to compare them.", no_args_is_help=True)
app.add_typer(study_app, name="study")


@study_app.command("quality")
def study_quality(
    out_dir: Annotated[Path, typer.Argument(help="Folder of the runs; finished ones are kept.")],
    texts: Annotated[
        list[Path] | None,
        typer.Argument(help="UTF-8 text files. [default: Python's standard library]"),
    ] = None,
    variants: Annotated[
        str, typer.Option(help="Kinds of attention, in this order.")
    ] = "mha,mqa,gqa,gta,mla,gla",
    seeds: Annotated[int, typer.Option(help="Runs of each, seeds 0, 1, ...")] = 3,
    workers: Annotated[int, typer.Option(help="Processes of one thread, a run each.")] = 1,
    hidden_size: Annotated[int, typer.Option(help="Width of the models.")] = 128,
    intermediate_size: Annotated[
        int, typer.Option(help="Width of MHA's MLP; the others' are wider.")
    ] = 344,
    layers: Annotated[int, typer.Option(help="Decoder layers.")] = 4,
    heads: Annotated[int, typer.Option(help="Query heads.")] = 8,
    kv_heads: Annotated[int, typer.Option(help="Cached heads of gqa and gta.")] = 4,
    latent_heads: Annotated[int, typer.Option(help="Latent heads of gla.")] = 2,
    q_rank: Annotated[
        int | None, typer.Option(help="Rank of mla's and gla's query. [default: half the width]")
    ] = None,
    vocab_size: Annotated[int, typer.Option(help="Tokens of the byte-level BPE.")] = 512,
    context: Annotated[int, typer.Option(help="Tokens of a training window.")] = 256,
    batch: Annotated[int, typer.Option(help="Windows of a step.")] = 2,
    steps: Annotated[int, typer.Option(help="Optimizer steps of a run.")] = 2000,
    lr: Annotated[float, typer.Option(help="Peak of the learning rate, of all alike.")] = 4e-3,
    warmup: Annotated[int, typer.Option(help="Steps until the peak.")] = 100,
    dtype: Annotated[str, typer.Option(help="bf16 (float32 master weights) or fp32.")] = "fp32",
    device: TrainDevice = "cpu",
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 100,
    csv: Csv = None,
    plot: Plot = None,
) -> None:
    """Train every variant at MHA's size on the same tokens: held-out loss beside cache bytes."""
    from transformers.utils import logging

    from ridgeline.bench import arguments, files
    from ridgeline.bench.table import console
    from ridgeline.training.config import TrainConfig
    from ridgeline.training.study import report
    from ridgeline.training.study.runs import Outcome, Study, run_study
    from ridgeline.training.study.shapes import StudyShape

    study = Study(
        variants=arguments.names(variants),
        seeds=seeds,
        shape=StudyShape(
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            num_latent_heads=latent_heads,
            q_rank=hidden_size // 2 if q_rank is None else q_rank,
        ),
        train=TrainConfig(
            texts=tuple(str(path.absolute()) for path in texts or ()),
            vocab_size=vocab_size,
            context=context,
            batch=batch,
            steps=steps,
            lr=lr,
            warmup=warmup,
            dtype=dtype,
            eval_every=steps,
            save_every=save_every,
            device=device,
        ),
    )
    logging.disable_progress_bar()
    files.prepare(csv, plot)
    terminal, outcomes = console(), []

    def on_outcome(outcome: Outcome) -> None:
        outcomes.append(outcome)
        terminal.print(
            f"{len(outcomes)} of {len(study.runs())}: {outcome.label}, seed {outcome.seed}: "
            f"held-out loss {outcome.held_out_loss:.4f}, {outcome.seconds:.0f} s",
            soft_wrap=True,
        )
        if csv is not None:
            report.write_csv(csv, outcomes)
        if plot is not None:
            report.plot(plot, outcomes)

    run_study(out_dir, study, workers=workers, on_outcome=on_outcome)
    terminal.print(report.table(outcomes))


@study_app.command("convert")
def study_convert(
    out_dir: Annotated[Path, typer.Argument(help="Folder of the runs; finished ones are kept.")],
    hidden_size: Annotated[int, typer.Option(help="Width of the models.")] = 128,
    intermediate_size: Annotated[int, typer.Option(help="Width of the MLP.")] = 387,
    layers: Annotated[int, typer.Option(help="Decoder layers.")] = 4,
    heads: Annotated[int, typer.Option(help="Query heads.")] = 8,
    kv_heads: Annotated[int, typer.Option(help="Cached heads of gqa and gta.")] = 4,
    vocab_size: Annotated[int, typer.Option(help="Tokens of the byte-level BPE.")] = 512,
    context: Annotated[int, typer.Option(help="Tokens of a training window.")] = 256,
    batch: Annotated[int, typer.Option(help="Windows of a step.")] = 2,
    steps: Annotated[int, typer.Option(help="Steps of the GQA model's training.")] = 600,
    lr: Annotated[float, typer.Option(help="Peak of its learning rate.")] = 4e-3,
    tune_steps: Annotated[int, typer.Option(help="Steps of fine-tuning.")] = 100,
    tune_lr: Annotated[float, typer.Option(help="Peak of its learning rate.")] = 1e-3,
    eval_fraction: Annotated[float, typer.Option(help="Part of the text held out.")] = 0.02,
    csv: Csv = None,
) -> None:
    """Convert a small GQA model to GTA, MLA and GLA, fine-tune, and compare held-out losses."""
    from transformers.utils import logging

    from ridgeline.bench import files
    from ridgeline.bench.table import console
    from ridgeline.training.config import TrainConfig
    from ridgeline.training.study import conversion

    base = TrainConfig(
        model={
            "attention": "gqa",
            "hidden_size": hidden_size,
            "intermediate_size": intermediate_size,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "tie_word_embeddings": True,
        },
        vocab_size=vocab_size,
        context=context,
        batch=batch,
        steps=steps,
        lr=lr,
        warmup=steps // 10,
        dtype="fp32",
        eval_fraction=eval_fraction,
        eval_every=steps,
    )
    # Another seed: the windows come in another order than they were trained on.
    tune = replace(base, steps=tune_steps, lr=tune_lr, warmup=tune_steps // 10, seed=1)
    logging.disable_progress_bar()
    files.prepare(csv)
    terminal, rows = console(), []

    def on_row(row: conversion.Row) -> None:
        rows.append(row)
        terminal.print(", ".join(conversion.cells(row)), soft_wrap=True)
        if csv is not None:
            conversion.write_csv(csv, rows)

    conversion.run(out_dir, base, tune, on_row)
    terminal.print(conversion.table(rows))


def main() -> None:
    """Runs the app; an error that names its culprit is shown as one line, not as a traceback."""
    try:
        app()
    except (ValueError, TypeError, OSError) as e:
        typer.echo(f"ridgeline: error: {e}", err=True)
        sys.exit(1)
