"""Events around a call behind a read of more than L2; graphs; clocks: on a GPU that records."""

import subprocess
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from ridgeline.bench.cuda import device
from ridgeline.bench.cuda.device import Cuda
from ridgeline.bench.device import CPU, first_line, open_device


class Recorder:
    """What of ``torch.cuda`` the device uses, with a log; events are ``milliseconds`` apart."""

    def __init__(self, capability=(9, 0), available=True, fails=None) -> None:
        self.log: list[str] = []
        self.milliseconds = 2.5
        self._capability, self._available, self._fails = capability, available, fails

    def is_available(self):
        return self._available

    def get_device_capability(self):
        return self._capability

    def current_device(self):
        return 0

    def get_device_properties(self, index):
        return SimpleNamespace(
            name="NVIDIA H200",
            multi_processor_count=132,
            L2_cache_size=60 << 20,
            total_memory=140 << 30,
            uuid="12ab",
        )

    def synchronize(self):
        self.log.append("synchronize")

    def Event(self, enable_timing):
        assert enable_timing
        return SimpleNamespace(
            record=lambda: self.log.append("event"),
            synchronize=lambda: self.log.append("wait"),
            elapsed_time=lambda stop: self.milliseconds,
        )

    def CUDAGraph(self):
        return SimpleNamespace(replay=lambda: self.log.append("replay"))

    @contextmanager
    def graph(self, recorded):
        self.log.append("capture")
        yield
        if self._fails:
            raise RuntimeError(self._fails)


@pytest.fixture
def api() -> Recorder:
    return Recorder()


@pytest.fixture
def cuda(api, monkeypatch) -> Cuda:
    found = Cuda(api, where="cpu", scrub_bytes=64)
    scrub = SimpleNamespace(sum=lambda: api.log.append("scrub"))
    monkeypatch.setattr(found, "_scrub", scrub)
    return found


def test_the_clock_stands_between_the_scrub_and_the_wait(api, cuda) -> None:
    assert cuda.seconds(lambda: api.log.append("call")) == 2.5e-3
    assert api.log == ["scrub", "event", "call", "event", "wait"]


def test_more_than_any_l2_is_read_between_calls() -> None:
    assert device.SCRUB_BYTES >= 16 * (128 << 20)
    assert Cuda(Recorder(), where="cpu", scrub_bytes=64)._scrub.nbytes == 64


def test_a_graph_is_captured_behind_the_warm_up_and_replayed(api, cuda) -> None:
    runs = []
    ready = cuda.ready(lambda: runs.append(0) or len(runs), graph=True)
    assert len(runs) == device.WARM_UPS + 1
    assert api.log == ["synchronize", "capture"]
    assert ready.eager is None
    assert [ready.run(), ready.run()] == [len(runs)] * 2  # what the capture returned
    assert len(runs) == device.WARM_UPS + 1
    assert api.log[-2:] == ["replay", "replay"]


def test_without_a_graph_the_call_itself_is_run(api, cuda) -> None:
    runs = []
    cuda.ready(lambda: runs.append(0)).run()
    assert len(runs) == device.WARM_UPS + 1
    assert "capture" not in api.log


def test_a_failed_capture_is_said_and_the_call_runs_eagerly() -> None:
    api = Recorder(fails="operation not permitted when stream is capturing\nmore")
    ready = Cuda(api, where="cpu", scrub_bytes=64).ready(lambda: 7, graph=True)
    assert ready.eager == "not captured: operation not permitted when stream is capturing"
    assert ready.run() == 7
    assert "replay" not in api.log


@pytest.mark.parametrize(
    ("api", "message"),
    [
        (Recorder(available=False), "got none"),
        (Recorder(capability=(7, 5)), "of compute capability 8.0 or newer, got 7.5"),
    ],
    ids=["none", "old"],
)
def test_no_usable_gpu_is_one_clear_error(api, message) -> None:
    with pytest.raises(ValueError, match=f"^--device cuda: expected a GPU .*{message}"):
        Cuda(api)


def test_devices_by_name(monkeypatch) -> None:
    assert open_device("cpu") is CPU
    with pytest.raises(ValueError, match=r"^--device: expected cpu or cuda, got 'tpu'"):
        open_device("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"^--device cuda: expected a GPU that torch can use"):
        open_device("cuda")


def test_state_and_facts_are_those_of_nvidia_smi(cuda, monkeypatch) -> None:
    answers = {
        "clocks.sm,clocks.mem,clocks_event_reasons.active": "1755, 3201, 0x0000000000000024\n",
        "driver_version": "580.159.04\n",
    }

    def run(command, **_):
        assert command[:2] == ["nvidia-smi", "--id=GPU-12ab"]
        return SimpleNamespace(stdout=answers[command[2].removeprefix("--query-gpu=")])

    monkeypatch.setattr(subprocess, "run", run)
    assert cuda.state() == {
        "sm_clock_MHz": 1755,
        "memory_clock_MHz": 3201,
        "throttled": "power cap and software thermal",
    }
    facts = cuda.facts()
    assert facts["machine"] == "NVIDIA H200, 132 SMs, 60 MiB L2, 140 GiB, driver 580.159.04"
    assert facts["versions"].startswith("CUDA ")
    assert "triton 3" in facts["versions"]


def test_without_nvidia_smi_there_is_no_state(cuda, monkeypatch) -> None:
    def run(*_, **__):
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(subprocess, "run", run)
    assert cuda.state() == {}
    assert cuda.facts()["machine"].endswith("driver unknown")


@pytest.mark.parametrize(
    ("mask", "words"),
    [("0x0000000000000000", "no"), ("0x1", "no"), ("0x88", "hardware slowdown and power brake")],
)
def test_reasons_in_words(mask, words) -> None:
    assert device.throttled(mask) == words
    assert device.throttled("[N/A]") == "unknown"


def test_an_exception_in_one_line() -> None:
    assert first_line(RuntimeError("\n one\ntwo")) == "one"
    assert first_line(AssertionError()) == "AssertionError"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_times_a_copy_and_replays_a_graph() -> None:
    cuda = open_device("cuda")
    x = torch.arange(1 << 24, device="cuda")
    ready = cuda.ready(lambda: x + 1, graph=True)
    assert ready.eager is None
    assert torch.equal(ready.run(), x + 1)
    x.zero_()
    assert ready.run().eq(1).all()
    assert 1e-6 < cuda.seconds(ready.run) < 0.1
    assert cuda.state()["sm_clock_MHz"] > 0
