"""DeepSeek's latent attention decoded over its latents, never expanded."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Attention
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention

from ridgeline.ops.tied_decode import tied_decode
from ridgeline.transformers.decode import pages

LAYERS = (DeepseekV2Attention, DeepseekV3Attention)


def keep_latents(kv_nope: Tensor, k_rot: Tensor) -> tuple[Tensor, Tensor]:
    """What stands in for a layer's ``expand_kv``: its latents and RoPE keys as they are cached."""
    return kv_nope, k_rot


def use_latent_cache(model: PreTrainedModel) -> PreTrainedModel:
    """Make a DeepSeek-V2 or -V3 model decode over its cached latents.

    transformers caches the latents and expands all of them to keys and values in every step. From
    here on a decode step folds the up-projections into query and output instead and reads the
    latents once (DeepSeek-V2, arXiv 2405.04434). Whole rows are expanded as before. Also selects
    ``"ridgeline"`` as the attention implementation, and stays in force until another is set.

    Args:
        model: changed in place; its weights are not.

    Returns:
        ``model``.

    Raises:
        TypeError: the model has no layer of DeepSeek-V2's or -V3's latent attention.
    """
    layers = [module for module in model.modules() if type(module) in LAYERS]
    if not layers:
        raise TypeError(
            "model: expected one with DeepSeek-V2's or -V3's latent attention, got "
            f"{type(model).__name__}"
        )
    model.set_attn_implementation("ridgeline")
    for layer in layers:
        layer.expand_kv = keep_latents
    return model


def keeps_latents(layer: nn.Module) -> bool:
    return getattr(layer, "expand_kv", None) is keep_latents


def expand(layer: nn.Module, latents: Tensor, rope: Tensor) -> tuple[Tensor, Tensor]:
    """Keys ``[B, h, S, d_n + d_r]`` and values ``[B, h, S, d_v]`` by the layer's own method."""
    return type(layer).expand_kv(layer, latents, rope)


def absorbed_decode(
    layer: nn.Module,
    query: Tensor,
    latents: Tensor,
    rope: Tensor,
    span: Tensor | None,
    scale: float,
) -> Tensor:
    """``query [B, h, L_q, d_n + d_r]`` over ``latents [B, 1, S, d_c]``, ``rope [B, 1, S, d_r]``.

    Returns ``[B, L_q, h, d_v]``. ``span`` is as in ``decode``.

    Raises:
        NotImplementedError: the up-projection is no plain linear layer, so that its weight may not
            be all that it does (an adapter, quantisation).
    """
    if type(layer.kv_b_proj) is not nn.Linear:
        raise NotImplementedError(
            "use_latent_cache: expected kv_b_proj as a plain nn.Linear, got "
            f"{type(layer.kv_b_proj).__name__}; merge adapters before decoding"
        )
    up = layer.kv_b_proj.weight.to(query.dtype).unflatten(0, (query.shape[1], -1))
    k_up, v_up = up.split((layer.qk_nope_head_dim, layer.v_head_dim), dim=1)
    q_nope, q_rope = query.transpose(1, 2).split(
        (layer.qk_nope_head_dim, layer.qk_rope_head_dim), dim=-1
    )
    states, ropes, table, lengths = pages(latents, rope, span)
    out = tied_decode(
        _by_head(q_nope, k_up),
        q_rope,
        states,
        ropes.squeeze(2),
        table,
        lengths,
        softmax_scale=scale,
    )
    return _by_head(out, v_up.transpose(1, 2))


def _by_head(x: Tensor, weight: Tensor) -> Tensor:
    """``x [B, L, h, m]`` times ``weight [h, m, n]`` -> ``[B, L, h, n]``."""
    out = torch.bmm(x.flatten(0, 1).transpose(0, 1), weight)
    return out.transpose(0, 1).unflatten(0, x.shape[:2])
