"""What one token leaves in the cache of a layer, drawn to scale."""

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

HEADS, DIM = 8, 128  # query heads; width of a head
KEY, VALUE, STATE, ROPE = "key", "value", "state: key and value", "RoPE key"
COLOURS = {KEY: "#4c78a8", VALUE: "#f58518", STATE: "#54a24b", ROPE: "#b279a2"}


def data() -> dict[str, list[tuple[str, int]]]:
    """The parts of a record as (kind, elements), for 8 query heads of 128."""
    return {
        "MHA": [(KEY, DIM)] * HEADS + [(VALUE, DIM)] * HEADS,
        "GQA-2": [(KEY, DIM)] * 2 + [(VALUE, DIM)] * 2,
        "MQA": [(KEY, DIM), (VALUE, DIM)],
        "GTA-2": [(STATE, DIM)] * 2 + [(ROPE, DIM // 2)],
        "MLA": [(STATE, 4 * DIM), (ROPE, DIM // 2)],
        "GLA-2": [(STATE, 2 * DIM)] * 2 + [(ROPE, DIM // 2)],
    }


def draw() -> Figure:
    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    axes = figure.subplots()
    records = data()
    for row, parts in enumerate(records.values()):
        left = 0
        for kind, width in parts:
            axes.add_patch(
                Rectangle((left, row - 0.35), width, 0.7, fc=COLOURS[kind], ec="white", lw=1)
            )
            left += width
        axes.text(left + 16, row, f"{left:,}", va="center", fontsize=8)
    axes.set_yticks(range(len(records)), list(records))
    axes.set_xlim(0, 2 * HEADS * DIM * 1.08)
    axes.set_ylim(len(records) - 0.5, -0.6)
    axes.set_xlabel("elements a token and layer")
    axes.legend(
        [Rectangle((0, 0), 1, 1, fc=colour) for colour in COLOURS.values()],
        list(COLOURS),
        loc="lower right",
        fontsize=8,
    )
    return figure
