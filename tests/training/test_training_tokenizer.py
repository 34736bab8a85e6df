"""The tokenizer: any text comes back, the same text gives the same vocabulary."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_cases import write_text

from ridgeline.training.data import Document
from ridgeline.training.tokenizer import (
    END_OF_TEXT,
    MIN_VOCAB_SIZE,
    encode_documents,
    train_tokenizer,
)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "a.txt").read_text()


@pytest.fixture(scope="module")
def tokenizer(text):
    return train_tokenizer([text], 400)


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_same_text_same_vocabulary(tokenizer, text):
    assert train_tokenizer([text], 400).to_str() == tokenizer.to_str()


def test_vocabulary_is_bounded_and_starts_with_the_end_of_text(tokenizer):
    assert MIN_VOCAB_SIZE < tokenizer.get_vocab_size() <= 400
    assert tokenizer.token_to_id(END_OF_TEXT) == 0


def test_a_small_text_gives_a_small_vocabulary():
    assert train_tokenizer(["ab"], 5000).get_vocab_size() < 300


def test_too_small_a_vocabulary_is_named():
    with pytest.raises(ValueError, match=r"vocab_size: expected .*257.*got 256"):
        train_tokenizer(["text"], 256)


def test_documents_are_led_by_the_end_of_text_which_a_text_cannot_forge(tokenizer):
    split = encode_documents(tokenizer, [Document("a", "é"), Document("b", END_OF_TEXT)])
    assert split.tokens.dtype == np.uint16
    assert (split.tokens == 0).sum() == 2
    assert split.tokens[0] == 0
    assert split.num_bytes == 2 + len(END_OF_TEXT)


def test_indentation_is_one_token_with_its_line_break(tokenizer):
    ids = tokenizer.encode("\n    return").ids
    assert len(ids) == 2
    assert tokenizer.decode([ids[0]]) == "\n    "
