"""``ridgeline train``: from the command line's values to a run."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from ridgeline.training import checkpoint as checkpoints
from ridgeline.training.config import MODEL_FIELDS, TrainConfig
from ridgeline.training.pretrain import CHECKPOINTS, MODEL, TrainResult, pretrain, saved_config
from ridgeline.training.progress import TrainProgress
from ridgeline.training.start import Start


def run(
    out_dir: Path,
    settings: dict[str, Any],
    given: set[str],
    *,
    tokens: int | None,
    resume: bool,
    checkpoint: str | None,
    extend: bool,
) -> None:
    """Trains and prints what came of it.

    Args:
        settings: every option's value, under the names of ``TrainConfig`` and ``RidgelineConfig``.
        given: names of the options that were on the command line. A resumed run takes the others
            from its checkpoint.
        tokens: training tokens in place of ``steps``.
    """
    console = Console()
    saved = None
    if resume or checkpoint is not None:
        saved = saved_config(checkpoints.load(out_dir / CHECKPOINTS, checkpoint))
    config = make_config(settings, given, tokens=tokens, saved=saved)
    with TrainProgress(config.steps, console) as progress:
        result = pretrain(
            out_dir,
            config,
            resume=resume,
            checkpoint=checkpoint,
            extend=extend,
            on_step=progress.update,
        )
    for line in report(result):
        console.print(line)
    console.print(f"model: {out_dir / MODEL}")


def make_config(
    settings: dict[str, Any], given: set[str], *, tokens: int | None, saved: TrainConfig | None
) -> TrainConfig:
    """The run's settings; see ``run``. ``saved``: the checkpoint's, when one is resumed."""
    if tokens is not None and "steps" in given:
        raise ValueError("tokens: expected either tokens or steps, got both")
    if saved is not None:
        explicit = {name: value for name, value in settings.items() if name in given}
        settings = {**vars(saved), **saved.model, **explicit}
    elif settings["start"] is not None:
        start = Start.read(settings["start"])
        theirs = {**start.model, "vocab_size": start.vocab_size}
        for name in sorted(given & (MODEL_FIELDS | {"vocab_size"})):
            if settings[name] != theirs.get(name):
                raise ValueError(
                    f"{name}: expected {theirs.get(name)!r} as {start.path} has it, got "
                    f"{settings[name]!r}"
                )
        settings = {**settings, **dict.fromkeys(MODEL_FIELDS), **theirs}
    model = {name: settings[name] for name in MODEL_FIELDS if settings.get(name) is not None}
    rest = {name: settings[name] for name in settings if name not in MODEL_FIELDS | {"model"}}
    config = TrainConfig(model=model, **rest)
    if tokens is None:
        return config
    return replace(config, steps=math.ceil(tokens / config.tokens_per_step))


def report(result: TrainResult) -> list[str]:
    """The losses of a finished run and of its baseline, in words."""
    trained, baseline = result.held_out_loss, result.baseline_loss
    return [
        f"parameters: {result.parameters:,}; text: {result.train_tokens:,} tokens, "
        f"{result.held_out_tokens:,} held out",
        f"held-out loss: {trained:.4f} nats a token, "
        f"{result.bits_per_byte(trained):.4f} bits a byte",
        f"4-gram baseline: {baseline:.4f} nats a token, "
        f"{result.bits_per_byte(baseline):.4f} bits a byte",
    ]
