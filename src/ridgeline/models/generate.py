"""Text from a model, piece by piece, with the time and the cache bytes that it took."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
import transformers
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ridgeline.models.cache import RidgelineCache
from ridgeline.models.modeling import RidgelineForCausalLM
from ridgeline.ops.common import check
from ridgeline.ops.common.dispatch import Impl


@dataclass
class StreamStats:
    """What a stream has done so far."""

    prompt_tokens: int = 0
    new_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    cache_bytes: int = 0

    @property
    def prefill_rate(self) -> float:
        """Tokens of the prompt per second, the first new token's sampling included."""
        return self.prompt_tokens / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode_rate(self) -> float:
        """New tokens per second, the first left out: the prefill computed it."""
        return (self.new_tokens - 1) / self.decode_seconds if self.decode_seconds else 0.0

    def summary(self) -> str:
        """Two lines: speed of prefill and decode, and the cache."""
        tokens = self.prompt_tokens + self.new_tokens - 1
        return (
            f"prefill {self.prompt_tokens} tokens at {self.prefill_rate:,.0f} tokens/s, "
            f"decode {self.new_tokens} tokens at {self.decode_rate:,.1f} tokens/s\n"
            f"cache {self.cache_bytes:,} bytes for {tokens} tokens"
        )


class TextStream:
    """Iterate over it for pieces of text; ``stats`` counts along."""

    def __init__(self, pieces: Iterator[str], stats: StreamStats) -> None:
        self._pieces = pieces
        self.stats = stats

    def __iter__(self) -> Iterator[str]:
        return self._pieces


def default_model() -> Path:
    """The directory of the model that the package ships.

    Raises:
        FileNotFoundError: this build ships none.
    """
    root = Path(str(resources.files("ridgeline.models"))) / "pretrained"
    found = sorted(path.parent for path in root.glob("*/config.json"))
    if not found:
        raise FileNotFoundError(f"{root}: no model is shipped here; name a model's directory")
    return found[0]


def load(
    directory: str | os.PathLike | None = None,
) -> tuple[RidgelineForCausalLM, PreTrainedTokenizerBase]:
    """A model and its tokenizer from ``directory``, or those that the package ships.

    Raises:
        FileNotFoundError, ValueError: there is no such directory, or its manifest does not hold.
    """
    directory = default_model() if directory is None else Path(directory)
    if not (directory / "config.json").is_file():
        raise FileNotFoundError(f"{directory}: expected a model's directory, found no config.json")
    transformers.utils.logging.disable_progress_bar()  # it would stand in the streamed text
    model = RidgelineForCausalLM.from_pretrained(directory, dtype="auto")
    return model, AutoTokenizer.from_pretrained(directory)


def stream(
    model: RidgelineForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.8,
    top_p: float = 0.95,
    seed: int | None = None,
    impl: Impl = "auto",
) -> TextStream:
    """Continue ``prompt``, token by token.

    Args:
        temperature: 0 takes the likeliest token.
        top_p: sample from the likeliest tokens that hold this much probability, in (0, 1]
            (Holtzman et al., arXiv 1904.09751).
        seed: of the samples; None for a different text each time.
        impl: implementation of decode attention.

    Returns:
        The text after the prompt. It ends at an end-of-text token, which is not part of it.

    Raises:
        TypeError, ValueError: an argument has the wrong type or value; the prompt has no token, or
            does not fit the model's context together with the new tokens.
    """
    if not isinstance(prompt, str):
        raise TypeError(f"prompt: expected a str, got {type(prompt).__name__}")
    check.count("max_new_tokens", max_new_tokens, minimum=1)
    check.finite("temperature", temperature, minimum=0.0)
    if not 0 < check.finite("top_p", top_p) <= 1:
        raise ValueError(f"top_p: expected a number in (0, 1], got {top_p}")
    check.name_of_impl(impl)
    ids = tokenizer(prompt).input_ids
    if not ids:
        raise ValueError("prompt: expected at least one token, got none")
    if max(ids) >= model.config.vocab_size:
        raise ValueError(
            f"tokenizer: expected tokens below the model's vocab_size "
            f"({model.config.vocab_size}), got {max(ids)}"
        )
    room = model.config.max_position_embeddings - len(ids)
    if max_new_tokens > room:
        raise ValueError(
            f"max_new_tokens: expected at most {room}, what the model's context of "
            f"{model.config.max_position_embeddings} leaves after the prompt, got {max_new_tokens}"
        )
    generator = torch.Generator(model.device)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(check.count("seed", seed))
    stats = StreamStats(prompt_tokens=len(ids))

    @torch.inference_mode()
    def step(new: list[int], cache: RidgelineCache) -> int:
        inputs = torch.tensor([new], device=model.device)
        logits = model(inputs, past_key_values=cache, logits_to_keep=1, impl=impl).logits[0, -1]
        return sample(logits, temperature, top_p, generator)

    def pieces() -> Iterator[str]:
        cache = model.model.new_cache(1, len(ids) + max_new_tokens)
        text = _Detokenizer(tokenizer)
        ends = _end_tokens(model, tokenizer)
        new = ids
        for i in range(max_new_tokens):
            start = time.perf_counter()
            token = step(new, cache)
            seconds = time.perf_counter() - start
            if i == 0:
                stats.prefill_seconds = seconds
            else:
                stats.decode_seconds += seconds
            stats.new_tokens += 1
            stats.cache_bytes = cache.nbytes
            if token in ends:
                break
            new = [token]
            if piece := text.add(token):
                yield piece
        if piece := text.rest():
            yield piece

    return TextStream(pieces(), stats)


def sample(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """A token from ``logits [vocab_size]``; see ``stream``."""
    if temperature == 0:
        return int(logits.argmax())
    probs, tokens = (logits.float() / temperature).softmax(dim=-1).sort(descending=True)
    # A token stays if those before it hold less than top_p; the first one always does.
    probs = probs.masked_fill(probs.cumsum(dim=-1) - probs >= top_p, 0.0)
    return int(tokens[torch.multinomial(probs, 1, generator=generator)])


def _end_tokens(model: RidgelineForCausalLM, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    ends = {tokenizer.eos_token_id}
    for config in (model.config, model.generation_config):
        given = config.eos_token_id
        ends |= set(given) if isinstance(given, list) else {given}
    return ends - {None}


class _Detokenizer:
    """Text of a growing list of tokens; characters are held back until their bytes are whole."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        # The last piece's tokens are decoded again with the next: spaces depend on neighbours.
        self._shown: list[int] = []
        self._new: list[int] = []

    def add(self, token: int) -> str:
        self._new.append(token)
        piece = self._piece()
        return "" if piece.endswith("\N{REPLACEMENT CHARACTER}") else self._show(piece)

    def rest(self) -> str:
        return self._show(self._piece()) if self._new else ""

    def _piece(self) -> str:
        shown = self._tokenizer.decode(self._shown, skip_special_tokens=True)
        return self._tokenizer.decode(self._shown + self._new, skip_special_tokens=True)[
            len(shown) :
        ]

    def _show(self, piece: str) -> str:
        self._shown, self._new = self._new, []
        return piece
