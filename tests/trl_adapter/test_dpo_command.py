"""``ridgeline dpo``: what a run leaves, going on with it, errors in one line."""

import csv
import json
import sys
import warnings

import pytest
from dpo_cases import LOSSES, preference_data, tiny_model, tokenizer
from safetensors.torch import load_file
from transformers.utils import logging

from ridgeline.cli import main
from ridgeline.training.continuations import continuation_pairs
from ridgeline.training.data import Document
from ridgeline.trl.command import DPOOptions

SMALL = ["--batch", "4", "--lr", "1e-2", "--threads", "1", "--dtype", "fp32", "--eval-every", "2"]


@pytest.fixture(autouse=True)
def own_settings():
    """The command quietens transformers for its process."""
    verbosity = logging.get_verbosity()
    with warnings.catch_warnings():
        yield
    logging.set_verbosity(verbosity)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tiny_model("gla").float().save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(pair) for pair in preference_data(20)) + "\n\n")
    return path


@pytest.fixture
def dpo(monkeypatch, capsys):
    """Runs the command; gives what it wrote to stdout, or to stderr if it failed."""

    def run(*arguments: object, fails: bool = False) -> str:
        monkeypatch.setattr(sys, "argv", ["ridgeline", "dpo", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            main()
        assert bool(exit.value.code) == fails
        out, err = capsys.readouterr()
        return err if fails else out

    return run


def rows(path) -> list[dict]:
    lines = [line for line in path.read_text().splitlines() if line[0] != "#"]
    return list(csv.DictReader(lines))


def test_a_run_and_its_resumption(dpo, model, data, tmp_path):
    options = [*SMALL, "--eval-fraction", "0.2", "--steps", "4", "--save-every", "2"]
    out = dpo(model, data, tmp_path / "whole", *options)
    assert "train: 16 pairs, 0 dropped, 0 truncated, 0 equal" in out
    assert "held out, before: loss 0.6931, reward accuracy 0.000" in out
    assert "shared)" in out
    log = rows(tmp_path / "whole" / "log.csv")
    assert [row["step"] for row in log] == ["0", "1", "2", "3", "4"]
    assert all(0 < float(row["shared_fraction"]) < 1 for row in log[1:])
    assert [bool(row["eval_loss"]) for row in log] == [True, False, True, False, True]
    assert float(log[4]["eval_loss"]) != float(log[0]["eval_loss"])
    assert (tmp_path / "whole" / "curve.png").read_bytes()[:4] == b"\x89PNG"
    assert "model: " in out

    message = dpo(model, data, tmp_path / "whole", *options, fails=True)
    assert "out_dir: " in message
    assert "go on from it with --resume" in message
    weights = load_file(tmp_path / "whole" / "model" / "model.safetensors")
    checkpoint = tmp_path / "whole" / "checkpoints" / "checkpoint-4"
    (tmp_path / "whole" / "checkpoints" / "checkpoint-2").rename(tmp_path / "kept")
    checkpoint.rename(tmp_path / "later")
    (tmp_path / "kept").rename(tmp_path / "whole" / "checkpoints" / "checkpoint-2")
    dpo(model, data, tmp_path / "whole", *options, "--resume")
    again = load_file(tmp_path / "whole" / "model" / "model.safetensors")
    assert all(again[name].equal(x) for name, x in weights.items())
    assert rows(tmp_path / "whole" / "log.csv") == log

    def times() -> dict:
        return {x: x.stat().st_mtime_ns for x in (tmp_path / "whole").rglob("*")}

    before = times()
    assert "the run is finished" in dpo(model, data, tmp_path / "whole", *options, "--resume")
    assert times() == before


def test_layouts_train_the_same(dpo, model, data, tmp_path):
    options = [*SMALL, "--eval-fraction", "0", "--steps", "2"]
    dpo(model, data, tmp_path / "shared", *options)
    dpo(model, data, tmp_path / "apart", *options, "--no-sharing", "--no-packing")
    shared, apart = (rows(tmp_path / name / "log.csv") for name in ("shared", "apart"))
    for mine, other in zip(shared, apart, strict=True):
        assert float(mine["loss"]) == pytest.approx(float(other["loss"]), rel=1e-5)
        assert (mine["row_fill"], other["row_fill"]) == ("1", "")


def test_adapters(dpo, model, data, tmp_path):
    options = [*SMALL, "--eval-fraction", "0", "--steps", "1", "--lora", "2", "--precompute-ref"]
    dpo(model, data, tmp_path, *options)
    assert (tmp_path / "model" / "adapter_model.safetensors").exists()


LINES = {
    "no-json": ('{"prompt": "w1"', "line 1: expected a JSON object, got"),
    "no-object": ("[1]", "line 1: expected a JSON object, got list"),
    "no-rejected": ('{"prompt": "w1", "chosen": "w2"}', "prompt, chosen and rejected, lacks"),
    "empty": ('{"prompt": "", "chosen": "w2", "rejected": "w3"}', "got one in prompt"),
    "number": ('{"prompt": "w1", "chosen": 2, "rejected": "w3"}', "got int in chosen"),
    "both": ('{"prompt": "w1", "chosen": [{}], "rejected": "w3"}', "lists of messages, got both"),
    "mixture": (
        '{"chosen": "w1 w2", "rejected": "w1 w3"}\n'
        '{"prompt": "w1", "chosen": "w2", "rejected": "w3"}',
        "line 2: expected chosen, rejected as in the first line",
    ),
    "one-pair": ('{"prompt": "w1", "chosen": "w2", "rejected": "w3"}', "pairs on both sides"),
}


@pytest.mark.parametrize("case", LINES)
def test_bad_files(case, dpo, model, tmp_path):
    text, message = LINES[case]
    (tmp_path / "pairs.jsonl").write_text(text + "\n")
    error = dpo(model, tmp_path / "pairs.jsonl", tmp_path / "out", fails=True)
    assert error.startswith("ridgeline: error: ")
    assert message in error
    assert len(error.splitlines()) == 1


BAD_OPTIONS = {
    "dtype": (["--dtype", "fp8"], "dtype: expected bf16 or fp32, got 'fp8'"),
    "fraction": (["--eval-fraction", "1"], "eval_fraction: expected 0 <= eval_fraction < 1"),
    "resume": (["--resume"], "holds no checkpoint"),
    "loss": (["--loss", "sigmoid, foo"], "loss: expected some of sigmoid, hinge, ipo"),
    "lr": (["--lr", "nan"], "lr: expected a finite number, got nan"),
    "no-lr": (["--lr", "0"], "lr: expected a number above 0, got 0.0"),
    "beta": (["--beta", "-1"], "beta: expected a number above 0, got -1.0"),
    "epochs": (["--epochs", "0"], "epochs: expected a number above 0, got 0.0"),
    "packing": (["--no-packing", "--packing-length", "99"], "expected None without packing"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options(case, dpo, model, data, tmp_path):
    options, message = BAD_OPTIONS[case]
    assert message in dpo(model, data, tmp_path, *SMALL, *options, fails=True)


def test_missing_files(dpo, model, data, tmp_path):
    missing = tmp_path / "none.jsonl"
    assert f"data: {missing} does not" in dpo(model, missing, tmp_path / "out", fails=True)
    assert "none" in dpo(tmp_path / "none", data, tmp_path / "out", *SMALL, fails=True)


def test_folders_in_use(dpo, model, data, tmp_path):
    error = dpo(model, data, data, *SMALL, fails=True)
    assert f"out_dir: expected a folder, or a path where none is yet, got {data}" in error
    for used in ("log.csv", "model/config.json", "checkpoints/last"):
        path = tmp_path / used.replace("/", "-") / used
        path.parent.mkdir(parents=True)
        path.write_text("mine")
        out = tmp_path / used.replace("/", "-")
        error = dpo(model, data, out, *SMALL, fails=True)
        assert f"out_dir: {out} already holds {used.split('/')[0]}; take another" in error
        assert path.read_text() == "mine"


def test_several_losses_may_have_spaces():
    options = DPOOptions(loss=", ".join(LOSSES))
    options.check()
    assert options.losses == LOSSES


SOURCE = '''
class Table:
    def rows(self, path):
        """Reads a table."""
        found = []

        for line in open(path):
            if not line:
                continue
            found.append(line)
        return found

def short():
    return 1
'''


def test_continuations_are_of_the_source():
    (pair,) = continuation_pairs([Document("table.py", SOURCE)])
    whole = pair["prompt"] + pair["chosen"]
    assert whole == SOURCE[SOURCE.index("    def rows") : SOURCE.index("\n\ndef short")]
    assert sorted(pair["rejected"].splitlines()) == sorted(pair["chosen"].splitlines())
    assert pair["rejected"] != pair["chosen"]
    assert pair["prompt"].splitlines()[-1].strip()
    assert continuation_pairs([Document("table.py", SOURCE)]) == [pair]


def test_bad_continuations():
    with pytest.raises(ValueError, match=r"count: expected at most 1, .* got 2"):
        continuation_pairs([Document("table.py", SOURCE)], 2)
    with pytest.raises(ValueError, match=r"documents: bad.py is not Python"):
        continuation_pairs([Document("bad.py", "def (")])
