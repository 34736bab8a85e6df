"""Ranks in processes of their own give the result of one, with the cache bytes of the spec."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from layer_cases import VARIANTS, CachedRun, forward, inputs, make

from ridgeline.layers import shard

SCHEDULE = [6, 1, 1, 3]


def rank_main(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
    )
    results = {}
    for variant in VARIANTS:
        local = shard(make(variant), rank, world)
        x = inputs(2, sum(SCHEDULE))
        run = CachedRun(local, 2, x.shape[1])
        with torch.no_grad():
            full = forward(local, x)
        results[variant] = {
            "full": full,
            "cached": run.run(x, SCHEDULE),
            "spec": asdict(local.cache_spec()),
            "nbytes": run.cache.nbytes,
            "weights": sum(p.numel() for p in local.parameters()),
        }
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_give_the_result_of_one_process(world: int, tmp_path: Path):
    mp.spawn(rank_main, (world, str(tmp_path)), nprocs=world)
    ranks = [torch.load(tmp_path / f"{r}.pt") for r in range(world)]
    for variant in VARIANTS:
        layer, x = make(variant), inputs(2, sum(SCHEDULE))
        expected = forward(layer, x)
        alone = CachedRun(layer, 2, x.shape[1]).cache
        tokens = alone.num_layers * alone.num_pages * alone.page_size
        spec = layer.cache_spec(tp=world)
        for results in (rank[variant] for rank in ranks):
            for form in ("full", "cached"):
                torch.testing.assert_close(results[form], expected, rtol=0, atol=1e-10)
            assert results["spec"] == asdict(spec)
            assert results["nbytes"] == tokens * spec.bytes_per_token(torch.float64)
            assert results["weights"] < sum(p.numel() for p in layer.parameters())


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_parts_of_the_output_sum_to_the_whole(variant: str, world: int):
    """Every rank in this process, without the sum over processes."""
    layer, x = make(variant), inputs(2, 5)
    total = torch.zeros_like(x)
    for rank in range(world):
        local = shard(layer, rank, world)
        assert local.cache_spec() == layer.cache_spec(tp=world)
        assert local.softmax_scale == layer.softmax_scale
        local.world = 1
        with torch.no_grad():
            total += forward(local, x)
    torch.testing.assert_close(total, forward(layer, x), rtol=0, atol=1e-10)


def test_a_shard_owns_its_weights(variant: str):
    layer = make(variant)
    before = {name: w.clone() for name, w in layer.state_dict().items()}
    local = shard(layer, 1, 2)
    for weight in local.parameters():
        assert weight.untyped_storage().nbytes() == weight.nbytes
        assert not weight.requires_grad
        weight.zero_()
    for name, w in layer.state_dict().items():
        assert torch.equal(w, before[name])


def test_a_shard_refuses_to_make_wrong_gradients(variant: str):
    x = inputs(1, 2).requires_grad_()
    with pytest.raises(ValueError, match=r"^x: expected no gradient"):
        forward(shard(make(variant), 0, 2), x)
