"""What a step of the engine becomes, of batches that only a GPU's runner makes."""

import pytest
import torch
from builders import batch, builder

from ridgeline.vllm import step
from ridgeline.vllm.backend import cache_rows
from ridgeline.vllm.paired import PairedBackend

TABLE = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8], [0, 0, 0, 0]], dtype=torch.int32)
PAGE = 4


def test_a_batch_of_a_graph_is_the_engines_own_tensors():
    """Drafts of three tokens, and a request that pads the batch."""
    common = batch([4, 4, 4], [9, 16, 0], TABLE)
    found = builder(PAGE, drafts=3).build_for_cudagraph_capture(common)
    (group,) = found.groups
    assert (group.query_len, group.tokens, found.prompts) == (4, slice(0, 12), None)
    assert group.block_table is common.block_table_tensor
    assert group.cache_seqlens is common.seq_lens


def test_a_batch_of_two_lengths_is_not_captured():
    with pytest.raises(ValueError, match=r"one query length to capture, got \[4, 1, 4\]"):
        builder(PAGE, drafts=3).build_for_cudagraph_capture(batch([4, 1, 4], [9, 9, 4], TABLE))


def test_a_draft_step():
    common = batch([1, 1, 1], [9, 16, 3], TABLE)
    (group,) = builder(PAGE, drafts=3).build_for_drafting(common, 0).groups
    assert (group.query_len, group.tokens) == (1, slice(0, 3))


def test_prompts_and_decodes_of_one_step():
    found = builder(PAGE).build(0, batch([1, 2, 5], [9, 16, 5], TABLE))
    one, two = found.groups
    assert (one.query_len, one.tokens, one.cache_seqlens.tolist()) == (1, slice(0, 1), [9])
    assert (two.query_len, two.tokens, two.block_table.tolist()) == (2, slice(1, 3), [[5, 6, 7, 8]])
    assert (found.prompts.tokens, found.prompts.slots) == (slice(3, 8), None)


def test_pages_behind_a_window_are_not_gathered(monkeypatch):
    """The engine has given them away: its table has its null page there."""
    monkeypatch.setattr(step, "GATHER_FROM", 2)
    table = torch.tensor([[0, 2, 3, 4], [5, 6, 7, 8]], dtype=torch.int32)
    found = builder(PAGE, window=5).build(0, batch([3, 3], [13, 5], table)).prompts
    # The first query, at 10, sees 6 to 10; the other request's window reaches its start.
    assert found.slots.tolist() == [10, 11, 12, 13, 14, 15, 16, 20, 21, 22, 23, 24]
    assert (found.cu_seqlens_k.tolist(), found.max_seqlen_k) == ([0, 7, 12], 7)


def test_gathered_tokens_of_a_step_are_bounded(monkeypatch):
    """Those of a request that would exceed the memory are read where they are."""
    monkeypatch.setattr(step, "GATHER_FROM", 2)
    monkeypatch.setattr(step, "GATHER_UP_TO", 16)
    found = builder(PAGE).build(0, batch([2, 2, 3], [9, 9, 3], TABLE))
    assert [group.cache_seqlens.tolist() for group in found.groups] == [[9]]
    assert found.prompts.cu_seqlens_k.tolist() == [0, 9, 12]
    assert found.prompts.tokens.tolist() == [0, 1, 4, 5, 6]


def test_attention_that_is_not_causal_is_refused():
    with pytest.raises(ValueError, match="causal: expected True, got False"):
        builder(PAGE).build(0, batch([1], [3], TABLE[:1]).replace(causal=False))


def test_lengths_that_only_the_device_knows_are_not_ours():
    assert not PairedBackend.supports_device_cpu_query_lens_mismatch()


def test_rows_of_pages_that_are_not_dense_are_refused():
    """A copy would be written in their place."""
    pages = torch.zeros(3, 2 * PAGE, 2, 8)
    assert cache_rows(pages.transpose(1, 2)).data_ptr() == pages.data_ptr()
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        cache_rows(pages[:, :PAGE].transpose(1, 2))
