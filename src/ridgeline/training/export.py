"""The trained model as a folder that ``from_pretrained`` and ``ridgeline generate`` load."""

import copy
import json
import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer

from ridgeline.models import RidgelineForCausalLM
from ridgeline.training.checkpoint import sync, write_synced
from ridgeline.training.tokenizer import END_OF_TEXT


def export_model(
    model: RidgelineForCausalLM,
    tokenizer: Tokenizer,
    folder: Path,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Writes weights, configuration, tokenizer and the manifest of all of them to ``folder``.

    Raises:
        OSError: the files cannot be written; a folder that was there before is kept as it was.
    """
    staging = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir(parents=True)
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": END_OF_TEXT,
            "eos_token": END_OF_TEXT,
            "pad_token": END_OF_TEXT,
            "model_max_length": model.config.max_position_embeddings,
            "clean_up_tokenization_spaces": False,
        }
        write_synced(staging / "tokenizer.json", tokenizer.to_str(pretty=True).encode())
        write_synced(staging / "tokenizer_config.json", json.dumps(settings, indent=2).encode())
        # Its manifest covers the tokenizer, too.
        copy.deepcopy(model).to(dtype).save_pretrained(staging)
    except OSError:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    if folder.exists():
        shutil.rmtree(folder)
    staging.rename(folder)
    sync(folder.parent)
