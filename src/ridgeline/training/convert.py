"""``ridgeline convert``: from one folder of safetensors to another."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

from ridgeline.models import RidgelineForCausalLM
from ridgeline.models.convert import convert, output_errors
from ridgeline.models.manifest import verify_manifest
from ridgeline.models.saving import TOKENIZER_FILES
from ridgeline.training.data import read_text

WINDOW = 256  # tokens of the text in a row


def run(
    src: Path, dst: Path, to: str, *, text: Path | None, tokens: int, **sizes: int | None
) -> Iterator[str]:
    """Converts ``src`` to ``dst`` and yields what to print: the errors of each layer.

    Args:
        text: a UTF-8 file, of which the first ``tokens`` tokens say which directions matter;
            ``None`` judges by the weights alone.
        sizes: as of ``ridgeline.models.convert.convert``.

    Raises:
        FileNotFoundError: ``src`` is no folder of a model, or there is no such text.
        ValueError: a file is damaged, the model or a size is one that cannot be converted, or
            ``dst`` holds files already.
    """
    if dst.exists() and (not dst.is_dir() or any(dst.iterdir())):
        raise ValueError(f"dst: expected a folder that is empty or not there yet, got {dst}")
    model = load(src)
    rows = None if text is None else _rows(src, text, tokens)
    target, errors = convert(model, to, rows=rows, **sizes)
    outputs = None if rows is None else output_errors(model, target, rows)
    save(target, src, dst)
    for error in errors:
        line = f"layer {error.layer}: key {error.key:.1%}, value {error.value:.1%}"
        yield line if outputs is None else f"{line}, output {outputs[error.layer]:.1%}"
    before, after = (m.model.layers[0].self_attn.cache_spec() for m in (model, target))
    yield (
        f"cache of a token and layer: {before.bytes_per_token(torch.bfloat16)} -> "
        f"{after.bytes_per_token(torch.bfloat16)} bytes (BF16); parameters: "
        f"{model.num_parameters():,} -> {target.num_parameters():,}"
    )
    yield f"model: {dst}; fine-tune it: ridgeline train OUT --from {dst}"


def load(src: Path) -> RidgelineForCausalLM:
    """A RidgelineForCausalLM, or a Llama model of transformers as one."""
    if not (src / "config.json").is_file():
        raise FileNotFoundError(f"src: expected the folder of a model, with config.json, got {src}")
    kind = AutoConfig.from_pretrained(src).model_type
    match kind:
        case "ridgeline":
            return RidgelineForCausalLM.from_pretrained(src)
        case "llama":
            verify_manifest(src)
            model, info = LlamaForCausalLM.from_pretrained(
                src, use_safetensors=True, output_loading_info=True
            )
            if info["missing_keys"]:
                raise ValueError(f"src: {src} lacks {min(info['missing_keys'])}")
            return RidgelineForCausalLM.from_llama(model)
    raise ValueError(f"src: expected a model of type ridgeline or llama, got {kind!r}")


def save(target: RidgelineForCausalLM, src: Path, dst: Path) -> None:
    """The model with the tokenizer of ``src``, and one manifest of both."""
    dst.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if (src / name).is_file():
            shutil.copy2(src / name, dst / name)
    target.save_pretrained(dst)


def _rows(src: Path, text: Path, tokens: int) -> Tensor:
    """The first ``tokens`` tokens of ``text``, ``[B, WINDOW]``."""
    content = read_text(text)
    ids = AutoTokenizer.from_pretrained(src)(content, add_special_tokens=False)["input_ids"]
    rows = len(ids[:tokens]) // WINDOW
    if rows < 1:
        raise ValueError(f"text: expected at least {WINDOW} tokens, got {len(ids[:tokens])}")
    return torch.tensor(ids[: rows * WINDOW]).view(rows, WINDOW)
