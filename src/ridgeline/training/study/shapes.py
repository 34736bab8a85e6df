"""Six variants of equal size: what attention saves in parameters, the MLP gets."""

from dataclasses import dataclass
from typing import Any

import torch

from ridgeline.models import RidgelineConfig, RidgelineForCausalLM
from ridgeline.models.config import ATTENTIONS


@dataclass(frozen=True)
class Variant:
    """One model of the study.

    ``model``: fields of ``RidgelineConfig``, as ``TrainConfig.model`` takes them.
    ``cache_bytes``: of one token in BF16, all layers together.
    """

    name: str
    model: dict[str, Any]
    parameters: int
    attention_parameters: int
    cache_bytes: int

    @property
    def label(self) -> str:
        """``GQA-4`` and the like, as the paper has them."""
        heads = {"gqa": "num_key_value_heads", "gta": "num_key_value_heads"}
        heads |= {"gla": "num_latent_heads"}
        count = self.model.get(heads.get(self.name))
        return self.name.upper() + ("" if count is None else f"-{count}")


@dataclass(frozen=True)
class StudyShape:
    """Sizes that all variants share, and ``intermediate_size`` of MHA, which sets the budget.

    MLA and GLA have a low-rank query, without which MLA's attention would be larger than MHA's;
    widths that are not here are ``RidgelineConfig``'s own.
    """

    hidden_size: int = 128
    intermediate_size: int = 344
    num_hidden_layers: int = 4
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    num_latent_heads: int = 2
    q_rank: int = 64

    def variant(self, name: str, vocab_size: int) -> Variant:
        """``name`` with the MLP that brings it closest to MHA's number of parameters.

        Raises:
            ValueError: ``name`` is no variant, or its attention alone leaves nothing for the MLP.
        """
        if name not in ATTENTIONS:
            raise ValueError(f"variants: expected some of {', '.join(ATTENTIONS)}, got {name!r}")
        budget = _parameters(_on_meta(self._fields("mha"), vocab_size))
        fields = self._fields(name)
        one, two = (
            _parameters(_on_meta(fields | {"intermediate_size": width}, vocab_size))
            for width in (1, 2)
        )
        width = 1 + round((budget - one) / (two - one))
        if width < 1:
            raise ValueError(
                f"intermediate_size: {name} has {one:,} parameters without an MLP, more than MHA's "
                f"{budget:,} with one of {self.intermediate_size}"
            )
        fields["intermediate_size"] = width
        model = _on_meta(fields, vocab_size)
        attention = model.model.layers[0].self_attn
        return Variant(
            name=name,
            model=fields,
            parameters=_parameters(model),
            attention_parameters=self.num_hidden_layers * _parameters(attention),
            cache_bytes=self.num_hidden_layers
            * attention.cache_spec().bytes_per_token(torch.bfloat16),
        )

    def _fields(self, name: str) -> dict[str, Any]:
        shared = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        own = {
            "gqa": ("num_key_value_heads",),
            "gta": ("num_key_value_heads",),
            "mla": ("q_rank",),
            "gla": ("num_latent_heads", "q_rank"),
        }
        sizes = {field: getattr(self, field) for field in (*shared, *own.get(name, ()))}
        return {"attention": name, "tie_word_embeddings": True, **sizes}


def _on_meta(fields: dict[str, Any], vocab_size: int) -> RidgelineForCausalLM:
    with torch.device("meta"):
        return RidgelineForCausalLM(RidgelineConfig(vocab_size=vocab_size, **fields))


def _parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
