"""What is timed on a GPU by default, what a command line chooses, and its bytes."""

import pytest
import torch

from ridgeline.bench.cuda import shapes
from ridgeline.bench.cuda.decode import CudaDecodeOptions
from ridgeline.bench.shapes import DecodeShape


def test_the_default_steps() -> None:
    found = {(s.label, s.batch, s.length, s.query_len) for s in shapes.decode_shapes()}
    assert len(found) == len(shapes.decode_shapes()) == 2 + 5 * (3 + 4) + 4
    assert {("GQA 32/8", 64, 8192, 1), ("GTA 32/8", 64, 8192, 1)} < found
    for length in (4096, 8192, 16384, 32768, 65536):
        assert {("MLA 16", 128, length, q) for q in (1, 2, 4)} < found
        assert {(x, 128, length, q) for x in ("MLA 128", "GLA-2 128") for q in (1, 2)} < found
    assert {(x, 1, 2048, q) for x in ("MLA 128", "GLA-2 128") for q in (1, 2)} < found
    assert {s.head_dim for s in shapes.decode_shapes()} == {128}


def test_every_step_is_timed_with_both_pages() -> None:
    options = CudaDecodeOptions()
    work = list(options.work())
    assert len(work) == 2 * len(shapes.decode_shapes())
    assert [page for _, page in work[:2]] == [64, 1]
    assert max(s.cache_bytes for s, _ in work) == 128 * 65536 * 1152


def test_a_command_line_chooses_of_the_default_steps() -> None:
    found = shapes.chosen_decode(
        variants=("mla",), heads=(16,), query_lens=(2,), dtypes=("bf16", "fp8")
    )
    assert [(s.label, s.length, s.query_len, s.dtype) for s in found] == [
        ("MLA 16", length, 2, dtype)
        for dtype in ("bf16", "fp8")
        for length in (4096, 8192, 16384, 32768, 65536)
    ]


def test_a_command_line_names_its_own() -> None:
    found = shapes.chosen_decode(sizes=((4, 100),), variants=("gla",), head_dim=64, latent_heads=4)
    assert {(s.label, s.batch, s.length, s.query_len, s.head_dim) for s in found} == {
        (f"GLA-4 {heads}", 4, 100, 1, 64) for heads in (16, 32, 128)
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"head_dim": 64}, "--head-dim: expected together with --batch and --length"),
        ({"kv_heads": 4, "head_dim": None}, "--kv-heads: expected together"),
        ({"variants": ("mha",)}, "--variants: expected some of the default shapes"),
        ({"dtypes": ("int8",)}, "dtype: expected one of bf16, fp16, fp32, fp8"),
    ],
)
def test_what_is_not_there_is_named(given, message) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        shapes.chosen_decode(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"reps": 0}, "reps: expected"),
        ({"page_sizes": (64, 0)}, "page_size: expected"),
        ({"prefetch": (-1,)}, "prefetch: expected"),
        ({"impls": ("fast",)}, "impl: expected one of"),
    ],
)
def test_impossible_options_name_the_culprit(given, message) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        CudaDecodeOptions(**given)


@pytest.mark.parametrize(
    ("variant", "kv_heads", "expected"),
    [
        ("gqa", 8, 2 * 8 * 128),
        ("gta", 8, 8 * 128 + 2 * 64),  # RoPE keys stay bfloat16
        ("mla", 1, 512 + 2 * 64),
        ("gla", 2, 2 * 256 + 2 * 64),
    ],
)
def test_bytes_of_fp8_caches(variant, kv_heads, expected) -> None:
    shape = DecodeShape(variant, 32, kv_heads, 128, 1, 1000, dtype="fp8")
    assert shape.bytes_per_token == expected
    assert shape.torch_dtype == torch.bfloat16
    assert shape.flops == DecodeShape(variant, 32, kv_heads, 128, 1, 1000).flops


def test_the_default_rows_of_attention() -> None:
    found = shapes.attention_shapes()
    dense = [s for s in found if s.mask != "tree" and s.heads == s.kv_heads]
    assert {(s.head_dim, s.length, s.mask) for s in dense} == {
        (d, n, mask)
        for d in (64, 128, 256)
        for n in (2048, 4096, 8192, 16384)
        for mask in ("full", "causal")
    }
    assert {s.batch * s.length for s in dense} == {16384}
    assert {s.heads * s.head_dim for s in dense} == {2048}
    trees = [s for s in found if s.mask == "tree"]
    assert [len(s.pairs) for s in trees] == [8, 42]
    assert all(abs(s.length - 16384) < 400 for s in trees)
    assert any(s.heads == 4 * s.kv_heads for s in found)
