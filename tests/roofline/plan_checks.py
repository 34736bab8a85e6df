"""Independent numbers that the planner must give: published sizes, and arithmetic done by hand."""

from dataclasses import replace

import pytest

from ridgeline.roofline import configs, hardware, published
from ridgeline.roofline.cost import Engine, Work
from ridgeline.roofline.efficiency import Efficiency, Kernel
from ridgeline.roofline.model import ModelShape
from ridgeline.roofline.parallel import Parallelism
from ridgeline.roofline.schedule import Policy
from ridgeline.roofline.simulate import simulate
from ridgeline.roofline.workload import Workload

TP8, TP2_DP4 = Parallelism(8), Parallelism(2, 4)
EXACT = Efficiency(
    linear_memory=1.0,
    linear_compute=1.0,
    decode=Kernel(memory=1.0, compute=1.0, fixed=0.0),
    prefill=1.0,
    link=1.0,
    layer_overhead=0.0,
    step_overhead=0.0,
    memory_fraction=1.0,
)
# XL of arXiv 2505.21487: bytes a token and layer at TP 1, 2, 4, 8.
XL = {
    "mha": (8192, 4096, 2048, 1024),
    "gqa-4": (2048, 1024, 512, 512),
    "gta-4": (1152, 640, 384, 384),
    "gla-2": (1152, 640, 640, 640),
    "mla": (1152, 1152, 1152, 1152),
}


def xl(label: str) -> ModelShape:
    mha = ModelShape(
        name="XL",
        variant="mha",
        layers=24,
        hidden=2048,
        heads=16,
        kv_heads=16,
        head_dim=128,
        intermediate=5464,
        vocab=128256,
        tied_embeddings=True,
    )
    return configs.with_attention(mha, label)


def engine(model: ModelShape, parallel: Parallelism = TP8, **changes: object) -> Engine:
    return Engine(model, hardware.find("H100"), parallel, replace(EXACT, **changes))


def cache_bytes() -> None:
    for label, expected in XL.items():
        for tp, nbytes in zip((1, 2, 4, 8), expected, strict=True):
            assert engine(xl(label), Parallelism(tp)).cache_bytes_per_token == 24 * nbytes
    fp8 = replace(published.MLA, cache_dtype="fp8")
    assert fp8.cache_bytes() == 60 * (512 + 2 * 64)


def parameters() -> None:
    """Published: 236 B with 21 B active; Llama 3 8B 8.03 B."""
    assert published.MLA.parameters == pytest.approx(236e9, rel=0.003)
    assert published.MLA.active_parameters == pytest.approx(21e9, rel=0.02)
    assert configs.KNOWN["llama-3-8b"].parameters == pytest.approx(8.03e9, rel=0.001)
    assert xl("mha").parameters == pytest.approx(1471.12e6, rel=0.002)


def weights_on_a_device() -> None:
    """236 GB of FP8 over 8 devices, embeddings in BF16, each rank with the whole down-projections;
    TP2,DP4 holds the sharded rest of attention four times.
    """
    tp8, dp4 = (engine(published.MLA, p).weight_bytes for p in (TP8, TP2_DP4))
    down = 60 * 5120 * (1536 + 512 + 64)
    tables = 2 * 102400 * 5120
    assert tp8 == pytest.approx((235.69e9 + tables) / 8 + down * 7 / 8, rel=1e-4)
    sharded = 60 * 128 * (1536 * (128 + 64) + 512 * (128 + 128) + 128 * 5120)
    assert dp4 - tp8 == pytest.approx(sharded * (1 / 2 - 1 / 8))


def flops_and_intensity() -> None:
    """MLA 2176 FLOP a row and token and 241.8 FLOP/B; GLA-2 with one RoPE key 128."""
    layer = replace(published.MLA, layers=1, experts=None)
    mla = engine(layer, Parallelism())
    assert mla.decode_flops(1000.0, 1) == 2176 * 128 * 1000
    assert mla.decode_flops(1000.0, 2) == 2 * 2176 * 128 * 1000
    assert mla.decode_flops(1.0, 1) / mla.decode_bytes(1.0) == pytest.approx(241.8, abs=0.05)
    gla = engine(replace(published.GLA_2, layers=1, experts=None), Parallelism())
    assert gla.decode_flops(1.0, 1) / gla.decode_bytes(1.0) == pytest.approx(128.0)
    xl_gqa = engine(xl("gqa-4"), Parallelism(4))
    assert xl_gqa.decode_flops(1.0, 1) / xl_gqa.decode_bytes(1.0) == pytest.approx(4.0)


def padded_tiles() -> None:
    """On an H20 a tile of 64 rows holding 16 is bound by compute: 3.27 times the time."""
    layer = replace(published.MLA, layers=1, experts=None)
    work = Work(sequences=16, cached=16 * 65536.0)
    times = []
    for rows in (64, 16):
        kernel = Kernel(memory=1.0, compute=1.0, fixed=0.0, tile_rows=rows)
        device = hardware.find("H20")
        found = Engine(layer, device, TP8, replace(EXACT, decode=kernel))
        times.append(found.decode_attention(work))
    assert times[0] / times[1] == pytest.approx(3.27, abs=0.01)


def parts_of_a_step() -> None:
    """One token of Llama 3 8B in BF16 on an H100, by hand."""
    one = engine(configs.KNOWN["llama-3-8b"], Parallelism())
    cost = one.step([Work(sequences=1, cached=8192.0)])
    read = 2 * (8.030e9 - 128256 * 4096)  # the input's embeddings are looked up
    assert cost.weights == pytest.approx(read / 3.35e12, rel=0.001)
    assert cost.attention == pytest.approx(8192 * 131072 / 3.35e12)
    assert cost.collectives == 0.0
    chunk = one.step([Work(prefill=8192, new_pairs=8192 * 8193 / 2)])
    matrices = 8.030e9 - 2 * 128256 * 4096
    assert chunk.weights == pytest.approx(
        2 * matrices * 8192 / 989e12 + 2 * 128256 * 4096 / 3.35e12, rel=0.001
    )
    assert chunk.attention == pytest.approx(4 * 32 * 128 * 32 * 8192 * 8193 / 2 / 989e12)


def collectives() -> None:
    """Two ring all-reduces a layer, 2 (n - 1) / n of the bytes each; data parallelism gathers."""
    tokens, layer_bytes = 8192, 8192 * 5120 * 2
    ring = 7 / 8 * layer_bytes / 450e9
    work = Work(prefill=tokens, new_pairs=1.0)
    tp8 = engine(published.MLA, TP8).step([work]).collectives
    assert tp8 == pytest.approx(60 * (4 * ring + 2 * 10e-6))
    quarter = Work(prefill=tokens // 4, new_pairs=1.0)
    dp4 = engine(published.MLA, TP2_DP4).step([quarter] * 4).collectives
    group = 2 * (1 / 2 * layer_bytes / 4 / 450e9) + 10e-6
    assert dp4 == pytest.approx(60 * (group + 3 * ring + 15e-6))


def experts() -> None:
    """160 experts, 6 a token: 6 are reached by one token, 73.1 by 16, all by very many."""
    x = published.MLA.experts
    assert x.touched(1) == pytest.approx(6)
    assert x.touched(16) == pytest.approx(160 * (1 - 0.9625**16))
    assert x.touched(1e6) == 160


def weights_of_one_token() -> None:
    """6 + 2 experts of 59 layers, one dense MLP and the logits, an eighth of each."""
    cost = engine(published.MLA, TP8).step([Work(sequences=1, cached=1.0)])
    read = 3 * 5120 * (59 * 8 * 1536 + 12288) + 2 * 102400 * 5120
    assert cost.ffn_weights == pytest.approx(read / 8 / 3.35e12)


def the_fullest_rank_sets_the_step() -> None:
    full, idle = Work(sequences=8, cached=80000.0), Work()
    dp = engine(published.MLA, TP2_DP4)
    uneven = dp.step([full, idle, idle, idle]).attention
    assert uneven == pytest.approx(dp.step([full] * 4).attention)
    assert uneven == pytest.approx(80000 * 69120 / 3.35e12)


def absorbed_prefill() -> None:
    """With cached tokens before it a chunk's pair costs 2 x 1088 a head, else 2 x 320."""
    shape = replace(published.MLA, experts=None)
    found = engine(shape, TP8, absorbed_prefill=True)
    assert found.prefill_flops(Work(prefill=1, old_pairs=10.0)) == 60 * 16 * 10 * 2 * 1088
    assert found.prefill_flops(Work(prefill=1, new_pairs=10.0)) == 60 * 16 * 10 * 2 * 320


def lone_request() -> None:
    """Time to the first token is one chunk, then each token a step."""
    one = engine(configs.KNOWN["llama-3-8b"], Parallelism())
    served = simulate(one, Workload((4096,), (129,), concurrency=1), Policy())
    prefill = one.step([Work(prefill=4096, new_pairs=4096 * 4097 / 2)]).total
    steps = [one.step([Work(sequences=1, cached=4096.0 + i)]).total for i in range(1, 129)]
    assert served.ttft[0] == pytest.approx(prefill)
    assert served.e2e[0] == pytest.approx(prefill + sum(steps), rel=1e-6)


def chunks() -> None:
    """Pairs of all chunks are those of the whole prompt."""
    one = engine(configs.KNOWN["llama-3-8b"], Parallelism())
    load = Workload((10000,), (1,), concurrency=1)
    short = simulate(one, load, Policy(chunk=1000)).e2e[0]
    attention = one.prefill_attention(Work(prefill=1, new_pairs=10000 * 10001 / 2))
    linear = sum(one.step([Work(prefill=1000)]).total for _ in range(10))
    assert short == pytest.approx(attention + linear, rel=1e-6)


def expected_drafts() -> None:
    """(1 - a^(n + 1)) / (1 - a): 3.3616 tokens a step for 4 drafts at 0.8."""
    assert Policy(draft=4, acceptance=0.8).tokens_per_step == pytest.approx(3.3616)


CHECKS = (
    cache_bytes,
    parameters,
    weights_on_a_device,
    flops_and_intensity,
    padded_tiles,
    parts_of_a_step,
    collectives,
    experts,
    weights_of_one_token,
    the_fullest_rank_sets_the_step,
    absorbed_prefill,
    lone_request,
    chunks,
    expected_drafts,
)
