"""Every setting of a training run."""

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self

from ridgeline.models import RidgelineConfig
from ridgeline.ops.common import check
from ridgeline.training.tokenizer import MIN_VOCAB_SIZE

Precision = Literal["bf16", "fp32"]
Device = Literal["cpu", "cuda"]

# Fields of RidgelineConfig that a run chooses.
MODEL_FIELDS = {
    "attention",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "head_dim",
    "num_key_value_heads",
    "num_latent_heads",
    "latent_dim",
    "rope_dim",
    "q_rank",
    "tie_word_embeddings",
    "rope_parameters",
    "rms_norm_eps",
    "initializer_range",
}

# What may differ from the checkpoint's when a run goes on: none of it changes a weight or a loss.
FREE_ON_RESUME = {"texts", "eval_every", "save_every"}

# Fields of RidgelineConfig that ``pretrain`` sets itself.
FOLLOWS = ("vocab_size", "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of ``pretrain``; together with the text they determine every weight and loss.

    Attributes:
        model: fields of ``RidgelineConfig`` except the vocabulary, the special tokens and the
            longest position, which follow from the fields below.
        start: folder of the model whose weights and tokenizer the run begins with, of the sizes in
            ``model``; ``None`` draws weights and trains a tokenizer.
        texts: text files; empty for the Python standard library's sources. What a resumed run must
            match is their content, not their place.
        vocab_size: largest vocabulary of the tokenizer, at least 257.
        context: tokens of a training window.
        batch: windows of a forward pass.
        grad_accum: forward passes of an optimizer step.
        steps: optimizer steps of the whole run.
        lr: peak of the learning rate.
        warmup: steps until the peak.
        lr_floor: last learning rate as a fraction of the peak.
        weight_decay: of the matrices; norms and embeddings are not decayed.
        clip: largest norm of the gradient.
        dtype: "bf16" computes under autocast with float32 master weights; "fp32" does not.
        eval_fraction: part of the text that is held out.
        eval_every: steps between evaluations; the last step is always evaluated.
        save_every: steps between checkpoints; the last step is always saved.
        seed: of the initial weights and of the order of the data.
        threads: torch's threads, set for the whole process. Another number sums in another order
            and changes the last bits.
        device: "cpu", or "cuda" for the current GPU. A seed's first weights and windows are the
            same on both, the bits of a run are not.

    Raises:
        ValueError, TypeError: a value is impossible; the message names the field.
    """

    model: dict[str, Any] = field(default_factory=dict)
    start: str | None = None
    texts: tuple[str, ...] = ()
    vocab_size: int = 4096
    context: int = 512
    batch: int = 8
    grad_accum: int = 1
    steps: int = 1000
    lr: float = 1e-3
    warmup: int = 100
    lr_floor: float = 0.01
    weight_decay: float = 0.1
    clip: float = 1.0
    dtype: Precision = "bf16"
    eval_fraction: float = 0.05
    eval_every: int = 100
    save_every: int = 100
    seed: int = 0
    threads: int = 1
    device: Device = "cpu"

    def __post_init__(self) -> None:
        if not isinstance(self.model, dict):
            raise TypeError(f"model: expected a dict, got {type(self.model).__name__}")
        for name in FOLLOWS:
            if name in self.model:
                raise ValueError(f"model: {name} follows from the text and the other settings")
        RidgelineConfig(**self.model)  # names the field that is impossible
        object.__setattr__(self, "texts", tuple(str(path) for path in self.texts))
        for name in ("context", "batch", "grad_accum", "steps", "eval_every", "save_every"):
            check.count(name, getattr(self, name), minimum=1)
        check.count("threads", self.threads, minimum=1)
        check.count("warmup", self.warmup)
        check.count("seed", self.seed)
        check.count("vocab_size", self.vocab_size, minimum=MIN_VOCAB_SIZE)
        for name in ("lr", "clip", "eval_fraction"):
            if not check.finite(name, getattr(self, name)) > 0:
                raise ValueError(f"{name}: expected more than 0, got {getattr(self, name)}")
        check.finite("weight_decay", self.weight_decay, minimum=0.0)
        if not 0 <= check.finite("lr_floor", self.lr_floor) <= 1:
            raise ValueError(f"lr_floor: expected 0 to 1, got {self.lr_floor}")
        if self.eval_fraction >= 1:
            raise ValueError(f"eval_fraction: expected less than 1, got {self.eval_fraction}")
        if self.dtype not in ("bf16", "fp32"):
            raise ValueError(f"dtype: expected bf16 or fp32, got {self.dtype!r}")
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"device: expected cpu or cuda, got {self.device!r}")

    @property
    def tokens_per_step(self) -> int:
        return self.batch * self.grad_accum * self.context

    def to_dict(self) -> dict[str, Any]:
        """As JSON would give it back."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(f"{unknown[0]}: unknown setting of a training run")
        return cls(**values)

    def require_same(self, saved: "TrainConfig", *, extend: bool = False) -> None:
        """Raises ``ValueError`` naming the first setting that differs from a checkpoint's.

        Args:
            extend: ``steps`` may be larger.
        """
        if extend and self.steps < saved.steps:
            raise ValueError(f"steps: expected {saved.steps} or more to extend, got {self.steps}")
        ours, theirs = self.to_dict(), saved.to_dict()
        for name in sorted(set(ours["model"]) | set(theirs["model"])):
            _require_equal(name, theirs["model"].get(name), ours["model"].get(name))
        free = FREE_ON_RESUME | ({"steps"} if extend else set())
        for name in sorted(set(ours) - {"model"} - free):
            _require_equal(name, theirs[name], ours[name])


def _require_equal(name: str, saved: Any, given: Any) -> None:
    if saved != given:
        raise ValueError(f"{name}: the checkpoint was trained with {saved!r}, got {given!r}")
