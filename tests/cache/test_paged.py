"""The paged storage: layout, writes by slot, page copies, memory that is only promised."""

import resource

import pytest
import torch

from ridgeline.cache import CacheSpec, PagedCache

SPECS = {
    "gqa": CacheSpec.gqa(3, 8),
    "value width": CacheSpec("paired", 2, 8, value_dim=5),
    "gta": CacheSpec.gta(3, 8),
    "mla": CacheSpec.mla(16, 4),
    "gla": CacheSpec.gla(2, 8, 4),
    "no rope": CacheSpec("tied", 2, 8),
}
PAGES, PAGE_SIZE, LAYERS = 5, 3, 2


@pytest.fixture(params=SPECS, ids=str)
def spec(request):
    return SPECS[request.param]


def make(spec, dtype=torch.float32, fill=-1.0):
    cache = PagedCache(spec, LAYERS, PAGES, PAGE_SIZE, dtype=dtype)
    for layer in range(LAYERS):
        for view in cache.layer(layer):
            view.fill_(fill)
    return cache


def tokens(cache, count, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [
        torch.randn(count, *view.shape[2:], generator=g).to(cache.dtype) for view in cache.layer(0)
    ]


def test_shapes_and_bytes(spec):
    cache = PagedCache(spec, LAYERS, PAGES, PAGE_SIZE, dtype=torch.bfloat16)
    first, second = cache.layer(1)
    assert first.shape == (PAGES, PAGE_SIZE, spec.heads, spec.dim)
    if spec.kind == "paired":
        assert second.shape == (PAGES, PAGE_SIZE, spec.heads, spec.value_dim)
    else:
        assert second.shape == (PAGES, PAGE_SIZE, spec.rope_dim)
    assert first.stride(-1) == 1
    assert cache.nbytes == LAYERS * PAGES * PAGE_SIZE * spec.bytes_per_token(torch.bfloat16)


def test_a_tied_record_holds_states_then_the_rope_key():
    cache = make(CacheSpec.gla(2, 8, 4))
    state, rope = cache.layer(1)
    assert state.stride() == (PAGE_SIZE * 20, 20, 8, 1)
    assert rope.stride() == (PAGE_SIZE * 20, 20, 1)
    assert rope.data_ptr() - state.data_ptr() == 16 * 4
    assert state.untyped_storage().data_ptr() == rope.untyped_storage().data_ptr()


def test_write_puts_each_token_in_its_slot_and_nothing_elsewhere(spec):
    cache = make(spec)
    slots = torch.tensor([14, 0, -1, 7, 6, -1])
    new = tokens(cache, 6)
    cache.write(1, slots, *new)
    for view in cache.layer(0):
        assert (view == -1).all()
    for view, x in zip(cache.layer(1), new, strict=True):
        want = torch.full_like(view, -1.0)
        for token, slot in enumerate(slots.tolist()):
            if slot >= 0:
                want[slot // PAGE_SIZE, slot % PAGE_SIZE] = x[token]
        assert torch.equal(view, want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_write_keeps_every_bit(spec, dtype):
    cache = make(spec, dtype)
    new = tokens(cache, PAGES * PAGE_SIZE)
    slots = torch.randperm(PAGES * PAGE_SIZE, generator=torch.Generator().manual_seed(1))
    cache.write(0, slots, *new)
    for view, x in zip(cache.layer(0), new, strict=True):
        assert torch.equal(view.flatten(0, 1)[slots], x)


def test_write_takes_strided_tokens(spec):
    cache = make(spec)
    wide = tokens(cache, 8)
    cache.write(0, torch.arange(4), *(x[::2] for x in wide))
    for view, x in zip(cache.layer(0), wide, strict=True):
        assert torch.equal(view.flatten(0, 1)[:4], x[::2])


@pytest.mark.parametrize("slots", [[], [-1, -1]], ids=["no tokens", "padding only"])
def test_nothing_to_write(spec, slots):
    cache = make(spec)
    cache.write(0, torch.tensor(slots, dtype=torch.int64), *tokens(cache, len(slots)))
    assert all((view == -1).all() for view in cache.layer(0))


def test_write_leaves_autograd_out(spec):
    cache = make(spec)
    new = [x.requires_grad_() for x in tokens(cache, 2)]
    cache.write(0, torch.tensor([3, -1]), *new)
    assert not any(view.requires_grad for view in cache.layer(0))


def test_a_cache_made_in_inference_mode_is_written_outside(spec):
    with torch.inference_mode():
        cache = make(spec)
        cache.write(0, torch.tensor([0]), *tokens(cache, 1))
    new = tokens(cache, 1, seed=1)
    cache.write(0, torch.tensor([0]), *new)
    assert torch.equal(cache.layer(0)[0][0, 0], new[0][0])


def test_copy_pages_copies_every_layer_in_order(spec):
    cache = make(spec)
    before = []
    for layer in range(LAYERS):
        new = tokens(cache, PAGES * PAGE_SIZE, seed=layer)
        cache.write(layer, torch.arange(PAGES * PAGE_SIZE), *new)
        before.append([view.clone() for view in cache.layer(layer)])
    # Page 4 is copied after it was overwritten, page 3 twice: the later copy wins.
    cache.copy_pages([(0, 4), (4, 3), (1, 1), (2, 3)])
    for layer in range(LAYERS):
        for view, old in zip(cache.layer(layer), before[layer], strict=True):
            assert torch.equal(view, old[[0, 1, 2, 2, 0]])
    cache.copy_pages([])


def test_more_elements_than_an_int32_counts_and_memory_only_where_written():
    # 4 GiB of addresses; the last two pages lie beyond 2^31 elements.
    spec = CacheSpec.gla(2, 252, 8)
    pages = 2**16 + 2
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cache = PagedCache(spec, 1, pages, 64, dtype=torch.bfloat16)
    last = pages * 64 - 1
    new = tokens(cache, 2)
    cache.write(0, torch.tensor([0, last]), *new)
    cache.copy_pages([(pages - 1, pages - 2)])
    for view, x in zip(cache.layer(0), new, strict=True):
        assert torch.equal(view[0, 0], x[0])
        assert torch.equal(view[-1, -1], x[1])
        assert torch.equal(view[-2, -1], x[1])
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 64 * 1024, f"{grown} KiB committed for three pages"


@pytest.mark.parametrize(
    ("slots", "error", "message"),
    [
        (torch.tensor([0, 15]), ValueError, r"slots: .*\[0, 15\) \(5 pages of 3\), got 15"),
        (torch.tensor([-2, 0]), ValueError, "slots: .*got -2"),
        (torch.tensor([2**40, 0]), ValueError, "slots: .*got 1099511627776"),
        (torch.tensor([0, 1], dtype=torch.int32), TypeError, "slots: .*int64, got int32"),
        (torch.tensor([[0, 1]]), ValueError, r"slots: expected shape \[T\], got \[1, 2\]"),
        (torch.tensor([0, 1, 2]), ValueError, r"k: expected shape \[3, 3, 8\], got \[2, 3, 8\]"),
        ([0, 1], TypeError, "slots: expected a torch.Tensor, got list"),
        (torch.empty(2, dtype=torch.int64, device="meta"), ValueError, "slots: .*device cpu"),
    ],
    ids=["past the end", "below -1", "far", "int32", "2-d", "count", "list", "device"],
)
def test_bad_slots(slots, error, message):
    cache = make(SPECS["gqa"])
    with pytest.raises(error, match=message):
        cache.write(0, slots, *tokens(cache, 2))
    assert all((view == -1).all() for view in cache.layer(0))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda s, r: (s[:, :1], r), ValueError, r"state: expected shape \[2, 2, 8\], got"),
        (lambda s, r: (s, r[:1]), ValueError, r"rope: expected shape \[2, 4\], got \[1, 4\]"),
        (lambda s, r: (s, r[:, None]), ValueError, r"rope: expected shape \[2, 4\]"),
        (lambda s, r: (s.double(), r), TypeError, "state: expected dtype float32, got float64"),
        (lambda s, r: (s, r.to("meta")), ValueError, "rope: expected device cpu"),
        (lambda s, r: (s, None), TypeError, "rope: expected a torch.Tensor, got NoneType"),
        (lambda s, r: (s,), TypeError, "new: expected state and rope, got 1 tensors"),
    ],
    ids=["heads", "tokens", "dims", "dtype", "device", "none", "one"],
)
def test_bad_tokens(change, error, message):
    cache = make(SPECS["gla"])
    with pytest.raises(error, match=message):
        cache.write(0, torch.tensor([0, 1]), *change(*tokens(cache, 2)))
    assert all((view == -1).all() for view in cache.layer(0))


@pytest.mark.parametrize("layer", [-1, LAYERS])
def test_bad_layer(layer):
    cache = make(SPECS["gqa"])
    with pytest.raises(IndexError, match=rf"layer: .*\[0, 2\), got {layer}"):
        cache.layer(layer)
    with pytest.raises(IndexError, match="layer: "):
        cache.write(layer, torch.tensor([0]), *tokens(cache, 1))


@pytest.mark.parametrize(
    ("pair", "error", "message"),
    [
        ((0, 5), ValueError, r"dst: expected a page in \[0, 5\), got 5"),
        ((-1, 0), ValueError, "src: .*got -1"),
        ((0.0, 1), TypeError, "src: expected an int"),
    ],
)
def test_bad_page_copies_copy_nothing(pair, error, message):
    cache = make(SPECS["gqa"])
    cache.write(0, torch.tensor([0]), *tokens(cache, 1))
    with pytest.raises(error, match=message):
        cache.copy_pages([(0, 1), pair])
    assert (cache.layer(0)[0][1] == -1).all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"spec": "gqa"}, TypeError, "spec: expected a CacheSpec, got str"),
        ({"num_layers": 0}, ValueError, "num_layers: .*got 0"),
        ({"num_pages": -1}, ValueError, "num_pages: .*got -1"),
        ({"page_size": 0}, ValueError, "page_size: .*got 0"),
        ({"page_size": 1.5}, TypeError, "page_size: .*got float"),
        ({"dtype": torch.int8}, TypeError, "dtype: expected bfloat16, .*got torch.int8"),
    ],
)
def test_bad_sizes(change, error, message):
    sizes = {"spec": SPECS["gqa"], "num_layers": 1, "num_pages": 1, "dtype": torch.float32}
    with pytest.raises(error, match=message):
        PagedCache(**(sizes | change))
