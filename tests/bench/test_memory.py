"""Peaks are those of a fresh process, and hold what a pass allocates."""

import pytest

from ridgeline.bench import table
from ridgeline.bench.attention import memory
from ridgeline.bench.attention.memory import MemoryOptions, Row
from ridgeline.bench.attention.shapes import AttentionShape

SHAPE = AttentionShape(1, 1024, 2, 1, 16, dtype="fp32")


@pytest.mark.parametrize("which", ["forward", "backward"])
def test_the_reference_needs_its_scores(which: str) -> None:
    """It holds whole float32 scores of a sequence, more than once: 8 MiB each here."""
    scores = 2 * 1024**2 * 4
    peak = memory.in_fresh_process(SHAPE, which, "ours", "reference")
    assert 2 * scores < peak < 20 * scores


def test_more_tokens_need_more() -> None:
    sizes = [AttentionShape(1, n, 1, 1, 16) for n in (512, 2048)]
    small, large = (memory.in_fresh_process(s, "forward", "ours", "reference") for s in sizes)
    assert 8 * small < large < 32 * small


def test_rows_of_both_passes() -> None:
    rows = memory.measure(SHAPE, MemoryOptions((SHAPE,), impl="reference"))
    assert [row.which for row in rows] == ["forward", "backward"]
    for row in rows:
        assert row.sdpa < row.peak
        assert row.results < row.peak
        assert row.scores == 2 * 1024**2 * 4
    # out and lse; dq of two heads, dk and dv of one
    assert [row.results for row in rows] == [1024 * 2 * (16 * 4 + 4), 1024 * 4 * 16 * 4]


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match="forward of ours: .*impl='hopper'"):
        memory.in_fresh_process(SHAPE, "forward", "ours", "hopper")


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
