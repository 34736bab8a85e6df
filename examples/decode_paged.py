"""Decode with a paged cache that computes a shared prompt once.

Three requests share a prompt. The block manager gives the second and third the pages that the
first has filled; one GLA layer, untrained, stores what is missing and decodes a token for all three
in one call of `tied_decode`. Prints how many tokens each request found in the cache, which pages
they share, and what a token costs, and checks the step against attention without a cache.
"""

import torch

from ridgeline import BlockManager, GroupedLatentAttention, PagedCache
from ridgeline.cache import CacheStep
from ridgeline.layers import RotaryEmbedding

torch.manual_seed(0)
HIDDEN, PAGE = 256, 16
layer = GroupedLatentAttention(HIDDEN, num_heads=8, num_latent_heads=2).eval()
rotary = RotaryEmbedding(layer.rope_dim)
embedding = torch.randn(1000, HIDDEN)
cache = PagedCache(layer.cache_spec(), 1, num_pages=32, page_size=PAGE, dtype=torch.float32)
manager = BlockManager(cache.num_pages, PAGE)


def attend(requests: list[str], tokens: list[list[int]], starts: list[int]) -> torch.Tensor:
    """Run the layer on the new tokens of each request, which begin at ``starts``."""
    new = [len(ids) for ids in tokens]
    step = CacheStep.build(cache, manager, requests, new, query_len=max(new))
    x = torch.zeros(len(requests), max(new), HIDDEN)  # shorter ones are padded on the left
    positions = torch.zeros(len(requests), max(new), dtype=torch.int64)
    for b, (ids, start) in enumerate(zip(tokens, starts, strict=True)):
        x[b, -len(ids) :] = embedding[ids]
        positions[b, -len(ids) :] = torch.arange(start, start + len(ids))
    return layer(x, rotary(positions), cache=step)


prompt = torch.randint(1000, (70,)).tolist()
questions = {"a": [1, 2, 3], "b": [4], "c": [5, 6, 7, 8, 9]}
with torch.inference_mode():
    for name, question in questions.items():
        found = manager.allocate(name, prompt + question)
        attend([name], [(prompt + question)[found:]], [found])
        manager.commit(name)
        print(f"request {name}: {len(prompt + question)} tokens, {found} of them cached already")

    names = list(questions)
    lengths = [manager.length(name) for name in names]
    for name in names:
        for source, target in manager.append(name, [10]):  # room for one token each
            cache.copy_pages([(source, target)])
    out = attend(names, [[10]] * 3, lengths)

    for name, row in zip(names, out, strict=True):
        ids = [*prompt, *questions[name], 10]
        whole = layer(embedding[ids][None], rotary(torch.arange(len(ids))[None]))
        torch.testing.assert_close(row[-1], whole[0, -1], atol=1e-4, rtol=1e-3)

tables = [set(manager.block_table(name)) for name in names]
print(f"pages shared by all three: {len(set.intersection(*tables))} of {len(set.union(*tables))}")
print(f"bytes a token: {layer.cache_spec().bytes_per_token(cache.dtype)}")
