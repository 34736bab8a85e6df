"""Names, order and defaults of the arguments, as the two projects document them."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ridgeline import flash_attn_interface as fa
from ridgeline import flash_mla_interface as mla

DOCS = Path(__file__).parents[2] / "docs" / "interfaces.md"
WINDOW = "window_size=(-1, -1)"
DESCALES = "q_descale=None k_descale=None v_descale=None"
TAIL = f"{WINDOW} attention_chunk=0 softcap=0.0"
SIGNATURES = {
    fa.flash_attn_func: f"q k v softmax_scale=None causal=False qv=None {DESCALES} {TAIL} "
    "num_splits=1 pack_gqa=None deterministic=False sm_margin=0 return_attn_probs=False",
    fa.flash_attn_qkvpacked_func: f"qkv softmax_scale=None causal=False {DESCALES} {TAIL} "
    "deterministic=False num_heads_q=None sm_margin=0 return_attn_probs=False",
    fa.flash_attn_varlen_func: "q k v cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k "
    f"seqused_q=None seqused_k=None softmax_scale=None causal=False qv=None {DESCALES} {TAIL} "
    "num_splits=1 pack_gqa=None deterministic=False sm_margin=0 return_attn_probs=False",
    fa.flash_attn_with_kvcache: "q k_cache v_cache k=None v=None qv=None rotary_cos=None "
    "rotary_sin=None cache_seqlens=None cache_batch_idx=None cache_leftpad=None page_table=None "
    "cu_seqlens_q=None cu_seqlens_k_new=None max_seqlen_q=None rotary_seqlens=None "
    f"{DESCALES} softmax_scale=None causal=False {TAIL} rotary_interleaved=True "
    "scheduler_metadata=None num_splits=0 pack_gqa=None sm_margin=0 return_softmax_lse=False",
    fa.flash_attn_combine: "out_partial lse_partial out=None out_dtype=None",
    fa.get_scheduler_metadata: "batch_size max_seqlen_q max_seqlen_k num_heads_q num_heads_kv "
    "headdim cache_seqlens qkv_dtype=torch.bfloat16 headdim_v=None cu_seqlens_q=None "
    "cu_seqlens_k_new=None cache_leftpad=None page_size=None max_seqlen_k_new=0 causal=False "
    f"{WINDOW} attention_chunk=0 has_softcap=False num_splits=0 pack_gqa=None sm_margin=0",
    mla.flash_mla_with_kvcache: "q k_cache block_table cache_seqlens head_dim_v "
    "tile_scheduler_metadata num_splits=None softmax_scale=None causal=False is_fp8_kvcache=False "
    "indices=None attn_sink=None extra_k_cache=None extra_indices_in_kvcache=None "
    "topk_length=None extra_topk_length=None",
    mla.get_mla_metadata: "*args **kwargs",
}


def written(function: Callable) -> str:
    parts = []
    for p in inspect.signature(function).parameters.values():
        assert p.kind is not p.KEYWORD_ONLY
        stars = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
        parts.append(f"{stars}{p.name}" + ("" if p.default is p.empty else f"={p.default!r}"))
    return " ".join(parts)


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda f: f.__name__)
def test_signature(function: Callable) -> None:
    assert written(function) == SIGNATURES[function]


@pytest.mark.parametrize("module", [fa, mla], ids=["flash_attn", "flash_mla"])
def test_every_public_function_is_pinned(module) -> None:
    functions = {getattr(module, name) for name in module.__all__}
    assert {f for f in functions if not inspect.isclass(f)} == {
        f for f in SIGNATURES if f.__module__.startswith(module.__name__)
    }


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda f: f.__name__)
def test_every_argument_is_documented(function: Callable) -> None:
    """By name between the docstring's ``Args`` and ``Returns``."""
    if function is mla.get_mla_metadata:
        return_type = function()
        assert isinstance(return_type[0], mla.FlashMLASchedMeta)
        assert return_type[1] is None
        return
    said = function.__doc__.partition("Args:")[2].partition("Returns:")[0]
    for name in inspect.signature(function).parameters:
        assert re.search(rf"^ +(\w+, )*{name}(, \w+)*,?(:|$)", said, re.M), name


@pytest.mark.parametrize(
    "function",
    [f for f in SIGNATURES if f.__name__.endswith(("func", "kvcache"))],
    ids=lambda f: f.__name__,
)
def test_every_argument_is_in_the_support_table(function: Callable) -> None:
    rows = [line for line in DOCS.read_text().splitlines() if line.startswith("| `")]
    named = set(re.findall(r"`(\w+\*?)`", " ".join(row.split("|")[1] for row in rows)))
    for name in inspect.signature(function).parameters:
        assert name in named or (name.startswith("extra_") and "extra_*" in named), name


def test_default_dtype_of_metadata_is_bfloat16() -> None:
    default = inspect.signature(fa.get_scheduler_metadata).parameters["qkv_dtype"].default
    assert default is torch.bfloat16
