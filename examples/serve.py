"""Serve a model, and read a completion as it is generated.

    python examples/serve.py                        # starts a server with the model that ships
    python examples/serve.py http://127.0.0.1:8000  # asks one that runs; key: OPENAI_API_KEY

Without an address it starts what `ridgeline serve` starts: vLLM with Ridgeline's plugin, on
loopback and with a bounded queue, for as long as the script runs. Prints the name of the model, the
text as it comes in over the OpenAI protocol, and the time to its first token.
"""

import json
import os
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def ask(url: str, body: dict | None = None) -> urllib.request.Request:
    key = os.environ.get("OPENAI_API_KEY")
    headers = {"Content-Type": "application/json"}
    headers |= {"Authorization": f"Bearer {key}"} if key else {}
    data = None if body is None else json.dumps(body).encode()
    return urllib.request.Request(url, data, headers)


def model_name(url: str) -> str:
    with urllib.request.urlopen(ask(f"{url}/v1/models"), timeout=60) as answer:
        return json.load(answer)["data"][0]["id"]


def stream(url: str, model: str, prompt: str) -> Iterator[str]:
    """The pieces of a completion, as they arrive."""
    body = {"model": model, "prompt": prompt, "max_tokens": 32, "temperature": 0, "stream": True}
    with urllib.request.urlopen(ask(f"{url}/v1/completions", body), timeout=60) as answer:
        for line in answer:
            event = line.decode().strip().removeprefix("data: ")
            if event == "[DONE]":
                return
            if event:
                yield json.loads(event)["choices"][0]["text"]


@contextmanager
def own_server() -> Iterator[str]:
    """The address of a server that runs within the context."""
    from ridgeline.bench.serving.measure import ON_CPU
    from ridgeline.bench.serving.server import free_port, running
    from ridgeline.models.generate import default_model
    from ridgeline.serving.launch import ServeOptions, Start, prepare

    port = free_port()
    engine = ("--served-model-name", "gla-stdlib", "--dtype", "float32", "--enforce-eager")
    start = prepare(ServeOptions(default_model(), port=port, max_queue=8, engine=engine))
    start = Start(start.line, {"VLLM_CPU_KVCACHE_SPACE": "1", **start.environment, **ON_CPU})
    url = f"http://127.0.0.1:{port}"
    with (
        tempfile.TemporaryDirectory() as folder,
        running(start, url, Path(folder) / "server.log", timeout=600),
    ):
        yield url


def main(url: str) -> None:
    model, prompt = model_name(url), "def main(argv=None):\n"
    print(f"{model} at {url}")
    began, first = time.monotonic(), None
    print(prompt, end="")
    for piece in stream(url, model, prompt):
        first = first or time.monotonic() - began
        print(piece, end="", flush=True)
    print(f"\nfirst token after {first * 1e3:.0f} ms")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1].rstrip("/"))
    else:
        with own_server() as address:
            main(address)
