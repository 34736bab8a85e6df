"""Values on the interpreter: types, promotion, rounding, reductions, control flow."""

import numpy as np
import pytest
import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ridgeline.testing import gluon as interp
from ridgeline.testing.gluon import dtypes

FLAT = gl.constexpr(gl.BlockedLayout([1], [32], [4], [0]))
NARROW = [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]


@gluon.jit
def converted(x_ptr, out):
    at = gl.arange(0, 256, FLAT)
    gl.store(out + at, gl.load(x_ptr + at).to(out.dtype.element_ty))


def _values() -> torch.Tensor:
    special = torch.tensor([0.0, -0.0, float("nan"), 1.5, 448.0, -0.001953125])
    generator = torch.Generator().manual_seed(0)
    scale = torch.exp2(torch.randint(-12, 8, (250,), generator=generator).float())
    return torch.cat([special, torch.randn(250, generator=generator) * scale])


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_casts_round_to_nearest_even(dtype: torch.dtype) -> None:
    x, out = _values().clamp(-448, 448), torch.zeros(256, dtype=dtype)
    interp.run(converted, (1,), x, out)
    torch.testing.assert_close(out.float(), x.to(dtype).float(), rtol=0, atol=0, equal_nan=True)
    back = torch.zeros(256)
    interp.run(converted, (1,), out, back)
    torch.testing.assert_close(back, out.float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("dtype", "largest"), [(torch.float8_e4m3fn, 448.0), (torch.float8_e5m2, 57344.0)], ids=str
)
def test_casts_to_fp8_saturate(dtype: torch.dtype, largest: float) -> None:
    x, out = torch.full((256,), float("inf")), torch.zeros(256, dtype=dtype)
    x[::2] = -1e9
    interp.run(converted, (1,), x, out)
    assert (out.float()[1::2] == largest).all()
    assert (out.float()[::2] == -largest).all()


def test_casts_to_integers_truncate_and_saturate() -> None:
    x = torch.zeros(256)
    x[:6] = torch.tensor([1.9, -1.9, 3e9, -3e9, float("nan"), 0.5])
    out = torch.ones(256, dtype=torch.int32)
    interp.run(converted, (1,), x, out)
    assert out[:6].tolist() == [1, -1, 2**31 - 1, -(2**31), 0, 0]


@gluon.jit
def reinterpreted(x_ptr, out):
    at = gl.arange(0, 256, FLAT)
    gl.store(out + at, gl.load(x_ptr + at).to(gl.bfloat16).to(gl.uint16, bitcast=True).to(gl.int32))


def test_bitcasts_keep_the_bits() -> None:
    x, out = _values(), torch.zeros(256, dtype=torch.int32)
    interp.run(reinterpreted, (1,), x, out)
    expected = x.bfloat16().view(torch.int16).int() & 0xFFFF
    seen = ~x.isnan()
    assert torch.equal(out[seen], expected[seen])


@gluon.jit
def arithmetic(a_ptr, b_ptr, out):
    at = gl.arange(0, 128, FLAT)
    a = gl.load(a_ptr + at)
    b = gl.load(b_ptr + at)
    gl.store(out + at, a // b)
    gl.store(out + 128 + at, a % b)
    gl.store(out + 256 + at, (a << 3) ^ (b & 7) | 1)
    gl.store(out + 384 + at, gl.minimum(gl.maximum(a, b), 50) - -a)
    gl.store(out + 512 + at, gl.where(a > b, a, 0) + (a * 0x40000000))


def test_integers_divide_as_in_c_and_wrap() -> None:
    generator = torch.Generator().manual_seed(1)
    a = torch.randint(-100, 100, (128,), generator=generator, dtype=torch.int32)
    b = torch.randint(1, 20, (128,), generator=generator, dtype=torch.int32)
    b[::2] *= -1
    out = torch.zeros(5, 128, dtype=torch.int32)
    interp.run(arithmetic, (1,), a, b, out)
    assert torch.equal(out[0], torch.div(a, b, rounding_mode="trunc"))
    assert torch.equal(out[1], torch.fmod(a, b))
    assert torch.equal(out[2], (a << 3) ^ (b & 7) | 1)
    assert torch.equal(out[3], torch.maximum(a, b).clamp(max=50) + a)
    assert torch.equal(out[4], torch.where(a > b, a, 0) + a * 0x40000000)


@gluon.jit
def promoted(x_ptr, half_ptr, out):
    at = gl.arange(0, 128, FLAT)
    x = gl.load(x_ptr + at)
    half = gl.load(half_ptr + at)
    gl.static_assert((x + 0.1).dtype == gl.bfloat16)
    gl.static_assert((x / 3).dtype == gl.float32)
    gl.static_assert((x + half).dtype == gl.float16)
    gl.static_assert((x * gl.to_tensor(2.0)).dtype == gl.float32)
    gl.static_assert((at + 1.5).dtype == gl.float32)
    gl.static_assert((at < 3).dtype == gl.int1)
    gl.static_assert((at + gl.program_id(0).to(gl.int64)).dtype == gl.int64)
    gl.store(out + at, x + 0.1)


def test_types_are_promoted_as_in_triton() -> None:
    x = torch.randn(128, generator=torch.Generator().manual_seed(2)).bfloat16()
    out = torch.zeros(128)
    interp.run(promoted, (1,), x, x.half(), out)
    assert torch.equal(out, (x + torch.tensor(0.1).bfloat16()).float())


@gluon.jit
def add(a, b):
    return a + b


@gluon.jit
def larger(a, i, b, j):
    return gl.where(a > b, a, b), gl.where(a > b, i, j)


@gluon.jit
def reduced(x_ptr, out):
    layout: gl.constexpr = gl.BlockedLayout([1, 4], [4, 8], [4, 1], [1, 0])
    rows = gl.arange(0, 16, gl.SliceLayout(1, layout))
    columns = gl.arange(0, 32, gl.SliceLayout(0, layout))
    x = gl.load(x_ptr + rows[:, None] * 32 + columns[None, :])
    gl.store(out + rows, gl.sum(x, 1))
    gl.store(out + 16 + rows, gl.max(x, 1))
    gl.store(out + 32 + rows, x.min(1))
    gl.store(out + 48 + rows, gl.reduce(x, 1, add))
    index = gl.where(x == x, columns[None, :], 0)
    _, where = gl.reduce((x, index), 1, larger)
    gl.store(out + 64 + rows, where.to(gl.float32))
    running = gl.associative_scan(x, 1, add)
    last = gl.max(gl.where(columns[None, :] == 31, running, float("-inf")), 1)
    gl.store(out + 80 + rows, last)
    gl.store(out + 96, gl.sum(x))


def test_reductions_and_scans() -> None:
    x = torch.randn(16, 32, generator=torch.Generator().manual_seed(3))
    out = torch.zeros(97)
    interp.run(reduced, (1,), x, out)
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(out[:16], x.sum(1), **close)
    torch.testing.assert_close(out[16:32], x.amax(1))
    torch.testing.assert_close(out[32:48], x.amin(1))
    torch.testing.assert_close(out[48:64], x.sum(1), **close)
    torch.testing.assert_close(out[64:80], x.argmax(1).float())
    torch.testing.assert_close(out[80:96], x.sum(1), **close)
    torch.testing.assert_close(out[96], x.sum(), **close)


@gluon.jit
def mathematics(x_ptr, out):
    at = gl.arange(0, 128, FLAT)
    x = gl.load(x_ptr + at)
    gl.store(out + at, gl.exp2(x) + gl.log2(x) + gl.exp(x) + gl.log(x))
    gl.store(out + 128 + at, gl.sqrt(x) + gl.rsqrt(x) + gl.abs(-x) + gl.floor(x) + gl.ceil(x))
    gl.store(out + 256 + at, gl.fma(x, x, x) + gl.erf(x) + gl.sin(x) * gl.cos(x))


def test_mathematics() -> None:
    x = torch.rand(128, generator=torch.Generator().manual_seed(4)) + 0.1
    out = torch.zeros(3, 128)
    interp.run(mathematics, (1,), x, out)
    first = torch.exp2(x) + torch.log2(x) + torch.exp(x) + torch.log(x)
    second = x.sqrt() + x.rsqrt() + x + x.floor() + x.ceil()
    third = x * x + x + torch.erf(x) + x.sin() * x.cos()
    torch.testing.assert_close(out, torch.stack([first, second, third]), rtol=1e-5, atol=1e-5)


@gluon.jit
def shaped(x_ptr, out):
    layout: gl.constexpr = gl.BlockedLayout([1, 2], [4, 8], [4, 1], [1, 0])
    rows = gl.arange(0, 16, gl.SliceLayout(1, layout))
    columns = gl.arange(0, 16, gl.SliceLayout(0, layout))
    at = rows[:, None] * 16 + columns[None, :]
    x = gl.load(x_ptr + at)
    low, high = gl.split(gl.join(x, x + 1.0))
    gl.store(out + at, gl.convert_layout(low.trans(1, 0), layout))
    flat = gl.reshape(high, [2, 8, 16])
    gl.store(out + 256 + at, gl.convert_layout(gl.reshape(flat, [16, 16]), layout))
    index = gl.where(at == at, 15 - columns[None, :], 0)
    gl.store(out + 512 + at, gl.gather(x, index, 1))


def test_shapes() -> None:
    x = torch.randn(16, 16, generator=torch.Generator().manual_seed(5))
    out = torch.zeros(3, 16, 16)
    interp.run(shaped, (1,), x, out)
    assert torch.equal(out, torch.stack([x.T, x + 1, x.flip(1)]))


@gluon.jit
def collatz(start_ptr, out):
    pid = gl.program_id(0)
    n = gl.load(start_ptr + pid)
    steps = 0
    while n != 1:
        n = n // 2 if n % 2 == 0 else 3 * n + 1
        steps += 1
    total = 0
    for i in range(steps):
        if i % 2 == 0 and i > 3:
            total += i
    gl.store(out + 2 * pid, steps)
    gl.store(out + 2 * pid + 1, total)


def test_scalars_steer_loops_and_branches() -> None:
    start, out = torch.tensor([1, 6, 7], dtype=torch.int32), torch.zeros(6, dtype=torch.int32)
    interp.run(collatz, (3,), start, out)
    assert out.tolist() == [0, 0, 8, 4 + 6, 16, 4 + 6 + 8 + 10 + 12 + 14]


@pytest.mark.parametrize("dtype", dtypes.TORCH, ids=str)
def test_memory_and_registers_hold_the_same_values(dtype: gl.dtype) -> None:
    values = np.arange(-3, 4) if dtype != gl.int1 else np.array([False, True])
    registers = dtypes.cast(values, dtype)
    assert np.array_equal(dtypes.decode(dtypes.encode(registers, dtype), dtype), registers)
