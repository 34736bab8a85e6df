"""Kneser-Ney against hand-computed values and a plain dictionary-based one."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from ridgeline.training import ngram
from ridgeline.training.ngram import KneserNey


def test_hand_computed():
    # a b a c a b. Bigrams: ab 2, ba 1, ac 1, ca 1, so n1 = 3, n2 = 1 and D = 3 / (3 + 2) = 0.6.
    # Unigrams count their different predecessors: a 2, b 1, c 1; n1 = 2, n2 = 1, D = 0.5,
    # gamma = 3 * 0.5 / 4, so p(a) = 1.5/4 + 0.375/3 = 0.5 and p(b) = p(c) = 0.25.
    a, b, c = 0, 1, 2
    model = KneserNey(np.array([a, b, a, c, a, b]), vocab_size=3, order=2)

    def p(*tokens):
        return model.probabilities(np.array(tokens))[-1]

    assert p(a) == pytest.approx(0.5)
    assert p(b) == pytest.approx(0.25)
    # After a (3 times, 2 continuations): gamma = 2 * 0.6 / 3 = 0.4.
    assert p(a, b) == pytest.approx(1.4 / 3 + 0.4 * 0.25)
    assert p(a, c) == pytest.approx(0.4 / 3 + 0.4 * 0.25)
    assert p(a, a) == pytest.approx(0.4 * 0.5)
    # After b (once, 1 continuation): gamma = 0.6.
    assert p(b, a) == pytest.approx(0.4 + 0.6 * 0.5)
    losses = [-math.log(x) for x in (1.4 / 3 + 0.1, 0.7)]
    assert model.loss(np.array([a, b, a])) == pytest.approx(sum(losses) / 2)


class PlainKneserNey:
    """The same definition with dictionaries and recursion."""

    def __init__(self, tokens, vocab_size, order):
        self.vocab_size = vocab_size
        grams = Counter(tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1))
        self.counts = {order: grams}
        for n in range(order - 1, 0, -1):
            self.counts[n] = Counter(gram[1:] for gram in self.counts[n + 1])
        self.followers = {n: defaultdict(dict) for n in self.counts}
        for n, counts in self.counts.items():
            for gram, count in counts.items():
                self.followers[n][gram[:-1]][gram[-1]] = count
        self.discounts = {n: self.make_discounts(c.values()) for n, c in self.counts.items()}

    @staticmethod
    def make_discounts(counts):
        n1, n2, n3, n4 = (sum(c == k for c in counts) for k in (1, 2, 3, 4))
        y = n1 / (n1 + 2 * n2)
        made = [0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
        assert 0 < made[1] != made[2] != made[3] > 0, "the text lacks n-grams of some count"
        return made

    def discount(self, n, count):
        return self.discounts[n][min(count, 3)]

    def p(self, history, token):
        n = len(history) + 1
        lower = self.p(history[1:], token) if history else 1 / self.vocab_size
        seen = self.followers[n].get(tuple(history))
        if not seen:
            return lower
        total = sum(seen.values())
        gamma = sum(self.discount(n, count) for count in seen.values()) / total
        count = seen.get(token, 0)
        return (count - self.discount(n, count)) / total + gamma * lower


VOCAB = 400


@pytest.fixture(scope="module")
def text():
    # Zipf-like, so that every order has n-grams of counts 1 to 4 and the modified discounts apply.
    draws = np.random.default_rng(0).zipf(1.5, size=20000)
    return draws[draws <= VOCAB] - 1


@pytest.mark.parametrize("order", [2, 3, 4])
def test_equals_the_plain_one(text, order):
    model, plain = KneserNey(text, VOCAB, order), PlainKneserNey(text.tolist(), VOCAB, order)
    held_out = np.append(np.random.default_rng(1).integers(0, VOCAB, size=150), text[-150:])
    expected = [
        plain.p(tuple(held_out[max(0, i - order + 1) : i].tolist()), int(held_out[i]))
        for i in range(300)
    ]
    np.testing.assert_allclose(model.probabilities(held_out), expected, rtol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_probabilities_sum_to_one(text, order):
    model = KneserNey(text, VOCAB, order)
    unseen = np.random.default_rng(2).integers(0, VOCAB, size=(5, order - 1))
    for history in [*unseen, *(text[i : i + order - 1] for i in range(5))]:
        total = sum(model.probabilities(np.append(history, w))[-1] for w in range(VOCAB))
        assert total == pytest.approx(1.0, abs=1e-12)


def test_scoring_in_chunks_changes_nothing(text, monkeypatch):
    model = KneserNey(text, VOCAB, 4)
    whole = model.probabilities(text[:1000])
    monkeypatch.setattr(ngram, "CHUNK", 7)
    assert (model.probabilities(text[:1000]) == whole).all()


def test_a_longer_memory_helps_on_text_that_has_one():
    text = np.tile([0, 1, 2, 0, 2, 1, 3], 300)
    losses = [KneserNey(text[:1400], 4, order).loss(text[1400:]) for order in (1, 2, 3)]
    assert losses[0] > losses[1] > losses[2]


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="order: 6 tokens of 12 bits do not fit 64 bits"):
        KneserNey(np.zeros(10, int), vocab_size=4096, order=6)
    with pytest.raises(ValueError, match="tokens: expected at least 4, got 3"):
        KneserNey(np.zeros(3, int), vocab_size=4)
    with pytest.raises(ValueError, match="tokens: expected ids from 0 to 3"):
        KneserNey(np.array([0, 1, 2, 4]), vocab_size=4, order=2)
    with pytest.raises(ValueError, match="tokens: expected"):
        KneserNey(np.zeros((4, 2)), vocab_size=4)
    with pytest.raises(ValueError, match="tokens: expected at least 2, got 1"):
        KneserNey(np.arange(4), vocab_size=4).loss(np.array([1]))
