"""Interpolated modified Kneser-Ney n-gram model (Chen and Goodman, 1998), in numpy alone.

The baseline a trained model is measured against: it sees the same tokens. With ``c_n`` the counts
of the highest order, and ``c_k(g)`` below it the number of different tokens seen before ``g``:

    p_k(w | h) = (c_k(h w) - D(c_k(h w))) / c_k(h .) + gamma(h) p_{k-1}(w | h without its oldest)
    gamma(h) = (sum of the discounts D taken from h's continuations) / c_k(h .)

``p_0`` is uniform over the vocabulary. A history never seen passes on to the next lower order.
An n-gram is one uint64, its tokens packed oldest first, so sorted arrays stand for hash tables:
memory is about ``24 * order`` bytes a training token.
"""

from dataclasses import dataclass

import numpy as np

from ridgeline.ops.common import check

CHUNK = 1 << 18  # positions scored at once; bounds the memory of scoring


@dataclass(frozen=True)
class _Order:
    """One order's n-grams and, for every history, what its continuations sum to."""

    grams: np.ndarray  # [G] uint64, sorted
    discounted: np.ndarray  # [G] float64: c(hw) - D(c(hw))
    histories: np.ndarray  # [H] uint64, sorted
    total: np.ndarray  # [H] float64: c(h .)
    gamma: np.ndarray  # [H] float64


class KneserNey:
    """An n-gram model of a token sequence.

    Args:
        tokens: ``[num_tokens]`` non-negative integers below ``vocab_size``.
        vocab_size: number of tokens the probabilities sum over.
        order: n, at least 1; ``order * bits(vocab_size)`` must fit 64 bits.

    Raises:
        ValueError: tokens out of range, too few of them, or an order that does not fit.
    """

    def __init__(self, tokens: np.ndarray, vocab_size: int, order: int = 4) -> None:
        self.vocab_size = check.count("vocab_size", vocab_size, minimum=1)
        self.order = check.count("order", order, minimum=1)
        self._bits = max(1, (vocab_size - 1).bit_length())
        if order * self._bits > 64:
            raise ValueError(f"order: {order} tokens of {self._bits} bits do not fit 64 bits")
        if len(tokens) < order:
            raise ValueError(f"tokens: expected at least {order}, got {len(tokens)}")
        tokens = self._checked(tokens)
        self._orders: list[_Order] = []  # of length 1, 2, ... order
        grams, counts = np.unique(self._pack(tokens, order), return_counts=True)
        for length in range(order, 0, -1):
            self._orders.insert(0, self._make_order(grams, counts))
            # The next lower order counts in how many n-grams its own grams are the tail.
            tails = grams & np.uint64((1 << self._bits * (length - 1)) - 1)
            if length > 1:
                grams, counts = np.unique(tails, return_counts=True)

    def probabilities(self, tokens: np.ndarray) -> np.ndarray:
        """``[num_tokens]`` float64: of each token, given the up to ``order - 1`` before it."""
        tokens = self._checked(tokens)
        out = np.empty(len(tokens))
        for start in range(0, len(tokens), CHUNK):
            end = min(start + CHUNK, len(tokens))
            lead = min(start, self.order - 1)
            out[start:end] = self._score(tokens[start - lead : end], start - lead)[lead:]
        return out

    def loss(self, tokens: np.ndarray) -> float:
        """Mean negative log probability in nats of every token but the first."""
        if len(tokens) < 2:
            raise ValueError(f"tokens: expected at least 2, got {len(tokens)}")
        return float(-np.log(self.probabilities(tokens)[1:]).mean())

    def _checked(self, tokens: np.ndarray) -> np.ndarray:
        tokens = np.asarray(tokens)
        if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
            raise ValueError(f"tokens: expected [n] integers, got {tokens.shape} {tokens.dtype}")
        if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.vocab_size:
            raise ValueError(f"tokens: expected ids from 0 to {self.vocab_size - 1}")
        return tokens

    def _pack(self, tokens: np.ndarray, length: int) -> np.ndarray:
        """``[n - length + 1]`` uint64: the n-gram that starts at each position."""
        count = len(tokens) - length + 1
        packed = np.zeros(count, dtype=np.uint64)
        for place in range(length):
            packed <<= np.uint64(self._bits)
            packed |= tokens[place : place + count].astype(np.uint64)
        return packed

    def _make_order(self, grams: np.ndarray, counts: np.ndarray) -> _Order:
        discount = _discounts(counts)[np.minimum(counts, 3)]
        histories, first = np.unique(grams >> np.uint64(self._bits), return_index=True)
        total = np.add.reduceat(counts, first).astype(np.float64)
        gamma = np.add.reduceat(discount, first) / total
        return _Order(grams, counts - discount, histories, total, gamma)

    def _score(self, tokens: np.ndarray, position: int) -> np.ndarray:
        """Probabilities of ``tokens``; ``position`` of the first one in the whole sequence."""
        p = np.full(len(tokens), 1.0 / self.vocab_size)
        for length, order in enumerate(self._orders, start=1):
            if length > len(tokens):
                break
            grams = self._pack(tokens, length)
            history, seen = _find(order.histories, grams >> np.uint64(self._bits))
            gram, known = _find(order.grams, grams)
            lower = p[length - 1 :]
            higher = order.gamma[history] * lower
            higher += np.where(known, order.discounted[gram], 0.0) / order.total[history]
            p[length - 1 :] = np.where(seen, higher, lower)
        return p


def _find(table: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of ``keys`` in a sorted table, and whether they are there at all."""
    place = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return place, table[place] == keys


def _discounts(counts: np.ndarray) -> np.ndarray:
    """``[0, D1, D2, D3+]`` from how many n-grams have counts 1 to 4.

    Where a small text lacks some of those counts, their estimate is undefined; then every count
    is discounted by ``n1 / (n1 + 2 n2)``, and by 1/2 where even that is 0 or 1.
    """
    n1, n2, n3, n4 = (int((counts == c).sum()) for c in (1, 2, 3, 4))
    y = n1 / (n1 + 2 * n2) if n1 and n2 else 0.5
    if not (n1 and n2 and n3 and n4):
        return np.array([0.0, y, y, y])
    modified = [1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
    if min(modified) <= 0:
        return np.array([0.0, y, y, y])
    return np.array([0.0, *modified])
