import pytest
from fake_gpu import FakeGpu

from ridgeline.bench import decode
from ridgeline.bench.decode import DecodeOptions, Row, measure
from ridgeline.bench.shapes import DecodeShape
from ridgeline.ops.common.triton import INTERPRETED
from ridgeline.roofline import Roofs, roofs

if INTERPRETED:
    from ridgeline.testing.triton_interpreter import prepare

    prepare()

TINY = {"sizes": ((1, 96), (2, 48)), "head_dim": 16, "page_size": 5, "reps": 2}


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Tiny roofs and few cache copies: nothing here is timed."""
    monkeypatch.setattr(decode, "cold_bytes", lambda: 1000)
    for name in ("GEMM_SIZE", "GPU_GEMM_SIZE"):
        monkeypatch.setattr(roofs, name, 32)
    monkeypatch.setattr(roofs, "COPY_BYTES", 1024)


@pytest.fixture
def gpu() -> FakeGpu:
    return FakeGpu()


@pytest.fixture
def tiny_options() -> DecodeOptions:
    return DecodeOptions(impl="reference", **TINY)


@pytest.fixture
def rows(_small) -> list[Row]:
    """Measured on tiny shapes, so that the files and the plot have something to show."""
    options = DecodeOptions(variants=("gqa", "gta", "gla"), heads=(8,), impl="reference", **TINY)
    return [measure(shape, options) for shape in options.shapes()]


@pytest.fixture
def made_row():
    """A row of given numbers."""

    def make(variant="gqa", seconds=0.004, batch=1, length=32768, kv_heads=8, **given) -> Row:
        shape = DecodeShape(variant, 32, kv_heads, 128, batch, length)
        fields = {"no_prefetch": None, "peers": {}, "error": 1e-3, "drift": 0.0, "samples": {}}
        return Row(shape, seconds, Roofs(40e9, 800e9), **{**fields, **given})

    return make
