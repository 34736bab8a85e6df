"""The command line: each command imports what it needs when it runs, so that --help is fast."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from ridgeline import __version__

app = typer.Typer(
    name="ridgeline",
    help="Exact attention that does more work per byte.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

bench_app = typer.Typer(help="Measure speed beside its roofs and PyTorch.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")

Threads = Annotated[int, typer.Option(help="Threads; 0 for torch's default.", min=0)]
Csv = Annotated[Path | None, typer.Option(help="Write rows and provenance to this CSV file.")]
Json = Annotated[Path | None, typer.Option(help="The same as JSON.")]


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
def info() -> None:
    """List every implementation, why one is not usable here, and what this machine has."""
    from ridgeline.bench.info import lines

    for line in lines():
        typer.echo(line)


@bench_app.command("decode")
def bench_decode(
    variants: Annotated[
        str, typer.Option(help="Comma-separated, of these.")
    ] = "mha,mqa,gqa,gta,mla,gla",
    batch: Annotated[
        str | None, typer.Option(help="Sequences, paired with --length. [default: 1,4,16]")
    ] = None,
    length: Annotated[
        str | None, typer.Option(help="Cached tokens of each. [default: 32768,8192,2048]")
    ] = None,
    query_len: Annotated[str, typer.Option(help="New tokens of each sequence.")] = "1",
    dtype: Annotated[str, typer.Option(help="bf16, fp16, fp32; comma-separated.")] = "bf16",
    heads: Annotated[
        str | None, typer.Option(help="Query heads. [default: 32; MLA 16,128; GLA 16,32,128]")
    ] = None,
    kv_heads: Annotated[int, typer.Option(help="Cached heads of GQA and GTA.")] = 8,
    latent_heads: Annotated[int, typer.Option(help="Latent heads of GLA.")] = 2,
    head_dim: Annotated[int, typer.Option(help="MLA caches 4 times, GLA twice this width.")] = 128,
    page_size: Annotated[int, typer.Option(help="Tokens a page of the cache.")] = 64,
    reps: Annotated[int | None, typer.Option(help="Rounds of all calls. [default: 15]")] = None,
    threads: Threads = 0,
    peers: Annotated[bool, typer.Option(help="Time PyTorch too.")] = True,
    quick: Annotated[
        bool, typer.Option(help="One size, one head count a variant, fewer rounds.")
    ] = False,
    csv: Csv = None,
    json: Json = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the rows to this file.")] = None,
) -> None:
    """Time a decode step of every attention variant, cache cold, and check every result."""
    from ridgeline.bench import arguments, run, table
    from ridgeline.bench.decode import DecodeOptions

    arguments.set_threads(threads)
    defaults = DecodeOptions.quick() if quick else DecodeOptions()
    options = defaults.replace(
        variants=arguments.names(variants),
        sizes=arguments.sizes(batch, length, defaults.sizes),
        query_lens=arguments.integers("--query-len", query_len),
        dtypes=arguments.names(dtype),
        heads=None if heads is None else arguments.integers("--heads", heads),
        kv_heads=kv_heads,
        latent_heads=latent_heads,
        head_dim=head_dim,
        page_size=page_size,
        reps=reps,
        with_peers=peers,
    )
    run.bench_decode(options, table.console(), csv=csv, json=json, plot_file=plot)


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


def main() -> None:
    """Runs the app; an error that names its culprit is shown as one line, not as a traceback."""
    try:
        app()
    except (ValueError, TypeError, OSError) as e:
        typer.echo(f"ridgeline: error: {e}", err=True)
        sys.exit(1)
