"""Pretraining of any variant on text files."""

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from ridgeline.models import RidgelineConfig, RidgelineForCausalLM
from ridgeline.training import checkpoint as checkpoints
from ridgeline.training.checkpoint import Checkpoint, sync
from ridgeline.training.config import TrainConfig
from ridgeline.training.data import Split, batch, load_documents, require_tokens, split_documents
from ridgeline.training.evaluate import held_out_loss, precision, window_loss
from ridgeline.training.export import export_model
from ridgeline.training.log import Log, Row, plot
from ridgeline.training.ngram import KneserNey
from ridgeline.training.optimizer import load_state, make_optimizer, state_tensors
from ridgeline.training.schedule import learning_rate
from ridgeline.training.tokenizer import END_OF_TEXT, encode_documents, train_tokenizer

CHECKPOINTS, MODEL, LOG, CURVE = "checkpoints", "model", "train.csv", "curve.png"
BASELINE_ORDER = 4


@dataclass(frozen=True)
class Text:
    """Both sides of the text as tokens, and what they were made with."""

    tokenizer: Tokenizer
    train: Split
    held_out: Split

    @property
    def sha256(self) -> str:
        digest = hashlib.sha256()
        for split in (self.train, self.held_out):
            digest.update(np.ascontiguousarray(split.tokens, dtype="<u4").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class TrainResult:
    """What a finished run reached. Losses are in nats a token, over all held-out tokens."""

    model: RidgelineForCausalLM
    rows: list[Row]
    parameters: int
    train_tokens: int
    held_out_tokens: int
    held_out_loss: float
    baseline_loss: float  # of the n-gram model
    held_out_bytes_per_token: float

    def bits_per_byte(self, loss: float) -> float:
        return loss / math.log(2) / self.held_out_bytes_per_token


def pretrain(
    out_dir: str | Path,
    config: TrainConfig,
    *,
    resume: bool = False,
    checkpoint: str | None = None,
    on_step: Callable[[Row], None] | None = None,
) -> TrainResult:
    """Trains a model and writes it to ``out_dir/model``, with its log, curve and checkpoints.

    A run that was killed goes on with ``resume`` and ends in the same bits as one that was not.

    Args:
        out_dir: folder of the run.
        config: all settings; a resumed run's must be those of its checkpoint.
        resume: go on from the latest checkpoint.
        checkpoint: go on from this one instead ("step-00000100"); later ones are removed.
        on_step: called after every optimizer step.

    Raises:
        FileNotFoundError: a text or the checkpoint to resume is missing.
        ValueError: a text is empty, not UTF-8 or too short, a setting is impossible or not the
            checkpoint's, a checkpoint is damaged, or ``out_dir`` already holds a run.
        OSError: the disk is full; the checkpoint before is intact.
    """
    out_dir = Path(out_dir)
    folder = out_dir / CHECKPOINTS
    saved = None
    if resume or checkpoint is not None:
        saved = checkpoints.load(folder, checkpoint)
        config.require_same(saved_config(saved))
    elif checkpoints.latest_name(folder) is not None:
        raise ValueError(f"out_dir: {out_dir} already holds a run; resume it or take another")

    torch.set_num_threads(config.threads)
    text = prepare_text(config, None if saved is None else saved.tokenizer)
    if saved is not None and saved.state["text_sha256"] != text.sha256:
        raise ValueError("texts: their content is not what the checkpoint was trained on")
    model = build_model(config, text.tokenizer)
    optimizer = make_optimizer(model, config.weight_decay)
    state = {"config": config.to_dict(), "text_sha256": text.sha256}
    if saved is None:
        step = 0
        out_dir.mkdir(parents=True, exist_ok=True)
        checkpoints.save(folder, _snapshot(0, model, optimizer, text, state))
    else:
        step = saved.step
        _restore(saved, model, optimizer)
        checkpoints.go_back_to(folder, saved.name)

    log = Log(out_dir / LOG, step)
    baseline = baseline_loss(text)
    model.train()
    began = time.monotonic() - (log.rows[-1].seconds if log.rows else 0.0)
    while step < config.steps:
        step_began = time.monotonic()
        lr = _rate(config, step)
        loss, norm = train_step(model, optimizer, text.train.tokens, config, step, lr)
        step += 1
        speed = config.tokens_per_step / (time.monotonic() - step_began)
        last = step == config.steps
        held_out = None
        if last or step % config.eval_every == 0:
            held_out = evaluate(model, text, config)
        tokens, seconds = step * config.tokens_per_step, time.monotonic() - began
        log.append(Row(step, tokens, lr, loss, norm, held_out, speed, seconds))
        if last or step % config.save_every == 0:
            sync(log.path)  # a checkpoint's rows are on the disk before it
            checkpoints.save(folder, _snapshot(step, model, optimizer, text, state))
        if on_step is not None:
            on_step(log.rows[-1])

    plot(log.rows, baseline, out_dir / CURVE)
    export_model(model, text.tokenizer, out_dir / MODEL)
    return TrainResult(
        model=model,
        rows=log.rows,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        train_tokens=len(text.train.tokens),
        held_out_tokens=len(text.held_out.tokens),
        held_out_loss=log.rows[-1].eval_loss,
        baseline_loss=baseline,
        held_out_bytes_per_token=text.held_out.bytes_per_token,
    )


def saved_config(saved: Checkpoint) -> TrainConfig:
    """The settings a checkpoint was trained with."""
    return TrainConfig.from_dict(saved.state["config"])


def prepare_text(config: TrainConfig, tokenizer: str | None = None) -> Text:
    """Reads, splits and encodes the text.

    Args:
        tokenizer: a checkpoint's ``tokenizer.json``; ``None`` trains one on the training side.
    """
    train, held_out = split_documents(load_documents(config.texts), config.eval_fraction)
    if tokenizer is None:
        trained = train_tokenizer([document.text for document in train], config.vocab_size)
    else:
        trained = Tokenizer.from_str(tokenizer)
    text = Text(trained, encode_documents(trained, train), encode_documents(trained, held_out))
    require_tokens("training", text.train, config.context)
    require_tokens("held-out", text.held_out, config.context)
    return text


def build_model(config: TrainConfig, tokenizer: Tokenizer) -> RidgelineForCausalLM:
    """The model with its first weights, float32; the seed decides them."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    follows = {
        "vocab_size": tokenizer.get_vocab_size(),
        "max_position_embeddings": config.context,
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
    }
    torch.manual_seed(config.seed)
    model = RidgelineForCausalLM(RidgelineConfig(**config.model, **follows))
    for layer in model.model.layers:
        # Every block starts as the identity, which helps latent attention to train.
        for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
            torch.nn.init.zeros_(projection.weight)
    return model


def train_step(
    model: RidgelineForCausalLM,
    optimizer: torch.optim.Optimizer,
    tokens: np.ndarray,
    config: TrainConfig,
    step: int,
    lr: float,
) -> tuple[float, float]:
    """One optimizer step: its loss (the mean over its windows) and its gradient's norm."""
    optimizer.zero_grad()
    total = 0.0
    for part in range(config.grad_accum):
        rows = batch(
            tokens,
            seed=config.seed,
            index=step * config.grad_accum + part,
            size=config.batch,
            context=config.context,
        )
        with precision(config.dtype):
            loss = window_loss(model, torch.from_numpy(rows))
        (loss / config.grad_accum).backward()
        total += loss.item() / config.grad_accum
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip).item()
    if not math.isfinite(total) or not math.isfinite(norm):
        raise ValueError(
            f"lr: the training diverged at step {step + 1} (loss {total}, gradient norm {norm}); "
            f"a smaller peak than {config.lr:g} may help"
        )
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    return total, norm


def evaluate(model: RidgelineForCausalLM, text: Text, config: TrainConfig) -> float:
    """Held-out loss in nats a token."""
    return held_out_loss(
        model,
        text.held_out.tokens,
        context=config.context,
        batch=config.batch,
        dtype=config.dtype,
    )


def baseline_loss(text: Text) -> float:
    """Held-out loss of the 4-gram model of the same training tokens."""
    size = text.tokenizer.get_vocab_size()
    return KneserNey(text.train.tokens, size, BASELINE_ORDER).loss(text.held_out.tokens)


def _rate(config: TrainConfig, step: int) -> float:
    return learning_rate(
        step, peak=config.lr, warmup=config.warmup, steps=config.steps, floor=config.lr_floor
    )


def _snapshot(
    step: int,
    model: RidgelineForCausalLM,
    optimizer: torch.optim.Optimizer,
    text: Text,
    state: dict,
) -> Checkpoint:
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    tensors = state_tensors(model, optimizer) | {"rng": torch.get_rng_state()}
    return Checkpoint(step, weights, tensors, state, text.tokenizer.to_str())


@torch.no_grad()
def _restore(
    saved: Checkpoint, model: RidgelineForCausalLM, optimizer: torch.optim.Optimizer
) -> None:
    for name, parameter in model.named_parameters():
        parameter.copy_(saved.weights[name])
    torch.set_rng_state(saved.optimizer.pop("rng"))
    load_state(model, optimizer, saved.optimizer)
