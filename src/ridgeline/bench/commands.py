"""``ridgeline bench decode``, ``attention`` and ``serve``: their options, on a CPU and on a GPU.

Each function is the command of both command lines (``options``); it imports what it needs when it
runs, so that --help is fast.
"""

from pathlib import Path
from typing import Annotated

from ridgeline.bench.options import Option

Device = Annotated[str, Option("What is timed: cpu or cuda.")]
Impl = Annotated[
    str | None,
    Option("Implementation.", default="auto; on a GPU, where a list may be given, triton,hopper"),
]
Threads = Annotated[int, Option("Threads; 0 for torch's default.", minimum=0)]
Peers = Annotated[bool, Option("Time PyTorch too, and on a GPU other installed packages.")]
Csv = Annotated[Path | None, Option("Write rows and provenance to this CSV file.")]
Json = Annotated[Path | None, Option("The same as JSON.")]
Plot = Annotated[Path | None, Option("Draw the rows to this file; on a CPU.")]


def decode(
    device: Device = "cpu",
    variants: Annotated[
        str | None, Option("mha, mqa, gqa, gta, mla, gla; comma-separated.", default="all")
    ] = None,
    batch: Annotated[
        str | None,
        Option("Sequences, in pairs with --length.", default="1,4,16; on a GPU see README"),
    ] = None,
    length: Annotated[
        str | None, Option("Cached tokens of each.", default="32768,8192,2048")
    ] = None,
    query_len: Annotated[
        str | None, Option("New tokens of each sequence.", default="1; on a GPU 1,2,4")
    ] = None,
    dtype: Annotated[
        str, Option("bf16, fp16, fp32, on a GPU fp8 (the cache alone); comma-separated.")
    ] = "bf16",
    heads: Annotated[
        str | None, Option("Query heads.", default="32, MLA 16,128, GLA 16,32,128")
    ] = None,
    kv_heads: Annotated[int | None, Option("Cached heads of GQA and GTA.", default="8")] = None,
    latent_heads: Annotated[int | None, Option("Latent heads of GLA.", default="2")] = None,
    head_dim: Annotated[
        int | None, Option("MLA caches 4 times, GLA twice this width.", default="128")
    ] = None,
    page_size: Annotated[
        str | None, Option("Tokens a page of the cache.", default="64; on a GPU 64,1")
    ] = None,
    impl: Impl = None,
    prefetch: Annotated[
        str | None,
        Option("On a GPU: distances of L2 prefetch in tiles, or none.", default="0,1,2,4"),
    ] = None,
    reps: Annotated[int | None, Option("Rounds of all calls.", default="15; on a GPU 30")] = None,
    threads: Threads = 0,
    peers: Peers = True,
    quick: Annotated[
        bool, Option("One size, one head count a variant, fewer rounds.", switch=True)
    ] = False,
    csv: Csv = None,
    json: Json = None,
    plot: Plot = None,
) -> None:
    """Time a decode step of every attention variant, cache cold, and check every result."""
    from ridgeline.bench import arguments, table
    from ridgeline.bench.device import open_device

    timed = open_device(device)
    arguments.set_threads(threads)
    given = {
        "variants": None if variants is None else arguments.names(variants),
        "query_lens": arguments.optional("--query-len", query_len),
        "dtypes": arguments.names(dtype),
        "heads": arguments.optional("--heads", heads),
        "kv_heads": kv_heads,
        "latent_heads": latent_heads,
        "head_dim": head_dim,
    }
    pages = arguments.optional("--page-size", page_size)
    out = {"csv": csv, "json": json, "plot_file": plot}
    if device == "cpu":
        from ridgeline.bench import run
        from ridgeline.bench.decode import DecodeOptions

        arguments.refuse("--prefetch", prefetch, "--device cuda")
        defaults = DecodeOptions.quick() if quick else DecodeOptions()
        options = defaults.replace(
            **given,
            sizes=arguments.sizes(batch, length, defaults.sizes),
            page_size=arguments.single("--page-size", pages),
            impl=impl,
            reps=reps,
            with_peers=peers,
        )
        run.bench_decode(options, table.console(), **out)
        return
    from ridgeline.bench.cuda import run, shapes
    from ridgeline.bench.cuda.decode import CudaDecodeOptions

    given["sizes"] = arguments.sizes(batch, length, ((16, 4096),) if quick else ())
    options = {
        "shapes": tuple(shapes.chosen_decode(**given)),
        "page_sizes": pages,
        "impls": None if impl is None else arguments.names(impl),
        "prefetch": arguments.distances("--prefetch", prefetch),
        "reps": reps,
    }
    chosen = {name: x for name, x in options.items() if x is not None}
    run.bench_decode(CudaDecodeOptions(**chosen, with_peers=peers), timed, table.console(), **out)


def attention(
    device: Device = "cpu",
    batch: Annotated[str | None, Option("Rows, in pairs with --length.")] = None,
    length: Annotated[str | None, Option("Tokens of a row.", default="the project's table")] = None,
    heads: Annotated[int | None, Option("Query heads.", default="16")] = None,
    kv_heads: Annotated[int | None, Option("Cached heads.", default="as many")] = None,
    head_dim: Annotated[int | None, Option("Of q and k.", default="128")] = None,
    value_dim: Annotated[int | None, Option("Of v.", default="--head-dim")] = None,
    mask: Annotated[str | None, Option("full, causal; comma-separated.")] = None,
    pairs: Annotated[
        int | None, Option("A tree: preference pairs in a row, prompts shared.")
    ] = None,
    pair: Annotated[str | None, Option("Prompt, chosen, rejected.", default="256,64,64")] = None,
    dtype: Annotated[
        str | None, Option("bf16, fp16, fp32; comma-separated.", default="bf16")
    ] = None,
    reps: Annotated[int | None, Option("Rounds of all calls.", default="7; on a GPU 20")] = None,
    threads: Threads = 0,
    peers: Peers = True,
    backward: Annotated[bool, Option("Time gradients too.")] = True,
    impl: Impl = None,
    quick: Annotated[bool, Option("Three shapes.", switch=True)] = False,
    csv: Csv = None,
    json: Json = None,
    plot: Plot = None,
) -> None:
    """Time attention, forward and backward, beside PyTorch's, and check every result."""
    from ridgeline.bench import arguments, table
    from ridgeline.bench.attention import shapes
    from ridgeline.bench.attention.measure import AttentionOptions
    from ridgeline.bench.device import open_device

    timed = open_device(device)
    arguments.set_threads(threads)
    given = {
        "batch": batch,
        "length": length,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "value_dim": value_dim,
        "mask": mask,
        "pairs": pairs,
        "pair": pair,
        "dtype": dtype,
    }
    out = {"csv": csv, "json": json, "plot_file": plot}
    if device == "cpu":
        from ridgeline.bench.attention import run

        found = shapes.chosen(quick, **given)
        options = AttentionOptions(
            found, 7 if reps is None else reps, peers, backward, impl or "auto"
        )
        run.bench_attention(options, table.console(), **out)
        return
    from ridgeline.bench.cuda import run
    from ridgeline.bench.cuda.decode import IMPLS
    from ridgeline.bench.cuda.shapes import attention_shapes

    asked = quick or any(x is not None for x in given.values())
    found = shapes.chosen(quick, **given) if asked else tuple(attention_shapes())
    impls = IMPLS if impl is None else arguments.names(impl)
    options = AttentionOptions(found, 20 if reps is None else reps, peers, backward, impls=impls)
    run.bench_attention(options, timed, table.console(), **out)


def serve(
    variants: Annotated[
        str, Option("mha, mqa, gqa, gta, mla, gla; comma-separated.")
    ] = "gqa,gta,mla,gla",
    attention: Annotated[
        str, Option("ridgeline; engine for GQA by vLLM's own attention; comma-separated.")
    ] = "ridgeline",
    cache_mib: Annotated[str, Option("Budgets of the cache, MiB; comma-separated.")] = "512",
    context: Annotated[str, Option("Tokens of a prompt; comma-separated.")] = "8192",
    concurrency: Annotated[str, Option("Requests under way; comma-separated.")] = "8",
    output: Annotated[int, Option("Tokens that a request asks for.")] = 64,
    prompts: Annotated[
        int | None, Option("Requests of a load.", default="as many as are under way")
    ] = None,
    dtype: Annotated[str, Option("bf16, fp16 or fp32.")] = "bf16",
    layers: Annotated[int, Option("Decoder layers.")] = 3,
    hidden: Annotated[int, Option("Width of the models.")] = 1024,
    intermediate: Annotated[
        int, Option("Width of an MHA model's MLP; other models get as many parameters.")
    ] = 1024,
    heads: Annotated[int, Option("Query heads.")] = 16,
    kv_heads: Annotated[int, Option("Cached heads of GQA and GTA.")] = 8,
    latent_heads: Annotated[int, Option("Latent heads of GLA.")] = 2,
    q_rank: Annotated[int, Option("Rank of the query of MLA and GLA.")] = 512,
    overhead: Annotated[
        bool, Option("Serve narrow twins too, for `plan measure-serve`.", switch=True)
    ] = False,
    engine: Annotated[str, Option("Further options of vLLM's server, as one text.")] = "",
    url: Annotated[
        str | None, Option("An endpoint that runs already, in place of servers of our models.")
    ] = None,
    tokenizer: Annotated[
        Path | None, Option("With --url: the directory of its model's tokenizer.")
    ] = None,
    threads: Threads = 0,
    csv: Csv = None,
    json: Json = None,
    plot: Annotated[Path | None, Option("Draw the rows to this file.")] = None,
) -> None:
    """Serve models of equal size under equal cache budgets, and load them by vLLM's client."""
    import shlex

    from ridgeline.bench import arguments, table
    from ridgeline.bench.serving import run
    from ridgeline.bench.serving.measure import ServeBenchOptions
    from ridgeline.bench.serving.models import ServedShape

    arguments.set_threads(threads)
    options = ServeBenchOptions(
        variants=arguments.names(variants),
        attention=arguments.names(attention),
        shape=ServedShape(layers, hidden, intermediate, heads, kv_heads, latent_heads, q_rank),
        dtype=dtype,
        cache_mib=arguments.integers("--cache-mib", cache_mib),
        contexts=arguments.integers("--context", context),
        concurrency=arguments.integers("--concurrency", concurrency),
        output=output,
        prompts=prompts,
        overhead=overhead,
        engine=tuple(shlex.split(engine)),
    )
    out = {"csv": csv, "json": json, "plot_file": plot}
    if url is None:
        arguments.refuse("--tokenizer", tokenizer, "--url")
        run.bench_serve(options, table.console(), **out)
    elif tokenizer is None:
        raise ValueError("--tokenizer: expected together with --url")
    else:
        run.bench_endpoint(url.rstrip("/"), tokenizer, options, table.console(), **out)


COMMANDS = {"decode": decode, "attention": attention, "serve": serve}
