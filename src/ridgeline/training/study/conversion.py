"""What a conversion keeps and what fine-tuning wins back, beside two controls.

One GQA model is trained. GTA, MLA and GLA models begin with its weights, their attention converted
or drawn anew, which shows what the rest of the weights is worth. All of them, and the GQA model
itself, then go on for the same steps on the same tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ridgeline.bench.files import Record, write_records
from ridgeline.bench.grid import Grid
from ridgeline.models import RidgelineForCausalLM
from ridgeline.models.convert import convert, output_errors
from ridgeline.training.config import TrainConfig
from ridgeline.training.data import batch
from ridgeline.training.evaluate import held_out_loss
from ridgeline.training.export import export_model
from ridgeline.training.start import model_fields
from ridgeline.training.state import build_model
from ridgeline.training.study.runs import once, train_or_resume
from ridgeline.training.text import Text, prepare_text

RUNS = (
    ("gqa", "as trained"),
    ("gta", "converted"),
    ("gta", "drawn anew"),
    ("mla", "converted"),
    ("mla", "drawn anew"),
    ("gla", "converted"),
    ("gla", "drawn anew"),
)
WINDOWS = 32  # of the training text, for the statistics of a conversion and for its error


@dataclass(frozen=True)
class Row:
    """One model and the held-out loss, nats a token, before and after fine-tuning.

    ``output_error`` is the relative error of its attention on training text, mean of the layers.
    """

    attention: str
    weights: str
    cache_bytes: int
    parameters: int
    output_error: float | None
    loss_before: float
    loss_after: float
    trained_tokens: int
    tuned_tokens: int


def run(
    out_dir: Path, base: TrainConfig, tune: TrainConfig, on_row: Callable[[Row], None]
) -> list[Row]:
    """Trains, converts and fine-tunes in ``out_dir``; what is finished there is not repeated.

    Args:
        base: training of the source, a gqa model.
        tune: of all models after it; their ``model`` and ``start`` follow from the source.
    """
    text = prepare_text(base)
    source = train_or_resume(out_dir / "source", base, text).model.eval()
    windows = torch.from_numpy(
        batch(text.train.tokens, seed=base.seed, index=0, size=WINDOWS, context=base.context)
    )[:, :-1]
    rows = []
    for attention, weights in RUNS:
        name = f"{attention}-{weights}".replace(" ", "-")
        model, error = _start(source, attention, weights, windows, base, text)
        folder = out_dir / f"{name}-start"
        export_model(model, text.tokenizer, folder, torch.float32)
        config = replace(tune, model=model_fields(model.config), start=str(folder))

        def losses(folder: Path, text: Text, *, model=model, config=config) -> dict[str, Any]:
            sizes = {"context": config.context, "batch": config.batch, "dtype": config.dtype}
            before = held_out_loss(model, text.held_out.tokens, **sizes)
            after = train_or_resume(folder, config, text).held_out_loss
            return {"loss_before": before, "loss_after": after}

        spec = model.model.layers[0].self_attn.cache_spec()
        row = Row(
            attention=attention,
            weights=weights,
            cache_bytes=model.config.num_hidden_layers * spec.bytes_per_token(torch.bfloat16),
            parameters=model.num_parameters(),
            output_error=error,
            **once(out_dir / name, config, text, losses),
            trained_tokens=base.steps * base.tokens_per_step,
            tuned_tokens=config.steps * config.tokens_per_step,
        )
        rows.append(row)
        on_row(row)
    return rows


def _start(
    source: RidgelineForCausalLM,
    attention: str,
    weights: str,
    windows: Tensor,
    base: TrainConfig,
    text: Text,
) -> tuple[RidgelineForCausalLM, float | None]:
    """What fine-tuning begins with, and the mean error of its attention."""
    if weights == "as trained":
        return source, None
    # The statistics are of one half of the windows, the error of the other.
    known, unknown = windows.chunk(2)
    model, _ = convert(source, attention, rows=known)
    if weights == "drawn anew":
        drawn = build_model(replace(base, model=model_fields(model.config)), text.tokenizer)
        new = {k: v for k, v in drawn.state_dict().items() if ".self_attn." in k}
        model.load_state_dict(new, strict=False)
    errors = output_errors(source, model, unknown)
    return model, sum(errors) / len(errors)


def table(rows: Sequence[Row]) -> Grid:
    grid = Grid()
    grid.add_column("attention")
    grid.add_column("its weights")
    for name in (
        "cache bytes\na token",
        "parameters",
        "error of the\noutput",
        "loss before\nfine-tuning",
        "loss after",
    ):
        grid.add_column(name, justify="right")
    for row in rows:
        grid.add_row(*cells(row))
    return grid


def cells(row: Row) -> list[str]:
    """A line of the table."""
    return [
        row.attention.upper(),
        row.weights,
        f"{row.cache_bytes:,}",
        f"{row.parameters:,}",
        "" if row.output_error is None else f"{row.output_error:.0%}",
        f"{row.loss_before:.4f}",
        f"{row.loss_after:.4f}",
    ]


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """A row a model, under a head that says how to repeat it."""
    write_records([_record(row) for row in rows], path, None)


def _record(row: Row) -> Record:
    found = {k: f"{x:.9g}" if isinstance(x, float) else x for k, x in vars(row).items()}
    return {k: "" if x is None else x for k, x in found.items()}
