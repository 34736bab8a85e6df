"""The example that serves a model prints the tokens that the model gives without a server."""

import runpy
import sys
from pathlib import Path

from ridgeline.models import generate

EXAMPLE = Path(__file__).parents[2] / "examples" / "serve.py"


def test_serve(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE)])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    name, *text, timing = capsys.readouterr().out.splitlines()
    model, tokenizer = generate.load()
    prompt = "def main(argv=None):\n"
    alone = "".join(
        generate.stream(model.float(), tokenizer, prompt, max_new_tokens=32, temperature=0)
    )
    assert name.startswith("gla-stdlib at http://127.0.0.1:")
    assert "\n".join(text) == prompt + alone
    assert timing.startswith("first token after ")
