"""First-fit-decreasing packing of trees into rows of a token budget."""

from collections.abc import Sequence

from ridgeline.ops.common import check


def first_fit_decreasing(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Rows of at most ``budget`` tokens, longest first into the first row with room.

    At most 11/9 of the least number of rows, and 2/3 of one more (Dosa, 2007).

    Args:
        lengths: tokens of each tree, at least 1.
        budget: tokens of a row, at least 1.

    Returns:
        The indices of each row's trees, ascending.

    Raises:
        ValueError: trees are longer than the budget; says which and how long.
        TypeError: a length or the budget is no int.
    """
    check.count("budget", budget, minimum=1)
    for i, length in enumerate(lengths):
        check.count(f"lengths[{i}]", length, minimum=1)
    too_long = [f"lengths[{i}] {n}" for i, n in enumerate(lengths) if n > budget]
    if too_long:
        more = f" and {len(too_long) - 5} more" if len(too_long) > 5 else ""
        raise ValueError(
            f"lengths: expected at most {budget} tokens, the budget, "
            f"got {', '.join(too_long[:5])}{more}"
        )
    room = _Room(len(lengths), budget)
    rows: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = room.take(lengths[i])
        if row == len(rows):
            rows.append([])
        rows[row].append(i)
    return [sorted(row) for row in rows]


class _Room:
    """What is left in each of ``size`` rows: a binary tree of maxima, so that n take n log n."""

    def __init__(self, size: int, budget: int) -> None:
        self.leaves = 1 << max(0, size - 1).bit_length()
        self.most = [budget] * (2 * self.leaves)

    def take(self, tokens: int) -> int:
        """The first row with room, which has that much less then."""
        node = 1
        while node < self.leaves:
            node *= 2
            node += self.most[node] < tokens
        row = node - self.leaves
        self.most[node] -= tokens
        while node > 1:
            node //= 2
            self.most[node] = max(self.most[2 * node], self.most[2 * node + 1])
        return row
