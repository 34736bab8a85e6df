"""The model in the package: whole, small enough, better than a 4-gram model of the same text."""

import pytest
import torch
from tokenizers import Tokenizer

from ridgeline.models import RidgelineForCausalLM
from ridgeline.models.generate import default_model
from ridgeline.models.manifest import verify_manifest
from ridgeline.training.data import load_documents, split_documents
from ridgeline.training.evaluate import held_out_loss
from ridgeline.training.ngram import KneserNey
from ridgeline.training.tokenizer import encode_documents


@pytest.fixture(scope="module")
def folder():
    return default_model()


def test_whole_and_small_enough(folder):
    assert verify_manifest(folder)
    weights_and_tokenizer = [folder / "model.safetensors", folder / "tokenizer.json"]
    assert sum(path.stat().st_size for path in weights_and_tokenizer) <= 10_000_000


def test_says_how_it_was_trained(folder):
    text = (folder / "README.md").read_text()
    assert "ridgeline train" in text
    assert "4-gram" in text
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_beats_the_4_gram_model_clearly(folder):
    model = RidgelineForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert model.config.attention == "gla"
    assert model.config.num_latent_heads == 2
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    train, held_out = (
        encode_documents(tokenizer, documents).tokens
        for documents in split_documents(load_documents([]), 0.05)
    )
    held_out = held_out[:50_000]
    baseline = KneserNey(train, tokenizer.get_vocab_size(), order=4).loss(held_out)
    context = model.config.max_position_embeddings
    # In float32: bfloat16 takes seven times as long on a CPU without instructions for it.
    loss = held_out_loss(model.float(), held_out, context=context, batch=4, dtype="fp32")
    assert loss < baseline - 0.1, (loss, baseline)
