"""The decoder's configuration: one field names the attention, the others give its sizes."""

from dataclasses import fields
from typing import Any, ClassVar, Literal, get_args

import torch
from transformers import PreTrainedConfig

from ridgeline.ops.common import check

Attention = Literal["mha", "mqa", "gqa", "gta", "mla", "gla"]
ATTENTIONS: tuple[str, ...] = get_args(Attention)
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")

# Which of the sizes a variant has; any other must be left at None.
_SIZES = {
    "mha": {"num_key_value_heads"},
    "mqa": {"num_key_value_heads"},
    "gqa": {"num_key_value_heads"},
    "gta": {"num_key_value_heads", "rope_dim"},
    "mla": {"num_latent_heads", "latent_dim", "rope_dim", "q_rank"},
    "gla": {"num_latent_heads", "latent_dim", "rope_dim", "q_rank"},
}
# What transformers itself passes or writes besides the dataclass fields of its base class.
_TRANSFORMERS_FIELDS = frozenset(
    {
        "_attn_implementation_internal",
        "_experts_implementation_internal",
        "_name_or_path",
        "attn_implementation",
        "auto_map",
        "experts_implementation",
        "model_type",
        "name_or_path",
        "num_labels",
        "output_attentions",
        "rope_scaling",
        "rope_theta",
        "torch_dtype",
    }
)


class RidgelineConfig(PreTrainedConfig):
    """Configuration of ``RidgelineForCausalLM``, a Llama-like decoder (RMSNorm, SwiGLU, no bias).

    Args:
        attention: "mha", "mqa", "gqa", "gta", "mla" or "gla"; the definitions are those of
            "Hardware-Efficient Attention for Fast Decoding" (arXiv 2505.21487).
        head_dim: width of a head, even; ``hidden_size // num_attention_heads`` if None.
        num_key_value_heads: key/value heads (gqa) or tied heads (gta), a divisor of
            ``num_attention_heads``. mha and mqa tell it themselves.
        num_latent_heads: latent heads (gla, 2 if None), a divisor of ``num_attention_heads``.
        latent_dim: width of a latent; ``2 * head_dim`` (gla) or ``4 * head_dim`` (mla) if None.
        rope_dim: width of the RoPE key of gta, mla and gla, even; ``head_dim // 2`` if None.
        q_rank: rank of the query's projection (mla, gla); full rank if None.
        rope_parameters: transformers' RoPE dictionary (``rope_type``, ``rope_theta``, ...).

    Raises:
        ValueError, TypeError: an unknown field, a size that is impossible, or a size that the
            variant does not have; the message names the field.
    """

    model_type = "ridgeline"
    keys_to_ignore_at_inference = ("past_key_values",)
    auto_map: ClassVar[dict[str, str]] = {}  # TRL asks for it before it loads a model
    hidden_act: ClassVar[str] = "silu"  # the MLP is SwiGLU; engines ask

    vocab_size: int = 32000
    hidden_size: int = 768
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    head_dim: int | None = None
    attention: str = "gla"
    num_key_value_heads: int | None = None
    num_latent_heads: int | None = None
    latent_dim: int | None = None
    rope_dim: int | None = None
    q_rank: int | None = None
    rms_norm_eps: float = 1e-6
    rope_parameters: dict | None = None
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    @property
    def num_kv_heads(self) -> int:
        """Heads of the cache: key/value, tied or latent ones. Engines ask for it by this name."""
        return self.num_latent_heads or self.num_key_value_heads

    def __post_init__(self, **kwargs: Any) -> None:
        known = _TRANSFORMERS_FIELDS | {field.name for field in fields(self)}
        unknown = sorted(set(kwargs) - known)
        if unknown:
            raise ValueError(f"{unknown[0]}: unknown field of RidgelineConfig")
        given = kwargs.pop("model_type", self.model_type)
        if given != self.model_type:
            raise ValueError(f"model_type: expected 'ridgeline', got {given!r}")
        if self.rope_parameters is not None and not isinstance(self.rope_parameters, dict):
            got = type(self.rope_parameters).__name__
            raise TypeError(f"rope_parameters: expected a dict, got {got}")
        dtype = getattr(torch, self.dtype, None) if isinstance(self.dtype, str) else self.dtype
        if self.dtype is not None and not isinstance(dtype, torch.dtype):
            raise ValueError(f"dtype: expected a torch.dtype or its name, got {self.dtype!r}")
        self._check_sizes()
        self._fill_in()
        super().__post_init__(**kwargs)
        self.validate()

    def _check_sizes(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "max_position_embeddings",
        ):
            check.count(name, getattr(self, name), minimum=1)
        for name in ("head_dim", *sorted(set.union(*_SIZES.values()))):
            if getattr(self, name) is not None:
                check.count(name, getattr(self, name), minimum=1)
        if self.attention not in ATTENTIONS:
            raise ValueError(
                f"attention: expected one of {', '.join(ATTENTIONS)}, got {self.attention!r}"
            )

    def _fill_in(self) -> None:
        """The sizes that were left at None, so that a saved configuration is complete."""
        if self.head_dim is None:
            check.divides(
                "num_attention_heads", self.num_attention_heads, "hidden_size", self.hidden_size
            )
            self.head_dim = self.hidden_size // self.num_attention_heads
        match self.attention:
            case "mha":
                defaults = {"num_key_value_heads": self.num_attention_heads}
            case "mqa":
                defaults = {"num_key_value_heads": 1}
            case "gqa":
                defaults = {}
            case "gta":
                defaults = {"rope_dim": self.head_dim // 2}
            case "mla":
                defaults = {"num_latent_heads": 1, "latent_dim": 4 * self.head_dim}
            case "gla":
                defaults = {"num_latent_heads": 2, "latent_dim": 2 * self.head_dim}
        if self.attention in ("mla", "gla"):
            defaults["rope_dim"] = self.head_dim // 2
        for name, value in defaults.items():
            if getattr(self, name) is None:
                setattr(self, name, value)

    def validate(self) -> None:
        """Raises ``ValueError`` or ``TypeError`` naming the field that does not fit the others."""
        self._check_sizes()
        sizes = _SIZES[self.attention]
        for name in sorted(set.union(*_SIZES.values()) - sizes):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{name}: expected None with attention={self.attention!r}, "
                    f"got {getattr(self, name)}"
                )
        for name in ("num_key_value_heads", "num_latent_heads"):
            if name in sizes:
                if getattr(self, name) is None:
                    raise ValueError(f"{name}: expected a number with attention={self.attention!r}")
                check.divides(
                    name, getattr(self, name), "num_attention_heads", self.num_attention_heads
                )
        only = {
            "mha": ("num_key_value_heads", self.num_attention_heads),
            "mqa": ("num_key_value_heads", 1),
            "mla": ("num_latent_heads", 1),
        }.get(self.attention)
        if only and getattr(self, only[0]) != only[1]:
            raise ValueError(
                f"{only[0]}: expected {only[1]} with attention={self.attention!r}, "
                f"got {getattr(self, only[0])}"
            )
        for name in ("head_dim", "rope_dim"):
            if (getattr(self, name) or 0) % 2:
                raise ValueError(f"{name}: expected an even number, got {getattr(self, name)}")
        if self.attention == "gta" and self.rope_dim >= self.head_dim:
            raise ValueError(
                f"rope_dim: expected less than head_dim ({self.head_dim}), got {self.rope_dim}"
            )
        check.finite("rms_norm_eps", self.rms_norm_eps, minimum=0.0)
        check.finite("initializer_range", self.initializer_range, minimum=0.0)
        check.flag("tie_word_embeddings", self.tie_word_embeddings)
        check.flag("use_cache", self.use_cache)
        if self.is_encoder_decoder:
            raise ValueError("is_encoder_decoder: expected False, the model is a decoder")
        self._check_tokens()
        self._check_rope()

    def _check_tokens(self) -> None:
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(self, name)
            for token in value if isinstance(value, list) else [value]:
                if token is not None and check.count(name, token) >= self.vocab_size:
                    raise ValueError(
                        f"{name}: expected less than vocab_size ({self.vocab_size}), got {token}"
                    )

    def _check_rope(self) -> None:
        rope = self.rope_parameters
        if rope.get("rope_type") not in ROPE_TYPES:
            raise ValueError(
                f"rope_parameters: expected a rope_type of {', '.join(ROPE_TYPES)}, "
                f"got {rope.get('rope_type')!r}"
            )
        theta = check.finite("rope_parameters['rope_theta']", rope.get("rope_theta"))
        if not theta > 0:
            raise ValueError(f"rope_parameters['rope_theta']: expected more than 0, got {theta}")
        if "partial_rotary_factor" in rope:
            raise ValueError("rope_parameters['partial_rotary_factor']: set rope_dim instead")
