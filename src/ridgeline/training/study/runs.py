"""The runs of a study: each in a folder of its own, finished once."""

import json
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from ridgeline.ops.common import check
from ridgeline.training import checkpoint as checkpoints
from ridgeline.training.config import TrainConfig
from ridgeline.training.pretrain import CHECKPOINTS, TrainResult, pretrain
from ridgeline.training.study.shapes import StudyShape
from ridgeline.training.text import Text, prepare_text

RESULT = "result.json"


@dataclass(frozen=True)
class Outcome:
    """One finished run. Losses are in nats a token, ``cache_bytes`` of a token in BF16."""

    variant: str
    label: str
    seed: int
    held_out_loss: float
    bits_per_byte: float
    baseline_loss: float  # of the 4-gram model
    cache_bytes: int
    parameters: int
    attention_parameters: int
    intermediate_size: int
    tokens: int
    train_tokens: int
    held_out_tokens: int
    seconds: float


@dataclass(frozen=True)
class Study:
    """A study: every variant with every seed, all else equal.

    Attributes:
        variants: names of ``RidgelineConfig.attention``.
        seeds: runs of each variant, with the seeds 0 to ``seeds - 1``. A seed decides the first
            weights and the order of the data, which is the same for all variants.
        shape: sizes of the models.
        train: settings of the training; each run has its own ``model`` and ``seed``.
    """

    variants: tuple[str, ...]
    seeds: int
    shape: StudyShape
    train: TrainConfig

    def __post_init__(self) -> None:
        check.count("seeds", self.seeds, minimum=1)
        for name in self.variants:
            if self.variants.count(name) > 1:
                raise ValueError(f"variants: {name} is given twice")
            self.shape.variant(name, self.train.vocab_size)

    def runs(self) -> list[tuple[str, int]]:
        """``(variant, seed)``; all variants of a seed before the next seed."""
        return [(name, seed) for seed in range(self.seeds) for name in self.variants]


def run_study(
    out_dir: Path, study: Study, *, workers: int = 1, on_outcome: Callable[[Outcome], None]
) -> list[Outcome]:
    """Makes or finds every run in ``out_dir``; a study that was killed goes on where it was.

    Args:
        workers: processes, of one thread each unless ``study.train.threads`` says otherwise; a run
            has the same bits whichever process makes it.
        on_outcome: called with each run, in the order of ``study.runs()``.

    Raises:
        ValueError: a run in ``out_dir`` has other settings or another text.
    """
    check.count("workers", workers, minimum=1)
    work = partial(_finish, out_dir, study)
    runs = study.runs()
    outcomes = []
    context = get_context("spawn")
    pool = nullcontext() if workers == 1 else ProcessPoolExecutor(workers, mp_context=context)
    with pool:
        found: Iterable[Outcome] = (map if workers == 1 else pool.map)(work, runs)
        for outcome in found:
            outcomes.append(outcome)
            on_outcome(outcome)
    return outcomes


def _finish(out_dir: Path, study: Study, run: tuple[str, int]) -> Outcome:
    name, seed = run
    variant = study.shape.variant(name, study.train.vocab_size)
    config = replace(study.train, model=variant.model, seed=seed)

    def train(folder: Path, text: Text) -> dict[str, Any]:
        result = train_or_resume(folder, config, text)
        outcome = Outcome(
            variant=variant.name,
            label=variant.label,
            seed=config.seed,
            held_out_loss=result.held_out_loss,
            bits_per_byte=result.bits_per_byte(result.held_out_loss),
            baseline_loss=result.baseline_loss,
            cache_bytes=variant.cache_bytes,
            parameters=result.parameters,
            attention_parameters=variant.attention_parameters,
            intermediate_size=variant.model["intermediate_size"],
            tokens=result.rows[-1].tokens,
            train_tokens=result.train_tokens,
            held_out_tokens=result.held_out_tokens,
            seconds=result.rows[-1].seconds,
        )
        return asdict(outcome)

    text = _text(config.texts, config.vocab_size, config.context, config.eval_fraction)
    return Outcome(**once(out_dir / f"{name}-seed{seed}", config, text, train))


def once(
    folder: Path,
    config: TrainConfig,
    text: Text,
    make: Callable[[Path, Text], dict[str, Any]],
) -> dict[str, Any]:
    """What ``make(folder, text)`` gave, now or when it was called before with these settings.

    Raises:
        ValueError: ``folder`` has the result of other settings or another text.
    """
    path = folder / RESULT
    if path.exists():
        saved = json.loads(path.read_text(encoding="utf-8"))
        config.require_same(TrainConfig.from_dict(saved["config"]))
        if saved["text_sha256"] != text.sha256:
            raise ValueError(f"texts: their content is not what {folder} was trained on")
        return saved["outcome"]
    outcome = make(folder, text)
    content = {"config": config.to_dict(), "text_sha256": text.sha256, "outcome": outcome}
    checkpoints.replace_file(path, json.dumps(content, indent=1).encode())
    return outcome


def train_or_resume(folder: Path, config: TrainConfig, text: Text) -> TrainResult:
    """``pretrain``, from the latest checkpoint where a run was begun."""
    begun = checkpoints.latest_name(folder / CHECKPOINTS) is not None
    return pretrain(folder, config, text=text, resume=begun)


@lru_cache(maxsize=1)
def _text(texts: tuple[str, ...], vocab_size: int, context: int, eval_fraction: float) -> Text:
    """Once a process: all runs of a study read the same."""
    return prepare_text(
        TrainConfig(
            texts=texts, vocab_size=vocab_size, context=context, eval_fraction=eval_fraction
        )
    )
