"""The rows of the cache: lengths, sharing, growth, and the interface that transformers calls."""

import copy

import pytest
import torch
from model_cases import FP64_ROUNDING, tiny_model, tokens

from ridgeline.cache import CacheSpec
from ridgeline.models.cache import RidgelineCache

LAYERS = 3


def small_cache(**options) -> RidgelineCache:
    options = {"page_size": 4, "dtype": torch.float32} | options
    return RidgelineCache(CacheSpec.gqa(2, 8), LAYERS, **options)


def write(cache: RidgelineCache, *values: list[int]) -> None:
    """One forward whose row b caches ``values[b]``: all elements of a token are its number."""
    columns = max(map(len, values))
    padded = torch.tensor([[-1] * (columns - len(row)) + row for row in values])
    lengths = None if all(len(row) == columns for row in values) else [len(row) for row in values]
    with cache.step(len(values), columns, lengths) as step:
        for layer in range(LAYERS):
            new = (padded + 100.0 * layer)[..., None, None].expand(-1, -1, 2, 8)
            step.write(layer, new, -new)


def held(cache: RidgelineCache) -> list[list[int]]:
    """What each row holds, the same in every layer."""
    layers = []
    for layer in range(LAYERS):
        k, v = (x.flatten(0, 1)[:, 0, 0] for x in cache.pages.layer(layer))
        rows = []
        for row, length in zip(cache.rows, cache.lengths(cache.batch_size), strict=True):
            pages = torch.tensor(cache.manager.block_table(row)).repeat_interleave(4)
            slots = (pages * 4 + torch.arange(len(pages)) % 4)[:length]
            assert torch.equal(k[slots], -v[slots])
            rows.append((k[slots] - 100 * layer).int().tolist())
        layers.append(rows)
    assert layers[0] == layers[1] == layers[2]
    return layers[0]


def test_rows_hold_their_own_lengths():
    cache = small_cache()
    write(cache, [1, 2, 3, 4, 5], [6])
    write(cache, [7], [8])
    write(cache, [9, 10, 11], [12, 13])
    assert held(cache) == [[1, 2, 3, 4, 5, 7, 9, 10, 11], [6, 8, 12, 13]]
    assert cache.get_seq_length() == 9
    assert cache.get_mask_sizes(2) == (11, 0)


def test_the_pool_grows_with_the_rows_and_keeps_what_they_hold():
    cache = small_cache()
    expected = [[], [], []]
    for start in range(0, 60, 5):
        new = [list(range(b * 100 + start, b * 100 + start + 5 - b)) for b in range(3)]
        write(cache, *new)
        for row, values in zip(expected, new, strict=True):
            row.extend(values)
    assert held(cache) == expected
    # Doubling: room for at most twice of what is held, and a page or two a row.
    assert cache.pages.num_pages <= 2 * (60 + 48 + 36) / 4 + 9


def test_a_planned_pool_is_never_replaced():
    cache = small_cache(rows=3, max_length=10)
    pool = cache.pages
    for t in range(10):
        write(cache, [t], [t], [t])
        cache.reorder_cache(torch.tensor([1, 1, 0]))
    assert cache.pages is pool
    assert pool.num_pages == 9


def test_reordered_rows_share_pages_until_they_are_written():
    cache = small_cache(rows=3, max_length=16)
    write(cache, [1, 2, 3, 4, 5], [11, 12, 13, 14, 15], [21, 22, 23, 24, 25])
    page = cache.nbytes // 6
    cache.reorder_cache(torch.tensor([2, 0, 2]))
    assert held(cache) == [[21, 22, 23, 24, 25], [1, 2, 3, 4, 5], [21, 22, 23, 24, 25]]
    assert cache.nbytes == 4 * page
    write(cache, [6], [7], [8])
    assert held(cache) == [[21, 22, 23, 24, 25, 6], [1, 2, 3, 4, 5, 7], [21, 22, 23, 24, 25, 8]]
    # The full first page is still shared; the half-full second one was copied once.
    assert cache.nbytes == 5 * page


def test_growth_while_rows_share_pages():
    cache = small_cache()
    write(cache, [1, 2, 3, 4, 5, 6])
    cache.batch_repeat_interleave(3)
    for t in range(7, 30):
        write(cache, [t], [100 + t], [200 + t])
    first = [1, 2, 3, 4, 5, 6]
    assert held(cache) == [first + [b * 100 + t for t in range(7, 30)] for b in range(3)]


def test_select_repeat_crop_and_reset():
    cache = small_cache()
    write(cache, [1, 2, 3, 4, 5], [6, 7, 8])
    cache.batch_repeat_interleave(2)
    assert held(cache) == [[1, 2, 3, 4, 5]] * 2 + [[6, 7, 8]] * 2
    cache.batch_select_indices(torch.tensor([3, 0]))
    assert held(cache) == [[6, 7, 8], [1, 2, 3, 4, 5]]
    cache.crop(-2)
    assert held(cache) == [[6], [1, 2, 3]]
    assert cache.get_seq_length() == 3
    write(cache, [30], [40])
    assert held(cache) == [[6, 30], [1, 2, 3, 40]]
    cache.reset()
    assert (cache.nbytes, cache.get_seq_length(), cache.is_initialized) == (0, 0, False)
    write(cache, [1])
    assert held(cache) == [[1]]


def test_crop_of_forked_rows_leaves_the_other_alone():
    cache = small_cache()
    write(cache, [1, 2, 3, 4, 5, 6])
    cache.batch_repeat_interleave(2)
    cache.crop(-3)
    write(cache, [7, 8], [17, 18])
    assert held(cache) == [[1, 2, 3, 7, 8], [1, 2, 3, 17, 18]]


@pytest.mark.parametrize(("remove", "says"), [(1, "at most 0"), (-4, "at least -3")])
def test_impossible_crops_change_nothing(remove, says):
    cache = small_cache()
    write(cache, [1, 2, 3, 4], [5, 6, 7])
    with pytest.raises(ValueError, match=f"tokens_to_remove: expected {says}"):
        cache.crop(remove)
    assert held(cache) == [[1, 2, 3, 4], [5, 6, 7]]


def test_a_copy_is_independent():
    cache = small_cache(rows=1, max_length=8)
    write(cache, [1, 2, 3])
    other = copy.deepcopy(cache)
    write(cache, [4])
    write(other, [9, 9])
    assert held(cache) == [[1, 2, 3, 4]]
    assert held(other) == [[1, 2, 3, 9, 9]]


@pytest.mark.parametrize("tokens_before", [0, 3])
def test_a_failed_step_leaves_the_rows_as_they_were(tokens_before):
    cache = small_cache()
    if tokens_before:
        write(cache, [1, 2, 3], [4])
    bytes_before = cache.nbytes

    def fail():
        with cache.step(2, 5, None):
            raise RuntimeError("in a layer")

    with pytest.raises(RuntimeError, match="in a layer"):
        fail()
    assert cache.nbytes == bytes_before
    assert cache.get_seq_length() == tokens_before
    write(cache, [5], [6])
    assert held(cache) == ([[1, 2, 3, 5], [4, 6]] if tokens_before else [[5], [6]])


def test_want_of_memory_leaves_the_rows_as_they_were(monkeypatch):
    cache = small_cache(rows=2, max_length=4)
    write(cache, [1, 2, 3], [4, 5, 6])

    def no_memory(pages):
        raise MemoryError(f"{pages} pages")

    monkeypatch.setattr(cache, "_make", no_memory)
    with pytest.raises(MemoryError):
        write(cache, [7, 8], [9, 10])
    assert held(cache) == [[1, 2, 3], [4, 5, 6]]
    write(cache, [7], [9])
    assert held(cache) == [[1, 2, 3, 7], [4, 5, 6, 9]]


def test_a_failed_forward_can_be_repeated():
    model, ids = tiny_model(), tokens(2, 9)
    with torch.no_grad():
        cache = model(ids[:, :8]).past_key_values
        with pytest.raises(ValueError, match="impl='hopper'"):
            model(ids[:, 8:], past_key_values=cache, impl="hopper")
        again = model(ids[:, 8:], past_key_values=cache, impl="reference").logits
        full = model(ids, use_cache=False).logits[:, 8:]
    assert (again - full).abs().max() <= FP64_ROUNDING * full.abs().max()


def test_bytes_are_those_of_the_pages_in_use():
    cache = small_cache(rows=4, max_length=100)
    assert cache.nbytes == 0
    write(cache, [1, 2, 3, 4, 5], [6])
    # 3 pages of 4 tokens; a token is 2 heads of 8 for K and for V, 4 bytes each, in 3 layers.
    assert cache.nbytes == 3 * 4 * (2 * 8 * 2 * 4) * LAYERS


def test_copies_are_computed_once():
    model, row = tiny_model(), tokens(1, 7)
    seen = []
    model.model.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[0]))
    cache = model.model.new_cache(6, 16, copies=3)
    with torch.no_grad():
        ids = torch.cat((row, tokens(1, 7, seed=1))).repeat_interleave(3, dim=0)
        out = model(ids, past_key_values=cache, output_hidden_states=True)
        full = model(ids, use_cache=False).logits
        model(ids[:, :1], past_key_values=cache)
    assert seen == [2, 6, 6]
    assert (out.logits - full).abs().max() <= FP64_ROUNDING * full.abs().max()
    assert {tuple(x.shape) for x in out.hidden_states} == {(6, 7, 32)}
    with pytest.raises(ValueError, match="copies: expected a divisor"):
        model(tokens(4, 3), past_key_values=model.model.new_cache(3, 8, copies=3))


@pytest.mark.parametrize("name", ["rows", "copies", "page_size"])
def test_impossible_sizes_are_refused(name):
    with pytest.raises(ValueError, match=name):
        small_cache(**{name: 0})
