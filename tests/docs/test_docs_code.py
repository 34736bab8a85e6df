"""Every block of Python that a page shows runs: those of a page in order, in one namespace."""

import linecache
from pathlib import Path

import docs_pages
import pytest
import torch
from datasets import Dataset
from docs_pages import PAGES, Block, blocks
from transformers import training_args

from ridgeline.models.generate import load

# Blocks that say on their page why they are not run. They are compiled all the same.
NOT_RUN = {
    "docs/dpo.md": ["downloads a model"],
}
# Names that a page takes for granted.
GIVEN = {"README.md": lambda: {"model": load()[0], "pairs": preference_pairs()}}
WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]


def preference_pairs() -> Dataset:
    pair = {"prompt": "def main(", "chosen": "argv=None):", "rejected": "None=argv):"}
    return Dataset.from_list([pair] * 4)


def code_of(page: Path, block: Block):
    """The block as code whose tracebacks, and Triton, find its lines."""
    file = f"{page}:{block.line}"
    linecache.cache[file] = (len(block.text), None, block.text.splitlines(True), file)
    return compile(block.text, file, "exec")


@pytest.mark.parametrize("page", WITH_PYTHON, ids=docs_pages.name)
def test_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # TRL's default is BF16 on a GPU. On a CPU only its check stands in the way.
    monkeypatch.setattr(training_args, "is_torch_bf16_gpu_available", lambda: True)
    torch.manual_seed(0)
    names = {"__name__": page.stem} | GIVEN.get(docs_pages.name(page), dict)()
    for block in blocks(page, "python"):
        code = code_of(page, block)
        if block.reason is None:
            exec(code, names)


def test_blocks_that_are_not_run_are_known():
    found = {
        docs_pages.name(page): [b.reason for b in blocks(page, "python") if b.reason]
        for page in WITH_PYTHON
    }
    assert {page: reasons for page, reasons in found.items() if reasons} == NOT_RUN
