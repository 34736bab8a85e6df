"""``attention`` of FP8 inputs against float64 over what they stand for; scales are not all 1."""

import math

import pytest
import torch
from torch import Tensor

from ridgeline import attention
from ridgeline.ops.attention import fp8

E4M3 = torch.float8_e4m3fn
BATCH, QUERIES, KEYS, HEADS, KV_HEADS, DIM, VALUE_DIM = 2, 11, 19, 4, 2, 16, 8
CU_Q = torch.tensor([0, 3, 3, 11], dtype=torch.int32)
CU_K = torch.tensor([0, 5, 9, 19], dtype=torch.int32)


def inputs(packed: bool = False, seed: int = 0) -> list[Tensor]:
    """q, k, v whose rows, heads and sequences differ in size."""
    generator = torch.Generator().manual_seed(seed)
    batch = () if packed else (BATCH,)
    shapes = (QUERIES, HEADS, DIM), (KEYS, KV_HEADS, DIM), (KEYS, KV_HEADS, VALUE_DIM)
    found = []
    for length, heads, dim in shapes:
        size = 2 ** torch.randn(*batch, length, heads, 1, generator=generator)
        found.append(torch.randn(*batch, length, heads, dim, generator=generator) * size)
    return found


def quantized(ways: tuple, packed: bool = False) -> tuple[list[Tensor], dict[str, Tensor]]:
    """FP8 values, and the scales and offsets to call ``attention`` with."""
    offsets = {"cu_seqlens_q": CU_Q, "cu_seqlens_k": CU_K} if packed else {}
    values, scales = [], {}
    for name, x, way in zip("qkv", inputs(packed), ways, strict=True):
        cu_seqlens = offsets.get("cu_seqlens_q" if name == "q" else "cu_seqlens_k")
        value, scales[f"{name}_scale"] = fp8.quantize(x, way, cu_seqlens=cu_seqlens)
        values.append(value)
    return values, {**scales, **offsets}


def meant(x: Tensor, scale: Tensor | float, way, cu_seqlens: Tensor | None) -> Tensor:
    """``x`` times its scales in float64, one row and head at a time."""
    rows = x.double().clone()
    if not isinstance(scale, Tensor) or scale.dim() == 0:
        return rows * torch.as_tensor(scale, dtype=torch.float32).double()
    for h in range(x.shape[-2]):
        if scale.dim() == 1:
            rows[..., h, :] *= scale[h].double()
        elif x.dim() == 3:
            for b in range(scale.shape[0]):
                rows[cu_seqlens[b] : cu_seqlens[b + 1], h] *= scale[b, h].double()
        else:
            for b in range(x.shape[0]):
                for i in range(x.shape[1]):
                    s = scale[b, h] if scale.dim() == 2 else scale[b, i // way, h]
                    rows[b, i, h] *= s.double()
    return rows


def row_by_row(q, k, v, visible, softcap: float = 0.0):
    """Exact out and lse of one sequence ``[L, h, d]``, and how far rounding p may move out."""
    out = torch.zeros(*q.shape[:2], v.shape[-1], dtype=torch.float64)
    lse, budget = torch.full(q.shape[:2], -math.inf, dtype=torch.float64), torch.zeros_like(out)
    for i in range(q.shape[0]):
        seen = [j for j in range(k.shape[0]) if visible(i, j)]
        for h in range(q.shape[1] if seen else 0):
            g = h * k.shape[1] // q.shape[1]
            s = k[seen, g] @ q[i, h] * q.shape[-1] ** -0.5
            s = softcap * torch.tanh(s / softcap) if softcap else s
            p, values = (s - s.max()).exp(), v[seen, g]
            lse[i, h] = s.max() + p.sum().log()
            out[i, h] = p @ values / p.sum()
            # Half a step of e4m3: 2^-4 relative, 2^-10 / 2^8 absolute.
            moved = (p * 2.0**-4).clamp(min=2.0**-18) @ values.abs() / p.sum()
            budget[i, h] = moved + 2.0**-8 * out[i, h].abs() + 1e-5
    return out, lse, budget


def assert_matches(values, ways, given, visible, **options) -> None:
    """Within the bound in every element, and far within it on average."""
    out, lse = attention(*values, **given, **options, return_lse=True, impl="reference")
    assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    cu_q, cu_k = given.get("cu_seqlens_q"), given.get("cu_seqlens_k")
    q, k, v = (
        meant(x, given[f"{name}_scale"], way, cu_q if name == "q" else cu_k)
        for name, x, way in zip("qkv", values, ways, strict=True)
    )
    if cu_q is None:
        spans = [((b,), (b,)) for b in range(BATCH)]
    else:
        spans = [(slice(*CU_Q[b : b + 2]), slice(*CU_K[b : b + 2])) for b in range(3)]
    squares, allowed = 0.0, 0.0
    for rows, keys in spans:
        parts = (x.squeeze(0) if cu_q is None else x for x in (q[rows], k[keys], v[keys]))
        queries, key, value = parts
        shift = key.shape[0] - queries.shape[0]
        want, want_lse, budget = row_by_row(
            queries,
            key,
            value,
            lambda i, j, shift=shift: visible(i + shift, j),
            options.get("softcap", 0.0),
        )
        got, got_lse = out[rows].double().reshape(want.shape), lse[rows].reshape(want_lse.shape)
        assert ((got - want).abs() <= budget).all()
        torch.testing.assert_close(got_lse.double(), want_lse, rtol=1e-5, atol=1e-5)
        squares += float((got - want).square().sum())
        allowed += float(budget.square().sum())
    assert squares < 0.25 * allowed


def everything(p: int, j: int) -> bool:
    return True


WAYS = [
    ("tensor", "tensor", "tensor"),
    ("head", "head", "head"),
    ("sequence", "sequence", "sequence"),
    (4, 4, 4),
    (4, 8, 1),
    ("tensor", 16, "head"),
    ("sequence", "tensor", 4),
]


@pytest.mark.parametrize("ways", WAYS, ids=str)
def test_scales_of_every_layout(ways) -> None:
    values, given = quantized(ways)
    assert_matches(values, ways, given, everything)


@pytest.mark.parametrize("ways", [w for w in WAYS if not any(isinstance(x, int) for x in w)])
def test_scales_of_packed_sequences(ways) -> None:
    values, given = quantized(ways, packed=True)
    assert_matches(values, ways, given, everything)


@pytest.mark.parametrize("kind", ["number", "0-dim"])
def test_numbers_are_scales(kind: str) -> None:
    values, given = quantized(("tensor", "tensor", "tensor"))
    if kind == "number":
        given = {name: scale.item() for name, scale in given.items()}
    assert_matches(values, ("tensor",) * 3, given, everything)


def test_scale_none_is_one() -> None:
    values, given = quantized(("tensor", "tensor", "tensor"))
    q, k, v = values
    got = attention(q, k, v, k_scale=given["k_scale"], v_scale=given["v_scale"])
    want = attention(q, k, v, q_scale=1.0, k_scale=given["k_scale"], v_scale=given["v_scale"])
    assert torch.equal(got, want)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("options", "visible"),
    [
        ({"causal": True}, lambda p, j: j <= p),
        ({"window": (3, 2)}, lambda p, j: p - 3 <= j <= p + 2),
        ({"window": (2, None), "causal": True}, lambda p, j: p - 2 <= j <= p),
        ({"softcap": 1.5}, everything),
    ],
    ids=["causal", "window", "causal window", "softcap"],
)
def test_masks(options, visible, packed: bool) -> None:
    ways = ("sequence", "sequence", "head")
    values, given = quantized(ways, packed)
    assert_matches(values, ways, given, visible, **options)


def test_trees() -> None:
    ways = (4, 4, 4)
    values, given = quantized(ways)
    ends = torch.tensor([KEYS] * 6 + [12] * 6 + [KEYS] * 7, dtype=torch.int32)
    subtree_end = ends.expand(BATCH, -1).contiguous()
    assert_matches(
        values,
        ways,
        given,
        lambda p, j: j <= p < ends[j],
        subtree_end=subtree_end,
    )


def test_a_row_that_sees_nothing() -> None:
    q, k, v = (x.to(E4M3) for x in inputs())
    out, lse = attention(q, k[:, :5], v[:, :5], q_scale=0.5, causal=True, return_lse=True)
    assert (out[:, :6] == 0).all()
    assert (lse[:, :6] == -math.inf).all()
    assert out[:, 6:].isfinite().all()
    assert lse[:, 6:].isfinite().all()
    out, lse = attention(q, k[:, :0], v[:, :0], v_scale=2.0, return_lse=True)
    assert (out == 0).all()
    assert (lse == -math.inf).all()
    assert attention(q[:, :0], k, v, k_scale=2.0).shape == (BATCH, 0, HEADS, VALUE_DIM)


def test_p_is_rounded_relative_to_the_largest_and_its_sum_is_not() -> None:
    """p is 1 and 0.53, and 2^8 * 0.53 = 135.7 rounds to 128."""
    q = torch.ones(1, 1, 1, 1).to(E4M3)
    k, v = (torch.tensor([0.0, 1.0]).view(1, 2, 1, 1).to(E4M3) for _ in range(2))
    out, lse = attention(q, k, v, v_scale=3.0, softmax_scale=math.log(0.53), return_lse=True)
    assert out.item() == torch.tensor(3 * 0.5 / 1.53).bfloat16().item()
    assert lse.item() == pytest.approx(math.log(1.53), rel=1e-6)


def test_small_probabilities_survive() -> None:
    """2^8 keeps p down to 2^-18 apart from zero; e4m3 alone would lose it below 2^-10."""
    q = torch.ones(1, 1, 1, 1).to(E4M3)
    k, v = (torch.tensor([0.0, 1.0]).view(1, 2, 1, 1).to(E4M3) for _ in range(2))
    out = attention(q, k, v, v_scale=2.0, softmax_scale=-16 * math.log(2))
    assert out.item() == pytest.approx(2 * 2.0**-16, rel=2**-8)
    assert attention(q, k, v, v_scale=2.0, softmax_scale=-20 * math.log(2)).item() == 0


def test_rotated_inputs_give_the_same_attention() -> None:
    q, k, v = inputs()
    want = attention(q.double(), k.double(), v.double(), causal=True)
    turned = [fp8.incoherent(x, seed=9) for x in (q, k)] + [v]
    values, scales = zip(*(fp8.quantize(x, 4) for x in turned), strict=True)
    names = ("q_scale", "k_scale", "v_scale")
    got = attention(*values, **dict(zip(names, scales, strict=True)), causal=True)
    assert (got - want).norm() < 0.1 * want.norm()


def test_compiles_without_a_break() -> None:
    values, given = quantized((4, "head", "tensor"))
    call = torch.compile(attention, fullgraph=True, backend="aot_eager")
    got = call(*values, **given, causal=True)
    assert torch.equal(got, attention(*values, **given, causal=True))


def test_forward_only() -> None:
    values, given = quantized(("tensor",) * 3)
    for x in values:
        assert not attention(*values, **given).requires_grad
        x.requires_grad_()
        with pytest.raises(ValueError, match="forward only"):
            attention(*values, **given)
        x.requires_grad_(False)


def test_the_core_says_what_it_lacks() -> None:
    values, given = quantized(("tensor",) * 3)
    with pytest.raises(ValueError, match="impl='cpu': "):
        attention(*values, **given, impl="cpu")


SHAPES = {"q": (BATCH, QUERIES, HEADS), "k": (BATCH, KEYS, KV_HEADS), "v": (BATCH, KEYS, KV_HEADS)}


@pytest.mark.parametrize("name", ["q", "k", "v"])
@pytest.mark.parametrize(
    ("scale", "error", "message"),
    [
        ("1", TypeError, "expected a float"),
        (True, TypeError, "expected a float"),
        (math.nan, ValueError, "expected a finite"),
        (math.inf, ValueError, "expected a finite"),
        (torch.tensor(math.nan), ValueError, "expected finite"),
        (torch.tensor(1.0, dtype=torch.float64), TypeError, "expected dtype float32"),
        (torch.tensor(1.0, device="meta"), ValueError, "expected device"),
        (torch.ones(3), ValueError, "expected shape"),
        (torch.ones(BATCH + 1, 2), ValueError, "expected shape"),
        (torch.ones(BATCH, 3), ValueError, "expected shape"),
        (torch.ones(BATCH, 1, 3), ValueError, "expected shape"),
        (torch.ones(1, 1, 1, 1), ValueError, "expected a number"),
    ],
    ids=str,
)
def test_bad_scales(name: str, scale, error: type[Exception], message: str) -> None:
    values, given = quantized(("tensor",) * 3)
    with pytest.raises(error, match=f"^{name}_scale: {message}"):
        attention(*values, **given | {f"{name}_scale": scale})


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_scales_of_blocks_that_no_power_of_two_makes(name: str) -> None:
    values, given = quantized((4, 4, 4))
    batch, length, heads = SHAPES[name]
    good = {-(-length // 2**i) for i in range(8)}
    for blocks in range(length + 3):
        scale = torch.full((batch, blocks, heads), 0.5)
        if blocks in good:
            attention(*values, **given | {f"{name}_scale": scale})
        else:
            with pytest.raises(ValueError, match=rf"^{name}_scale: expected ceil\({length} / n\)"):
                attention(*values, **given | {f"{name}_scale": scale})


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_bad_scales_of_packed_sequences(name: str) -> None:
    values, given = quantized(("sequence",) * 3, packed=True)
    heads = SHAPES[name][2]
    for bad, message in (
        (torch.ones(2, heads), r"expected shape \[3, "),
        (torch.ones(3, heads + 1), "expected shape"),
        (torch.ones(3, 1, heads), "expected a number"),
    ):
        with pytest.raises(ValueError, match=f"^{name}_scale: {message}"):
            attention(*values, **given | {f"{name}_scale": bad})


@pytest.mark.parametrize("name", ["q_scale", "k_scale", "v_scale"])
def test_scales_belong_to_fp8_alone(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected None unless"):
        attention(*inputs(), **{name: 0.5})
