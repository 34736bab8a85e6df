"""Sequences with common prefixes as one row of tokens, depth first: every prefix comes once.

>>> pair = of_pair([1, 2, 3], [4, 5], [6])
>>> pair.input_ids.tolist()
[1, 2, 3, 4, 5, 3, 6]
>>> pair.position_ids.tolist()
[0, 1, 2, 3, 4, 2, 3]
>>> pair.subtree_end.tolist()
[7, 7, 5, 5, 5, 7, 7]
>>> pair.shift_labels.tolist()
[-100, -100, 4, 5, -100, 6, -100]
>>> pair.sequences()
[([1, 2, 3], [4, 5]), ([1, 2, 3], [6])]

The layout is that of prefix sharing (Wang and Hegde, arXiv 2410.20305): where several scored tokens
follow one token, that token is repeated, so that each has a position of its own to be predicted
from, and every branch sees one copy.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

from ridgeline.ops.attention import subtree_end

IGNORE = -100  # no label, as in torch's and transformers' losses

Ids = Sequence[int] | np.ndarray | Tensor


@dataclass(frozen=True, eq=False)
class Tree:
    """N tokens that stand for R sequences, each a prompt and a scored response; on the CPU.

    Attributes:
        input_ids: ``[N]`` int64.
        position_ids: ``[N]`` int64, a token's position in its own sequences.
        subtree_end: ``[N]`` int32; a query sees key k iff ``k <= query < subtree_end[k]``.
        shift_labels: ``[N]`` int64, the token that is predicted from a position and scored, or
            -100. Already shifted: compare the logits of position n with ``shift_labels[n]``.
        score_index: ``[S]`` int64, positions whose labels are scored, response after response and
            in the order of its tokens. A position that several responses share is there for each.
        response_lengths: scored tokens of each of the R responses; they sum to S.
    """

    input_ids: Tensor
    position_ids: Tensor
    subtree_end: Tensor
    shift_labels: Tensor
    score_index: Tensor
    response_lengths: tuple[int, ...]

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    @cached_property
    def logical_tokens(self) -> int:
        """Tokens of all sequences written out: 2 P + C + R of a pair."""
        last = [stop - 1 for stop in accumulate(self.response_lengths)]
        return int((self.position_ids[self.score_index[last]] + 2).sum())

    @cached_property
    def equal_responses(self) -> int:
        """Sequences that are equal to an earlier one of the tree."""
        found = self.sequences()
        return len(found) - len({(tuple(prompt), tuple(response)) for prompt, response in found})

    def sequences(self) -> list[tuple[list[int], list[int]]]:
        """The prompts and responses that the tree was made from, in their order."""
        index = self.score_index.split(self.response_lengths)
        return [read(self.input_ids, self.subtree_end, self.shift_labels, x) for x in index]


def read(
    input_ids: Tensor, subtree_end: Tensor, shift_labels: Tensor, index: Tensor
) -> tuple[list[int], list[int]]:
    """Prompt and response of a row ``[L]`` whose scored tokens are predicted at ``index [n]``.

    What the position of the last label sees, and that label.
    """
    first, last = int(index[0]), int(index[-1])
    context = input_ids[: last + 1][subtree_end[: last + 1] > last].tolist()
    prompt = int((subtree_end[: first + 1] > first).sum())
    return context[:prompt], [*context[prompt:], int(shift_labels[last])]


def of_pair(prompt: Ids, chosen: Ids, rejected: Ids) -> Tree:
    """``prompt | chosen | prompt[-1] | rejected``; response 0 is chosen, 1 rejected.

    Args:
        prompt, chosen, rejected: token ids, at least one each.

    Raises:
        TypeError, ValueError: one is empty or holds what is no token id.
    """
    responses = ids("chosen", chosen), ids("rejected", rejected)
    return _shared_prompt(ids("prompt", prompt), responses)


def of_responses(prompt: Ids, responses: Iterable[Ids]) -> Tree:
    """A prompt with G responses, each but the first behind a copy of the last prompt token.

    Args:
        prompt: token ids, at least one.
        responses: at least one, of at least one token id each.

    Raises:
        TypeError, ValueError: one is empty or holds what is no token id.
    """
    found = [ids(f"responses[{i}]", x) for i, x in enumerate(responses)]
    if not found:
        raise ValueError("responses: expected at least one, got none")
    return _shared_prompt(ids("prompt", prompt), found)


def of_sequences(sequences: Iterable[tuple[Ids, Ids]]) -> Tree:
    """Any prompts with their responses, sharing every common prefix, within responses too.

    Tokens that several responses share are computed once and scored for each of them. Sequences
    may be equal, or one a prefix of another. The row visits branches in the order in which their
    first sequences were given.

    Args:
        sequences: ``(prompt, response)``, at least one, of at least one token id each.

    Raises:
        TypeError, ValueError: one is empty or holds what is no token id.
    """
    prompts, whole = [], []
    for i, (prompt, response) in enumerate(sequences):
        prompts.append(ids(f"sequences[{i}][0]", prompt))
        whole.append(torch.cat([prompts[-1], ids(f"sequences[{i}][1]", response)]))
    if not whole:
        raise ValueError("sequences: expected at least one, got none")
    first_scored = [len(x) for x in prompts]

    parents: list[int] = []
    segments: list[Tensor] = []
    leaf = [0] * len(whole)
    # Groups of sequences that share their next token, the next one to visit last: parent segment,
    # where the group's segment starts in its sequences, their tokens known to agree, sequences.
    todo = [(-1, 0, 0, x) for x in reversed(_by_token(whole, 0, range(len(whole))))]
    while todo:
        parent, start, end, members = todo.pop()
        this, groups = len(segments), [members]
        while len(groups) == 1:
            members = groups[0]
            end = _common(whole, end, members)
            ended = [i for i in members if len(whole[i]) == end]
            for i in ended:
                leaf[i] = this
            groups = _by_token(whole, end, [i for i in members if len(whole[i]) > end])
        scored = sum(any(first_scored[i] <= end for i in group) for group in groups)
        cut = end
        if scored > 1:
            cut -= 1  # the last token goes to the branches
            for i in ended:
                leaf[i] = this + 1
        parents.append(parent)
        segments.append(whole[members[0]][start:cut])
        todo += [(this, cut, end, group) for group in reversed(groups)]
    return _build(parents, segments, list(zip(leaf, map(len, whole), first_scored, strict=True)))


def ids(name: str, x: Ids) -> Tensor:
    """Token ids as int64 ``[n]`` on the CPU, n at least 1.

    Raises:
        TypeError, ValueError: there is none, or one is no integer of at least 0.
    """
    if isinstance(x, (list, tuple)):
        for i, token in enumerate(x):
            if type(token) is not int and not _is_integer(token):  # the first is much faster
                got = type(token).__name__
                raise TypeError(f"{name}[{i}]: expected a token id, an int, got {got}")
        found = torch.tensor(x, dtype=torch.int64)
    elif isinstance(x, (np.ndarray, Tensor)):
        found = torch.as_tensor(x)
        if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
            raise TypeError(f"{name}: expected token ids, integers, got {x.dtype}")
        found = found.to("cpu", torch.int64)
    else:
        raise TypeError(f"{name}: expected a list of token ids, got {type(x).__name__}")
    if found.dim() != 1:
        raise ValueError(f"{name}: expected shape [n], got {list(found.shape)}")
    if found.numel() == 0:
        raise ValueError(f"{name}: expected at least one token, got none")
    if (found < 0).any():
        at = int((found < 0).nonzero()[0])
        raise ValueError(f"{name}[{at}]: expected a token id of at least 0, got {found[at]}")
    return found


def _is_integer(token: object) -> bool:
    return isinstance(token, Integral) and not isinstance(token, bool)


def _shared_prompt(prompt: Tensor, responses: Sequence[Tensor]) -> Tree:
    branches = [torch.cat([prompt[-1:], x]) for x in responses]
    lengths = [(i + 1, len(prompt) + len(x), len(prompt)) for i, x in enumerate(responses)]
    return _build([-1] + [0] * len(branches), [prompt[:-1], *branches], lengths)


def _build(
    parents: Sequence[int], segments: Sequence[Tensor], sequences: Sequence[tuple[int, int, int]]
) -> Tree:
    """The tree of segments in which each sequence is a last segment, its tokens and its prompt's.

    The segments down to the last one, one behind another, begin with the sequence.
    """
    layout = subtree_end.of_tree(parents, [len(x) for x in segments])
    input_ids = torch.cat(list(segments))
    shift_labels = torch.full_like(input_ids, IGNORE)
    places = torch.arange(len(input_ids)).split([len(x) for x in segments])
    score_index = []
    for last, length, prompt in sequences:
        path = []
        while last >= 0:
            path.append(places[last])
            last = parents[last]
        at = torch.cat(path[::-1])[:length]
        shift_labels[at[prompt - 1 : -1]] = input_ids[at[prompt:]]
        score_index.append(at[prompt - 1 : -1])
    return Tree(
        input_ids=input_ids,
        position_ids=layout.position_ids,
        subtree_end=layout.subtree_end,
        shift_labels=shift_labels,
        score_index=torch.cat(score_index),
        response_lengths=tuple(length - prompt for _, length, prompt in sequences),
    )


def _by_token(whole: Sequence[Tensor], at: int, members: Iterable[int]) -> list[list[int]]:
    """Sequences that go on with the same token, in the order of their first."""
    groups: dict[int, list[int]] = {}
    for i in members:
        groups.setdefault(int(whole[i][at]), []).append(i)
    return list(groups.values())


def _common(whole: Sequence[Tensor], start: int, members: Sequence[int]) -> int:
    """Where sequences that agree up to ``start`` no longer do, or the shortest ends."""
    end = min(len(whole[i]) for i in members)
    first = whole[members[0]]
    for i in members[1:]:
        differs = (first[start:end] != whole[i][start:end]).nonzero()
        if len(differs):
            end = start + int(differs[0])
    return end
