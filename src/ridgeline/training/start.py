"""Weights to begin from: a model's folder, as ``ridgeline train`` and ``convert`` leave it."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from ridgeline.models import RidgelineConfig, RidgelineForCausalLM
from ridgeline.models.manifest import verify_manifest
from ridgeline.training.config import MODEL_FIELDS
from ridgeline.training.data import read_text
from ridgeline.training.tokenizer import END_OF_TEXT

CONFIG, TOKENIZER = "config.json", "tokenizer.json"


@dataclass(frozen=True)
class Start:
    """What a run takes over: ``model``, as of ``TrainConfig.model``, and ``tokenizer.json``."""

    path: Path
    model: dict[str, Any]
    vocab_size: int
    tokenizer: str

    @classmethod
    def read(cls, path: str | os.PathLike) -> "Start":
        """Reads the small files of ``path``, after checking its manifest.

        Raises:
            FileNotFoundError: there is no such folder, or it lacks a file.
            ValueError: a file is damaged, or of another kind of model.
        """
        path = Path(path)
        if not path.is_dir():
            raise FileNotFoundError(f"from: expected the folder of a model, got {path}")
        tokenizer = read_text(path / TOKENIZER, "from")
        read_text(path / CONFIG, "from")
        verify_manifest(path)
        config = RidgelineConfig.from_pretrained(path)
        found = Tokenizer.from_str(tokenizer)
        if found.token_to_id(END_OF_TEXT) is None:
            raise ValueError(f"from: {path / TOKENIZER} has no token {END_OF_TEXT}")
        if found.get_vocab_size() != config.vocab_size:
            raise ValueError(
                f"from: {path / TOKENIZER} has {found.get_vocab_size()} tokens, the model "
                f"{config.vocab_size}"
            )
        return cls(path, model_fields(config), config.vocab_size, tokenizer)

    def check_model(self, model: dict[str, Any]) -> None:
        """Raises ``ValueError`` naming the first field of ``TrainConfig.model`` that differs."""
        ours = model_fields(RidgelineConfig(**model))
        for name in sorted(set(ours) | set(self.model)):
            if ours.get(name) != self.model.get(name):
                raise ValueError(
                    f"{name}: expected {self.model.get(name)!r} as {self.path} has it, got "
                    f"{ours.get(name)!r}"
                )

    def weights(self) -> dict[str, Tensor]:
        """In float32, under their names."""
        model = RidgelineForCausalLM.from_pretrained(self.path, dtype=torch.float32)
        return model.state_dict()


def model_fields(config: RidgelineConfig) -> dict[str, Any]:
    """What a run chooses of ``config``, as ``TrainConfig.model`` takes it."""
    found = {name: getattr(config, name) for name in sorted(MODEL_FIELDS)}
    return {name: value for name, value in found.items() if value is not None}
