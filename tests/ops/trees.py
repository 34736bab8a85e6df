"""Trees of segments, and the plain sequences that they stand for."""

import random

Segments = list[tuple[int, int]]  # parent, length


def random_segments(seed: int, most: int = 12) -> Segments:
    """Up to ``most`` segments, depth first, some of them empty, some of them roots."""
    rng = random.Random(seed)
    segments, path = [], []
    for i in range(rng.randint(1, most)):
        path = path[: rng.randint(0, len(path))]
        segments.append((path[-1] if path else -1, rng.choice((0, 1, 1, 2, 5, 9, 17))))
        path.append(i)
    return segments


def tokens_of(segments: Segments) -> list[list[int]]:
    """The tokens of each segment in the row."""
    start, tokens = 0, []
    for _, length in segments:
        tokens.append(list(range(start, start + length)))
        start += length
    return tokens


def sequence_of(segments: Segments, i: int) -> list[int]:
    """The tokens of the sequence that ends with segment ``i``: its ancestors', then its own."""
    tokens, sequence = tokens_of(segments), []
    while i >= 0:
        sequence = tokens[i] + sequence
        i = segments[i][0]
    return sequence


def seen_by(segments: Segments) -> list[list[int]]:
    """For each token of the row, the tokens that it sees: those before it in its sequence."""
    seen = []
    for i, own in enumerate(tokens_of(segments)):
        sequence = sequence_of(segments, i)
        seen += [sequence[: len(sequence) - len(own) + n + 1] for n in range(len(own))]
    return seen


def layout_problem(layout, segments: Segments) -> str | None:
    """How ``subtree_end`` and ``position_ids`` differ from what the segments mean, or ``None``."""
    ends, positions = layout.subtree_end.tolist(), layout.position_ids.tolist()
    seen = seen_by(segments)
    if not len(ends) == len(positions) == len(seen):
        return f"expected {len(seen)} tokens, got {len(ends)} and {len(positions)}"
    for p, want in enumerate(seen):
        got = [j for j in range(p + 1) if p < ends[j]]
        if got != want:
            return f"token {p} sees {got}, expected {want}"
        if positions[p] != len(want) - 1:
            return f"token {p} stands at {positions[p]}, expected {len(want) - 1}"
    return None
