"""Peaks are those of a fresh process, and hold what a pass allocates."""

import pytest

from ridgeline.bench import table
from ridgeline.bench.attention import memory
from ridgeline.bench.attention.memory import MemoryOptions, Row
from ridgeline.bench.attention.shapes import AttentionShape

SHAPE = AttentionShape(1, 1024, 2, 1, 16, dtype="fp32")


@pytest.mark.parametrize(
    ("who", "which", "least", "most"),
    [("ours", "forward", 2, 20), ("ours", "backward", 2, 20), ("sdpa", "forward", 0, 0.5)],
)
def test_the_reference_needs_its_scores(who: str, which: str, least: float, most: float) -> None:
    """It holds whole float32 scores of a sequence, more than once: 8 MiB each here."""
    scores = 2 * 1024**2 * 4
    impl = "reference" if who == "ours" else "auto"
    assert least * scores <= memory.in_fresh_process(SHAPE, which, who, impl) < most * scores


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
