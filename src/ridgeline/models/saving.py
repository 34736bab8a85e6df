"""Saving a model so that a crash or a full disk leaves what was there before."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ridgeline.models.manifest import MANIFEST, sync, write_manifest

TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)


@contextmanager
def staged(directory: str | os.PathLike) -> Iterator[Path]:
    """A directory beside ``directory`` to write to; its files become those of ``directory``.

    On leaving, the files and a manifest of them and of ``directory``'s tokenizer reach the disk
    and then move into place, the manifest last. A crash before the move changes nothing. One
    during it leaves the old manifest, which the new files fail: a mixture is never loaded.

    Raises:
        OSError: the files cannot be written; ``directory``, which the message names, is unchanged.
        ValueError: ``directory`` is a file.
    """
    directory = Path(directory).resolve()
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory}: expected a directory, got a file")
    staging = directory.with_name(f".{directory.name}.staging-{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir(parents=True)
        yield staging
        for name in TOKENIZER_FILES:
            if (directory / name).is_file() and not (staging / name).exists():
                shutil.copy2(directory / name, staging / name)
        write_manifest(staging)
        for path in staging.iterdir():
            sync(path)
        sync(staging)
    except (OSError, SafetensorError) as e:
        raise OSError(f"{directory}: cannot save, nothing was changed ({e})") from e
    else:
        _move(staging, directory)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _move(staging: Path, directory: Path) -> None:
    if not directory.exists() or not any(directory.iterdir()):
        staging.rename(directory)
    else:
        names = {path.name for path in staging.iterdir()}
        for name in sorted(names - {MANIFEST}):
            (staging / name).replace(directory / name)
        # Weights of an earlier save with other shards would be found before the new ones.
        for stale in directory.glob("model*.safetensors*"):
            if stale.name not in names:
                stale.unlink()
        (staging / MANIFEST).replace(directory / MANIFEST)
        sync(directory)
    sync(directory.parent)
