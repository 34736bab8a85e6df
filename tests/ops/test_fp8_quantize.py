"""Scales of FP8: exact at the edges of the format, one for each part, within half a step of it."""

from itertools import pairwise

import pytest
import torch

from ridgeline.ops.attention import fp8

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0
# Half a spacing relative to the value, and in the subnormal range of 2^-9 steps.
RELATIVE, ABSOLUTE = 2.0**-4, 2.0**-10


def rows(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Magnitudes that differ between sequences, heads and blocks by orders."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    size = torch.randn(*shape[:-1], 1, generator=generator, dtype=torch.float64)
    return (x * 10**size).to(dtype)


def parts(x: torch.Tensor, per, cu_seqlens=None) -> list[tuple[tuple[int, ...], torch.Tensor]]:
    """The index of each scale and what it scales, by plain loops."""
    heads = range(x.shape[-2])
    if per == "tensor":
        return [((), x)]
    if per == "head":
        return [((h,), x[..., h, :]) for h in heads]
    if x.dim() == 3:
        starts = cu_seqlens.tolist()
        spans = enumerate(pairwise(starts))
        return [((b, h), x[i:j, h]) for b, (i, j) in spans for h in heads]
    if per == "sequence":
        return [((b, h), x[b, :, h]) for b in range(x.shape[0]) for h in heads]
    blocks = range(-(-x.shape[1] // per))
    return [
        ((b, n, h), x[b, n * per : (n + 1) * per, h])
        for b in range(x.shape[0])
        for n in blocks
        for h in heads
    ]


CU_SEQLENS = torch.tensor([0, 5, 5, 12, 13], dtype=torch.int32)
LAYOUTS = [
    *(((2, 13, 3, 8), per, None) for per in ("tensor", "head", "sequence", 1, 4, 8, 16, 64)),
    *(((13, 3, 8), per, None) for per in ("tensor", "head")),
    ((13, 3, 8), "sequence", CU_SEQLENS),
    ((13, 3, 8), "head", CU_SEQLENS),
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize(("shape", "per", "cu_seqlens"), LAYOUTS)
def test_each_part_has_its_own_scale(shape, per, cu_seqlens, dtype) -> None:
    x = rows(*shape, dtype=dtype)
    values, scale = fp8.quantize(x, per, cu_seqlens=cu_seqlens)
    assert (values.dtype, scale.dtype, values.shape) == (E4M3, torch.float32, x.shape)
    found = parts(x, per, cu_seqlens)
    assert scale.numel() == len(found)
    back = fp8.dequantize(values, scale, cu_seqlens=cu_seqlens, dtype=torch.float64)
    whole = dict(parts(values.double(), per, cu_seqlens))
    approximate = dict(parts(back, per, cu_seqlens))
    for index, part in found:
        amax = part.double().abs().max().item() if part.numel() else 0.0
        s = scale[index].item()
        assert s == pytest.approx(amax / LARGEST if amax else 1.0, rel=2e-7)
        if part.numel():
            assert whole[index].abs().max() == LARGEST
            budget = (RELATIVE * part.double().abs()).clamp(min=ABSOLUTE * s) * (1 + 1e-6)
            assert ((approximate[index] - part.double()).abs() <= budget).all()


def test_magnitudes_from_the_least_to_the_largest() -> None:
    """No scale overflows, underflows or turns the largest value into NaN."""
    info = torch.finfo(torch.float32)
    tiny = info.smallest_normal * info.eps
    sizes = [tiny, 1e-42, 1e-38, 6e-36, 1e-3, 1.0, 447.99, 448.0, 449.0, 3e38, info.max]
    generator = torch.Generator().manual_seed(0)
    sizes += (10 ** (torch.rand(500, generator=generator) * 70 - 35)).tolist()
    x = torch.zeros(len(sizes), 1, 1, 4)
    x[:, 0, 0, 0] = torch.tensor(sizes)
    x[:, 0, 0, 1] = -x[:, 0, 0, 0]
    values, scale = fp8.quantize(x, "sequence")
    assert values.float().isfinite().all()
    assert (scale >= info.smallest_normal).all()
    # 448 times the least normal scale: below it the largest value is less than 448.
    large = x[:, 0, 0, 0] >= LARGEST * info.smallest_normal
    assert large.sum() > 500
    assert (values[large].float()[..., 0] == LARGEST).all()
    assert (values[large].float()[..., 1] == -LARGEST).all()
    back = fp8.dequantize(values, scale, dtype=torch.float64)
    torch.testing.assert_close(back[large], x[large].double(), rtol=1e-6, atol=0)
    budget = (RELATIVE * x.abs().double()).clamp(min=ABSOLUTE * info.smallest_normal)
    assert ((back - x).abs() <= budget)[~large].all()


@pytest.mark.parametrize("per", ["tensor", "head", "sequence", 4])
def test_zeros_and_nothing(per) -> None:
    values, scale = fp8.quantize(torch.zeros(2, 5, 3, 8), per)
    assert (values.float() == 0).all()
    assert (scale == 1).all()
    for shape in ((2, 0, 3, 8), (0, 5, 3, 8)):
        values, scale = fp8.quantize(torch.zeros(shape), per)
        assert values.shape == shape
        assert (scale == 1).all()
        assert fp8.dequantize(values, scale).shape == shape


def test_packed_with_no_sequence() -> None:
    values, scale = fp8.quantize(
        torch.zeros(0, 3, 8), "sequence", cu_seqlens=torch.zeros(1, dtype=torch.int32)
    )
    assert values.shape == (0, 3, 8)
    assert scale.shape == (0, 3)


def test_rows_of_packed_sequences_are_those_of_each_alone() -> None:
    x = rows(13, 3, 8)
    values, scale = fp8.quantize(x, "sequence", cu_seqlens=CU_SEQLENS)
    for b, (i, j) in enumerate(pairwise(CU_SEQLENS.tolist())):
        alone, one = fp8.quantize(x[None, i:j], "sequence")
        assert torch.equal(values[i:j].float(), alone[0].float())
        assert torch.equal(scale[b], one[0])


def test_numbers_are_scales() -> None:
    values, _ = fp8.quantize(rows(2, 5, 3, 8))
    assert torch.equal(fp8.dequantize(values, 0.3), values.float() * torch.tensor(0.3))
    assert torch.equal(fp8.dequantize(values, None), values.float())
    assert fp8.dequantize(values, 0.3, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_rows_keep_their_scale_under_any_strides() -> None:
    x = rows(2, 3, 13, 8).transpose(1, 2)
    for got, want in zip(fp8.quantize(x, 4), fp8.quantize(x.contiguous(), 4), strict=True):
        assert torch.equal(got.float(), want.float())


@pytest.mark.parametrize("length", [*range(1, 34), 100, 2047, 2048, 2049])
def test_blocks_tell_their_rows(length: int) -> None:
    for n in (2**i for i in range(12)):
        blocks = -(-length // n)
        found = fp8.block_rows(length, blocks)
        assert found & (found - 1) == 0
        assert -(-length // found) == blocks
        assert found == n or blocks == 1


def test_quantize_is_cut_from_the_graph() -> None:
    values, scale = fp8.quantize(rows(2, 5, 3, 8).requires_grad_())
    assert not values.requires_grad
    assert not scale.requires_grad


def test_compiles_without_a_break() -> None:
    x = rows(2, 13, 3, 8)
    for per in ("tensor", "head", "sequence", 4):
        call = torch.compile(fp8.quantize, fullgraph=True, backend="eager")
        for got, want in zip(call(x, per), fp8.quantize(x, per), strict=True):
            assert torch.equal(got.float(), want.float())


def test_compiled_garbage_stays_visible() -> None:
    """Where values cannot be checked, all that shares a scale with an inf or NaN becomes NaN."""
    call = torch.compile(fp8.quantize, fullgraph=True, backend="eager")
    for bad in (torch.nan, torch.inf, -torch.inf):
        x = rows(2, 13, 3, 8)
        x[1, 6, 2, 3] = bad
        values, scale = call(x, 4)
        hit = fp8.dequantize(values, scale).isnan()
        assert hit[1, 4:8, 2].all()
        assert hit.sum() == 4 * 8


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("per", ["tensor", "head", "sequence", 4])
def test_inf_and_nan_are_refused(bad: float, per) -> None:
    x = rows(2, 13, 3, 8)
    x[1, 6, 2, 3] = bad
    with pytest.raises(ValueError, match="x: expected finite"):
        fp8.quantize(x, per)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_inf_and_nan_of_packed_rows_are_refused(bad: float) -> None:
    x = rows(13, 3, 8)
    x[6, 2, 3] = bad
    with pytest.raises(ValueError, match="x: expected finite"):
        fp8.quantize(x, "sequence", cu_seqlens=CU_SEQLENS)


def test_float64_beyond_the_scales_is_refused() -> None:
    x = torch.full((1, 1, 1, 1), 1e300, dtype=torch.float64)
    with pytest.raises(ValueError, match="x: expected finite values of at most"):
        fp8.quantize(x)


GOOD = torch.zeros(2, 5, 3, 8)
PACKED = torch.zeros(5, 3, 8)
CU = torch.tensor([0, 2, 5], dtype=torch.int32)


@pytest.mark.parametrize(
    ("x", "given", "error", "message"),
    [
        (1.0, {}, TypeError, "x: expected a torch.Tensor"),
        (GOOD.int(), {}, TypeError, "x: expected dtype"),
        (GOOD.to(E4M3), {}, TypeError, "x: expected dtype"),
        (GOOD[0, 0], {}, ValueError, "x: expected shape"),
        (GOOD[None], {}, ValueError, "x: expected shape"),
        (GOOD[..., :0], {}, ValueError, "x: expected shape .* d >= 1"),
        (GOOD, {"per": "row"}, ValueError, "per: expected tensor, head"),
        (GOOD, {"per": 0}, ValueError, "per: expected .* power of two, got 0"),
        (GOOD, {"per": -4}, ValueError, "per: expected"),
        (GOOD, {"per": 48}, ValueError, "per: expected .* power of two, got 48"),
        (GOOD, {"per": True}, ValueError, "per: expected"),
        (GOOD, {"per": 4.0}, ValueError, "per: expected"),
        (PACKED, {"per": 4}, ValueError, "per: expected .* for packed x"),
        (PACKED, {"per": "sequence"}, ValueError, r"cu_seqlens: expected \[B \+ 1\]"),
        (GOOD, {"cu_seqlens": CU}, ValueError, "cu_seqlens: expected None unless"),
        (PACKED, {"cu_seqlens": [0, 2, 5]}, TypeError, "cu_seqlens: expected a torch.Tensor"),
        (PACKED, {"cu_seqlens": CU.long()}, TypeError, "cu_seqlens: expected dtype int32"),
        (PACKED, {"cu_seqlens": CU[None]}, ValueError, "cu_seqlens: expected shape"),
        (PACKED, {"cu_seqlens": CU[:0]}, ValueError, "cu_seqlens: expected at least one"),
        (PACKED, {"cu_seqlens": CU + 1}, ValueError, "cu_seqlens: expected 0 first"),
        (PACKED, {"cu_seqlens": CU[:2]}, ValueError, "cu_seqlens: expected 0 first, 5 last"),
        (PACKED, {"cu_seqlens": CU[[0, 2, 1, 2]]}, ValueError, "cu_seqlens: .*nothing falling"),
        (PACKED, {"cu_seqlens": CU.to("meta")}, ValueError, "cu_seqlens: expected device"),
    ],
)
def test_bad_input_of_quantize(x, given, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fp8.quantize(x, **given)


@pytest.mark.parametrize(
    ("x", "scale", "given", "error", "message"),
    [
        (GOOD, None, {}, TypeError, "x: expected dtype float8_e4m3fn"),
        (GOOD.to(E4M3), None, {"dtype": torch.int32}, TypeError, "dtype: expected one of"),
        (GOOD.to(E4M3), "1", {}, TypeError, "scale: expected a float"),
        (GOOD.to(E4M3), torch.nan, {}, ValueError, "scale: expected a finite"),
        (GOOD.to(E4M3), torch.ones(3).double(), {}, TypeError, "scale: expected dtype float32"),
        (GOOD.to(E4M3), torch.ones(2), {}, ValueError, r"scale: expected shape \[3\]"),
        (GOOD.to(E4M3), torch.ones(3, 3), {}, ValueError, r"scale: expected shape \[2, 3\]"),
        (GOOD.to(E4M3), torch.ones(2, 2, 2), {}, ValueError, "scale: expected shape"),
        (GOOD.to(E4M3), torch.ones(2, 4, 3), {}, ValueError, r"scale: expected ceil\(5 / n\)"),
        (GOOD.to(E4M3), torch.ones(2, 6, 3), {}, ValueError, r"scale: expected ceil\(5 / n\)"),
        (GOOD.to(E4M3), torch.ones(2, 0, 3), {}, ValueError, r"scale: expected ceil\(5 / n\)"),
        (GOOD.to(E4M3), torch.ones(2, 5, 3, 8), {}, ValueError, "scale: expected a number"),
        (GOOD.to(E4M3), torch.ones(3, device="meta"), {}, ValueError, "scale: expected device"),
        (PACKED.to(E4M3), torch.ones(1, 5, 3), {}, ValueError, "scale: expected a number"),
        (PACKED.to(E4M3), torch.ones(2, 3), {}, ValueError, "cu_seqlens: expected"),
        (
            PACKED.to(E4M3),
            torch.ones(3, 3),
            {"cu_seqlens": CU},
            ValueError,
            r"scale: expected shape \[2, 3\]",
        ),
    ],
)
def test_bad_input_of_dequantize(x, scale, given, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fp8.dequantize(x, scale, **given)
