"""The engine's server as a child that never outlives the benchmark."""

import ctypes
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ridgeline.serving.launch import Start

PR_SET_PDEATHSIG = 1
POLL = 0.2  # seconds between two looks at a server that starts or stops
STOP = 15.0  # seconds that a server has to stop


@contextmanager
def running(start: Start, url: str, log: Path, timeout: float) -> Iterator[subprocess.Popen]:
    """A server that answers at ``url`` while the context is entered.

    Whatever ends the context, an exception or SIGTERM among it, ends the server and all of its
    processes; where this process itself is killed, the system sends the server SIGTERM.

    Args:
        log: a file for what the server prints.
        timeout: seconds that it has to start.

    Raises:
        RuntimeError: the server ended or did not answer in time; the message has its last lines.
    """
    before = signal.signal(signal.SIGTERM, _exit)
    process = None
    try:
        with log.open("wb") as out:
            process = subprocess.Popen(
                start.line,
                env=start.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )
        _await(process, url, log, timeout)
        yield process
    finally:
        if process is not None:
            stop(process)
        signal.signal(signal.SIGTERM, before)


def stop(process: subprocess.Popen) -> None:
    """End a server and every process of its session."""
    process.terminate()
    try:
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _await(process: subprocess.Popen, url: str, log: Path, timeout: float) -> None:
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}:\n{_tail(log)}")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(POLL)
    raise RuntimeError(f"the server did not answer within {timeout:g} s:\n{_tail(log)}")


def _tail(log: Path) -> str:
    """The last lines, after those that name an error: the engine's cause is far above its end."""
    lines = log.read_text(errors="replace").splitlines()
    causes = [line for line in lines[:-10] if "Error: " in line]
    return "\n".join([*dict.fromkeys(causes[-5:]), *lines[-10:]])


def end_with_parent() -> None:
    """Linux: SIGTERM to this process when its parent dies, however that happens."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _exit(signum: int, frame: object) -> None:
    raise SystemExit(128 + signum)
