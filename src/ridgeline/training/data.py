"""Training text: finding it, reading it, holding some of it out, and drawing batches from it."""

import hashlib
import os
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from ridgeline.ops.common import check

# Not the library itself: installed packages, tests, machine-generated tables and build settings.
EXCLUDED_DIRS = {
    "site-packages",
    "dist-packages",
    "lib-dynload",
    "test",
    "tests",
    "idle_test",
    "encodings",
    "pydoc_data",
    "__phello__",
    "__pycache__",
}
EXCLUDED_PREFIXES = ("config-", "_sysconfigdata")
MIN_FILES_TO_SPLIT_BY_FILE = 20


@dataclass(frozen=True)
class Document:
    """One text file. ``name`` does not depend on where the text lies on this machine."""

    name: str
    text: str


@dataclass(frozen=True)
class Split:
    """Token ids of one side of the split, every document led by the end-of-text token."""

    tokens: np.ndarray  # [num_tokens], uint16 or uint32
    num_bytes: int  # of UTF-8 text

    @property
    def bytes_per_token(self) -> float:
        return self.num_bytes / len(self.tokens)


def stdlib_documents(root: Path | None = None) -> list[Document]:
    """The Python standard library's own sources, in the order of their names.

    Args:
        root: folder to read; ``None`` is the running interpreter's standard library.
    """
    root = Path(sysconfig.get_paths()["stdlib"]) if root is None else Path(root)
    names = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if not _excluded(name)]
        here = Path(folder).relative_to(root)
        names += [here / name for name in files if name.endswith(".py") and not _excluded(name)]
    # Marker files such as an empty __init__.py hold nothing to learn from.
    names = sorted(name.as_posix() for name in names if (root / name).stat().st_size > 0)
    if not names:
        raise FileNotFoundError(f"text: no Python sources under {root}; name text files instead")
    return [Document(name, read_text(root / name)) for name in names]


def _excluded(name: str) -> bool:
    return name in EXCLUDED_DIRS or name.startswith(EXCLUDED_PREFIXES)


def load_documents(paths: Sequence[str | Path]) -> list[Document]:
    """Reads text files, named relative to their common folder; no paths: the standard library.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is a folder, empty, not UTF-8 (with the byte offset) or given twice.
    """
    if not paths:
        return stdlib_documents()
    absolute = [Path(path).absolute() for path in paths]
    for path in absolute:
        if absolute.count(path) > 1:
            raise ValueError(f"text: {path} is given twice")
    base = os.path.commonpath([path.parent for path in absolute])
    documents = [Document(path.relative_to(base).as_posix(), read_text(path)) for path in absolute]
    return sorted(documents, key=lambda document: document.name)


def read_text(path: str | Path, name: str = "text") -> str:
    """A UTF-8 text file. Errors name the argument ``name``, the file and a bad byte's offset."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{name}: {path} does not exist")
    if not path.is_file():
        raise ValueError(f"{name}: {path} is not a file")
    data = path.read_bytes()
    if not data:
        raise ValueError(f"{name}: {path} is empty")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = data[error.start]
        raise ValueError(
            f"{name}: {path} is not UTF-8: byte 0x{byte:02x} at offset {error.start}"
        ) from error


def split_documents(
    documents: Sequence[Document], fraction: float
) -> tuple[list[Document], list[Document]]:
    """``(training, held out)``, the same on every machine that has the same texts.

    Whole files are held out, those whose names' SHA-256 rank lowest, so that no held-out line has
    neighbours in the training text. With fewer than 20 files the end of each one is held out.
    """
    if not 0 < check.finite("eval_fraction", fraction) < 1:
        raise ValueError(f"eval_fraction: expected a number between 0 and 1, got {fraction}")
    if len(documents) >= MIN_FILES_TO_SPLIT_BY_FILE:
        ranked = sorted(documents, key=lambda d: hashlib.sha256(d.name.encode()).digest())
        held_out = {d.name for d in ranked[: max(1, round(fraction * len(ranked)))]}
        return (
            [d for d in documents if d.name not in held_out],
            [d for d in documents if d.name in held_out],
        )
    train, held_out = [], []
    for document in documents:
        cut = int(len(document.text) * (1 - fraction))
        cut = document.text.rfind("\n", 0, cut) + 1 or cut
        train.append(Document(document.name, document.text[:cut]))
        held_out.append(Document(document.name, document.text[cut:]))
    return train, held_out


def window_count(num_tokens: int, context: int) -> int:
    """Training windows of an epoch: each is ``context`` inputs and their next tokens.

    One window's worth is left for the epoch's random shift.
    """
    return (num_tokens - 1) // context - 1


def require_tokens(name: str, split: Split, context: int) -> None:
    """Refuses a text from which no window of ``context`` tokens can be drawn."""
    needed = 2 * context + 1 if name == "training" else context + 1
    if len(split.tokens) < needed:
        raise ValueError(
            f"text: the {name} text is too short: {len(split.tokens)} tokens, at least {needed} "
            f"are needed at a context of {context}"
        )


def batch(tokens: np.ndarray, *, seed: int, index: int, size: int, context: int) -> np.ndarray:
    """Micro-batch number ``index`` of a run, ``[size, context + 1]`` int64.

    A pure function of its arguments: a resumed run needs no other data position than its step.
    Every epoch visits each window once, in a new order and with a new shift of the windows.
    """
    windows = window_count(len(tokens), context)
    rows = np.empty((size, context + 1), dtype=np.int64)
    for row in range(size):
        epoch, place = divmod(index * size + row, windows)
        shift, order = _epoch(seed, epoch, windows, context)
        start = shift + int(order[place]) * context
        rows[row] = tokens[start : start + context + 1]
    return rows


@lru_cache(maxsize=2)
def _epoch(seed: int, epoch: int, windows: int, context: int) -> tuple[int, np.ndarray]:
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    return int(generator.integers(context)), generator.permutation(windows)
