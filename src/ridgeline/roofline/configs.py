"""Model shapes from Hugging Face configurations and TOML files, and with another attention."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ridgeline.roofline import fields
from ridgeline.roofline.model import LATENT, VARIANTS, Experts, ModelShape

LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3")
DEEPSEEK = ("deepseek_v2", "deepseek_v3")
DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}

KNOWN = {
    "llama-3-8b": ModelShape(
        name="llama-3-8b",
        variant="gqa",
        layers=32,
        hidden=4096,
        heads=32,
        kv_heads=8,
        head_dim=128,
        intermediate=14336,
        vocab=128256,
    ),
    "deepseek-v2": ModelShape(
        name="deepseek-v2",
        variant="mla",
        layers=60,
        hidden=5120,
        heads=128,
        kv_heads=1,
        head_dim=128,
        latent_dim=512,
        rope_dim=64,
        value_dim=128,
        q_rank=1536,
        intermediate=12288,
        vocab=102400,
        experts=Experts(count=160, per_token=6, intermediate=1536, shared=2, dense_layers=1),
        weight_dtype="fp8",
    ),
}


def find(which: str) -> ModelShape:
    """A shape by name (``KNOWN``) or by path (``load``)."""
    return KNOWN[which] if which in KNOWN else load(Path(which))


def load(path: Path) -> ModelShape:
    """The shape in a ``config.json``, in the directory of one, or in a TOML file whose fields are
    those of ``ModelShape``, with ``experts`` as a table.

    Raises:
        FileNotFoundError, ValueError, TypeError: nothing is there, or a field is missing, unknown
            or impossible; the message names it.
    """
    if path.is_dir():
        path = path / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"model: expected {', '.join(KNOWN)}, a config.json, its directory or a TOML file, "
            f"got {path}"
        )
    if path.suffix == ".toml":
        return _from_toml(path)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise ValueError(f"{path}: expected JSON, {e}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(config).__name__}")
    return from_config(config, path.parent.name or path.name)


def from_config(config: Mapping[str, Any], name: str) -> ModelShape:
    """The shape that a Hugging Face configuration describes: Llama-like, DeepSeek V2 or V3, or
    Ridgeline's own.

    Raises:
        ValueError, TypeError: as ``load``.
    """
    kind = config.get("model_type")
    if kind in LLAMA_LIKE:
        attention = _llama(config)
    elif kind in DEEPSEEK:
        attention = _deepseek(config)
    elif kind == "ridgeline":
        attention = _ridgeline(config)
    else:
        known = ", ".join((*LLAMA_LIKE, *DEEPSEEK, "ridgeline"))
        raise ValueError(f"model_type: expected one of {known}, got {kind!r}")
    dtype = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    quantized = (config.get("quantization_config") or {}).get("quant_method")
    if quantized not in (None, "fp8"):
        raise ValueError(f"quantization_config: expected quant_method 'fp8', got {quantized!r}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    return ModelShape(
        name=name,
        layers=_need(config, "num_hidden_layers"),
        hidden=_need(config, "hidden_size"),
        heads=_need(config, "num_attention_heads"),
        intermediate=_need(config, "intermediate_size"),
        vocab=_need(config, "vocab_size"),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        weight_dtype="fp8" if quantized else DTYPES[dtype],
        cache_dtype=DTYPES[dtype],
        **attention,
    )


def _need(config: Mapping[str, Any], field: str) -> Any:
    if config.get(field) is None:
        raise ValueError(f"{field}: the configuration has none")
    return config[field]


def _llama(config: Mapping[str, Any]) -> dict[str, Any]:
    heads = _need(config, "num_attention_heads")
    kv_heads = config.get("num_key_value_heads") or heads
    return {
        "variant": "mha" if kv_heads == heads else "mqa" if kv_heads == 1 else "gqa",
        "kv_heads": kv_heads,
        "head_dim": config.get("head_dim") or _need(config, "hidden_size") // heads,
    }


def _deepseek(config: Mapping[str, Any]) -> dict[str, Any]:
    experts = None
    if config.get("n_routed_experts"):
        experts = Experts(
            count=config["n_routed_experts"],
            per_token=_need(config, "num_experts_per_tok"),
            intermediate=_need(config, "moe_intermediate_size"),
            shared=config.get("n_shared_experts") or 0,
            dense_layers=config.get("first_k_dense_replace") or 0,
        )
    return {
        "variant": "mla",
        "kv_heads": 1,
        "head_dim": _need(config, "qk_nope_head_dim"),
        "latent_dim": _need(config, "kv_lora_rank"),
        "rope_dim": _need(config, "qk_rope_head_dim"),
        "value_dim": _need(config, "v_head_dim"),
        "q_rank": config.get("q_lora_rank"),
        "experts": experts,
    }


def _ridgeline(config: Mapping[str, Any]) -> dict[str, Any]:
    variant = _need(config, "attention")
    heads = _need(config, "num_attention_heads")
    counted = "num_latent_heads" if variant in LATENT else "num_key_value_heads"
    alone = {"mha": heads, "mqa": 1, "mla": 1}
    sizes = {name: config.get(name) for name in ("latent_dim", "rope_dim", "q_rank")}
    return {
        "variant": variant,
        "kv_heads": alone[variant] if variant in alone else _need(config, counted),
        "head_dim": config.get("head_dim") or _need(config, "hidden_size") // heads,
        **sizes,
    }


def _from_toml(path: Path) -> ModelShape:
    table = {"name": path.stem, **fields.read_toml(path)}
    if isinstance(table.get("experts"), dict):
        table["experts"] = fields.build(Experts, f"{path.name} [experts]", table["experts"])
    return fields.build(ModelShape, path.name, table)


def with_attention(model: ModelShape, label: str) -> ModelShape:
    """``model`` with the attention that ``label`` names, all else equal: "mha", "mqa", "mla", or
    with a number of cached heads "gqa-8", "gta-8", "gla-2".

    Latents have the paper's widths (mla 4, gla 2 head dims; arXiv 2505.21487); the RoPE key and
    the query's rank stay those of ``model`` where it has them.

    Raises:
        ValueError: the label is none of these, or the heads do not divide.
    """
    found = re.fullmatch(r"(mha|mqa|mla)|(gqa|gta|gla)-(\d+)", label.lower())
    if not found:
        raise ValueError(
            f"variants: expected mha, mqa, mla, gqa-N, gta-N or gla-N of {', '.join(VARIANTS)}, "
            f"got {label!r}"
        )
    variant = found[1] or found[2]
    kv_heads = int(found[3]) if found[3] else model.heads if variant == "mha" else 1
    latent = variant in LATENT
    if variant == model.variant and kv_heads == model.kv_heads:
        return replace(model, name=f"{model.name} {label}")
    return replace(
        model,
        name=f"{model.name} {label}",
        variant=variant,
        kv_heads=kv_heads,
        latent_dim=None,
        rope_dim=model.rope_dim if latent and model.is_latent else None,
        value_dim=model.value_dim if latent and model.is_latent else None,
        q_rank=model.q_rank if latent and model.is_latent else None,
    )
