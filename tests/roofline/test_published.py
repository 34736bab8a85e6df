"""Published serving tables and kernel times beside the planner's predictions."""

import pytest

from ridgeline.roofline import published
from ridgeline.roofline.published import KERNEL_CASES, ROWS

FITTED = {"GLA-8 TP8": ("ttft", "itl"), "MLA TP8": ("itl", "throughput")}


@pytest.fixture(scope="module")
def predictions() -> list[published.Prediction]:
    """Five waves or more of every load."""
    return [published.predict(row, max(60, 5 * row.concurrency)) for row in ROWS]


def find(predictions, label, concurrency, prompt="8192"):
    return next(
        p
        for p in predictions
        if p.row.label == label and (p.row.prompt, p.row.concurrency) == (prompt, concurrency)
    )


def test_constants_are_fitted_to_two_rows(predictions):
    fitted = [p for p in predictions if p.row.fitted]
    assert [p.row.label for p in fitted] == list(FITTED)
    for p in fitted:
        for name in FITTED[p.row.label]:
            assert abs(p.error(name)) < 0.03, (p.row.label, name)


def test_the_other_rows_are_predicted(predictions):
    assert published.median_error(predictions, "throughput") < 0.10
    assert published.median_error(predictions, "itl") < 0.10
    assert published.median_error(predictions, "e2e") < 0.10


def test_no_load_is_ordered_wrongly(predictions):
    assert published.wrong_orders(predictions) == []


def test_the_order_can_be_wrong(predictions):
    by_label = {p.row.label: p for p in predictions if p.row.group == ROWS[4].group}
    a, b = by_label["GLA-2 TP2,DP4"], by_label["MLA TP8"]
    swapped = [published.Prediction(a.row, b.planned), published.Prediction(b.row, a.planned)]
    assert published.wrong_orders(swapped) == [tuple(swapped)]


def test_the_crossover_at_128_clients(predictions):
    """There MLA, data parallel, serves more than GLA-8 in pure tensor parallelism."""
    more, less = find(predictions, "MLA TP2,DP4", 128), find(predictions, "GLA-8 TP8", 128)
    assert more.planned.throughput > 1.2 * less.planned.throughput
    few = find(predictions, "MLA TP2,DP4", 64), find(predictions, "GLA-8 TP8", 64)
    assert few[0].planned.throughput < 1.05 * few[1].planned.throughput


def test_at_64_clients_mla_waits_for_cache(predictions):
    """Most of MLA's latency in pure tensor parallelism is the queue, GLA-8's is none."""
    mla, gla = find(predictions, "MLA TP8", 64), find(predictions, "GLA-8 TP8", 64)
    assert mla.planned.ttft > 0.4 * mla.planned.e2e
    assert gla.planned.ttft < 0.1 * gla.planned.e2e


@pytest.mark.parametrize("case", KERNEL_CASES, ids=lambda case: case.label)
def test_kernel_times(case):
    assert abs(case.error) < (0.03 if case.fitted else 0.17)


def test_gla_on_two_devices_loses_at_short_lengths_alone():
    times = {(c.model.variant, c.length): c.planned for c in KERNEL_CASES if c.unit == "us"}
    assert times["gla", 2048] > times["mla", 2048]
    for length in (8192, 32768, 131072):
        assert times["gla", length] < times["mla", length]
