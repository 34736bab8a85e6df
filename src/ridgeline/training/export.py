"""The trained model as a folder that ``from_pretrained`` and ``ridgeline generate`` load."""

import copy
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from ridgeline.models import RidgelineForCausalLM
from ridgeline.models.manifest import write_manifest
from ridgeline.training.tokenizer import END_OF_TEXT


def export_model(
    model: RidgelineForCausalLM,
    tokenizer: Tokenizer,
    folder: Path,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Writes weights, configuration, tokenizer and the manifest of all of them to ``folder``."""
    copy.deepcopy(model).to(dtype).save_pretrained(folder)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=model.config.max_position_embeddings,
    )
    fast.save_pretrained(folder)
    write_manifest(folder)
