"""What rows of one run say about each other: the ratios that a design is judged by."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from ridgeline.bench.cuda.decode import Row
from ridgeline.bench.shapes import DecodeShape


@dataclass(frozen=True)
class Rule:
    """The time of rows with ``of`` over that of rows alike but for ``over``.

    ``ignore`` names fields that may differ besides.
    """

    of: dict[str, Any]
    over: dict[str, Any]
    ignore: tuple[str, ...] = field(default=())


RULES = (
    Rule({"variant": "gta"}, {"variant": "gqa"}),
    Rule({"variant": "gla"}, {"variant": "mla"}, ignore=("kv_heads",)),
    Rule({"query_len": 2}, {"query_len": 1}),
    Rule({"query_len": 4}, {"query_len": 1}),
    Rule({"page_size": 1}, {"page_size": 64}),
    Rule({"dtype": "fp8"}, {"dtype": "bf16"}),
    Rule({"impl": "hopper"}, {"impl": "triton"}),
)


def comparisons(rows: Sequence[Row]) -> list[str]:
    """A line for each pair of rows that a rule joins."""
    timed = [(row, _setting(row)) for row in rows if row.failure is None]
    return [
        f"{_name(row)}: {row.seconds / other.seconds:.3f} of the time with {_changed(rule)}"
        for rule in RULES
        for row, setting in timed
        if rule.of.items() <= setting.items()
        for other, beside in timed
        if beside == setting | rule.over | {name: beside[name] for name in rule.ignore}
    ]


def _setting(row: Row) -> dict[str, Any]:
    shape = {f.name: getattr(row.shape, f.name) for f in fields(DecodeShape)}
    return shape | {"page_size": row.page_size, "impl": row.impl}


def _name(row: Row) -> str:
    s = row.shape
    return (
        f"{s.label} {s.dtype} {s.batch}x{s.length} L_q {s.query_len}, pages of {row.page_size}, "
        f"{row.impl}"
    )


def _changed(rule: Rule) -> str:
    return ", ".join(f"{name} {x}" for name, x in rule.over.items())
