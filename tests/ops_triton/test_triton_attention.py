"""``attention`` by Triton against the float64 oracle; rows and keys that nobody may read."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from triton_attention import DEVICE, TILES, changed, small
from triton_cases import DTYPES, HALF

from ridgeline import attention
from ridgeline.ops.attention import tiles
from ridgeline.ops.attention.triton.config import unsupported
from ridgeline.ops.common import device
from ridgeline.testing import assert_matches, attention_case, run
from ridgeline.testing.layouts import FAR, far_along
from ridgeline.testing.oracle_attention import keys_of

HEADS = [(1, 1), (1, 3), (2, 1), (1, 8), (2, 2)]
DIMS = [(16, 16), (40, 24), (17, 80), (96, 64), (3, 1), (64, 128), (192, 128), (80, 96)]
LENGTHS = [
    [(33, 33)],
    [(9, 40), (0, 5), (4, 0)],
    [(40, 9)],
    [(20, 20), (1, 17), (0, 0)],
    [(17, 50)],
    [(2, 3), (18, 18), (16, 16), (5, 33)],
]


def drawn(seed: int, **chosen):
    """A random case of a small shape."""
    (kv_heads, group), (dim, value_dim) = HEADS[seed % 5], DIMS[seed % 8]
    lengths = LENGTHS[seed % 6]
    packed = len(lengths) > 1 or seed % 2 == 0
    shape = {"kv_heads": kv_heads, "group": group, "dim": dim, "value_dim": value_dim}
    if kv_heads * group > 3:
        lengths = [(min(a, 18), min(b, 24)) for a, b in lengths]
    return attention_case(seed, DTYPES, packed=packed, lengths=lengths, **shape | chosen)


@pytest.mark.parametrize("seed", range(60))
def test_forward(seed: int) -> None:
    out, lse = run(case := drawn(seed), TILES[seed % 3], gradients=False)
    assert_matches(case, out, lse)


@pytest.mark.parametrize("seed", range(100, 148))
def test_forward_and_backward(seed: int) -> None:
    dtype = DTYPES[seed % len(DTYPES)]
    tree = (None, "nested", "any", "nested")[seed // 2 % 4]
    case = drawn(seed, dtype=dtype, tree=tree)
    assert_matches(case, *run(case, TILES[seed % 3]))


@pytest.mark.parametrize("seed", range(6))
def test_the_public_function(seed: int) -> None:
    """The tiling that is chosen, autograd, the options as a user gives them."""
    case = drawn(seed)
    assert_matches(case, *run(case, "triton"))


@pytest.mark.parametrize("dim", [0, 1, 2], ids=["sequences", "tokens", "heads"])
def test_far_strides(dim: int) -> None:
    """Elements more than 2^31 away; the memory is committed only where it is touched."""
    shape = {"kv_heads": 2, "group": 2, "dim": 8, "value_dim": 8, "dtype": HALF}
    case = attention_case(0, packed=False, lengths=[(3, 5)] * 2, **shape)
    far = {name: far_along(getattr(case, name), dim) for name in ("q", "k", "v", "dout")}
    assert far["q"].untyped_storage().nbytes() > FAR
    assert_matches(case, *run(replace(case, **far), TILES[0]))


@pytest.mark.parametrize("garbage", [torch.nan, torch.inf])
def test_a_sequence_does_not_spoil_its_neighbours(garbage: float) -> None:
    case = small(0, lengths=[(20, 20), (7, 18), (17, 17)])
    rows, keys = case.sequences()[1]
    spoilt = {"q": (rows, garbage), "dout": (rows, garbage)}
    spoilt |= {"k": (keys, garbage), "v": (keys, garbage)}
    clean, got = run(case, TILES[0]), run(changed(case, **spoilt), TILES[0])
    for x, y, at in zip(got, clean, (rows, rows, rows, keys, keys), strict=True):
        keep = torch.ones(len(x), dtype=torch.bool)
        keep[at] = False
        assert torch.equal(x[keep], y[keep])


@pytest.mark.parametrize("options", [{"window": (3, None)}, {"tree": "nested"}], ids=str)
def test_keys_that_nobody_sees_are_not_read(options) -> None:
    """Behind the window, and of subtrees that end before the first query."""
    case = small(1, lengths=[(20, 41)], **options)
    if "tree" in options:
        ends = case.subtree_end.clone()
        ends[:21] = torch.arange(1, 22, dtype=torch.int32)
        case = replace(case, subtree_end=ends)
    unseen = 41 - 20 - (3 if "window" in options else 0)
    index = slice(0, unseen)
    got = run(changed(case, k=(index, torch.nan), v=(index, torch.nan)), TILES[0])
    for x, y in zip(got, run(case, TILES[0]), strict=True):
        assert torch.equal(x, y)
    assert (got[3][index] == 0).all()
    assert (got[4][index] == 0).all()


@pytest.mark.parametrize("group", [1, 3])
def test_rows_that_see_nothing(group: int) -> None:
    """They give 0 and -inf and take no part in a gradient, whatever they hold or comes back."""
    case = small(2, lengths=[(40, 9)], group=group, dtype=HALF)
    index = slice(0, 31)
    spoilt = dict.fromkeys(("q", "dout", "dlse"), (index, torch.nan))
    clean, got = run(case, TILES[0]), run(changed(case, **spoilt), TILES[0])
    assert all(torch.equal(x, y) for x, y in zip(got, clean, strict=True))
    assert (got[0][index] == 0).all()
    assert (got[1][index] == -torch.inf).all()
    assert (got[2][index] == 0).all()
    assert_matches(case, *clean)


@pytest.mark.parametrize("causal", [True, False])
def test_every_element_is_written(causal: bool) -> None:
    case = small(3, causal=causal, kv_heads=2, group=1, dim=17)
    results = [run(case, TILES[1], fill=fill) for fill in (torch.nan, 0.0)]
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


def test_nan_that_is_seen_is_not_hidden() -> None:
    case = small(0, packed=False, lengths=[(18, 18)] * 2, causal=False)
    for name in ("k", "v"):
        out, lse = run(changed(case, **{name: ((1, 3), torch.nan)}), TILES[0], gradients=False)
        assert out[1].isnan().all()
        assert out[0].isfinite().all()
        assert lse[1].isnan().all().item() is (name == "k")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(
    "options", [{}, {"causal": False, "window": (None, 2)}, {"tree": "nested"}], ids=str
)
def test_a_value_reaches_only_rows_that_see_its_key(options, value: float) -> None:
    """Whatever the other rows of a tile see: 0 times infinity would be NaN."""
    case = small(1, lengths=[(34, 34)], **options)
    clean, clean_lse = run(case, TILES[0], gradients=False)
    for key in (3, 20):
        out, lse = run(changed(case, v=(key, value)), TILES[0], gradients=False)
        seeing = torch.tensor([key in keys_of(case, 34, p, ends_of(case)) for p in range(34)])
        torch.testing.assert_close(out[~seeing], clean[~seeing])
        torch.testing.assert_close(out[seeing], torch.full_like(out[seeing], value), equal_nan=True)
        assert torch.equal(lse, clean_lse)


def ends_of(case) -> list[int] | None:
    return None if case.subtree_end is None else case.subtree_end.tolist()


def test_a_key_reaches_only_rows_that_see_it() -> None:
    case = small(1, lengths=[(34, 34)])
    clean = run(case, TILES[0], gradients=False)
    out, lse = run(changed(case, k=(20, torch.nan)), TILES[0], gradients=False)
    assert out[20:].isnan().all()
    assert lse[20:].isnan().all()
    torch.testing.assert_close(out[:20], clean[0][:20])
    assert torch.equal(lse[:20], clean[1][:20])


@pytest.mark.parametrize("band", [1, 13])
def test_bands_change_no_bit(band: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are launched in bands whose lists fit: of one tile of rows, and of two."""
    case = small(12, lengths=[(20, 20), (3, 50)], tree="nested", dim=16, value_dim=16)
    want = run(case, TILES[0])
    monkeypatch.setattr(tiles, "BAND", band)
    assert all(torch.equal(x, y) for x, y in zip(run(case, TILES[0]), want, strict=True))


@pytest.mark.parametrize("magnitude", [1e-3, 1e4])
@pytest.mark.parametrize("softcap", [0.0, 0.5, 50.0])
def test_logits_of_any_size(softcap: float, magnitude: float) -> None:
    case = small(4, softcap=softcap, magnitude=magnitude, lengths=[(18, 34)])
    results = run(case, TILES[0])
    assert all(x.isfinite().all() for x in results)
    assert_matches(case, *results)


@pytest.mark.parametrize("scale", [-0.3, 0.0, 1e-38])
def test_scales(scale: float) -> None:
    """A factor has to be positive and normal to be applied to the largest score."""
    case = small(5, softmax_scale=scale, lengths=[(9, 20)])
    assert_matches(case, *run(case, TILES[0]))


@pytest.mark.parametrize("window", [(0, 0), (5, None), (None, 3), (2**31 - 1, 2**31 - 1)], ids=str)
@pytest.mark.parametrize("packed", [True, False])
def test_windows(window, packed: bool) -> None:
    case = small(6, causal=False, window=window, packed=packed, lengths=[(20, 34)], group=1)
    assert_matches(case, *run(case, TILES[0]))


@pytest.mark.parametrize("lengths", [[], [(0, 0)], [(0, 5)] * 2, [(5, 0)] * 2], ids=str)
@pytest.mark.parametrize("packed", [True, False])
def test_nothing_at_all(lengths, packed: bool) -> None:
    case = small(7, lengths=lengths, packed=packed, tree="nested")
    assert_matches(case, *run(case, TILES[0]))


def test_many_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than one program reads the starts of, or lists the tiles of, at a time."""
    monkeypatch.setattr(tiles, "SEQUENCES", 4)
    monkeypatch.setattr(tiles, "CHUNK", 2)
    lengths = [(seed % 3, seed % 4) for seed in range(9)] + [(20, 90)]
    case = small(8, lengths=lengths, group=1, dim=16, value_dim=16, tree="any")
    assert_matches(case, *run(case, TILES[0]))


def test_strided_starts() -> None:
    case = small(9, lengths=[(5, 7), (3, 3)])
    starts = {}
    for name in ("cu_seqlens_q", "cu_seqlens_k"):
        starts[name] = torch.full((3, 2), 999, dtype=torch.int32)
        starts[name][:, 0] = getattr(case, name)
        starts[name] = starts[name][:, 0]
    got, want = run(replace(case, **starts), TILES[0]), run(case, TILES[0])
    assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))


@pytest.mark.parametrize("needed", list(product([False, True], repeat=3))[1:], ids=str)
def test_only_the_gradients_that_are_needed(needed: tuple[bool, ...]) -> None:
    """Each is the same bits whichever others are asked for."""
    torch.manual_seed(0)
    leaves = [torch.randn(1, 18, 2, 16, device=DEVICE) for _ in range(3)]
    every = []
    for wanted in ((True,) * 3, needed):
        for x, need in zip(leaves, wanted, strict=True):
            x.requires_grad_(need).grad = None
        attention(*leaves, causal=True, impl="triton").square().sum().backward()
        every.append([x.grad for x in leaves])
    for x, y, need in zip(*every, needed, strict=True):
        assert torch.equal(x, y) if need else y is None


def test_run_to_run_is_bitwise() -> None:
    case = small(10, dtype=HALF, lengths=[(20, 34)])
    first, again = run(case, TILES[0]), run(case, TILES[0])
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))


def test_sequences_are_independent() -> None:
    """A packed sequence gives the bits that it gives alone."""
    case = small(11, lengths=[(18, 18), (5, 33), (20, 20)], group=3)
    together = run(case, TILES[0])
    for rows, keys in case.sequences():
        own = {name: getattr(case, name)[rows][None] for name in ("q", "dout", "dlse")}
        own |= {name: getattr(case, name)[keys][None] for name in ("k", "v")}
        alone = run(replace(case, **own, cu_seqlens_q=None, cu_seqlens_k=None), TILES[0])
        for x, y, at in zip(together, alone, (rows, rows, rows, keys, keys), strict=True):
            assert torch.equal(x[at], y[0])


class TestUnsupported:
    """An explicit choice says why not."""

    def reason(self, monkeypatch=None, dim=8, value_dim=8, dtype=torch.float32) -> str:
        q, v = torch.zeros(1, 1, 1, dim, dtype=dtype), torch.zeros(1, 1, 1, value_dim, dtype=dtype)
        with pytest.raises(ValueError, match="impl='triton': ") as error:
            attention(q, q, v, impl="triton")
        return str(error.value)

    def test_dtype(self) -> None:
        assert "float64" in self.reason(dtype=torch.float64)

    @pytest.mark.parametrize(("dim", "value_dim", "name"), [(257, 8, "q"), (8, 300, "v")])
    def test_head_dim(self, dim: int, value_dim: int, name: str) -> None:
        assert f"got {max(dim, value_dim)} for {name}" in self.reason(dim=dim, value_dim=value_dim)

    def test_cpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(device, "interpreting", lambda: False)
        assert "runs on a CUDA device" in self.reason()

    def test_auto_leaves_the_cpu_alone(self) -> None:
        q = torch.zeros(1, 1, 1, 8)
        assert "runs on a CUDA device" in unsupported(q, q, q, interpret=False)
