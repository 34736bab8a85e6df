"""A run's text: read, split, encoded."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from tokenizers import Tokenizer

from ridgeline.training.config import TrainConfig
from ridgeline.training.data import Split, load_documents, require_tokens, split_documents
from ridgeline.training.ngram import KneserNey
from ridgeline.training.tokenizer import encode_documents, train_tokenizer

BASELINE_ORDER = 4


@dataclass(frozen=True)
class Text:
    """Both sides of the text as tokens, and what they were made with."""

    tokenizer: Tokenizer
    train: Split
    held_out: Split

    @property
    def sha256(self) -> str:
        digest = hashlib.sha256()
        for split in (self.train, self.held_out):
            digest.update(np.ascontiguousarray(split.tokens, dtype="<u4").tobytes())
        return digest.hexdigest()

    @cached_property
    def baseline_loss(self) -> float:
        """Held-out loss of the 4-gram model of the same training tokens, in nats a token."""
        size = self.tokenizer.get_vocab_size()
        return KneserNey(self.train.tokens, size, BASELINE_ORDER).loss(self.held_out.tokens)


def prepare_text(config: TrainConfig, tokenizer: str | None = None) -> Text:
    """Reads, splits and encodes the text.

    Args:
        tokenizer: a checkpoint's ``tokenizer.json``; ``None`` trains one on the training side.
    """
    train, held_out = split_documents(load_documents(config.texts), config.eval_fraction)
    if tokenizer is None:
        trained = train_tokenizer([document.text for document in train], config.vocab_size)
    else:
        trained = Tokenizer.from_str(tokenizer)
    text = Text(trained, encode_documents(trained, train), encode_documents(trained, held_out))
    require_tokens("training", text.train, config.context)
    require_tokens("held-out", text.held_out, config.context)
    return text
