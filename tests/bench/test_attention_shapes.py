"""Visible pairs and FLOPs against counts by loops and numbers worked out by hand."""

import pytest
import torch

from ridgeline.bench.attention import calls, shapes
from ridgeline.bench.attention.shapes import AttentionShape

SMALL = {"heads": 4, "kv_heads": 2, "head_dim": 16}


@pytest.mark.parametrize(
    "shape",
    [
        AttentionShape(2, 9, **SMALL, mask="full"),
        AttentionShape(2, 9, **SMALL),
        AttentionShape.tree([(4, 3, 2), (1, 2, 2), (3, 0, 1)], **SMALL),
    ],
    ids=lambda s: s.mask,
)
def test_visible_pairs_are_those_of_the_mask(shape) -> None:
    assert int(shape.visible().sum()) == shape.visible_pairs
    assert shape.visible().shape == (shape.length, shape.length)


def test_a_pair_sees_its_prompt_and_nothing_of_the_other() -> None:
    # Prompt a b, chosen c, b again, rejected r: rows see 1, 2, 3; then a and b', and r too.
    shape = AttentionShape.tree([(2, 1, 1)], **SMALL)
    assert shape.length == 5
    assert shape.visible().int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 0, 0, 1, 0],
        [1, 0, 0, 1, 1],
    ]


def test_branches_are_the_responses_behind_their_prompts() -> None:
    shape = AttentionShape.tree([(3, 2, 1), (2, 1, 1)], **SMALL)
    found = [branch.tolist() for branch in shape.branches()]
    assert found == [[0, 1, 2, 3, 4], [0, 1, 5, 6], [7, 8, 9], [7, 10, 11]]
    visible = shape.visible()
    for branch in shape.branches():
        assert torch.equal(
            visible[branch][:, branch], torch.ones(len(branch), len(branch)).tril() > 0
        )
    first = calls.firsts(torch.cat(shape.branches()))
    assert int(first.sum()) == shape.length


def test_flops_of_the_usual_shape() -> None:
    # 4 d a pair and head forward, 2.5 times as much backward.
    shape = AttentionShape(1, 2048, 16, 16, 128, mask="full")
    assert shape.flops("forward") == 4 * 128 * 2048**2 * 16
    assert shape.flops("backward") == 2.5 * shape.flops("forward")
    causal = shape.causal()
    assert causal.flops("forward") == 4 * 128 * (2048 * 2049 // 2) * 16


def test_flops_where_values_are_narrower() -> None:
    shape = AttentionShape(3, 10, 16, 16, 192, 128, mask="full")
    assert shape.flops("forward") == 2 * (192 + 128) * 100 * 16 * 3
    assert shape.flops("backward") == 2 * (3 * 192 + 2 * 128) * 100 * 16 * 3


def test_the_tree_of_the_table() -> None:
    tree = AttentionShape.tree([(256, 64, 64)] * 8, **SMALL)
    assert tree.length == 8 * 385
    prompt, chosen = 256 * 257 // 2, 64 * 256 + 64 * 65 // 2
    rejected = 65 * 255 + 65 * 66 // 2
    assert tree.visible_pairs == 8 * (prompt + chosen + rejected)


def test_published_rows() -> None:
    rows = [(s.mask, s.dtype, s.batch, s.length, s.heads, s.kv_heads) for s in shapes.published()]
    assert len(rows) == len(set(rows)) + 2  # MLA and the second tree differ in widths alone
    for wanted in (
        ("full", "bf16", 1, 2048, 16, 16),
        ("causal", "bf16", 1, 2048, 16, 16),
        ("causal", "bf16", 1, 2048, 32, 8),
        ("causal", "fp16", 1, 2048, 16, 16),
        ("causal", "fp32", 1, 2048, 16, 16),
        ("causal", "bf16", 4, 512, 8, 8),
        ("causal", "bf16", 1, 8192, 16, 16),
        ("tree", "bf16", 1, 3080, 8, 8),
    ):
        assert wanted in rows
    assert any((s.head_dim, s.width) == (192, 128) for s in shapes.published())


def test_a_command_line_chooses_shapes() -> None:
    found = shapes.chosen(
        batch="1,2", length="64,32", mask="full,causal", dtype="bf16,fp32", heads=8, kv_heads=2
    )
    assert len(found) == 8
    assert {(s.batch, s.length) for s in found} == {(1, 64), (2, 32)}
    assert {(s.heads, s.kv_heads, s.head_dim) for s in found} == {(8, 2, 128)}
    (tree,) = shapes.chosen(pairs=3, pair="4,2,1", heads=2, head_dim=16)
    assert tree.pairs == ((4, 2, 1),) * 3
    assert shapes.chosen() == tuple(shapes.published())
    assert len(shapes.chosen(True)) == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"heads": 4}, "--heads: expected together with --length or --pairs"),
        ({"kv_heads": 4}, "--kv-heads: expected together with"),
        ({"length": "0"}, "--length: expected integers"),
        ({"length": "8", "mask": "tree"}, "pairs: expected some for a tree"),
        ({"length": "8", "mask": "half"}, "mask: expected one of"),
        ({"length": "8", "dtype": "int8"}, "dtype: expected one of"),
        ({"length": "8", "heads": 4, "kv_heads": 3}, "kv_heads: expected a divisor"),
        ({"length": "8", "head_dim": 0}, "head_dim: expected at least 1"),
        ({"pairs": 0}, "pairs: expected at least 1"),
        ({"pairs": 2, "pair": "4,2"}, "--pair: expected prompt,chosen,rejected"),
    ],
)
def test_impossible_shapes_name_the_culprit(given, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        shapes.chosen(**given)


def test_a_tree_is_one_row_of_its_pairs() -> None:
    with pytest.raises(ValueError, match="length: expected one row of 10 tokens"):
        AttentionShape(2, 10, **SMALL, mask="tree", pairs=((4, 3, 2),))
