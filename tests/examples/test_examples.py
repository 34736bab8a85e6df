"""Every example runs and prints what it says."""

import ast
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SERVING = "serve"  # run by tests/serving, where vLLM is


@pytest.fixture
def printed(monkeypatch, tmp_path, capsys):
    """Runs an example as a script and gives what it printed."""

    def run(name: str) -> str:
        monkeypatch.chdir(tmp_path)
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def numbers(pattern: str, text: str) -> list[float]:
    found = re.search(pattern, text)
    assert found, text
    return [float(value) for value in found.groups()]


def test_decode_paged(printed):
    text = printed("decode_paged")
    assert [int(n) for n in re.findall(r"tokens, (\d+) of them", text)] == [0, 64, 64]
    assert "pages shared by all three: 4 of 7" in text


def test_train_gla(printed):
    text = printed("train_gla")
    losses = [float(x) for x in re.findall(r"loss ([\d.]+)", text)]
    assert losses[-1] < losses[0] - 2
    assert "bytes a token and layer: 288 (GLA-2), 512 (MHA)" in text


def test_dpo_shared_prefixes(printed):
    text = printed("dpo_shared_prefixes")
    before, after = numbers(r"loss: ([\d.]+) -> ([\d.]+)", text)
    assert before == pytest.approx(0.693, abs=1e-3)  # log 2: policy and reference are equal
    assert after < before - 0.1
    ours, trl = numbers(r"tokens a step: (\d+), TRL's (\d+)", text)
    assert ours < trl


def test_switch_hugging_face(printed):
    text = printed("switch_hugging_face")
    before, after = re.findall(r"(?:transformers|ridgeline): +(\[.*\])", text)
    assert before == after
    assert numbers(r"packed against alone: ([\d.e+-]+)", text)[0] < 1e-4


def test_plan_cluster(printed):
    text = printed("plan_cluster")
    rows = re.findall(r"^(mla|gla-\d) +(TP\d\S*) +(\d+) ", text, re.MULTILINE)
    assert len(rows) == 3 * 4  # TP8 to TP1,DP8
    throughput = [int(row[2]) for row in rows]
    assert throughput == sorted(throughput, reverse=True)
    assert numbers(r"of which weights ([\d.]+)", text)[0] > 0


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_examples_are_introduced_and_run(path):
    docstring = ast.get_docstring(ast.parse(path.read_text("utf-8")))
    assert "Print" in docstring or "print" in docstring
    page = (ROOT / "docs" / "examples.md").read_text("utf-8")
    assert f'--8<-- "examples/{path.name}"' in page
    assert path.stem == SERVING or f"test_{path.stem}" in globals()
