"""Peaks are those of a fresh process, and hold what a pass allocates."""

import pytest

from ridgeline.bench import table
from ridgeline.bench.attention import memory
from ridgeline.bench.attention.memory import MemoryOptions, Row
from ridgeline.bench.attention.shapes import AttentionShape

SHAPE = AttentionShape(1, 1024, 2, 1, 16, dtype="fp32")


SCORES = 2 * 1024**2 * 4  # float32, of a whole sequence: 8 MiB


@pytest.mark.parametrize("which", ["forward", "backward"])
def test_the_reference_needs_its_scores(which: str) -> None:
    """It holds them more than once."""
    assert 2 * SCORES < memory.in_fresh_process(SHAPE, which, "ours", "reference") < 20 * SCORES


def test_a_kernel_does_without_them() -> None:
    """What it allocates may lie in pages that the process had before: then the peak is 0."""
    assert 0 <= memory.in_fresh_process(SHAPE, "forward", "sdpa") < 0.5 * SCORES


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"forward of ours: .*impl='hopper'"):
        memory.in_fresh_process(SHAPE, "forward", "ours", "hopper")


def test_rows_of_both_passes(monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(memory, "in_fresh_process", lambda *job: asked.append(job) or len(asked))
    rows = memory.measure(SHAPE, MemoryOptions((SHAPE,), impl="reference"))
    assert [(row.which, row.peak, row.sdpa) for row in rows] == [
        ("forward", 1, 2),
        ("backward", 3, 4),
    ]
    assert asked[2:] == [(SHAPE, "backward", "ours", "reference"), (SHAPE, "backward", "sdpa")]
    # out and lse; dq of two heads, dk and dv of one
    assert [row.results for row in rows] == [1024 * 2 * (16 * 4 + 4), 1024 * 4 * 16 * 4]
    assert rows[0].scores == 2 * 1024**2 * 4


def test_table_and_columns() -> None:
    row = Row(SHAPE, "forward", peak=12_340_000, sdpa=None)
    console = table.console()
    with console.capture() as captured:
        console.print(memory.memory_table([row]))
    assert "12.3" in captured.get()
    found = memory.record(row)
    assert (found["peak_MB"], found["results_MB"], found["all_scores_MB"]) == (12.34, 0.139, 8.389)
    assert "torch_sdpa_peak_MB" not in found
    assert memory.record(Row(SHAPE, "forward", 1, 2_000_000))["torch_sdpa_peak_MB"] == 2.0
