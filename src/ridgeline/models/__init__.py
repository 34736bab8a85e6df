"""One decoder in six variants of attention, as transformers' configuration and model classes."""

from transformers import AutoConfig, AutoModelForCausalLM

from ridgeline.models.config import RidgelineConfig
from ridgeline.models.modeling import RidgelineForCausalLM

AutoConfig.register("ridgeline", RidgelineConfig, exist_ok=True)
AutoModelForCausalLM.register(RidgelineConfig, RidgelineForCausalLM, exist_ok=True)

__all__ = ["RidgelineConfig", "RidgelineForCausalLM"]
