"""Byte-level BPE (Sennrich et al., 2016; bytes as in GPT-2), trained by ``tokenizers``."""

from collections.abc import Sequence

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from ridgeline.ops.common import check
from ridgeline.training.data import Document, Split

END_OF_TEXT = "<|endoftext|>"
MIN_VOCAB_SIZE = 257  # every byte and the end-of-text token

# A line break keeps the indentation that follows it, and a name keeps its underscores: in code
# these are the two sequences that repeat most.
PIECES = r"[\r\n]+[ \t]*| ?[\p{L}_]+| ?\p{N}| ?[^\s\p{L}\p{N}_]+|\s+"


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """Learns a vocabulary of at most ``vocab_size`` tokens (fewer where the texts are small).

    Token 0 is the end of a text. Any UTF-8 text can be encoded and decodes to itself.
    """
    check.count("vocab_size", vocab_size, minimum=MIN_VOCAB_SIZE)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode_documents(tokenizer: Tokenizer, documents: Sequence[Document]) -> Split:
    """Token ids of all documents in their order, each led by the end-of-text token."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    # Text that spells out the end-of-text token must not become one.
    tokenizer.encode_special_tokens = True
    encodings = tokenizer.encode_batch([document.text for document in documents])
    tokenizer.encode_special_tokens = False
    dtype = np.uint16 if tokenizer.get_vocab_size() <= 1 << 16 else np.uint32
    parts = [np.array([end, *encoding.ids], dtype=dtype) for encoding in encodings]
    num_bytes = sum(len(document.text.encode()) for document in documents)
    return Split(np.concatenate(parts), num_bytes)
