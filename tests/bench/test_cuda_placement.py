"""Everything that is timed or compared on a GPU lies there: torch's meta device stands in for it.

Its operations refuse tensors of the CPU as a GPU's do, and need no GPU.
"""

import pytest
import torch

from ridgeline.bench.attention import peers
from ridgeline.bench.attention.calls import Inputs, ours, unpacked
from ridgeline.bench.attention.shapes import AttentionShape
from ridgeline.bench.cuda import decode_peers
from ridgeline.bench.cuda.decode import truth
from ridgeline.bench.inputs import DecodeInputs
from ridgeline.bench.shapes import DecodeShape
from ridgeline.roofline import copy, gemm

SMALL = {"heads": 4, "kv_heads": 2, "head_dim": 16}


class _Generator:
    def __init__(self, where) -> None:
        assert where == "meta"

    def manual_seed(self, seed):
        return self


@pytest.fixture(autouse=True)
def _random_numbers_without_a_generator(monkeypatch):
    """The meta device has none."""
    monkeypatch.setattr(torch, "Generator", _Generator)
    for name in ("randn", "randperm"):
        draw = getattr(torch, name)
        monkeypatch.setattr(
            torch, name, lambda *size, generator=None, draw=draw, **k: draw(*size, **k)
        )


@pytest.mark.parametrize(
    "shape",
    [
        DecodeShape("gqa", 4, 2, 16, 2, 37, 2),
        DecodeShape("mla", 4, 1, 16, 2, 37, 3),
        DecodeShape("gta", 4, 2, 16, 2, 37, dtype="fp8"),
    ],
    ids=lambda s: f"{s.variant}-{s.dtype}",
)
def test_a_decode_step(shape) -> None:
    inputs = DecodeInputs(shape, page_size=8, cold_bytes=0, where="meta")
    own = (*inputs.next_views(), inputs.block_table, inputs.cache_seqlens, inputs.q_nope)
    assert {x.device.type for x in (*own, *inputs.scales.values())} == {"meta"}
    want = truth(inputs)
    assert want.is_meta
    assert inputs.decode("reference").shape == want.shape
    for call, canonical in decode_peers.torch_peers(inputs).values():
        assert canonical(call()).is_meta
        assert canonical(call()).shape == want.shape


@pytest.mark.parametrize(
    "shape",
    [
        AttentionShape(2, 24, **SMALL),
        AttentionShape.tree([(9, 5, 4), (7, 3, 6)], **SMALL),
    ],
    ids=["causal", "tree"],
)
def test_attention(shape) -> None:
    inputs = Inputs(shape, "meta")
    want = peers.exact(inputs)
    ways = [ours(inputs, "reference")]
    if shape.mask == "tree":
        ways += [unpacked(inputs, "reference"), peers.sdpa_unpacked(inputs, "bf16")]
    else:
        ways += [peers.sdpa(inputs, "bf16")]
    for call in ways:
        found = call.results("forward") | call.results("backward")
        assert {name: (x.shape, x.device) for name, x in found.items()} == {
            name: (x.shape, x.device) for name, x in want.items()
        }


def test_roofs() -> None:
    for call, _ in (copy("meta", 4096), gemm(torch.bfloat16, 32, "meta")):
        assert call().is_meta
