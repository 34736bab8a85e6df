"""Bytes and FLOPs against numbers worked out by hand from the papers' definitions."""

import pytest

from ridgeline.bench.decode import DecodeOptions
from ridgeline.bench.shapes import DecodeShape


def shape(variant, heads, kv_heads, **given) -> DecodeShape:
    return DecodeShape(
        variant, heads, kv_heads, **{"head_dim": 128, "batch": 1, "length": 1000} | given
    )


@pytest.mark.parametrize(
    ("variant", "heads", "kv_heads", "bytes_per_token", "intensity"),
    [
        ("mha", 32, 32, 16384, 1.0),
        ("gqa", 32, 8, 4096, 4.0),
        ("mqa", 32, 1, 512, 32.0),
        # 2 * 32 * (64 + 64 + 128) FLOPs over 2 * (8 * 128 + 64) bytes
        ("gta", 32, 8, 2176, 7.53),
        ("mla", 16, 1, 1152, 30.2),
        ("mla", 128, 1, 1152, 241.8),
        ("gla", 128, 2, 1152, 128.0),
    ],
)
def test_bytes_and_intensity(variant, heads, kv_heads, bytes_per_token, intensity):
    found = shape(variant, heads, kv_heads)
    assert found.bytes_per_token == bytes_per_token
    assert found.cache_bytes == 1000 * bytes_per_token
    assert found.intensity == pytest.approx(intensity, rel=2e-3)


def test_mla_flops_per_token():
    assert shape("mla", 128, 1).flops == 1000 * 2176 * 128


def test_fp32_doubles_the_bytes():
    assert shape("gqa", 32, 8, dtype="fp32").bytes_per_token == 8192


def test_new_tokens_see_causally():
    # Of 10 tokens the last 3 are new: they see 8, 9 and 10.
    found = shape("mqa", 4, 1, head_dim=2, batch=5, length=10, query_len=3)
    assert found.flops == 2 * 5 * (8 + 9 + 10) * 4 * (2 + 2)


@pytest.mark.parametrize(
    ("variant", "scale"),
    [("gqa", 128**-0.5), ("gta", 128**-0.5), ("mla", 192**-0.5), ("gla", 192**-0.5)],
)
def test_softmax_scale_is_that_of_the_expanded_form(variant, scale):
    kv_heads = 1 if variant == "mla" else 2
    assert shape(variant, 16, kv_heads).softmax_scale == pytest.approx(scale)


def test_widths_of_the_tied_variants():
    gta, gla, mla = shape("gta", 32, 8), shape("gla", 16, 2), shape("mla", 16, 1)
    assert (gta.nope_dim, gta.rope_dim, gta.spec.dim) == (64, 64, 128)
    assert (gla.nope_dim, gla.rope_dim, gla.spec.dim) == (256, 64, 256)
    assert (mla.nope_dim, mla.rope_dim, mla.spec.dim) == (512, 64, 512)


@pytest.mark.parametrize(
    ("given", "culprit"),
    [
        ({"variant": "mlaa"}, "variant"),
        ({"dtype": "int8"}, "dtype"),
        ({"kv_heads": 3}, "kv_heads"),
        ({"heads": 0}, "heads"),
        ({"head_dim": 7}, "head_dim"),
        ({"length": 2, "query_len": 3}, "query_len"),
    ],
)
def test_impossible_shapes_name_the_culprit(given, culprit):
    fields = {"variant": "gqa", "heads": 8, "kv_heads": 2, "head_dim": 16, "batch": 1, "length": 9}
    with pytest.raises(ValueError, match=f"^{culprit}"):
        DecodeShape(**fields | given)


def test_defaults_are_the_published_shapes():
    found = {(s.label, s.head_dim) for s in DecodeOptions().shapes()}
    labels = "MHA 32/32,MQA 32/1,GQA 32/8,GTA 32/8,MLA 16,MLA 128,GLA-2 16,GLA-2 32,GLA-2 128"
    assert found == {(label, 128) for label in labels.split(",")}
    sizes = {(s.batch, s.length) for s in DecodeOptions().shapes()}
    assert sizes == {(1, 32768), (4, 8192), (16, 2048)}


def test_quick_has_every_variant_once():
    found = [s.variant for s in DecodeOptions.quick().shapes()]
    assert found == ["mha", "mqa", "gqa", "gta", "mla", "gla"]
