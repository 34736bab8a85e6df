"""A step's slots and tables, built from a manager or by hand, and what layers write through it."""

import pytest
import torch

from ridgeline.cache import BlockManager, CacheSpec, CacheStep, PagedCache


def make(page_size=4, pages=8, spec=None):
    cache = PagedCache(spec or CacheSpec.gla(2, 8, 4), 1, pages, page_size, dtype=torch.float32)
    return cache, BlockManager(pages, page_size)


def slots_of(manager, seq_id, start, stop):
    table, size = manager.block_table(seq_id), manager.block_size
    return [table[p // size] * size + p % size for p in range(start, stop)]


def test_prefill_with_left_padding():
    cache, manager = make()
    manager.allocate("a", range(6))
    manager.allocate("b", range(10, 13))
    step = CacheStep.build(cache, manager, ["a", "b"], [6, 3], 6)
    assert step.block_table.dtype == step.cache_seqlens.dtype == torch.int32
    assert step.block_table[0].tolist() == manager.block_table("a")
    assert step.block_table[1, :1].tolist() == manager.block_table("b")
    assert step.cache_seqlens.tolist() == [6, 3]
    padded = [*slots_of(manager, "a", 0, 6), -1, -1, -1, *slots_of(manager, "b", 0, 3)]
    assert step.slots.tolist() == padded
    assert step.slots.dtype == torch.int64
    assert step.query_lens == [6, 3]
    assert step.is_prefill
    assert (step.batch, step.query_len) == (2, 6)


def test_decode_crosses_a_page():
    cache, manager = make()
    manager.allocate("a", range(4))
    manager.allocate("b", range(10, 16))
    for seq_id in "ab":
        assert manager.append(seq_id, [7, 8]) == []
    step = CacheStep.build(cache, manager, "ab", [2, 2], 2)
    assert step.slots.tolist() == slots_of(manager, "a", 4, 6) + slots_of(manager, "b", 6, 8)
    assert step.query_lens is None
    assert not step.is_prefill


def test_a_reused_prefix_is_no_prefill():
    cache, manager = make()
    manager.allocate("a", range(6))
    manager.commit("a")
    cached = manager.allocate("b", range(6))
    step = CacheStep.build(cache, manager, ["b"], [6 - cached], 2)
    assert cached == 4
    assert not step.is_prefill
    assert step.slots.tolist() == slots_of(manager, "b", 4, 6)


def test_an_order_of_its_own_and_sequences_without_new_tokens():
    cache, manager = make()
    manager.allocate("a", range(6))
    manager.allocate("b", [])
    step = CacheStep.build(cache, manager, ["b", "a"], [0, 1], 1)
    assert step.cache_seqlens.tolist() == [0, 6]
    assert step.slots.tolist() == [-1, *slots_of(manager, "a", 5, 6)]
    assert step.query_lens == [0, 1]


def test_an_empty_batch():
    cache, manager = make()
    step = CacheStep.build(cache, manager, [], [], 1)
    assert (step.batch, step.query_len) == (0, 0)
    step.write(0, torch.empty(0, 2, 8), torch.empty(0, 4))


@pytest.mark.parametrize("spec", [CacheSpec.gqa(1, 8), CacheSpec.gta(2, 8)], ids=["gqa", "gta"])
@pytest.mark.parametrize(
    ("new_lens", "query_len"), [([3, 1], 3), ([1, 1], 1)], ids=["padded", "decode"]
)
def test_writing_batched_or_flat_tokens(spec, new_lens, query_len):
    written = []
    for batched in (True, False):
        cache, manager = make(spec=spec)
        for view in cache.layer(0):
            view.zero_()
        manager.allocate("a", range(5))
        manager.allocate("b", range(3))
        step = CacheStep.build(cache, manager, "ab", new_lens, query_len)
        g = torch.Generator().manual_seed(0)
        new = [torch.randn(2, query_len, *v.shape[2:], generator=g) for v in step.views(0)]
        step.write(0, *(new if batched else [x.flatten(0, 1) for x in new]))
        written.append([view.clone() for view in cache.layer(0)])
        for view, x in zip(cache.layer(0), new, strict=True):
            want = torch.zeros_like(view)
            for b, (seq_id, n) in enumerate(zip("ab", new_lens, strict=True)):
                length = manager.length(seq_id)
                for i, slot in enumerate(slots_of(manager, seq_id, length - n, length)):
                    want[slot // 4, slot % 4] = x[b, query_len - n + i]
            assert torch.equal(view, want)
    for x, y in zip(*written, strict=True):
        assert torch.equal(x, y)


def test_tokens_of_another_batch_are_refused():
    cache, manager = make()
    manager.allocate("a", range(2))
    manager.allocate("b", range(2))
    step = CacheStep.build(cache, manager, "ab", [1, 1], 1)
    with pytest.raises(ValueError, match=r"state: expected shape \[2, 2, 8\]"):
        step.write(0, torch.zeros(1, 2, 2, 8), torch.zeros(1, 2, 4))
    with pytest.raises(TypeError, match="new: expected state and rope, got 1"):
        step.write(0, torch.zeros(2, 1, 2, 8))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((["a"], [1], 0), ValueError, "query_len: .*got 0"),
        ((["a"], [1, 1], 1), ValueError, "new_lens: expected one for each of 1 sequences, got 2"),
        ((["a"], [3], 2), ValueError, r"new_lens\[0\]: expected at most L_q \(2\), got 3"),
        ((["a"], [-1], 2), ValueError, r"new_lens\[0\]: .*got -1"),
        ((["a"], [6], 6), ValueError, "new_lens: expected at most the 5 tokens of sequence 'a'"),
        ((["z"], [1], 1), KeyError, "seq_id: no live sequence 'z'"),
    ],
)
def test_build_refuses(arguments, error, message):
    cache, manager = make()
    manager.allocate("a", range(5))
    with pytest.raises(error, match=message):
        CacheStep.build(cache, manager, *arguments)


def test_build_refuses_a_manager_of_another_cache():
    cache, _ = make()
    with pytest.raises(ValueError, match=r"manager: expected blocks of .*page_size 4, got 2"):
        CacheStep.build(cache, BlockManager(8, 2), [], [], 1)
    with pytest.raises(ValueError, match=r"manager: expected at most the cache's 8 pages .*got 9"):
        CacheStep.build(cache, BlockManager(9, 4), [], [], 1)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"block_table": torch.zeros(2, 1)}, TypeError, "block_table: expected dtype int32"),
        ({"block_table": torch.zeros(2).int()}, ValueError, r"block_table: .*\[B, max_pages\]"),
        ({"cache_seqlens": torch.ones(3).int()}, ValueError, r"cache_seqlens: .*\[2\], got \[3\]"),
        ({"slots": torch.tensor([0, 32])}, ValueError, "slots: .*got 32"),
        ({"slots": torch.tensor([0, 1, 2])}, ValueError, "slots: expected L_q for each of 2"),
        ({"slots": torch.tensor([0, 1]).int()}, TypeError, "slots: expected dtype int64"),
        ({"query_lens": [1]}, ValueError, "query_lens: expected one for each of 2"),
        ({"query_lens": [1, 2]}, ValueError, r"query_lens\[1\]: expected at most L_q \(1\)"),
        ({"block_table": torch.zeros(2, 1).int().to("meta")}, ValueError, "block_table: .*device"),
    ],
)
def test_a_step_made_by_hand_is_checked(change, error, message):
    cache, _ = make()
    good = {
        "cache": cache,
        "block_table": torch.zeros(2, 1, dtype=torch.int32),
        "cache_seqlens": torch.ones(2, dtype=torch.int32),
        "slots": torch.tensor([0, 4]),
        "query_lens": None,
        "is_prefill": False,
    }
    CacheStep(**good)
    with pytest.raises(error, match=message):
        CacheStep(**(good | change))
