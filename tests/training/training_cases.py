"""What the tests of training share: a small text, a small model, a run of a second."""

import random
from pathlib import Path

import torch

from ridgeline.training.config import TrainConfig

WORDS = ("def", "return", "import", "class", "self", "value", "index", "for", "in", "if", "print")


def write_text(path: Path, *, seed: int = 0, lines: int = 400) -> Path:
    """A text of a few words in random order, one that a small model can learn from."""
    rng = random.Random(seed)
    text = "\n".join(
        "    " * rng.randrange(3) + " ".join(rng.choices(WORDS, k=rng.randrange(2, 8)))
        for _ in range(lines)
    )
    path.write_text(text + "\n", encoding="utf-8")
    return path


def tiny_config(*texts: Path, model: dict | None = None, **changes) -> TrainConfig:
    settings = {
        "model": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "tie_word_embeddings": True,
            **(model or {}),
        },
        "texts": tuple(str(path) for path in texts),
        "vocab_size": 300,
        "context": 32,
        "batch": 2,
        "steps": 6,
        "warmup": 2,
        "lr": 3e-3,
        "eval_every": 3,
        "save_every": 2,
    }
    return TrainConfig(**(settings | changes))


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name
