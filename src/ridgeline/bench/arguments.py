"""Lists and thread counts on the command line."""

from collections.abc import Sequence

import torch


def names(text: str) -> tuple[str, ...]:
    return tuple(x.strip() for x in text.split(","))


def integers(option: str, text: str) -> tuple[int, ...]:
    """Comma-separated positive integers.

    Raises:
        ValueError: names the option and what came.
    """
    try:
        found = tuple(int(x) for x in text.split(","))
    except ValueError:
        raise ValueError(f"{option}: expected integers like 1,4,16, got {text!r}") from None
    if min(found) < 1:
        raise ValueError(f"{option}: expected integers of at least 1, got {text!r}")
    return found


def sizes(
    batch: str | None, length: str | None, default: Sequence[tuple[int, int]]
) -> tuple[tuple[int, int], ...]:
    """``(batch, length)`` pairs; a single number stands beside every number of the other list."""
    if batch is None and length is None:
        return tuple(default)
    if batch is None or length is None:
        missing = "--batch" if batch is None else "--length"
        raise ValueError(f"{missing}: expected together with the other of --batch and --length")
    b, n = integers("--batch", batch), integers("--length", length)
    if len(b) != len(n) and 1 not in (len(b), len(n)):
        raise ValueError(
            f"--length: expected as many as --batch ({len(b)}) or one of either, got {len(n)}"
        )
    count = max(len(b), len(n))
    return tuple(zip(b * (count // len(b)), n * (count // len(n)), strict=True))


def optional(option: str, text: str | None) -> tuple[int, ...] | None:
    """``integers``, or ``None`` where the option was not given."""
    return None if text is None else integers(option, text)


def single(option: str, found: tuple[int, ...] | None) -> int | None:
    """The one number of a list, where only a GPU takes several."""
    if found is None:
        return None
    if len(found) > 1:
        raise ValueError(f"{option}: expected one number without --device cuda, got {len(found)}")
    return found[0]


def distances(option: str, text: str | None) -> tuple[int, ...] | None:
    """Comma-separated integers of at least 0, or "none" for none of them."""
    if text is None or text == "none":
        return None if text is None else ()
    try:
        found = tuple(int(x) for x in text.split(","))
    except ValueError:
        raise ValueError(f"{option}: expected none or integers like 0,2, got {text!r}") from None
    if min(found) < 0:
        raise ValueError(f"{option}: expected integers of at least 0, got {text!r}")
    return found


def refuse(option: str, given: object, needs: str) -> None:
    """Raise for an option that means nothing without another."""
    if given is not None:
        raise ValueError(f"{option}: expected together with {needs}")


def set_threads(threads: int) -> None:
    """torch's thread count, which the compiled core follows; 0 leaves it."""
    if threads:
        torch.set_num_threads(threads)
