"""What the tests of preference training share: random pairs and trees, and what must hold of them.

The checks reach the functions through their modules, so that planted bugs meet them.
"""

import random

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ridgeline.ops.attention import attention, subtree_end
from ridgeline.training.preference import logps, packing, responses, rows, trees

Sequences = list[tuple[list[int], list[int]]]  # prompt, response

VOCAB, WIDTH, HEADS = 11, 8, 2
PAD = 99


def random_ids(rng: random.Random, most: int, vocab: int = VOCAB) -> list[int]:
    return rng.choices(range(vocab), k=rng.randint(1, most))


def random_pairs(seed: int, count: int = 5) -> list[tuple[list[int], list[int], list[int]]]:
    """Prompts, chosen and rejected responses of 1 to 9 tokens."""
    rng = random.Random(seed)
    return [tuple(random_ids(rng, 9) for _ in range(3)) for _ in range(count)]


def random_sequences(seed: int, most: int = 7) -> Sequences:
    """Sequences of three tokens, many of which begin alike; some are equal or within another."""
    rng = random.Random(seed)
    found: Sequences = []
    for _ in range(rng.randint(1, most)):
        prompt, response = rng.choice(found) if found else ([], [])
        begun = prompt + response
        whole = begun[: rng.randint(0, len(begun))] + rng.choices(range(3), k=rng.randint(0, 4))
        whole += rng.choices(range(3), k=max(0, 2 - len(whole)))
        cut = rng.randint(1, len(whole) - 1)
        found.append((whole[:cut], whole[cut:]))
    return found


def pair_sequences(pairs) -> Sequences:
    return [(prompt, response) for prompt, *both in pairs for response in both]


def check_tree(tree, sequences: Sequences) -> None:
    """Every scored token is predicted from its own sequence, where it would be alone."""
    subtree_end.check(tree.subtree_end)
    assert tree.subtree_end.dtype == torch.int32
    assert len(tree) == len(tree.subtree_end) == len(tree.position_ids) == len(tree.shift_labels)
    check_scores(
        tree.input_ids, tree.position_ids, tree.subtree_end, tree.shift_labels,
        tree.score_index.split(tree.response_lengths), sequences,
    )  # fmt: skip
    assert set(tree.score_index.tolist()) == set(
        (tree.shift_labels != -100).nonzero()[:, 0].tolist()
    )
    assert tree.sequences() == sequences
    assert tree.logical_tokens == sum(len(p) + len(r) for p, r in sequences) >= len(tree)
    same = [(tuple(p), tuple(r)) for p, r in sequences]
    assert tree.equal_responses == len(same) - len(set(same))


def check_trie(sequences: Sequences) -> None:
    """A tree that shares every common prefix, in the order of first sequences."""
    tree = trees.of_sequences(sequences)
    check_tree(tree, sequences)
    assert tree.input_ids.tolist() == naive_trie((), range(len(sequences)), sequences)


def naive_trie(prefix: tuple[int, ...], members, sequences: Sequences) -> list[int]:
    """The row of a prefix: its last token, once or before each branch, and what follows it."""
    groups: dict[int, list[int]] = {}
    for i in members:
        rest = sum(sequences[i], [])[len(prefix) :]  # noqa: RUF017
        if rest:
            groups.setdefault(rest[0], []).append(i)
    scored = [any(len(sequences[i][0]) <= len(prefix) for i in x) for x in groups.values()]
    copies = prefix[-1:] if sum(scored) > 1 else ()
    found = [] if copies else list(prefix[-1:])
    for token, group in groups.items():
        found += [*copies, *naive_trie((*prefix, token), group, sequences)]
    return found


def check_scores(input_ids, position_ids, ends, labels, index, sequences: Sequences) -> None:
    """The same of one row whose responses are predicted at ``index``."""
    assert len(index) == len(sequences)
    keys = torch.arange(len(input_ids))
    for at, (prompt, response) in zip(index, sequences, strict=True):
        assert labels[at].tolist() == response
        for n, query in enumerate(at.tolist()):
            seen = (keys <= query) & (query < ends)
            assert input_ids[seen].tolist() == prompt + response[:n]
            assert position_ids[seen].tolist() == list(range(len(prompt) + n))


def check_batch(batch, sequences: Sequences) -> None:
    """Responses in the given order wherever they were packed; padding, of ``PAD``, alone."""
    length = batch.input_ids.shape[1]
    subtree_end.check(batch.subtree_end)
    assert batch.subtree_end.dtype == torch.int32
    index = batch.score_index.split(batch.response_lengths.tolist())
    assert len(index) == len(sequences)
    for at, one in zip(index, sequences, strict=True):
        b = int(at[0]) // length
        row = (x[b] for x in (batch.input_ids, batch.position_ids, batch.subtree_end))
        check_scores(*row, batch.shift_labels[b], [at - b * length], [one])
    assert batch.response_ids.tolist() == [
        r for r, n in enumerate(batch.response_lengths.tolist()) for _ in range(n)
    ]
    assert batch.sequences() == sequences
    counts, keys = batch.counts, torch.arange(length)
    assert counts.responses == len(sequences)
    assert counts.logical_tokens == sum(len(p) + len(r) for p, r in sequences)
    assert counts.row_tokens == batch.input_ids.numel()
    padding = (batch.input_ids == PAD).nonzero().tolist()
    assert len(padding) == counts.row_tokens - counts.physical_tokens
    for b, at in padding:
        ends = batch.subtree_end[b]
        assert ends[at] == at + 1
        assert not ((keys < at) & (ends > at)).any()
        assert batch.position_ids[b, at] == 0
        assert batch.shift_labels[b, at] == -100


def naive_first_fit_decreasing(lengths: list[int], budget: int) -> list[list[int]]:
    found: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        for row in found:
            if sum(lengths[j] for j in row) + lengths[i] <= budget:
                row.append(i)
                break
        else:
            found.append([i])
    return [sorted(row) for row in found]


def check_packing(lengths: list[int], budget: int) -> None:
    assert packing.first_fit_decreasing(lengths, budget) == naive_first_fit_decreasing(
        lengths, budget
    )


class Model:
    """One layer of attention over embeddings and rotated positions, in float64, with a head."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> None:
        g = torch.Generator().manual_seed(seed)
        sizes = {
            "embedding": (VOCAB, WIDTH),
            "qkv": (WIDTH, 3 * WIDTH),
            "out": (WIDTH, WIDTH),
            "head": (VOCAB, WIDTH),
            "bias": (VOCAB,),
        }
        self.weights = {
            name: torch.randn(size, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
            for name, size in sizes.items()
        }

    def hidden(self, input_ids: Tensor, position_ids: Tensor, **mask: object) -> Tensor:
        """``[B, L, WIDTH]``; a token's place is in its angle, which q and k meet as RoPE does."""
        w = self.weights
        x = w["embedding"][input_ids]
        qkv = (x @ w["qkv"]).unflatten(-1, (3, HEADS, WIDTH // HEADS))
        angle = position_ids[..., None, None] * 0.7
        q, k, v = qkv.unbind(2)
        q, k = (_rotate(t, angle.to(x.dtype)) for t in (q, k))
        return x + attention(q, k, v, **mask).flatten(2) @ w["out"]

    def response_logps(self, batch, impl: str = "reference") -> Tensor:
        """``[R]`` of a batch of trees."""
        hidden = self.hidden(
            batch.input_ids, batch.position_ids, subtree_end=batch.subtree_end, impl=impl
        )
        found = logps.token_logps(
            hidden, self.weights["head"], batch.shift_labels, bias=self.weights["bias"], chunk=5
        )
        return responses.per_response(found.logps, batch)

    def alone(self, prompt: list[int], response: list[int]) -> Tensor:
        """The same of one sequence, written out."""
        whole = torch.tensor([prompt + response])
        hidden = self.hidden(
            whole, torch.arange(whole.shape[1])[None], causal=True, impl="reference"
        )
        logits = hidden[0, len(prompt) - 1 : -1] @ self.weights["head"].T + self.weights["bias"]
        return logits.log_softmax(-1).gather(1, whole[0, len(prompt) :, None]).sum()

    def gradients(self, value: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(value, list(self.weights.values())))


def _rotate(x: Tensor, angle: Tensor) -> Tensor:
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.cat(
        [even * angle.cos() - odd * angle.sin(), even * angle.sin() + odd * angle.cos()], -1
    )


def check_model(forest, sequences: Sequences, **how) -> None:
    """Log-probabilities and gradients of packed trees are those of each sequence alone."""
    model = Model()
    batch = rows.collate(forest, **how)
    factors = torch.randn(
        len(sequences), generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    got = model.response_logps(batch)
    want = torch.stack([model.alone(*one) for one in sequences])
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        model.gradients((got * factors).sum()),
        model.gradients((want * factors).sum()),
        rtol=1e-11,
        atol=1e-11,
    )


def check_token_logps(transform: logps.LogitTransform, chunk: int | None, kind: str) -> None:
    """Values and gradients of the head of a model are those of a log-softmax of all logits."""
    g = torch.Generator().manual_seed(0)
    hidden, weight, bias, factors = (
        torch.randn(size, generator=g, dtype=torch.float64).requires_grad_()
        for size in ((2, 13, WIDTH), (VOCAB, WIDTH), (VOCAB,), (2, 13))
    )
    labels = torch.randint(VOCAB, (2, 13), generator=g)
    labels.masked_fill_(torch.rand(2, 13, generator=g) < 0.5, -100)
    linear = torch.nn.Linear(WIDTH, VOCAB, dtype=torch.float64)
    linear.weight, linear.bias = (torch.nn.Parameter(x.detach()) for x in (weight, bias))
    leaves = (hidden, weight, bias) if kind == "tensor" else (hidden, linear.weight, linear.bias)
    head = {"tensor": weight, "linear": linear, "module": torch.nn.Sequential(linear)}[kind]
    more = {"bias": bias} if kind == "tensor" else {}
    got = logps.token_logps(hidden, head, labels, transform=transform, chunk=chunk, **more).logps
    y = hidden @ leaves[1].T + leaves[2]
    x = y * transform.scale
    if transform.softcap:
        x = transform.softcap * torch.tanh(x / transform.softcap)
    want = (x / transform.temperature).log_softmax(-1)
    want = want.gather(-1, labels.clamp(min=0)[..., None])[..., 0].where(labels >= 0, 0.0)
    torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(
        torch.autograd.grad((got * factors).sum(), leaves),
        torch.autograd.grad((want * factors).sum(), leaves),
        rtol=1e-12,
        atol=1e-13,
    )


class LargestTensor(TorchDispatchMode):
    """The most elements that a tensor has which is made while this is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, Tensor):
                self.elements = max(self.elements, x.numel())
        return out
