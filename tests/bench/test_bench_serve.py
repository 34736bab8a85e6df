"""``ridgeline bench serve`` with a server and a client that compute nothing."""

import csv
import itertools
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from matplotlib.figure import Figure
from transformers import AutoConfig
from typer.testing import CliRunner

from ridgeline.bench.grid import PlainConsole
from ridgeline.bench.serving import client, measure, models, report, run, server
from ridgeline.bench.serving.client import Client, Load, Metrics
from ridgeline.bench.serving.measure import Row, ServeBenchOptions
from ridgeline.bench.serving.models import ServedShape
from ridgeline.cli import app
from ridgeline.models import RidgelineForCausalLM
from ridgeline.models.manifest import verify_manifest
from ridgeline.serving import launch
from ridgeline.serving.launch import Start

TINY = ServedShape(
    layers=2, hidden=64, intermediate=256, heads=4, kv_heads=2, latent_heads=2, q_rank=32
)
# Its cache holds a token in as many KiB as the model's name has letters; a child lives beside it.
SERVER = """
import json, subprocess, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
given = dict(zip(sys.argv[1:], sys.argv[2:]))
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
name = Path(given["--model"]).name
tokens = int(given["--kv-cache-memory-bytes"]) // (1024 * len(name))
info = f'vllm:cache_config_info{{engine="0",kv_cache_size_tokens="{tokens}"}} 1.0'
preemptions = 0
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        global preemptions
        preemptions += self.path == "/metrics"
        text = {
            "/health": "",
            "/metrics": f"# HELP x y\\n{info}\\nvllm:num_preemptions_total {preemptions}\\n",
            "/v1/models": json.dumps({"data": [{"id": name}]}),
        }[self.path]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())
    def log_message(self, *_):
        pass
print("the server's last words", child.pid, flush=True)
if "--fails" in sys.argv:
    sys.exit(3)
if "--deaf" in sys.argv:
    import signal
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
HTTPServer(("127.0.0.1", int(given["--port"])), Handler).serve_forever()
"""
CLIENT = f"""
import json, sys, time
from pathlib import Path
for line in sys.stdin:
    order = json.loads(line)
    given = dict(zip(order, order[1:]))
    prompts = int(given["--num-prompts"])
    print("a line of the client", flush=True)
    if prompts == 99:
        time.sleep(600)
    if prompts == 98:
        sys.exit(7)
    keys = [f"p{{p}}_{{x}}_ms" for p in (50, 99) for x in ("ttft", "itl", "e2el")]
    found = dict.fromkeys(keys, 12.5) | {{
        "completed": prompts - (prompts == 97),
        "duration": 2.0,
        "output_throughput": 10.0 * len(Path(given["--model"]).name),
        "order": given,
    }}
    Path(given["--result-dir"], given["--result-filename"]).write_text(json.dumps(found))
    print({client.DONE!r}, flush=True)
"""


def fake_start(*given: str, path: str = "gqa", port: int = 0, mib: int = 1) -> Start:
    line = [sys.executable, "-c", SERVER, "--model", path, "--port", str(port)]
    line += ["--kv-cache-memory-bytes", str(mib * measure.MIB), *given]
    return Start(line, dict(os.environ))


def alive(pids: list[int]) -> list[int]:
    """Those that still run; a process that was killed may take a moment."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        found = [
            pid
            for pid in pids
            if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        ]
        if not found:
            break
        time.sleep(0.02)
    return found


def child_in(log: Path) -> int:
    return int(log.read_text().split()[-1])


@pytest.fixture(autouse=True)
def _quick(monkeypatch) -> None:
    monkeypatch.setattr(server, "POLL", 0.02)
    monkeypatch.setattr(client, "CLIENT", CLIENT)


def test_a_server_ends_with_its_context(tmp_path) -> None:
    port, log = server.free_port(), tmp_path / "log"
    before = signal.getsignal(signal.SIGTERM)
    found = []

    def fail() -> None:
        with server.running(fake_start(port=port), f"http://127.0.0.1:{port}", log, 20) as process:
            found.append(process)
            assert process.poll() is None
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert alive([found[0].pid, child_in(log)]) == []
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_server_that_ignores_sigterm_ends_too(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(server, "STOP", 0.2)
    port, log = server.free_port(), tmp_path / "log"
    start = fake_start("--deaf", "x", port=port)
    with server.running(start, f"http://127.0.0.1:{port}", log, 20) as process:
        pass
    assert process.returncode == -signal.SIGKILL
    assert alive([process.pid, child_in(log)]) == []


@pytest.mark.parametrize(
    ("given", "timeout", "message"),
    [(("--fails", "x"), 20, "ended with 3"), ((), 4.0, "did not answer within 4 s")],
    ids=["ends", "is slow"],
)
def test_a_server_that_does_not_start(given, timeout, message, tmp_path) -> None:
    log = tmp_path / "log"
    url = f"http://127.0.0.1:{server.free_port()}"  # another port than the server's own
    start = fake_start(*given, port=server.free_port())
    with (
        pytest.raises(RuntimeError, match=rf"{message}[^$]*last words"),
        server.running(start, url, log, timeout),
    ):
        pass
    assert alive([child_in(log)]) == []


def test_sigterm_to_the_driver_ends_its_server(tmp_path) -> None:
    port, log = server.free_port(), tmp_path / "log"
    found = []

    def driver() -> None:
        with server.running(fake_start(port=port), f"http://127.0.0.1:{port}", log, 20) as process:
            found.append(process.pid)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(20)

    with pytest.raises(SystemExit) as raised:
        driver()
    assert raised.value.code == 143
    assert alive([*found, child_in(log)]) == []


def test_a_killed_driver_leaves_no_server(tmp_path) -> None:
    port, log = server.free_port(), tmp_path / "log"

    def drive() -> None:
        with server.running(fake_start(port=port), f"http://127.0.0.1:{port}", log, 20) as process:
            (tmp_path / "pid").write_text(str(process.pid))
            time.sleep(600)

    driver = multiprocessing.get_context("fork").Process(target=drive)
    driver.start()
    end = time.monotonic() + 20
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < end
        time.sleep(0.02)
    driver.kill()
    driver.join()
    assert alive([int((tmp_path / "pid").read_text())]) == []
    os.kill(child_in(log), signal.SIGKILL)  # vLLM's processes watch the one that started them


def test_the_client_gets_the_load() -> None:
    load = Load(context=7, output=5, prompts=3, concurrency=2, seed=11)
    with Client() as driver:
        for _ in range(2):
            order = driver.drive("http://u", "m", Path("t"), load, 20)["order"]
    expected = {
        "--base-url": "http://u",
        "--model": "m",
        "--tokenizer": "t",
        "--random-input-len": "7",
        "--random-output-len": "5",
        "--num-prompts": "3",
        "--max-concurrency": "2",
        "--seed": "11",
    }
    assert expected.items() <= order.items()
    assert alive([driver._process.pid]) == []


@pytest.mark.parametrize(
    ("prompts", "message"),
    [(97, "1 of 97 requests failed"), (98, "ended with 7:\na line of"), (99, "ended with -9")],
    ids=["a request fails", "it ends", "it hangs"],
)
def test_a_client_that_fails(prompts, message) -> None:
    load = Load(context=7, output=5, prompts=prompts, concurrency=2)
    with Client() as driver, pytest.raises(RuntimeError, match=message):
        driver.drive("http://u", "m", Path("t"), load, 0.5 if prompts == 99 else 20)


def test_metrics_are_read() -> None:
    text = """# HELP vllm:num_preemptions_total Preemptions.
# TYPE vllm:num_preemptions_total counter
vllm:num_preemptions_total{engine="0",model_name="a \\"b\\""} 2.0
vllm:num_preemptions_total{engine="1",model_name="c"} 1.0
vllm:num_preemptions_created{engine="0",model_name="c"} 1.7e+09
vllm:prefix_cache_queries_total{engine="0"} 64.0
vllm:prefix_cache_hits_total{engine="0"} 48.0
vllm:external_prefix_cache_hits_total{engine="0"} 5.0
vllm:cache_config_info{block_size="16",kv_cache_size_tokens="100",engine="0"} 1.0
vllm:cache_config_info{block_size="16",kv_cache_size_tokens="120",engine="1"} 1.0
"""
    assert client.read_metrics(text) == Metrics(220, 3.0, 64.0, 48.0)
    assert client.read_metrics("up 1\n") == Metrics()


def test_models_have_the_same_size(tmp_path) -> None:
    sizes = {}
    for name in ("gqa", "mla", "gla"):
        path = tmp_path / name
        found = models.save(TINY, name, path, positions=128, dtype=torch.bfloat16)
        sizes[name] = found.parameters
        assert verify_manifest(path)
        config = AutoConfig.from_pretrained(path)
        assert config.max_position_embeddings == 128
        model = RidgelineForCausalLM.from_pretrained(path)
        assert sum(p.numel() for p in model.parameters()) == found.parameters
    assert max(sizes.values()) < 1.002 * min(sizes.values())


def fake_prepare(options: launch.ServeOptions) -> Start:
    start = fake_start(path=str(options.model), port=options.port)
    return Start([*start.line[:3], *options.command(guarded=False)[3:]], start.environment)


@pytest.fixture
def rows(monkeypatch, tmp_path) -> list[Row]:
    """GQA holds the requests in the larger budget alone, the others in the smaller one too."""
    monkeypatch.setattr(measure, "prepare", fake_prepare)
    monkeypatch.setattr(run, "require_engine", lambda: None)
    options = ServeBenchOptions(
        variants=("gqa", "mla"),
        attention=("ridgeline", "engine"),
        shape=TINY,
        cache_mib=(2, 1),
        contexts=(140,),
        concurrency=(2,),
        output=5,
        engine=("--enforce-eager",),
    )
    monkeypatch.setattr(measure, "MIB", 1024 * 600)  # 200 and 400 tokens of 3 KiB
    out = {name: tmp_path / f"out.{name}" for name in ("csv", "json")}
    found = run.bench_serve(options, PlainConsole(), **out, plot_file=tmp_path / "out.png")
    assert (tmp_path / "out.png").stat().st_size > 0
    lines = [x for x in out["csv"].read_text().splitlines() if not x.startswith("#")]
    assert len(list(csv.DictReader(lines))) == len(found)
    return found


def test_every_model_is_loaded_in_its_budgets(rows, capsys) -> None:
    mib = measure.MIB
    got = [(r.name, r.attention, r.cache_bytes // mib, r.seen, round(r.held, 2)) for r in rows]
    ours = [("gqa", "ridgeline", m, s, m * 200 / 145) for m in (1, 2) for s in (False, True)]
    ours += [("mla", "ridgeline", m, s, m * 200 / 145) for m in (1, 2) for s in (False, True)]
    engine = [("gqa", "engine", 2, s, 400 / 145) for s in (False, True)]
    assert got == [(*x, round(held, 2)) for *x, held in ours + engine]
    assert {r.preemptions for r in rows} == {1}
    record = report.record(rows[0])
    assert record["cache_bytes_per_token"] == 3072
    assert record["output_tokens/s"] == 30.0
    assert record["p99_itl_ms"] == 12.5
    assert record["prompts_are"] == "new"


def test_labels_of_equal_points_lie_apart() -> None:
    figure = Figure()
    ax = figure.subplots()
    found = [
        ax.annotate("two\nlines", (0.5, y), (9, 0), textcoords="offset points")
        for y in (0.5, 0.5, 0.501, 0.9)
    ]
    figure.draw_without_rendering()
    report.spread(found)
    boxes = [label.get_window_extent() for label in found]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert found[3].xyann == (9, 0)  # which had nothing above it


def test_a_larger_budget_is_measured_where_it_changes_something(monkeypatch) -> None:
    monkeypatch.setattr(measure, "prepare", fake_prepare)
    options = ServeBenchOptions(
        variants=("gqa",), shape=TINY, cache_mib=(1, 2), contexts=(60,), concurrency=(2,), output=5
    )
    with Client() as driver:
        found = measure.measure("gqa", "ridgeline", options, driver)
    assert [r.cache_bytes // measure.MIB for r in found] == [1, 1]  # 341 tokens, 130 needed


def test_notes_compare_within_a_budget() -> None:
    def row(name: str, mib: int, rate: float, attention: str = "ridgeline") -> Row:
        load = Load(context=8, output=2, prompts=1, concurrency=1)
        about = (name, attention, 1, mib * measure.MIB, {})
        return Row(*about, load, False, {"output_throughput": rate}, Metrics(), Metrics())

    rows = [row("gqa", 1, 10.0), row("gqa", 2, 20.0), row("gta", 1, 30.0), row("gla", 2, 50.0)]
    where = "MiB, 1 x 8+2, new)"
    assert report.notes([*rows, row("gqa", 2, 8.0, "engine")]) == [
        f"gta: 3.00x GQA's tokens/s (1 {where}",
        f"gta: 1.50x GQA's tokens/s (2 {where}",
        f"gla: 2.50x GQA's tokens/s (2 {where}",
        f"GQA: 2.50x vLLM's own attention (2 {where}",
    ]
    seen = replace(rows[2], seen=True)
    assert report.notes([rows[0], seen]) == []


def test_an_endpoint_that_runs_already(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(run, "require_engine", lambda: None)
    port = server.free_port()
    url = f"http://127.0.0.1:{port}"
    options = ServeBenchOptions(contexts=(8, 16), concurrency=(2,), prompts=4)
    with server.running(fake_start(path="their", port=port), url, tmp_path / "log", 20):
        found = run.bench_endpoint(url, Path("t"), options, PlainConsole())
    assert [(r.name, r.load.context, r.load.seed) for r in found] == [
        ("their", context, seed) for seed, context in enumerate((8, 16)) for _ in range(2)
    ]
    assert [report.record(r)["cache_MiB"] for r in found] == [""] * 4
    assert found[0].held == 204 / (8 + 64)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--variants", "gqa,nope"], "--variants: expected one of"),
        (["--attention", "mine"], "--attention: expected one of"),
        (["--attention", "engine", "--variants", "gla"], "--attention: expected gqa in"),
        (["--dtype", "int8"], "--dtype: expected one of"),
        (["--cache-mib", "0"], "--cache-mib: expected integers of at least 1"),
        (["--context", "x"], "--context: expected integers"),
        (["--concurrency", "0"], "--concurrency: expected"),
        (["--output", "0"], "--output: expected"),
        (["--prompts", "0"], "--prompts: expected"),
        (["--kv-heads", "0"], "--kv-heads: expected"),
        (["--url", "http://x"], "--tokenizer: expected together with --url"),
        (["--tokenizer", "x"], "--tokenizer: expected together with --url"),
    ],
)
def test_bad_arguments_name_the_culprit(args, message) -> None:
    result = CliRunner().invoke(app, ["bench", "serve", *args])
    assert isinstance(result.exception, ValueError)
    assert str(result.exception).startswith(message)


def test_without_vllm_it_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setattr(launch, "find_spec", lambda name: None)
    for given in ([], ["--url", "http://x", "--tokenizer", "t"]):
        result = CliRunner().invoke(app, ["bench", "serve", *given])
        assert "pip install 'ridgeline[vllm]'" in str(result.exception)
