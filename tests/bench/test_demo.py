"""The demo on a tiny model of the test's own: text first, then the table and the plot."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ridgeline.bench import demo, table
from ridgeline.models import RidgelineConfig, RidgelineForCausalLM


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    config = RidgelineConfig(
        vocab_size=len(alphabet),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
    )
    RidgelineForCausalLM(config).save_pretrained(tmp_path / "tiny")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_text_then_table_then_plot(checkpoint, tmp_path, tiny_options):
    console, plot = table.console(), tmp_path / "demo.png"
    options = tiny_options.replace(variants=("gqa", "gla"), heads=(8,), sizes=((1, 32),))
    with console.capture() as captured:
        demo.demo(console, plot, tokens=12, model=checkpoint, options=options)
    text = captured.get()
    places = [
        text.index(x) for x in ("A GLA model", demo.PROMPT, "tokens/s", "GQA 8/8", "demo.png")
    ]
    assert places == sorted(places)
    assert plot.stat().st_size > 0
