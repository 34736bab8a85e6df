"""Each forward computes what its tensors hold now, and a mask speaks of every token."""

import numpy as np
import pytest
import torch
from hf_cases import tiny, tokens
from transformers import DynamicCache, PreTrainedModel, StaticCache

from ridgeline.transformers import memo

LENGTH = 20
ONES = torch.ones(1, LENGTH, dtype=torch.int64)


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return tiny("llama", torch.float32)


def documents(first: int) -> np.ndarray:
    return np.r_[np.arange(first), np.arange(LENGTH - first)][None]


def test_positions_that_are_written_through_numpy(llama: PreTrainedModel) -> None:
    """A write that PyTorch does not count, as of pinned buffers and DLPack."""
    buffer = documents(8).copy()
    positions = torch.from_numpy(buffer)
    for first in (8, 15):
        buffer[:] = documents(first)
        kwargs = {"attention_mask": ONES, "use_cache": False}
        got = llama(tokens(1, LENGTH), position_ids=positions, **kwargs).logits
        want = llama(tokens(1, LENGTH), position_ids=positions.clone(), **kwargs).logits
        assert torch.equal(got, want)


def test_values_are_compared_within_a_forward() -> None:
    """A mask that the caller made once is used in several."""
    buffer, total = np.ones(3), memo.Memo()
    x = torch.from_numpy(buffer)
    assert total(torch.sum, x) is total(torch.sum, x)
    buffer[0] = 5
    assert total(torch.sum, x) == 7


def test_another_tensor_is_another_input() -> None:
    """Also where values are not compared, as on the meta device."""
    results, total = iter(range(3)), memo.Memo()
    x, y = (torch.ones(3, device="meta") for _ in range(2))

    def count(_: torch.Tensor) -> int:
        return next(results)

    assert [total(count, z) for z in (x, x, y)] == [0, 0, 1]


def test_a_new_forward_forgets() -> None:
    """On devices whose values are not compared nothing else tells."""
    x, total = torch.ones(3), memo.Memo()
    first = total(torch.sum, x)
    memo.new_forward()
    assert total(torch.sum, x) is not first


@pytest.mark.parametrize("cache", [DynamicCache, StaticCache])
def test_a_mask_that_does_not_grow_with_the_cache(llama: PreTrainedModel, cache: type) -> None:
    sizes = {"max_cache_len": 30} if cache is StaticCache else {}
    cached = cache(config=llama.config, **sizes)
    with torch.no_grad():
        llama(tokens(1, LENGTH), attention_mask=ONES, past_key_values=cached)
        with pytest.raises(ValueError, match=r"^attention_mask: .*\[B, 21\], got \[1, 20\]"):
            llama(tokens(1, 1), attention_mask=ONES, past_key_values=cached)


@pytest.mark.parametrize("length", [15, 25])
def test_masks_of_a_wrong_length(llama: PreTrainedModel, length: int) -> None:
    mask = torch.ones(1, length, dtype=torch.int64)
    with pytest.raises(ValueError, match=rf"^attention_mask: .*B, 20\].*, {length}\]"):
        llama(tokens(1, LENGTH), attention_mask=mask, use_cache=False)
    mask[:, 0] = 0
    with pytest.raises(ValueError, match=rf"^attention_mask: .*B, 20\].*, {length}\]"):
        llama(tokens(1, LENGTH), attention_mask=mask, use_cache=False)


@pytest.mark.parametrize("length", [20, 25, 30])
def test_masks_of_a_static_cache_with_a_free_end(llama: PreTrainedModel, length: int) -> None:
    """Of the tokens, of some of the free end and of all of it."""
    got = []
    for n in (LENGTH, length):
        mask = torch.ones(1, n, dtype=torch.int64)
        mask[:, :3] = 0
        cache = StaticCache(config=llama.config, max_cache_len=30)
        with torch.no_grad():
            out = llama(tokens(1, LENGTH), attention_mask=mask, past_key_values=cache)
        got.append(out.logits[:, 3:])
    assert torch.equal(*got)


@pytest.mark.parametrize("cache", [DynamicCache, StaticCache])
def test_a_window_of_one_token_behind_cached_ones(cache: type) -> None:
    model = tiny("mistral", torch.float32)
    model.config.sliding_window = 1
    sizes = {"max_cache_len": 30} if cache is StaticCache else {}
    cached = cache(config=model.config, **sizes)
    with torch.no_grad():
        model(tokens(1, 5), past_key_values=cached)
        with pytest.raises(NotImplementedError, match=r"^sliding_window: expected at least 2"):
            model(tokens(1, 1), past_key_values=cached)
