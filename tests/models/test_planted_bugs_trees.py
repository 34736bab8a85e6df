"""The tests of rows that share prefixes find bugs that are planted on purpose."""

import pytest
import test_model_trees as trees
from model_cases import VARIANTS, tiny_model

from planting import plant

MODELS = {variant: tiny_model(variant) for variant in ("gqa", "gta", "gla")}
MODELING, PADDING, PREFILL = "models.modeling", "models.padding", "layers.prefill"
PLANTED = [
    (MODELING, "rows.depths(subtree_end)", "padding.positions([0], None, length, x.device)"),
    (MODELING, "layer(x, rotary, step, impl, subtree_end)", "layer(x, rotary, step, impl, None)"),
    (MODELING, "subtree_end = rows.of_rows(", "rows.of_rows("),
    (MODELING, "lengths if moved else None", "None"),
    (MODELING, "if past_key_values is not None or use_cache:", "if False:"),
    (MODELING, "packed = cache is None and position_ids is not None", "packed = False"),
    (
        MODELING,
        "            rows.check_subtree_end(subtree_end, batch, length)\n"
        "            if lengths is not None:",
        "            if False:",
    ),
    (PADDING, "return None if real.all() else real", "return None"),
    (PADDING, "< torch.tensor(lengths", "> torch.tensor(lengths"),
    (PREFILL, "subtree_end=subtree_end", "subtree_end=None"),
    ("layers.gqa", "self.softmax_scale, lens, subtree_end)", "self.softmax_scale, lens)"),
    ("layers.gta", "self.softmax_scale, lens, subtree_end)", "self.softmax_scale, lens)"),
    ("layers.gla", "query_lens, subtree_end)", "query_lens)"),
    ("layers.base", "            if cache is not None:", "            if False:"),
    ("models.decoder", "            subtree_end=subtree_end,\n", ""),
]


def find() -> None:
    assert set(MODELS) <= set(VARIANTS)
    for model in MODELS.values():
        trees.test_each_sequence_is_as_alone(model, positions=True)
        trees.test_each_sequence_is_as_alone(model, positions=False)
    model = MODELS["gqa"]
    trees.test_padding_right_of_a_row(model)
    for side in ("unpadded", "left", "right"):
        trees.test_positions_that_restart_are_documents(model, side)
    for name in trees.BAD:
        trees.check_bad_input(model, name)
    trees.check_layers_refuse(model)


@pytest.mark.parametrize("bug", PLANTED, ids=lambda bug: f"{bug[0]}-{bug[1].strip()[:24]}")
def test_a_planted_bug_is_found(bug: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    module, old, new = bug
    plant(monkeypatch, f"ridgeline.{module}", old, new, "ridgeline.")
    with pytest.raises((Exception, pytest.fail.Exception)):
        find()


def test_without_a_bug_nothing_is_found() -> None:
    find()
