"""Load on an endpoint by vLLM's own client, and what the endpoint says of itself."""

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Timer

from ridgeline.bench.serving.server import end_with_parent

DONE = "the load is done"
# One process for all loads: it takes many seconds to start, and has no command of its own where
# the engine's ``vllm`` does not start.
CLIENT = f"""
import json, sys
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
for line in sys.stdin:
    main(parser.parse_args(json.loads(line)))
    print({DONE!r}, flush=True)
"""
PERCENTILES = (50, 99)
LATENCIES = ("ttft", "itl", "e2el")
KEY = "OPENAI_API_KEY"  # the environment variable that the client reads

_SAMPLE = re.compile(r"^(?P<name>[\w:]+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Load:
    """Requests of ``context`` random tokens that ask for ``output`` more, greedily.

    ``concurrency`` of ``prompts`` are under way at a time. The same seed draws the same prompts.
    """

    context: int
    output: int
    prompts: int
    concurrency: int
    seed: int = 0


@dataclass(frozen=True)
class Metrics:
    """Counts of an engine since it started; ``capacity`` is None where it does not tell.

    ``capacity``: tokens that its cache holds. ``queried``, ``hit``: prompt tokens that were looked
    up in the prefix cache, and those found.
    """

    capacity: int | None = None
    preemptions: float = 0
    queried: float = 0
    hit: float = 0


class Client:
    """vLLM's client as a child process, for any number of loads; a context manager."""

    def __init__(self) -> None:
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", CLIENT],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=end_with_parent,
        )

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:  # closes its pipes, and waits
            self._process.kill()

    def drive(self, url: str, model: str, tokenizer: Path, load: Load, timeout: float) -> dict:
        """The client's result: times in ms, ``output_throughput`` in tokens a second.

        Raises:
            RuntimeError: a request failed, or the client did or took more than ``timeout`` seconds;
                the message has its last lines.
        """
        with TemporaryDirectory(prefix="ridgeline-client-") as folder:
            result = Path(folder, "result.json")
            order = _arguments(url, model, tokenizer, load, result)
            watchdog = Timer(timeout, self._process.kill)
            watchdog.start()
            try:
                self._run(order)
            finally:
                watchdog.cancel()
            found = json.loads(result.read_text(encoding="utf-8"))
        if found["completed"] != load.prompts:
            failed = load.prompts - found["completed"]
            raise RuntimeError(f"{failed} of {load.prompts} requests failed")
        return found

    def _run(self, order: list[str]) -> None:
        last: deque[str] = deque(maxlen=20)
        with suppress(BrokenPipeError):  # a client that ended has said why
            print(json.dumps(order), file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.rstrip("\n") == DONE:
                return
            last.append(line)
        raise RuntimeError(f"the client ended with {self._process.wait()}:\n{''.join(last)}")


def _arguments(url: str, model: str, tokenizer: Path, load: Load, result: Path) -> list[str]:
    given = {
        "--backend": "openai",
        "--base-url": url,
        "--model": model,
        "--tokenizer": tokenizer,
        "--dataset-name": "random",
        "--random-input-len": load.context,
        "--random-output-len": load.output,
        "--num-prompts": load.prompts,
        "--max-concurrency": load.concurrency,
        "--seed": load.seed,
        "--temperature": 0,
        "--ready-check-timeout-sec": 0,
        "--percentile-metrics": ",".join(LATENCIES),
        "--metric-percentiles": ",".join(map(str, PERCENTILES)),
        "--result-dir": result.parent,
        "--result-filename": result.name,
    }
    pairs = [str(word) for pair in given.items() for word in pair]
    return [*pairs, "--disable-tqdm", "--save-result"]


def first_model(url: str) -> str:
    """The name of the first model that the endpoint serves."""
    return json.loads(_get(f"{url}/v1/models"))["data"][0]["id"]


def metrics(url: str) -> Metrics:
    """What ``/metrics`` of a vLLM says; zeros and None for an endpoint without it."""
    try:
        text = _get(f"{url}/metrics")
    except urllib.error.HTTPError:
        return Metrics()
    return read_metrics(text)


def read_metrics(text: str) -> Metrics:
    """``Metrics`` from Prometheus' text format, summed over a server's engines."""
    capacity = None
    counts = dict.fromkeys(("num_preemptions", "prefix_cache_queries", "prefix_cache_hits"), 0.0)
    for sample in _SAMPLE.finditer(text):
        name = sample["name"].removeprefix("vllm:").removesuffix("_total")
        if name == "cache_config_info":
            tokens = dict(_LABEL.findall(sample["labels"]))["kv_cache_size_tokens"]
            capacity = (capacity or 0) + int(tokens)
        elif name in counts:
            counts[name] += float(sample["value"])
    return Metrics(capacity, *counts.values())


def _get(url: str) -> str:
    key = os.environ.get(KEY)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
        return answer.read().decode()
