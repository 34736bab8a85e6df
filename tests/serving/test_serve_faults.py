"""``ridgeline serve`` under faults: one real server, which the last test of the file ends."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import psutil
import pytest
from checkpoints import tiny_checkpoint

from ridgeline.bench.serving import client
from ridgeline.bench.serving.measure import ON_CPU
from ridgeline.bench.serving.server import free_port, running
from ridgeline.cli import main
from ridgeline.serving.launch import ServeOptions, Start, prepare

SECRET = "correct-horse-battery"
BEARER = {"Authorization": f"Bearer {SECRET}"}
QUEUE = 4
CONTEXT = 512
LONG = 300  # tokens of a request that is still running when others come
BLOCK = 32
# Two and a half of the four requests that may run: float32, two layers, a row of 2 * 32 + 8.
CACHE_BYTES = 2 * (2 * 32 + 8) * 4 * BLOCK * 27
ENGINE = (
    *("--served-model-name", "m", "--dtype", "float32", "--enforce-eager"),
    *("--distributed-executor-backend", "uni", "--block-size", str(BLOCK)),
    *("--kv-cache-memory-bytes", str(CACHE_BYTES), "--max-model-len", str(CONTEXT)),
)


@dataclass
class Server:
    port: int
    log: Path
    process: subprocess.Popen

    def ask(self, path: str, body: object = None, headers: dict | None = None, method: str = ""):
        """Status and text of one request, with the key unless ``headers`` say otherwise."""
        data = body if isinstance(body, str | None) else json.dumps(body)
        given = BEARER if headers is None else headers
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(
                method or ("GET" if body is None else "POST"),
                path,
                data,
                {"Content-Type": "application/json", **given},
            )
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def complete(self, prompt: str, tokens: int) -> tuple[int, str]:
        """Status, and the text or the error of a greedy completion."""
        status, text = self.ask("/v1/completions", completion(prompt, tokens))
        found = json.loads(text)
        if status != 200:
            return status, text
        assert found["usage"]["completion_tokens"] == tokens
        return status, found["choices"][0]["text"]

    def together(self, prompts: list[str], tokens: int) -> list[tuple[int, str]]:
        with ThreadPoolExecutor(len(prompts)) as pool:
            return list(pool.map(lambda prompt: self.complete(prompt, tokens), prompts))

    def count(self, name: str, **labels: str) -> float:
        """A sample of ``/metrics``, all those with ``labels`` added up."""
        _, text = self.ask("/metrics")
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        lines = [x for x in text.splitlines() if re.match(rf"vllm:{name}[{{ ]", x)]
        assert lines, name
        return sum(float(x.split()[-1]) for x in lines if all(part in x for part in wanted))

    def wait_for(self, name: str, value: float, **labels: str) -> None:
        end = time.monotonic() + 20
        while (found := self.count(name, **labels)) != value:
            assert time.monotonic() < end, f"{name}: {found}, not {value}"
            time.sleep(0.05)


def completion(prompt: str, tokens: int, **more: object) -> dict:
    given = {"model": "m", "prompt": prompt, "max_tokens": tokens, "temperature": 0}
    return {**given, "ignore_eos": True, **more}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("serve") / "model", "gla")


@pytest.fixture(scope="module")
def server(checkpoint, tmp_path_factory) -> Iterator[Server]:
    port = free_port()
    log = tmp_path_factory.mktemp("log") / "server.log"
    options = ServeOptions(checkpoint, port=port, max_queue=QUEUE, engine=ENGINE)
    start = prepare(options, SECRET)
    more = {**ON_CPU, "OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "INFO"}  # it logs its routes
    start = Start(start.line, {**start.environment, **more})
    with running(start, f"http://127.0.0.1:{port}", log, timeout=400) as process:
        yield Server(port, log, process)


@pytest.fixture(scope="module")
def alone(server) -> dict[str, str]:
    """What each prompt gives when no other request runs."""
    found = {}
    for prompt in ("def read", "class A:", "import os", "return 1"):
        status, found[prompt] = server.complete(prompt, LONG)
        assert status == 200, found[prompt]
    assert len(set(found.values())) == len(found)
    return found


def test_every_route_takes_the_key(server) -> None:
    routes = re.findall(r"Route: (\S+), Methods: ([A-Z, ]+)", server.log.read_text())
    paths = {path for path, _ in routes}
    assert {"/invocations", "/v1/completions", "/metrics", "/tokenize"} <= paths
    assert not paths & {"/docs", "/openapi.json"}
    wrong = ({}, {"Authorization": f"Bearer {SECRET}x"}, {"Authorization": f"Basic {SECRET}"})
    body = json.dumps(completion("def read", 1))
    for path, methods in [*routes, ("/", "GET"), ("/no/such/route", "POST")]:
        for method in methods.split(", "):
            for headers in wrong:
                given = None if method in ("GET", "HEAD") else body
                status, _ = server.ask(re.sub(r"{\w+}", "x", path), given, headers, method)
                is_open = path == "/health" and method in ("GET", "HEAD")
                assert status == (200 if is_open else 401), (method, path)


def test_the_key_opens_generating_routes(server, alone) -> None:
    for path in ("/v1/completions", "/invocations"):
        status, text = server.ask(path, completion("def read", LONG))
        assert status == 200
        assert json.loads(text)["choices"][0]["text"] == alone["def read"]


def test_nobody_can_read_the_key_or_reach_it_from_elsewhere(server) -> None:
    processes = [psutil.Process(server.process.pid)]
    processes += processes[0].children(recursive=True)
    assert len(processes) > 1
    for process in processes:
        assert not any(SECRET in word for word in process.cmdline())
        listening = [x for x in process.net_connections("inet") if x.status == psutil.CONN_LISTEN]
        assert {x.laddr.ip for x in listening} <= {"127.0.0.1", "::1"}
    assert SECRET not in server.log.read_text()


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ('{"model": "m", "prompt": ', "JSON"),
        ("\x00\xff not json", "error"),
        ('{"model": "m"}', "prompt"),
        (json.dumps(completion("x", -1)), "max_tokens"),
        (json.dumps(completion("x" * CONTEXT, 1)), "max_tokens"),
        (json.dumps(completion("x" * 20 * CONTEXT, 1)), "maximum context length"),
    ],
    ids=["cut", "bytes", "no prompt", "negative", "no room", "long"],
)
def test_bad_requests_get_400(body, part, server) -> None:
    status, text = server.ask("/v1/completions", body)
    assert status == 400
    assert part in text
    assert "Traceback" not in text
    assert server.complete("def read", 2)[0] == 200


def test_three_times_the_queue(server, alone) -> None:
    prompts = list(alone) * 3
    assert len(prompts) == 3 * QUEUE
    found = server.together(prompts, LONG)
    refused = [json.loads(text)["error"]["code"] for status, text in found if status != 200]
    served = [
        (prompt, text)
        for prompt, (status, text) in zip(prompts, found, strict=True)
        if status == 200
    ]
    assert refused == [503] * len(refused)
    assert len(refused) >= QUEUE
    assert len(served) >= QUEUE
    for prompt, text in served:
        assert text == alone[prompt]
    server.wait_for("num_requests_running", 0)


def test_preempted_requests_give_the_same_tokens(server, alone) -> None:
    before = server.count("num_preemptions_total")
    found = server.together(list(alone), LONG)
    assert server.count("num_preemptions_total") > before
    assert found == [(200, text) for text in alone.values()]


def test_a_client_that_disconnects_frees_its_request(server, alone) -> None:
    before = server.count("generation_tokens_total")
    other: list = []
    thread = threading.Thread(target=lambda: other.append(server.complete("class A:", LONG)))
    thread.start()
    connection = HTTPConnection("127.0.0.1", server.port, timeout=60)
    body = json.dumps(completion("def read", LONG, stream=True))
    connection.request(
        "POST", "/v1/completions", body, {"Content-Type": "application/json", **BEARER}
    )
    answer = connection.getresponse()
    assert answer.status == 200
    assert answer.readline().startswith(b"data: ")
    answer.close()
    connection.close()
    thread.join()
    assert other == [(200, alone["class A:"])]
    server.wait_for("num_requests_running", 0)
    assert server.count("generation_tokens_total") - before < 1.5 * LONG
    assert server.count("kv_cache_usage_perc") == 0
    assert [status for status, _ in server.together(list(alone), 2)] == [200] * QUEUE


def test_the_client_of_the_benchmark(server, checkpoint, monkeypatch) -> None:
    monkeypatch.setenv(client.KEY, SECRET)
    url = f"http://127.0.0.1:{server.port}"
    load = client.Load(context=100, output=8, prompts=3, concurrency=2)
    before = client.metrics(url)
    assert before.capacity == CACHE_BYTES // (2 * (2 * 32 + 8) * 4)
    hits = []
    with client.Client() as driver:
        for _ in range(2):
            result = driver.drive(url, client.first_model(url), checkpoint, load, timeout=300)
            assert result["total_output_tokens"] == 3 * 8
            assert 0 < result["p50_ttft_ms"] <= result["p99_ttft_ms"] <= result["p99_e2el_ms"]
            after = client.metrics(url)
            assert after.queried - before.queried == result["total_input_tokens"]
            hits.append(after.hit - before.hit)
            before = after
        with pytest.raises(RuntimeError, match="3 of 3 requests failed"):
            driver.drive(url, "no-such-model", checkpoint, load, timeout=300)
    assert hits[0] < hits[1] == 3 * 96  # whole blocks of 32


def test_a_corrupted_checkpoint_does_not_start(checkpoint, tmp_path, monkeypatch, capsys) -> None:
    broken = shutil.copytree(checkpoint, tmp_path / "model")
    weights = broken / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 4
    weights.write_bytes(data)
    monkeypatch.setattr(sys, "argv", ["ridgeline", "serve", str(broken)])
    monkeypatch.setattr(os, "execve", lambda *given: pytest.fail(f"it started: {given}"))
    with pytest.raises(SystemExit, match="1"):
        main()
    message = capsys.readouterr().err
    assert message.startswith("ridgeline: error: ")
    assert "model.safetensors: altered, expected SHA-256" in message


def test_sigterm_under_load_lets_requests_finish(server, alone) -> None:
    """The last test: it ends the server."""
    group = [psutil.Process(server.process.pid)]
    group += group[0].children(recursive=True)
    found: dict[str, tuple[int, str]] = {}

    def ask(prompt: str) -> None:
        found[prompt] = server.complete(prompt, LONG)

    threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in list(alone)[:3]]
    for thread in threads:
        thread.start()
    server.wait_for("num_requests_running", 3)
    os.kill(server.process.pid, signal.SIGTERM)
    time.sleep(0.3)
    try:
        status, _ = server.ask("/v1/completions", completion("def read", 1))
    except (HTTPException, OSError):
        status = 503  # it listens no more
    assert status >= 500
    for thread in threads:
        thread.join()
    assert found == {prompt: (200, alone[prompt]) for prompt in found}
    assert len(found) == 3
    assert server.process.wait(60) == 0
    assert psutil.wait_procs(group[1:], timeout=20)[1] == []
