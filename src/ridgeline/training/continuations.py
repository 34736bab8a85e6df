"""Preference pairs of real text: how a function goes on, against the same lines shuffled."""

import ast
import random
from collections.abc import Iterator, Sequence

from ridgeline.ops.common import check
from ridgeline.training.data import Document

MIN_LINES = 4  # of a continuation: fewer have few orders, and some of those are as good
PROMPT_BYTES = 1200
RESPONSE_BYTES = 400


def continuation_pairs(
    documents: Sequence[Document], count: int | None = None, *, seed: int = 0
) -> list[dict[str, str]]:
    """Preference pairs from the functions of Python sources.

    The prompt is the function up to its middle, its last ``PROMPT_BYTES`` at most; chosen is the
    next lines of the source, rejected the same lines in another order, so that length and words
    tell nothing.

    Args:
        documents: Python sources, such as ``stdlib_documents()``.
        count: pairs, drawn without replacement; ``None`` for every function that has one.
        seed: of the orders, and of which functions are drawn.

    Returns:
        Dicts of ``prompt``, ``chosen`` and ``rejected``, the same for the same arguments.

    Raises:
        ValueError: fewer than ``count`` functions have a pair, or a document is not Python.
    """
    rng = random.Random(seed)
    found = [
        pair
        for document in documents
        for lines in _functions(document)
        if (pair := _pair(lines, rng)) is not None
    ]
    if count is None:
        return found
    check.count("count", count, minimum=1)
    if len(found) < count:
        raise ValueError(
            f"count: expected at most {len(found)}, the functions of {len(documents)} documents "
            f"that make a pair, got {count}"
        )
    return rng.sample(found, count)


def _functions(document: Document) -> Iterator[list[str]]:
    """The lines of each function of a source that is in no other function."""
    try:
        tree = ast.parse(document.text)
    except (SyntaxError, ValueError) as e:
        raise ValueError(f"documents: {document.name} is not Python: {e}") from e
    lines = document.text.splitlines()
    todo: list[ast.AST] = [tree]
    while todo:
        for node in ast.iter_child_nodes(todo.pop()):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield lines[node.lineno - 1 : node.end_lineno]
            elif isinstance(node, ast.ClassDef):
                todo.append(node)


def _pair(lines: list[str], rng: random.Random) -> dict[str, str] | None:
    """The pair of one function, ``None`` where it is too short to make one."""
    middle = (len(lines) + 1) // 2
    while not lines[middle - 1].strip():
        middle -= 1
    prompt = "\n".join(lines[:middle])
    chosen: list[str] = []
    for line in lines[middle:]:
        if sum(len(x.encode()) + 1 for x in (*chosen, line)) > RESPONSE_BYTES:
            break
        chosen.append(line)
    if len(chosen) < MIN_LINES or len(set(chosen)) < MIN_LINES:
        return None
    rejected = list(chosen)
    while rejected == chosen:
        rng.shuffle(rejected)
    return {
        "prompt": prompt.encode()[-PROMPT_BYTES:].decode(errors="ignore"),
        # A line break belongs to the indentation behind it: byte-level tokenizers merge the two.
        "chosen": "\n" + "\n".join(chosen),
        "rejected": "\n" + "\n".join(rejected),
    }
