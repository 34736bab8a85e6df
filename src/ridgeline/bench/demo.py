"""``ridgeline demo``: text from the shipped model, then the decode table and its plot."""

from pathlib import Path

from rich.console import Console

from ridgeline.bench.decode import DecodeOptions
from ridgeline.bench.run import bench_decode
from ridgeline.models import generate

# No line break at the end: the tokenizer joins it with the indent that the model is to choose.
PROMPT = '''def parse_arguments(argv=None):
    """Parse the command line and return the options."""'''


def demo(
    console: Console,
    plot: Path,
    *,
    tokens: int = 150,
    model: Path | None = None,
    options: DecodeOptions | None = None,
) -> None:
    """Decode ``tokens`` tokens after ``PROMPT``, then measure a decode step of every variant.

    ``model`` is a checkpoint's folder, by default the one that the package ships; ``options`` of
    the measurement are by default the quick ones.
    """
    decoder, tokenizer = generate.load(model)
    console.print(
        f"A {decoder.config.attention.upper()} model of {decoder.num_parameters():,} parameters "
        "continues this line of Python:\n"
    )
    console.out(PROMPT, end="", style="bold", highlight=False)
    text = generate.stream(
        decoder, tokenizer, PROMPT, max_new_tokens=tokens, temperature=0.8, seed=1
    )
    for piece in text:
        console.out(piece, end="", highlight=False)
    console.out(f"\n\n{text.stats.summary()}\n", highlight=False)
    console.print("One decode step of one layer, every attention variant, against PyTorch:")
    bench_decode(DecodeOptions.quick() if options is None else options, console, plot_file=plot)
    console.print(f"The plot is in {plot}", soft_wrap=True)
