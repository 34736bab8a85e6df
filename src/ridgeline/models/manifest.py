"""SHA-256 of every file of a checkpoint: a flipped bit or a cut file is found before it is used."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

MANIFEST = "manifest.json"


def write_manifest(directory: str | os.PathLike, files: Iterable[str] | None = None) -> Path:
    """Write ``manifest.json`` with size and SHA-256 of files of ``directory``, atomically.

    Args:
        files: their names; by default every file directly in ``directory`` whose name does not
            start with a dot.

    Returns:
        The path of the manifest.

    Raises:
        OSError: a file cannot be read, or the manifest not written; an older one is then kept.
    """
    directory = Path(directory)
    if files is None:
        found = (path for path in directory.iterdir() if path.is_file())
        files = [path.name for path in found if not path.name.startswith(".")]
    entries = {
        name: {"bytes": (directory / name).stat().st_size, "sha256": _sha256(directory / name)}
        for name in sorted(set(files) - {MANIFEST})
    }
    target = directory / MANIFEST
    staged = directory / f".{MANIFEST}.{os.getpid()}"
    try:
        staged.write_text(json.dumps({"files": entries}, indent=2) + "\n", encoding="utf-8")
        sync(staged)
        staged.replace(target)
    finally:
        staged.unlink(missing_ok=True)
    sync(directory)
    return target


def verify_manifest(directory: str | os.PathLike) -> bool:
    """Compare the files of ``directory`` with its manifest.

    Returns:
        Whether there is a manifest; without one nothing is compared.

    Raises:
        ValueError: a file is missing, truncated or altered, or the manifest itself is damaged; the
            message names the file.
    """
    directory = Path(directory)
    path = directory / MANIFEST
    if not path.is_file():
        return False
    for name, entry in _entries(path).items():
        file = directory / name
        if not file.is_file():
            raise ValueError(f"{file}: missing, though {MANIFEST} lists it")
        size = file.stat().st_size
        if size != entry["bytes"]:
            raise ValueError(
                f"{file}: truncated or altered, expected {entry['bytes']} bytes, got {size}"
            )
        digest = _sha256(file)
        if digest != entry["sha256"]:
            raise ValueError(f"{file}: altered, expected SHA-256 {entry['sha256']}, got {digest}")
    return True


def sync(path: str | os.PathLike) -> None:
    """Have the system write a file, or a directory's entries, to the disk now."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _entries(path: Path) -> dict[str, dict]:
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        for name, entry in files.items():
            if Path(name).name != name or not isinstance(entry["bytes"], int):
                raise ValueError(name)
            bytes.fromhex(entry["sha256"])
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise ValueError(f"{path}: not a readable manifest ({type(e).__name__}: {e})") from e
    return files


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
