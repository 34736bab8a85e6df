"""``ridgeline dpo``: from the command line's values to a trained model."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from peft import LoraConfig
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers import (
    AutoTokenizer,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from ridgeline.models.generate import default_model
from ridgeline.ops.common import check
from ridgeline.training.preference.losses import LOSSES
from ridgeline.trl import PrefixSharedDPOConfig, PrefixSharedDPOTrainer
from ridgeline.trl.files import load_pairs
from ridgeline.trl.plots import plot, write_csv
from ridgeline.trl.run_folder import CHECKPOINTS, LOG, MODEL, PLOT, is_finished, last_checkpoint

SHIPPED = "shipped"


@dataclass(frozen=True)
class DPOOptions:
    """Settings of ``run``, as the command line names them."""

    batch: int = 8
    grad_accum: int = 1
    steps: int | None = None
    epochs: float = 1.0
    pairs: int | None = None
    lr: float = 1e-6
    warmup: int = 0
    beta: float = 0.1
    loss: str = "sigmoid"
    label_smoothing: float = 0.0
    max_length: int = 1024
    prefix_sharing: bool = True
    packing: bool = True
    packing_length: int | None = None
    lora: int | None = None
    precompute_ref: bool = False
    checkpointing: bool = False
    dtype: str = "bf16"
    eval_fraction: float = 0.05
    eval_every: int = 50
    save_every: int = 100
    log_every: int = 1
    seed: int = 0

    @property
    def losses(self) -> list[str]:
        """Names of the losses that are summed."""
        return [name.strip() for name in self.loss.split(",")]

    def check(self) -> None:
        """Raises ``ValueError`` for a value that TRL would meet in its first step, or never."""
        if self.dtype not in ("bf16", "fp32"):
            raise ValueError(f"dtype: expected bf16 or fp32, got {self.dtype!r}")
        for name in ("lr", "beta", "epochs"):
            value = getattr(self, name)
            if check.finite(name, value) <= 0:
                raise ValueError(f"{name}: expected a number above 0, got {value}")
        for name in self.losses:
            if name not in LOSSES:
                raise ValueError(f"loss: expected some of {', '.join(LOSSES)}, got {name!r}")


def run(model: str, data: str, out_dir: Path, options: DPOOptions, *, resume: bool) -> None:
    """Trains, and leaves the model, a log and a plot in ``out_dir``.

    Args:
        model: a directory or a name on the Hub, or "shipped", the model that the package ships.
        data: see ``load_pairs``.
        resume: go on from the last checkpoint of ``out_dir``.

    Raises:
        FileNotFoundError, ValueError, TypeError: a file or an option is not possible.
    """
    _quiet()
    options.check()
    last = last_checkpoint(out_dir, resume=resume)
    if last is not None and is_finished(out_dir, last, options.steps, options.epochs):
        done = f"{out_dir}: the run is finished, nothing is left to do"
        Console(highlight=False).print(done, soft_wrap=True)
        return
    model = str(default_model()) if model == SHIPPED else model
    train, held_out = load_pairs(
        data, options.eval_fraction, count=options.pairs, seed=options.seed
    )
    args = _arguments(out_dir, options, evaluate=held_out is not None)
    trainer = PrefixSharedDPOTrainer(
        model,
        args=args,
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=options.lora
        and LoraConfig(r=options.lora, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.remove_callback(PrinterCallback)
    console = Console(quiet=not trainer.is_world_process_zero(), highlight=False)
    for name, counts in trainer.pair_counts.items():
        console.print(f"{name}: {counts}")
    progress = DPOProgress(console)
    trainer.add_callback(progress)
    with progress.bar:
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    if held_out is not None and "eval_loss" not in (trainer.state.log_history[-2:] or [{}])[0]:
        trainer.evaluate()
    trainer.save_model(str(out_dir / MODEL))
    if trainer.is_world_process_zero():
        logs = trainer.state.log_history
        write_csv(logs, out_dir / LOG)
        plot(logs, out_dir / PLOT)
        for line in report(logs):
            console.print(line)
        console.print(f"model: {out_dir / MODEL}; log: {out_dir / LOG}; plot: {out_dir / PLOT}")


def _arguments(out_dir: Path, options: DPOOptions, *, evaluate: bool) -> PrefixSharedDPOConfig:
    return PrefixSharedDPOConfig(
        str(out_dir / CHECKPOINTS),
        per_device_train_batch_size=options.batch,
        per_device_eval_batch_size=options.batch,
        gradient_accumulation_steps=options.grad_accum,
        max_steps=options.steps or -1,
        num_train_epochs=options.epochs,
        learning_rate=options.lr,
        warmup_steps=options.warmup,
        lr_scheduler_type="cosine",
        beta=options.beta,
        loss_type=options.losses,
        label_smoothing=options.label_smoothing,
        max_length=options.max_length,
        prefix_sharing=options.prefix_sharing,
        packing=options.packing,
        packing_length=options.packing_length,
        precompute_ref_log_probs=options.precompute_ref,
        gradient_checkpointing=options.checkpointing,
        bf16=options.dtype == "bf16",
        use_cpu=not torch.cuda.is_available(),
        eval_strategy="steps" if evaluate else "no",
        eval_steps=options.eval_every,
        eval_on_start=evaluate,
        save_steps=options.save_every,
        save_total_limit=2,
        logging_steps=options.log_every,
        report_to=[],
        disable_tqdm=True,
        seed=options.seed,
    )


def report(logs: list[dict[str, Any]]) -> list[str]:
    """What came of a run, in words."""
    steps = [log for log in logs if "loss" in log]
    summary = next(log for log in reversed(logs) if "train_runtime" in log)
    lines = [f"{summary['train_samples_per_second']:.2f} pairs/s"]
    if steps and "tokens/logical" in steps[0]:
        logical, physical = (
            sum(log[name] for log in steps) / len(steps)
            for name in ("tokens/logical", "tokens/physical")
        )
        lines[0] += (
            f"; {physical:,.0f} tokens computed a micro-batch for {logical:,.0f} "
            f"({1 - physical / logical:.0%} shared)"
        )
    evaluated = [log for log in logs if "eval_loss" in log]
    for when, found in (("before", evaluated[:1]), ("after", evaluated[-1:])):
        for log in found:
            lines.append(
                f"held out, {when}: loss {log['eval_loss']:.4f}, reward accuracy "
                f"{log['eval_rewards/accuracies']:.3f}, margin {log['eval_rewards/margins']:.3f}"
            )
    return lines


class DPOProgress(TrainerCallback):
    """A bar with loss, reward accuracy and speed, and a line for every evaluation."""

    def __init__(self, console: Console) -> None:
        self.bar = Progress(
            TextColumn("dpo"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f}"),
            TextColumn("accuracy {task.fields[accuracy]:.2f}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self.bar.add_task("", total=None, loss=float("nan"), accuracy=float("nan"))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.bar.update(self._task, completed=state.global_step, total=state.max_steps)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        logs = logs or {}
        if "loss" in logs:
            accuracy = logs["rewards/accuracies"]
            self.bar.update(self._task, loss=logs["loss"], accuracy=accuracy)
        if "eval_loss" in logs:
            self.bar.console.print(
                f"step {state.global_step}: held-out loss {logs['eval_loss']:.4f}, "
                f"reward accuracy {logs['eval_rewards/accuracies']:.3f}"
            )


def _quiet() -> None:
    """Leaves the terminal to the bar; warnings still come through."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
