"""Inputs that are not finite, rows that see nothing, empty inputs, strides that TMA cannot read."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hopper_attention_cases import PACKED, plain, run

import ridgeline
from ridgeline.ops.attention.hopper.config import forward_config, packed_heads, unsupported
from ridgeline.ops.attention.hopper.tensors import readable
from ridgeline.testing import AttentionCase, assert_matches
from ridgeline.testing.layouts import clone
from ridgeline.testing.oracle_attention import keys_of


def changed(case: AttentionCase, **garbage: tuple[Any, float]) -> AttentionCase:
    """The case with ``x[index] = value`` for every ``x=(index, value)``, strides kept."""
    made = {}
    for name, (index, value) in garbage.items():
        made[name] = clone(getattr(case, name))
        made[name][index] = value
    return replace(case, **made)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("options", [{"causal": True}, {"window": (9, 5)}, {"tree": "nested"}])
def test_a_value_reaches_only_rows_that_see_its_key(options: dict, value: float) -> None:
    """Whatever the other rows of a tile see: 0 times infinity would be NaN."""
    lengths = [(0, 3), (70, 70), (3, 9)]
    case = plain(1, packed=True, lengths=lengths, dim=16, group=1, **options)
    clean, clean_lse = run(case)
    rows, keys = case.sequences()[1]
    ends = None if case.subtree_end is None else case.subtree_end[keys].tolist()
    out, lse = run(changed(case, v=(keys.start + 20, value)))
    seeing = torch.zeros(len(out), dtype=torch.bool)
    seeing[rows] = torch.tensor([20 in keys_of(case, 70, p, ends) for p in range(70)])
    assert_matches(case, torch.where(seeing[:, None, None], clean, out), lse)
    torch.testing.assert_close(out[seeing], torch.full_like(out[seeing], value), equal_nan=True)
    assert torch.equal(lse, clean_lse)


def test_a_key_reaches_only_rows_that_see_it() -> None:
    case = plain(1, causal=True, lengths=[(70, 70)], dim=16)
    clean = run(case)
    out, lse = run(changed(case, k=((0, 20), torch.nan)))
    assert out[0, 20:].isnan().all()
    assert lse[0, 20:].isnan().all()
    assert torch.equal(out[0, :20], clean[0][0, :20])
    assert torch.equal(lse[0, :20], clean[1][0, :20])


def test_rows_that_see_nothing() -> None:
    """They give 0 and -inf, whatever they hold."""
    case = plain(2, causal=True, lengths=[(90, 20)], dim=16)
    index = (0, slice(0, 70))
    out, lse = run(changed(case, q=(index, torch.nan)))
    assert (out[index] == 0).all()
    assert (lse[index] == -torch.inf).all()
    clean = run(case)
    assert torch.equal(out[0, 70:], clean[0][0, 70:])
    assert_matches(case, *clean)


@pytest.mark.parametrize("lengths", [[(5, 0)], [(0, 5)], [(0, 0)], [], [(0, 0), (3, 0)]])
@pytest.mark.parametrize("packed", [True, False])
def test_empty_inputs(lengths: list, packed: bool) -> None:
    if packed or len(set(lengths)) < 2:
        case = plain(3, packed=packed, lengths=lengths, dim=16)
        assert_matches(case, *run(case))


@pytest.mark.parametrize("dim", [17, 40])
def test_strides_that_are_not_whole_16_bytes(dim: int) -> None:
    for seed, packed in enumerate((PACKED, {})):
        case = plain(seed, dim=dim, strides=True, causal=True, **packed)
        assert_matches(case, *run(case))


def test_what_is_copied() -> None:
    x = torch.zeros(2, 5, 3, 64, dtype=torch.bfloat16)
    assert readable(x) is x
    assert readable(x[:, ::2, 1:]).data_ptr() == x[:, :, 1:].data_ptr()
    for unreadable in (x[..., 1:33], x[..., :17].contiguous(), x[:1].expand(2, -1, -1, -1)):
        copy = readable(unreadable)
        assert copy.data_ptr() != unreadable.data_ptr()
        assert torch.equal(copy, unreadable)
        assert all(s % 8 == 0 for s in copy.stride()[:-1])


@pytest.mark.parametrize("dim", [16, 64, 96, 128, 192, 256])
@pytest.mark.parametrize("value_dim", [16, 96, 128, 256])
def test_every_tiling_fits(dim: int, value_dim: int) -> None:
    for rows, group in ((1, 1), (8192, 1), (33, 4), (20, 3)):
        c = forward_config(dim, value_dim, rows, group)
        columns = [
            1 << (d - 1).bit_length() if d != 96 and d != 192 else d for d in (dim, value_dim)
        ]
        shared = 2 * (c.block_m * columns[0] + c.stages * c.block_n * sum(columns))
        assert shared <= 226 << 10
        assert 2 <= c.stages <= 4
        # Scores, probabilities and an output, beside 50 registers for all else.
        assert c.block_n // 2 + c.block_n // 4 + columns[1] // 2 <= c.consumer_regs - 50
        assert 64 % c.pack == 0
        assert group % c.pack == 0


def test_heads_are_packed_where_that_fills_tiles() -> None:
    assert packed_heads(8192, 4, 128) == 1
    assert packed_heads(33, 4, 128) == 4
    assert packed_heads(33, 3, 128) == 1
    assert packed_heads(1, 64, 128) == 64


def test_reasons() -> None:
    q = torch.zeros(1, 4, 1, 64, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="impl='hopper': tensors are on cpu"):
        ridgeline.attention(q, q, q, impl="hopper")
    assert "got float32; use impl='triton'" in unsupported(*[q.float()] * 3)
    eight = q.to(torch.float8_e4m3fn)
    assert "tensors are on cpu" in unsupported(eight, eight, eight)
    assert "multiples of 32, got 48" in unsupported(*[eight[..., :48]] * 3)
    few = torch.ones(1, 2, 1)
    assert "got one for 2" in unsupported(eight, eight, eight, None, few)
    assert "got one for 2" in unsupported(eight, eight, eight, few)
    assert "tensors are on cpu" in unsupported(eight, eight, eight, few[:, :1], few[:, :1])
    wide = torch.zeros(1, 4, 1, 257, dtype=torch.bfloat16)
    assert "1 to 256, got 257 for v" in unsupported(q, q, wide)
