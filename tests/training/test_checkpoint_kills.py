"""A process killed at any call leaves a checkpoint from which the run goes on, bit for bit."""

import subprocess
import sys
from pathlib import Path

from training_cases import write_text

import ridgeline

HERE = Path(__file__).parent
SOURCE = Path(ridgeline.__file__).parents[1]


def run(*arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, HERE / "checkpoint_kills.py", *map(str, arguments)],
        env={"PYTHONPATH": f"{SOURCE}:{HERE}", "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_save_killed_at_every_call_leaves_the_old_or_the_new_checkpoint(tmp_path):
    assert "killed at" in run("saves", tmp_path)


def test_a_run_killed_anywhere_resumes_to_the_same_bits(tmp_path):
    write_text(tmp_path / "text.txt")
    assert "resumed" in run("runs", tmp_path, 41)
