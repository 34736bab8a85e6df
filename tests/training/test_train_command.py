"""``ridgeline train`` as a process: a run, a SIGKILL from outside, a resume, errors in one line."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from training_cases import write_text

import ridgeline
from ridgeline.cli import main

SOURCE = Path(ridgeline.__file__).parents[1]
SMALL = {
    "--hidden-size": 32,
    "--intermediate-size": 48,
    "--layers": 2,
    "--heads": 4,
    "--vocab-size": 300,
    "--context": 32,
    "--batch": 2,
    "--warmup": 2,
    "--lr": 3e-3,
    "--save-every": 3,
    "--eval-every": 20,
    "--threads": 1,
}


SMALL_OPTIONS = [part for option in SMALL.items() for part in option]


def start(*arguments: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", "from ridgeline.cli import main; main()", "train"]
        + [str(argument) for argument in arguments],
        env=os.environ | {"PYTHONPATH": str(SOURCE), "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    return out


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


def test_a_killed_run_resumes_to_the_same_model(text, tmp_path):
    whole = start(tmp_path / "whole", text, *SMALL_OPTIONS, "--tokens", 40 * 64)
    killed = start(tmp_path / "killed", text, *SMALL_OPTIONS, "--steps", 40)
    log = tmp_path / "killed" / "train.csv"
    deadline = time.monotonic() + 100
    while not log.exists() or log.read_text().count("\n") < 12:
        assert killed.poll() is None, killed.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "killed" / "model").exists()

    out = finish(start(tmp_path / "killed", "--resume"))
    assert "tokens/s" in out
    assert "4-gram baseline" in out
    finish(whole)
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        one, other = (tmp_path / run / "model" / name for run in ("whole", "killed"))
        assert one.read_bytes() == other.read_bytes(), name
    logs = [(tmp_path / run / "train.csv").read_text().splitlines() for run in ("whole", "killed")]
    losses = [[line.split(",")[:6] for line in log if line[0] != "#"] for log in logs]
    assert losses[0] == losses[1]
    commands = [line for line in logs[1] if line.startswith("# command")]
    assert commands[1] == f"# command: ridgeline train {tmp_path / 'killed'} --resume"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.txt"], "text: "),
        (["--attention", "mamba"], "attention: expected one of"),
        (["--steps", "0"], "steps: expected"),
        (["--steps", "3", "--tokens", "99"], "tokens: expected either tokens or steps"),
        (["--resume"], "checkpoint: "),
    ],
    ids=["missing text", "attention", "steps", "steps and tokens", "nothing to resume"],
)
def test_errors_are_one_line(tmp_path, text, arguments, message, monkeypatch, capsys):
    texts = [] if arguments[0] in ("absent.txt", "--resume") else [str(text)]
    command = ["ridgeline", "train", str(tmp_path / "out"), *texts, *arguments, "--threads", "1"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    err = capsys.readouterr().err
    assert err.startswith(f"ridgeline: error: {message}")
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()
