"""Preference pairs from a file, or from Python's standard library."""

import json
from pathlib import Path

from datasets import Dataset

from ridgeline.ops.common import check
from ridgeline.training.continuations import continuation_pairs
from ridgeline.training.data import read_text, split_documents, stdlib_documents

STDLIB = "stdlib"
COLUMNS = ("prompt", "chosen", "rejected")
STDLIB_FRACTION = 0.05  # of files that ``ridgeline train`` holds out by default
STDLIB_HELD_OUT = 64  # pairs of them


def load_pairs(
    data: str, eval_fraction: float, *, count: int | None = None, seed: int = 0
) -> tuple[Dataset, Dataset | None]:
    """``(training, held out)`` pairs.

    Args:
        data: a JSONL file with ``prompt`` (or none, where the others begin with it), ``chosen``
            and ``rejected`` a line, texts or lists of messages; or "stdlib", true against shuffled
            continuations of the standard library's functions.
        eval_fraction: part of the file's last lines that is held out, 0 for none. Of "stdlib" 64
            pairs of the files that ``ridgeline train`` holds out by default.
        count: training pairs, the first ones of a file; ``None`` for all.
        seed: of "stdlib".

    Raises:
        FileNotFoundError, ValueError: there is no such file, or a line is no pair; says which.
    """
    if not 0 <= check.finite("eval_fraction", eval_fraction) < 1:
        raise ValueError(f"eval_fraction: expected 0 <= eval_fraction < 1, got {eval_fraction}")
    if data == STDLIB:
        train, held_out = split_documents(stdlib_documents(), STDLIB_FRACTION)
        pairs = continuation_pairs(train, count, seed=seed)
        kept = continuation_pairs(held_out, STDLIB_HELD_OUT, seed=seed) if eval_fraction else []
    else:
        pairs = _read(Path(data))
        cut = len(pairs) - round(eval_fraction * len(pairs))
        pairs, kept = pairs[:cut][:count], pairs[cut:]
        if not pairs or bool(kept) != bool(eval_fraction):
            raise ValueError(
                f"eval_fraction: expected pairs on both sides, got {len(pairs)} for training and "
                f"{len(kept)} held out"
            )
    return Dataset.from_list(pairs), Dataset.from_list(kept) if kept else None


def _read(path: Path) -> list[dict]:
    pairs: list[dict] = []
    for number, line in enumerate(read_text(path, "data").splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            pair = json.loads(line)
        except json.JSONDecodeError as e:
            raise ValueError(f"{where}: expected a JSON object, got {e}") from e
        if not isinstance(pair, dict):
            raise ValueError(f"{where}: expected a JSON object, got {type(pair).__name__}")
        pair = {name: pair[name] for name in COLUMNS if name in pair}
        missing = [name for name in COLUMNS[1:] if name not in pair]
        if missing:
            raise ValueError(f"{where}: expected prompt, chosen and rejected, lacks {missing[0]}")
        kinds = {name: type(value) for name, value in pair.items()}
        if pairs and kinds.keys() != pairs[0].keys():
            raise ValueError(f"{where}: expected {', '.join(pairs[0])} as in the first line")
        for name, kind in kinds.items():
            if kind not in (str, list):
                raise ValueError(
                    f"{where}: expected a text or a list of messages, got {kind.__name__} in {name}"
                )
            if not pair[name]:
                raise ValueError(f"{where}: expected no empty text, got one in {name}")
        if len(set(kinds.values())) > 1:
            raise ValueError(f"{where}: expected texts or lists of messages, got both")
        pairs.append(pair)
    return pairs
