"""Pretraining of any variant on text files."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ridgeline.models import RidgelineForCausalLM
from ridgeline.training import checkpoint as checkpoints
from ridgeline.training.checkpoint import Checkpoint, sync
from ridgeline.training.config import TrainConfig
from ridgeline.training.export import export_model
from ridgeline.training.log import Log, Row, plot
from ridgeline.training.start import Start
from ridgeline.training.state import TrainState
from ridgeline.training.text import Text, prepare_text

CHECKPOINTS, MODEL, LOG, CURVE = "checkpoints", "model", "train.csv", "curve.png"


@dataclass(frozen=True)
class TrainResult:
    """What a finished run reached. Losses are in nats a token, over all held-out tokens."""

    model: RidgelineForCausalLM
    rows: list[Row]
    parameters: int
    train_tokens: int
    held_out_tokens: int
    held_out_loss: float
    baseline_loss: float  # of the 4-gram model
    held_out_bytes_per_token: float

    def bits_per_byte(self, loss: float) -> float:
        return loss / math.log(2) / self.held_out_bytes_per_token


def pretrain(
    out_dir: str | Path,
    config: TrainConfig,
    *,
    text: Text | None = None,
    resume: bool = False,
    checkpoint: str | None = None,
    extend: bool = False,
    on_step: Callable[[Row], None] | None = None,
) -> TrainResult:
    """Trains a model and writes it to ``out_dir/model``, with its log, curve and checkpoints.

    A run that was killed goes on with ``resume`` and ends in the same bits as one that was not.

    Args:
        out_dir: folder of the run.
        config: all settings; a resumed run's must be those of its checkpoint.
        text: what ``prepare_text(config)`` gave, for runs that share it; ``None`` reads it here.
        resume: go on from the latest checkpoint.
        checkpoint: go on from this one instead ("step-00000100"); later ones are removed.
        extend: let a resumed run have more steps than its checkpoint was to have; the learning
            rate follows the longer schedule from there on.
        on_step: called after every optimizer step.

    Raises:
        FileNotFoundError: a text, the checkpoint to resume or the model to start from is missing.
        ValueError: a text is empty, not UTF-8 or too short, a setting is impossible or not the
            checkpoint's, there is no GPU to train on, a checkpoint is damaged, or ``out_dir``
            already holds a run.
        OSError: the disk is full; the checkpoint before is intact.
    """
    out_dir = Path(out_dir)
    saved = None
    if resume or checkpoint is not None:
        saved = checkpoints.load(out_dir / CHECKPOINTS, checkpoint)
        config.require_same(saved_config(saved), extend=extend)
    elif checkpoints.latest_name(out_dir / CHECKPOINTS) is not None:
        raise ValueError(f"out_dir: {out_dir} already holds a run; resume it or take another")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: expected cpu, since torch sees no GPU, got cuda")
    torch.set_num_threads(config.threads)
    start = None
    if saved is None and config.start is not None:
        start = Start.read(config.start)
        start.check_model(config.model)
    if text is None:
        begun = saved or start
        text = prepare_text(config, None if begun is None else begun.tokenizer)
    if saved is None:
        state = TrainState(config, text)
        if start is not None:
            state.model.load_state_dict(start.weights())
        out_dir.mkdir(parents=True, exist_ok=True)
        checkpoints.save(out_dir / CHECKPOINTS, state.snapshot())
    else:
        state = TrainState.of_checkpoint(saved, config, text)
        checkpoints.go_back_to(out_dir / CHECKPOINTS, saved.name)

    log = Log(out_dir / LOG, state.steps_done, resumed=saved is not None)
    baseline = text.baseline_loss
    _train(state, log, out_dir / CHECKPOINTS, on_step)
    plot(log.rows, baseline, out_dir / CURVE)
    export_model(state.model, text.tokenizer, out_dir / MODEL)
    return TrainResult(
        model=state.model,
        rows=log.rows,
        parameters=sum(parameter.numel() for parameter in state.model.parameters()),
        train_tokens=len(text.train.tokens),
        held_out_tokens=len(text.held_out.tokens),
        held_out_loss=log.rows[-1].eval_loss,
        baseline_loss=baseline,
        held_out_bytes_per_token=text.held_out.bytes_per_token,
    )


def saved_config(saved: Checkpoint) -> TrainConfig:
    """The settings a checkpoint was trained with."""
    return TrainConfig.from_dict(saved.state["config"])


def _train(
    state: TrainState, log: Log, folder: Path, on_step: Callable[[Row], None] | None
) -> None:
    """The steps that are left, each with its row in the log."""
    config = state.config
    began = time.monotonic() - (log.rows[-1].seconds if log.rows else 0.0)
    while state.steps_done < config.steps:
        step_began, rate = time.monotonic(), state.next_rate()
        loss, norm = state.advance()
        speed = config.tokens_per_step / (time.monotonic() - step_began)
        step = state.steps_done
        last = step == config.steps
        held_out = state.held_out_loss() if last or step % config.eval_every == 0 else None
        row = Row(
            step=step,
            tokens=step * config.tokens_per_step,
            lr=rate,
            loss=loss,
            grad_norm=norm,
            eval_loss=held_out,
            tokens_per_second=speed,
            seconds=time.monotonic() - began,
        )
        log.append(row)
        if last or step % config.save_every == 0:
            sync(log.path)  # a checkpoint's rows are on the disk before it
            checkpoints.save(folder, state.snapshot())
        if on_step is not None:
            on_step(row)
