"""Start the engine's server in place of this process: checked files, safe defaults, a key.

No server is written here: ``serve`` checks what it was given and becomes
``python -m vllm.entrypoints.openai.api_server``, so that signals and the exit status are the
engine's own.
"""

import ipaddress
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from ridgeline.ops.common import check
from ridgeline.serving.cores import binding
from ridgeline.serving.guard import KEY, Guard

SERVER = "vllm.entrypoints.openai.api_server"
# Nothing is sent to others, and no routes or messages that run a caller's code.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_SERVER_DEV_MODE": "0",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "0",
}
# The engine's options that would undo a default, and what to do in place of them.
REFUSED = {
    "--api-key": f"the list of processes shows it; set {KEY}, or --key-file",
    "--config": "a file could hold any other option; give them one by one",
    "--host": "use ridgeline serve's --host",
    "--load-format": "weights are read from safetensors, other formats can run code",
    "--max-num-queued-reqs": "use --max-queue",
    "--model": "it is the first argument of ridgeline serve",
    "--port": "use ridgeline serve's --port",
    "--shutdown-timeout": "use --drain",
    "--trust-remote-code": "code that comes with a checkpoint is not run",
}


@dataclass(frozen=True)
class ServeOptions:
    """What ``ridgeline serve`` was given.

    Args:
        model: a directory with ``config.json`` and ``*.safetensors``.
        host: the address to listen on; beyond loopback it takes a key.
        max_queue: requests that may wait or run at once; more get 503.
        drain: seconds that requests in flight have to finish after SIGTERM.
        engine: further options of the engine's server.

    Raises:
        ValueError, TypeError: a value out of range, or an option that the engine must not get.
    """

    model: Path
    host: str = "127.0.0.1"
    port: int = 8000
    max_queue: int = 256
    drain: int = 30
    engine: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check.count("--port", self.port, minimum=1)
        if self.port > 65535:
            raise ValueError(f"--port: expected at most 65535, got {self.port}")
        check.count("--max-queue", self.max_queue, minimum=1)
        check.count("--drain", self.drain, minimum=0)
        if self.engine and not self.engine[0].startswith("-"):
            raise ValueError(f"expected one model and options after --, got {self.engine[0]!r}")
        for given in self.engine:
            name = given.partition("=")[0].replace("_", "-")
            for refused, reason in REFUSED.items():
                # The engine takes any beginning of an option's name for the option.
                if name == refused or (len(name) > 3 and refused.startswith(name)):
                    raise ValueError(f"{name}: not passed to the engine, {reason}")

    def command(self, guarded: bool) -> list[str]:
        """The server's command line; a key is never in it."""
        line = [sys.executable, "-m", SERVER, "--model", str(self.model)]
        line += ["--host", self.host, "--port", str(self.port)]
        line += ["--max-num-queued-reqs", str(self.max_queue)]
        line += ["--shutdown-timeout", str(self.drain)]
        line += ["--load-format", "safetensors", "--disable-fastapi-docs"]
        if guarded:
            line += ["--middleware", f"{Guard.__module__}.{Guard.__qualname__}"]
        return [*line, *self.engine]


@dataclass(frozen=True)
class Start:
    """A process to start: its command line, without the key, and its whole environment."""

    line: list[str]
    environment: Mapping[str, str]


def serve(options: ServeOptions, key_file: Path | None = None) -> NoReturn:
    """Become the engine's server.

    Args:
        key_file: holds the key that requests must bring; ``VLLM_API_KEY`` if None.

    Raises:
        ValueError, OSError: as of ``prepare`` and ``read_key``.
    """
    start = prepare(options, read_key(os.environ, key_file))
    sys.stderr.flush()
    os.execve(start.line[0], start.line, start.environment)


def prepare(options: ServeOptions, key: str | None = None) -> Start:
    """Check everything that can be checked before a server starts.

    Args:
        key: what requests must bring; without one the server listens on loopback alone.

    Raises:
        ValueError: vLLM is not installed, the model's files are not those of its manifest, or
            there is no key and ``options.host`` is not loopback.
    """
    require_engine()
    if key is None and not is_loopback(options.host):
        raise ValueError(
            f"--host: expected a loopback address without a key, got {options.host!r}; "
            f"set {KEY}, or --key-file"
        )
    if not check_model(options.model):
        print(f"{options.model} has no manifest, its files are unchecked", file=sys.stderr)
    environment = {name: value for name, value in os.environ.items() if name != KEY}
    environment |= ENVIRONMENT | ({} if key is None else {KEY: key})
    environment |= binding(options.engine, environment)
    return Start(options.command(guarded=key is not None), environment)


def require_engine() -> None:
    """Raises ``ValueError``, saying what to install, where there is no vLLM."""
    if find_spec("vllm") is None:
        raise ValueError("vLLM is not installed here: pip install 'ridgeline[vllm]'")


def read_key(environment: Mapping[str, str], key_file: Path | None) -> str | None:
    """The key of ``key_file``, or else of the environment; None where neither is given.

    Raises:
        ValueError: a key that is empty or that no header can carry.
        OSError: the file cannot be read.
    """
    if key_file is not None:
        name, key = "--key-file", key_file.read_text(encoding="utf-8").strip()
    elif KEY in environment:
        name, key = KEY, environment[KEY]
    else:
        return None
    if not key or not all("!" <= letter <= "~" for letter in key):
        raise ValueError(f"{name}: expected a key of visible ASCII characters without spaces")
    return key


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_model(directory: Path) -> bool:
    """Whether the files of ``directory`` are those of a manifest; False where there is none.

    Raises:
        ValueError: no model that may be served, or a file that is missing, altered or not listed;
            the message names it.
    """
    from ridgeline.models.manifest import MANIFEST, verify_manifest

    if not (directory / "config.json").is_file():
        raise ValueError(f"MODEL: expected a directory with config.json, got {str(directory)!r}")
    weights = sorted(directory.glob("*.safetensors"))
    if not weights:
        raise ValueError(f"{directory}: expected weights in *.safetensors, found none")
    if not verify_manifest(directory):
        return False
    listed = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))["files"]
    for path in [directory / "config.json", *weights]:
        if path.name not in listed:  # the engine would read it all the same
            raise ValueError(f"{path}: not listed in {MANIFEST}")
    return True
