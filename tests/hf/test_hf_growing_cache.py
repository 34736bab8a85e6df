"""``GrowingCache`` holds what ``DynamicCache`` holds, whatever is done to it."""

import copy

import pytest
import torch
from hf_cases import tiny
from transformers import Cache, DynamicCache

from ridgeline.transformers import GrowingCache

CONFIG = tiny("llama").config


def pair() -> tuple[Cache, Cache]:
    return GrowingCache(CONFIG), DynamicCache(config=CONFIG)


def add(caches: tuple[Cache, ...], batch: int, length: int, seed: int) -> None:
    """The same new tokens in both; what they return is alike."""
    new = torch.randn(2, batch, 2, length, 16, generator=torch.Generator().manual_seed(seed))
    for layer in range(2):
        (k, v), (want_k, want_v) = (cache.update(*(new + layer), layer) for cache in caches)
        assert torch.equal(k, want_k)
        assert torch.equal(v, want_v)


CHANGES = {
    "nothing": lambda cache: None,
    "crop": lambda cache: cache.crop(-2),
    "reorder": lambda cache: cache.reorder_cache(torch.tensor([1, 1])),
    "select": lambda cache: cache.batch_select_indices(torch.tensor([1, 0])),
    "reset": lambda cache: cache.reset(),
}


@pytest.mark.parametrize("change", list(CHANGES))
@pytest.mark.parametrize("length", [1, 300], ids=["within-room", "beyond-room"])
def test_equal_to_dynamic_cache(change: str, length: int) -> None:
    caches = pair()
    add(caches, 2, 5, seed=0)
    add(caches, 2, 1, seed=1)
    for cache in caches:
        CHANGES[change](cache)
    add(caches, 2, length, seed=2)
    add(caches, 2, 1, seed=3)
    assert caches[0].get_seq_length() == caches[1].get_seq_length()


def test_repeated_rows() -> None:
    caches = pair()
    add(caches, 1, 5, seed=0)
    for cache in caches:
        cache.batch_repeat_interleave(3)
    add(caches, 3, 1, seed=1)


def test_tokens_stay_where_they_are() -> None:
    cache = GrowingCache(CONFIG)
    places = set()
    for i in range(200):
        add((cache, cache_of_all(cache)), 1, 1, seed=i)
        places.add(cache.layers[0].keys.data_ptr())
    assert len(places) == 1


def cache_of_all(cache: Cache) -> Cache:
    """A ``DynamicCache`` of the same tokens."""
    if not cache.layers[0].is_initialized:
        return DynamicCache(config=CONFIG)
    return DynamicCache([(x.keys, x.values) for x in cache.layers])


def test_a_copy_is_its_own() -> None:
    caches = pair()
    add(caches, 1, 5, seed=0)
    copied = copy.deepcopy(caches[0]), copy.deepcopy(caches[1])
    add(caches, 1, 2, seed=1)
    add(copied, 1, 3, seed=2)
    add(caches, 1, 1, seed=3)


def test_gradients_flow_through_new_tokens() -> None:
    cache = GrowingCache(CONFIG)
    k = torch.randn(1, 2, 4, 16, requires_grad=True)
    keys, values = cache.update(k, k, 0)
    keys, values = cache.update(k, k, 0)
    (keys + values).sum().backward()
    assert torch.equal(k.grad, torch.full_like(k, 4.0))


def test_made_in_inference_mode_and_used_outside() -> None:
    cache = GrowingCache(CONFIG)
    x = torch.zeros(1, 2, 3, 16)
    with torch.inference_mode():
        cache.update(x, x, 0)
    with torch.no_grad():
        keys, _ = cache.update(x, x, 0)
    assert keys.shape[2] == 6


def test_windows_are_left_to_transformers() -> None:
    cache = GrowingCache(tiny("mistral").config)
    assert cache.is_sliding == [True, True]
    assert same_types(cache, DynamicCache(config=tiny("mistral").config))


def same_types(*caches: Cache) -> bool:
    first, second = ([type(layer) for layer in cache.layers] for cache in caches)
    return first == second
