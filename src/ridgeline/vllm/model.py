"""``RidgelineForCausalLM`` in vLLM: the engine's Llama with Ridgeline's attention layers."""

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor
from vllm.config import VllmConfig
from vllm.model_executor.models.llama import LlamaDecoderLayer, LlamaForCausalLM
from vllm.model_executor.models.utils import WeightsMapper
from vllm.platforms import current_platform

from ridgeline.models import RidgelineConfig
from ridgeline.models.manifest import verify_manifest
from ridgeline.vllm.layers import make_attention
from ridgeline.vllm.packing import check_threads

# Names in a checkpoint that vLLM's Llama would take for its own, or that are one weight here.
TIED_NAMES = WeightsMapper(
    orig_to_new_substr={
        ".self_attn.q_proj.": ".self_attn.q_heads.",
        ".self_attn.q_up.": ".self_attn.q_heads.",
        ".self_attn.k_up": ".self_attn.attn.k_up",
        ".self_attn.v_up": ".self_attn.attn.v_up",
    },
    orig_to_new_stacked={
        ".self_attn.kv_proj.": (".self_attn.kv_down.", "state"),
        ".self_attn.k_rope_proj.": (".self_attn.kv_down.", "rope"),
    },
)


class DecoderLayer(LlamaDecoderLayer):
    def __init__(
        self, vllm_config: VllmConfig, prefix: str = "", config: RidgelineConfig | None = None
    ) -> None:
        super().__init__(vllm_config, prefix, config, attn_layer_type=make_attention)


class RidgelineForCausalLM(LlamaForCausalLM):
    """All six variants, from the safetensors of ``ridgeline.RidgelineForCausalLM``.

    Raises:
        ValueError: files that their manifest does not match or that are no safetensors, or a
            tensor-parallel degree that the heads cannot be shared among.
        RuntimeError: an earlier engine of this process packed its weights on the CPU with another
            number of threads.
    """

    supports_lora = False

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        check_files(vllm_config.model_config.model, vllm_config.load_config.load_format)
        if current_platform.is_cpu():
            check_threads()
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=DecoderLayer)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        if self.config.attention in ("gta", "mla", "gla"):
            weights = TIED_NAMES.apply(weights)
        return super().load_weights(weights)


def check_files(model: str, load_format: str) -> None:
    """Compare a local checkpoint with its manifest; other formats than safetensors can run code."""
    if load_format not in ("auto", "safetensors", "dummy"):
        raise ValueError(f"load_format: expected 'auto' or 'safetensors', got {load_format!r}")
    directory = Path(model)
    if load_format == "dummy" or not directory.is_dir():
        return
    if not any(directory.glob("*.safetensors")):
        raise ValueError(f"{directory}: expected weights as *.safetensors, found none")
    verify_manifest(directory)
