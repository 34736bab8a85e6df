"""Models of equal size to serve: random weights, which change no step's time."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import AutoTokenizer

from ridgeline.models import RidgelineConfig, RidgelineForCausalLM
from ridgeline.models.generate import default_model
from ridgeline.models.manifest import write_manifest
from ridgeline.ops.common import check
from ridgeline.training.study.shapes import StudyShape, Variant

NARROW = "-narrow"  # the end of the name of a model that is there for the engine's overhead


@dataclass(frozen=True)
class ServedShape:
    """Sizes that all variants share; ``intermediate`` is MHA's, the others' keeps models equal.

    The vocabulary is that of the tokenizer, the one of the model that Ridgeline ships.
    """

    layers: int = 3
    hidden: int = 1024
    intermediate: int = 1024
    heads: int = 16
    kv_heads: int = 8
    latent_heads: int = 2
    q_rank: int = 512

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "intermediate", "heads", "kv_heads", "latent_heads"):
            check.count(f"--{name.replace('_', '-')}", getattr(self, name), minimum=1)
        check.count("--q-rank", self.q_rank, minimum=1)

    def variant(self, name: str, vocab_size: int) -> Variant:
        """``name``'s sizes; with ``NARROW`` behind it as many layers with next to no bytes."""
        if name.endswith(NARROW):
            narrow = ServedShape(self.layers, 64, 256, 4, kv_heads=2, latent_heads=2, q_rank=32)
            return narrow.variant(name.removesuffix(NARROW), vocab_size)
        return StudyShape(
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            num_latent_heads=self.latent_heads,
            q_rank=self.q_rank,
        ).variant(name, vocab_size)


def save(
    shape: ServedShape, name: str, path: Path, *, positions: int, dtype: torch.dtype
) -> Variant:
    """Write ``name``'s checkpoint, with tokenizer and manifest, to ``path``.

    Args:
        positions: the longest sequence, in tokens.

    Returns:
        What was written; its ``model`` has the vocabulary too.

    Raises:
        ValueError: ``name`` is no variant, or sizes that do not fit each other.
    """
    tokenizer = AutoTokenizer.from_pretrained(default_model())
    found = shape.variant(name, len(tokenizer))
    found = replace(found, model=found.model | {"vocab_size": len(tokenizer)})
    sizes = found.model | {"max_position_embeddings": positions}
    torch.manual_seed(0)
    tokenizer.save_pretrained(path)
    RidgelineForCausalLM(RidgelineConfig(**sizes)).to(dtype).save_pretrained(path)
    write_manifest(path)
    return found
