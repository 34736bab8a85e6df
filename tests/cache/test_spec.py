"""Bytes a token: the literal tables of the paper (arXiv 2505.21487, tables 5, 15 and 26)."""

import pytest
import torch

from ridgeline.cache import CacheSpec

TP = (1, 2, 4, 8)

# Llama-3-8B shape: 32 query heads, 8 kv heads, d_h 128, d_R 64. In units of d_h.
LLAMA = {
    "mha": (lambda tp: CacheSpec.gqa(32, 128, tp), (64, 32, 16, 8)),
    "gqa": (lambda tp: CacheSpec.gqa(8, 128, tp), (16, 8, 4, 2)),
    "mqa": (lambda tp: CacheSpec.gqa(1, 128, tp), (2, 2, 2, 2)),
    "mla": (lambda tp: CacheSpec.mla(512, 64, tp), (4.5, 4.5, 4.5, 4.5)),
    "gla-2": (lambda tp: CacheSpec.gla(2, 256, 64, tp), (4.5, 2.5, 2.5, 2.5)),
    "gta": (lambda tp: CacheSpec.gta(8, 128, tp=tp), (8.5, 4.5, 2.5, 1.5)),
}

# XL model: 16 query heads, d_h 128, bfloat16. Bytes per token and layer.
XL = {
    "mha": (lambda tp: CacheSpec.gqa(16, 128, tp), (8192, 4096, 2048, 1024)),
    "gqa-4": (lambda tp: CacheSpec.gqa(4, 128, tp), (2048, 1024, 512, 512)),
    "gta-4": (lambda tp: CacheSpec.gta(4, 128, 64, tp), (1152, 640, 384, 384)),
    "gla-2": (lambda tp: CacheSpec.gla(2, 256, 64, tp), (1152, 640, 640, 640)),
    "mla": (lambda tp: CacheSpec.mla(512, 64, tp), (1152, 1152, 1152, 1152)),
}


@pytest.mark.parametrize("variant", LLAMA)
def test_elements_of_the_llama_shape(variant):
    make, units = LLAMA[variant]
    assert [make(tp).elements_per_token / 128 for tp in TP] == list(units)


@pytest.mark.parametrize("variant", XL)
def test_bytes_of_the_xl_model(variant):
    make, table = XL[variant]
    assert [make(tp).bytes_per_token(torch.bfloat16) for tp in TP] == list(table)
    assert [make(tp).bytes_per_token(torch.float32) for tp in TP] == [2 * n for n in table]


def test_serving_shapes():
    # GLA-8 and MLA as served: 8 latents of 256, one of 512, a RoPE key of 64.
    assert CacheSpec.gla(8, 256, 64, 8).bytes_per_token(torch.bfloat16) == 640
    assert CacheSpec.mla(512, 64, 8).bytes_per_token(torch.bfloat16) == 1152


def test_heads_that_do_not_divide_round_up():
    assert CacheSpec.gqa(3, 16, tp=2).heads == 2
    assert CacheSpec.gla(3, 16, 4, tp=4).heads == 1


def test_a_value_width_of_its_own():
    assert CacheSpec("paired", 2, 8, value_dim=6).elements_per_token == 2 * (8 + 6)
    assert CacheSpec("paired", 2, 8) == CacheSpec("paired", 2, 8, value_dim=8)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: CacheSpec("both", 1, 8), ValueError, "kind: .*'both'"),
        (lambda: CacheSpec("paired", 0, 8), ValueError, "heads: .*at least 1, got 0"),
        (lambda: CacheSpec("paired", 1, -8), ValueError, "dim: .*got -8"),
        (lambda: CacheSpec("paired", 1.0, 8), TypeError, "heads: expected an int, got float"),
        (lambda: CacheSpec("paired", 1, 8, 4), ValueError, "rope_dim: expected 0 .*got 4"),
        (lambda: CacheSpec("paired", 1, 8, value_dim=0), ValueError, "value_dim: .*got 0"),
        (lambda: CacheSpec("tied", 1, 8, 4, value_dim=8), ValueError, "value_dim: expected None"),
        (lambda: CacheSpec("tied", 1, 8, -1), ValueError, "rope_dim: .*got -1"),
        (lambda: CacheSpec.gqa(0, 8), ValueError, "kv_heads: .*got 0"),
        (lambda: CacheSpec.gqa(8, 8, tp=0), ValueError, "tp: .*got 0"),
        (lambda: CacheSpec.gqa(8, 8, tp=True), TypeError, "tp: .*got bool"),
        (lambda: CacheSpec.gta(8, 8, 9), ValueError, r"rope_dim: .*head_dim \(8\), got 9"),
        (lambda: CacheSpec.gta(8, 0), ValueError, "head_dim: .*got 0"),
        (lambda: CacheSpec.mla(0, 8), ValueError, "latent_dim: .*got 0"),
        (lambda: CacheSpec.gla(-2, 8, 8), ValueError, "latent_heads: .*got -2"),
        (lambda: CacheSpec.gqa(8, 8).bytes_per_token("bf16"), TypeError, "dtype: .*got str"),
    ],
)
def test_impossible_sizes_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
