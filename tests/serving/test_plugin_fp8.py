"""FP8 caches as on a GPU: what the backends write, through Triton's kernels and in the engine."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from builders import batch, builder
from checkpoints import tiny_checkpoint
from engines import BLOCK, engine, greedy, random_prompts, tokens_cached
from torch import Tensor
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVQuantMode

from ridgeline.cache import CacheSpec
from ridgeline.ops.common import check
from ridgeline.ops.common.hopper_config import decode_config, load_of
from ridgeline.testing.cases import DecodeCase, PagedCase, TiedCase
from ridgeline.testing.oracle import expected
from ridgeline.testing.run import run
from ridgeline.testing.tolerance import assert_matches
from ridgeline.vllm import backend, fp8, paired, step, tied
from ridgeline.vllm.paired import PairedBackend, PairedImpl
from ridgeline.vllm.tied import LatentAttention, TiedAttention, TiedImpl

PAGE, PAGES, HEADS, DIM = 8, 8, 4, 32
TABLE = torch.tensor([[7, 2, 5], [4, 1, 6]], dtype=torch.int32)  # of two requests
LENGTHS, NEW = (18, 13), 5  # their tokens, and those of them that are new
SIZES = (1e3, 1e-4)  # of their states: one scale for both would saturate, or round to nothing
HALF_ULP = 2.0**-4  # of e4m3, relative; absolute, of its subnormals, 2^-10 / 448 of the largest
GIB = 1 << 30


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "current_platform", SimpleNamespace(is_cpu=lambda: False))


def paired_layer(dtype: str, **options: object) -> tuple[PairedImpl, SimpleNamespace]:
    impl = PairedImpl(HEADS, DIM, DIM**-0.5, num_kv_heads=2, kv_cache_dtype=dtype, **options)
    return impl, SimpleNamespace(head_size_v=DIM)


def tied_layer(
    dtype: str, spec: CacheSpec, nope_dim: int, kind: type[TiedAttention]
) -> tuple[TiedImpl, SimpleNamespace]:
    width = nope_dim + spec.rope_dim
    impl = TiedImpl(HEADS, width, width**-0.5, 1, kv_cache_dtype=dtype, spec=spec)
    draw = torch.Generator().manual_seed(2)
    k_up, v_up = (torch.randn(HEADS, DIM, spec.dim, generator=draw) / 6 for _ in range(2))
    layer = SimpleNamespace(nope_dim=nope_dim, head_size_v=DIM, k_up=k_up, v_up=v_up)
    for name in ("expand", "absorb_query", "absorb_output"):
        setattr(layer, name, partial(getattr(kind, name), layer))
    return impl, layer


LAYERS: dict[str, Callable] = {
    "gqa": paired_layer,
    "window": partial(paired_layer, sliding_window=6, logits_soft_cap=20.0),
    "gta": lambda dtype: tied_layer(dtype, CacheSpec.gta(2, DIM, 8), DIM - 8, TiedAttention),
    "mla": lambda dtype: tied_layer(dtype, CacheSpec.mla(48, 8), DIM, LatentAttention),
    "gla": lambda dtype: tied_layer(dtype, CacheSpec.gla(2, 32, 16), DIM, LatentAttention),
}


class Call(NamedTuple):
    case: DecodeCase
    out: Tensor
    lse: Tensor


class Served(NamedTuple):
    """The new tokens of both requests, by the decode operation and over gathered keys."""

    decoded: Tensor
    gathered: Tensor
    call: Call


def tokens(impl: PairedImpl | TiedImpl) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Queries of the new tokens, keys and values of all, of each request."""
    draw = torch.Generator().manual_seed(1)
    is_tied = isinstance(impl, TiedImpl)
    heads, width = (1, impl.spec.elements_per_token) if is_tied else (2, DIM)
    rope = impl.spec.rope_dim if is_tied else 0
    queries, keys, values = [], [], []
    for length, size in zip(LENGTHS, SIZES, strict=True):
        query = torch.randn(NEW, HEADS, impl.head_size, generator=draw)
        query[..., : impl.head_size - rope] /= size
        key, value = (torch.randn(length, heads, width, generator=draw) for _ in range(2))
        key[..., : width - rope] *= size
        queries.append(query)
        keys.append(key)
        values.append(key if is_tied else value * size)
    return queries, keys, values


def serve(name: str, dtype: str, by: str) -> Served:
    """Writes the older tokens, then the new ones, as two steps of an engine do."""
    impl, layer = LAYERS[name](dtype)
    queries, keys, values = tokens(impl)
    rows = impl.join(layer, keys[0], values[0])
    # Of bytes of 255, which are NaN in e4m3 and float32: whatever is read was written.
    cache = torch.full((PAGES, PAGE, rows.shape[1], rows[0, 0].nbytes), 255, dtype=torch.uint8)
    cache = cache.view(rows.dtype).transpose(1, 2)
    for old in (True, False):
        at = [torch.arange(n)[: n - NEW] if old else torch.arange(n)[n - NEW :] for n in LENGTHS]
        slots = [TABLE[i, a // PAGE] * PAGE + a % PAGE for i, a in enumerate(at)]
        key, value = (
            # Two rows of padding, which the runner's mapping sends nowhere.
            torch.cat([*(x[a] for x, a in zip(given, at, strict=True)), given[0][:2]])
            for given in (keys, values)
        )
        mapping = torch.cat([*slots, torch.tensor([-1, -1])])
        impl.do_kv_cache_update(layer, key, value, cache, mapping)
    calls = []

    def recorded(kind: type[DecodeCase], *args: Tensor, **options: object) -> Tensor:
        case = kind(*args, **options)
        calls.append(Call(case, *run(case, by)))
        return calls[-1].out

    outs = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paired, "paged_decode", partial(recorded, PagedCase))
        patch.setattr(tied, "tied_decode", partial(recorded, TiedCase))
        for least in (NEW + 1, NEW):
            patch.setattr(step, "GATHER_FROM", least)
            out = torch.empty(2 * NEW, HEADS, DIM)
            metadata = builder(PAGE, window=6 if name == "window" else None).build(
                0, batch([NEW, NEW], LENGTHS, TABLE)
            )
            impl.forward(layer, torch.cat(queries), key, value, cache, metadata, out)
            outs.append(out)
    assert len(calls) == 1
    return Served(*outs, calls[0])


@pytest.fixture(scope="module", params=LAYERS)
def served(request) -> tuple[Served, Call]:
    """In FP8 by Triton's kernels, and the operation's call in float32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "current_platform", SimpleNamespace(is_cpu=lambda: False))
        return serve(request.param, "fp8", "triton"), serve(request.param, "auto", "auto").call


def test_the_kernel_reads_what_is_written(served):
    assert_matches(*served[0].call)


def test_near_the_float32_cache(served):
    """Every value, and by its score every probability, is off by at most half an ulp."""
    exact = expected(served[1].case)
    budget = HALF_ULP * (exact.weight + exact.swing) + 2.0**-17 * exact.peak[..., None]
    error = (served[0].call.out - exact.out).abs()
    assert (error <= budget).all()
    assert (error > budget / 1000).any()  # it is FP8


def test_a_chunk_over_gathered_tokens_is_the_same(served):
    for i, size in enumerate(SIZES):
        rows = slice(i * NEW, (i + 1) * NEW)
        decoded, gathered = (x[rows] / size for x in (served[0].decoded, served[0].gathered))
        torch.testing.assert_close(gathered, decoded, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("spec", "nbytes"),
    [
        (CacheSpec.mla(512, 64), 512 + 2 * 64 + 16),
        (CacheSpec.gla(2, 256, 64), 2 * 256 + 2 * 64 + 16),
        (CacheSpec.gla(2, 256, 64, tp=2), 256 + 2 * 64 + 16),
        (CacheSpec.gta(8, 128, 64), 8 * 128 + 2 * 64 + 32),
    ],
)
def test_bytes_of_a_tied_cache(spec, nbytes):
    """``CacheSpec``'s, a second byte of the RoPE key, and scales to a multiple of 16 bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_default_dtype", lambda: torch.bfloat16)
        impl = TiedImpl(spec.heads, 128, 1.0, 1, kv_cache_dtype="fp8", spec=spec)
    layer = SimpleNamespace(impl=impl, spec=spec, kv_cache_torch_dtype=torch.uint8, shards=1)
    config = SimpleNamespace(cache_config=SimpleNamespace(block_size=64))
    found = TiedAttention.get_kv_cache_spec(layer, config)
    assert found.page_size_bytes == 64 * nbytes
    beside = nbytes - spec.bytes_per_token(check.FP8) - spec.rope_dim
    assert 4 * spec.heads <= beside < 4 * spec.heads + 16


@pytest.mark.parametrize(("dim", "nbytes"), [(64, 144), (128, 272)])
def test_bytes_of_a_paired_cache(dim, nbytes):
    spec = FullAttentionSpec(
        block_size=64,
        num_kv_heads=8,
        head_size=dim,
        dtype=torch.uint8,
        kv_quant_mode=KVQuantMode.FP8_PER_TENSOR,
    )
    found = PairedBackend.customize_spec(spec)
    assert found.page_size_bytes == 64 * 8 * nbytes
    assert nbytes == CacheSpec.gqa(1, dim).bytes_per_token(check.FP8) + 16


def test_hopper_kernels_load_a_record_by_16_bytes():
    paired_parts = fp8.paired_record(128, 128)
    k, v, _ = paired_parts.split(torch.zeros(3, PAGE, 8, paired_parts.nbytes, dtype=torch.uint8))
    tied_parts = fp8.tied_record(2, 256, 64, torch.bfloat16)
    state, rope, _ = tied_parts.split(torch.zeros(3, PAGE, tied_parts.nbytes, dtype=torch.uint8))
    for caches in ((k, v), (state.unflatten(-1, (2, 256)), rope)):
        assert load_of(PAGE, caches) == ("load", 8)
    tiling = {"q_dim": 128, "k_dim": 128, "rope_dim": 0, "value_dim": 128, "tied": False}
    assert decode_config(4, 8, **tiling, k_blocks=1, v_blocks=1).scales == 2


@pytest.mark.parametrize("name", fp8.NAMES)
def test_names_of_the_cache(name):
    assert PairedBackend.supports_kv_cache_dtype(name)
    assert PairedImpl(2, 16, 0.25, kv_cache_dtype=name).is_fp8


@pytest.mark.parametrize("name", ["fp8_e5m2", "fp8_ds_mla", "int8_per_token_head", "bfloat16"])
def test_other_caches_are_refused(name):
    """Of a float32 model; the operations take caches of the queries' type, or e4m3."""
    with pytest.raises(ValueError, match=f"kv_cache_dtype: .* auto, float32, fp8, .* got '{name}'"):
        PairedImpl(2, 16, 0.25, kv_cache_dtype=name)


def rounded(join: Callable, quantized: Callable) -> Callable:
    """``join`` of keys and values that have been through FP8."""

    def call(self, layer, key, value):
        return join(self, layer, *quantized(self, key, value))

    return call


def through_fp8(x: Tensor) -> Tensor:
    return fp8.dequantize(*fp8.quantize(x), x.dtype)


def rounded_pair(impl: PairedImpl, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    return through_fp8(key), through_fp8(value)


def rounded_row(impl: TiedImpl, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    state, rope = impl._split(key.squeeze(1))
    return torch.cat((through_fp8(state).flatten(1), rope), dim=-1).unsqueeze(1), value


@pytest.mark.parametrize(
    ("variant", "impl", "through", "nbytes"),
    [
        ("gqa", PairedImpl, rounded_pair, 2 * 2 * 16 + 2 * 16),
        ("gla", TiedImpl, rounded_row, 2 * 32 + 4 * 8 + 16),
    ],
)
def test_in_the_engine(tmp_path, monkeypatch, variant, impl, through, nbytes):
    """Tokens are those over a float32 cache whose values have been through FP8."""
    path = tiny_checkpoint(tmp_path, variant, max_position_embeddings=1024)
    prompts = random_prompts((600, 70, 3), shared=40)
    options = {"max_model_len": 704, "max_num_batched_tokens": 300}
    with engine(path, kv_cache_dtype="fp8", **options) as llm:
        tokens = greedy(llm, prompts, 24)
        assert tokens_cached(llm, GIB) == GIB // (nbytes * BLOCK * 2) * BLOCK  # two layers
    with engine(path, **options) as llm:
        assert greedy(llm, prompts, 24) != tokens
        monkeypatch.setattr(impl, "join", rounded(impl.join, through))
        llm.reset_prefix_cache()
        assert greedy(llm, prompts, 24) == tokens
