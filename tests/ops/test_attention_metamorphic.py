"""``attention``: what must not change a result, and what changes it in a known way."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from trees import random_segments, sequence_of, tokens_of

import ridgeline
from ridgeline import subtree_end
from ridgeline.testing import AttentionCase, assert_matches, attention_case, run

SEEDS = range(4)
BATCH = {"packed": False, "lengths": [(33, 70)] * 4}
PACKED = {"packed": True, "lengths": [(33, 70), (5, 5), (0, 3), (64, 64)]}
F32 = {"dtype": torch.float32}
INT32 = torch.int32


def assert_same_bits(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> None:
    for name, x, y in zip(("out", "lse", "dq", "dk", "dv"), got, want, strict=True):
        assert torch.equal(x, y), f"{name} differs in {int((x != y).sum())} of {x.numel()} elements"


@pytest.mark.parametrize("seed", SEEDS)
def test_batch_permutation_is_bitwise(seed: int, attention_impl: str) -> None:
    case = attention_case(seed, **BATCH)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    names = ("q", "k", "v", "dout", "dlse", "subtree_end")
    moved = {name: x[order] for name in names if (x := getattr(case, name)) is not None}
    got = run(replace(case, **moved), attention_impl)
    assert_same_bits(got, tuple(x[order] for x in run(case, attention_impl)))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_sequence_alone_is_bitwise(seed: int, attention_impl: str) -> None:
    case = attention_case(seed, **PACKED)
    results = run(case, attention_impl)
    for rows, keys in case.sequences():
        alone = run(part(case, rows, keys), attention_impl)
        at = (rows, rows, rows, keys, keys)
        assert_same_bits(alone, tuple(x[i] for x, i in zip(results, at, strict=True)))


@pytest.mark.parametrize("seed", SEEDS)
def test_packed_is_batch(seed: int, attention_impl: str) -> None:
    case = attention_case(seed, **BATCH)
    flat = {name: getattr(case, name).flatten(0, 1) for name in ("q", "k", "v", "dout")}
    for name in ("dlse", "subtree_end"):
        x = getattr(case, name)
        flat[name] = None if x is None else x.flatten(0, 1)
    starts = {
        "cu_seqlens_q": torch.arange(0, 5 * 33, 33, dtype=INT32),
        "cu_seqlens_k": torch.arange(0, 5 * 70, 70, dtype=INT32),
    }
    got = run(replace(case, **flat, **starts), attention_impl)
    assert_matches(case, *(x.unflatten(0, (4, -1)) for x in got))


@pytest.mark.parametrize("seed", SEEDS)
def test_gqa_is_mha_with_repeated_heads(seed: int, attention_impl: str) -> None:
    case = attention_case(seed, **PACKED, **F32, kv_heads=2, group=3)
    k, v = (x.repeat_interleave(3, dim=-2) for x in (case.k, case.v))
    out, lse, dq, dk, dv = run(replace(case, k=k, v=v), attention_impl)
    dk, dv = (x.unflatten(-2, (2, 3)).sum(-2) for x in (dk, dv))
    assert_matches(case, out, lse, dq, dk, dv)


@pytest.mark.parametrize("chunk", [1, 7, 32, 50])
@pytest.mark.parametrize("tree", [None, "nested"])
def test_chunked_prefill_is_one_shot(tree: str | None, chunk: int, attention_impl: str) -> None:
    """Queries in chunks, each over the keys up to its own last; gradients of keys add up."""
    shape = {"packed": False, "lengths": [(70, 70)] * 2}
    shape |= F32 | {"causal": True, "window": (40, None), "with_dlse": True}
    case = attention_case(11, **shape, tree=tree)
    rows, dk, dv = [], torch.zeros(case.k.shape), torch.zeros(case.v.shape)
    for start in range(0, 70, chunk):
        now, past = slice(start, start + chunk), slice(0, start + chunk)
        queries = {n: getattr(case, n)[:, now] for n in ("q", "dout", "dlse")}
        keys = {n: getattr(case, n)[:, past] for n in ("k", "v")}
        if tree:
            keys["subtree_end"] = case.subtree_end[:, past]
        *outs, more_dk, more_dv = run(replace(case, **queries, **keys), attention_impl)
        rows.append(outs)
        dk[:, past] += more_dk
        dv[:, past] += more_dv
    out, lse, dq = (torch.cat(parts, 1) for parts in zip(*rows, strict=True))
    assert_matches(case, out, lse, dq, dk, dv)


@pytest.mark.parametrize("seed", range(6))
def test_a_tree_is_its_sequences(seed: int, attention_impl: str) -> None:
    """Every segment behind its ancestors, as a sequence of its own under plain causal attention.

    A token's gradient comes from the sequence that ends with its segment; those of the keys add up
    over the sequences that share them.
    """
    segments = random_segments(seed)
    n = sum(length for _, length in segments)
    layout = subtree_end.of_tree(*zip(*segments, strict=True))
    case = attention_case(
        seed, **F32, packed=True, lengths=[(n, n)], tree=None, causal=True, with_dlse=True
    )
    tree = replace(case, cu_seqlens_q=None, cu_seqlens_k=None, subtree_end=layout.subtree_end)
    tree = replace(tree, **{x: getattr(tree, x)[None] for x in (*"qkv", "dout", "dlse")})
    tree = replace(tree, subtree_end=tree.subtree_end[None], causal=False)
    out, lse, dq, dk, dv = (x.clone() for x in run(tree, attention_impl))
    assert_matches(tree, out, lse, dq, dk, dv)
    if case.window:  # a window counts tokens of the row, not of the sequence
        return
    for x in (dk, dv):
        x.zero_()
    for i, own in enumerate(tokens_of(segments)):
        if not own:
            continue
        tokens = torch.tensor(sequence_of(segments, i))
        plain = {name: getattr(case, name)[tokens][None] for name in "qkv"}
        for name in ("dout", "dlse"):
            plain[name] = getattr(case, name)[tokens][None]
            plain[name][:, : -len(own)] = 0
        plain |= {"cu_seqlens_q": None, "cu_seqlens_k": None}
        *got, more_dk, more_dv = run(replace(case, **plain), attention_impl)
        for whole, x in zip((out, lse, dq), got, strict=True):
            whole[0, own] = x[0, -len(own) :]
        dk[0, tokens] += more_dk[0]
        dv[0, tokens] += more_dv[0]
    assert_matches(tree, out, lse, dq, dk, dv)


@pytest.mark.parametrize("sizes", [(5, 3, 4), (1, 2, 1), (9, 1, 6)], ids=str)
def test_a_pair_is_its_two_sequences(sizes: tuple[int, int, int]) -> None:
    """In float64, through embeddings shared by the repeated token: outputs and gradients agree."""
    prompt, chosen, rejected = sizes
    generator = torch.Generator().manual_seed(0)
    embedded = torch.randn(sum(sizes), 3, 2, 4, dtype=torch.float64, generator=generator)
    weights = torch.randn(2, max(chosen, rejected) + 1, 2, 4, generator=generator).double()
    of_chosen = [*range(prompt + chosen)]
    of_rejected = [*range(prompt), *range(prompt + chosen, sum(sizes))]
    row = [*of_chosen, prompt - 1, *of_rejected[prompt:]]
    layout = subtree_end.of_pair(*sizes)
    starts = torch.tensor([0, prompt + chosen, 2 * prompt + chosen + rejected], dtype=INT32)
    results = []
    for shared in (True, False):
        x = embedded.clone().requires_grad_()
        if shared:
            out = ridgeline.attention(
                *x[row][None].unbind(2), subtree_end=layout.subtree_end[None]
            )[0]
            answers = out[prompt - 1 : prompt + chosen], out[prompt + chosen :]
        else:
            packed = {"cu_seqlens_q": starts, "cu_seqlens_k": starts}
            out = ridgeline.attention(*x[of_chosen + of_rejected].unbind(1), causal=True, **packed)
            answers = out[prompt - 1 : prompt + chosen], out[starts[1] + prompt - 1 :]
        loss = sum((a * w[: len(a)]).sum() for a, w in zip(answers, weights, strict=True))
        results.append((*answers, *torch.autograd.grad(loss, x)))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("causal", [True, False])
def test_a_window_as_long_as_the_sequence_is_none(causal: bool, attention_impl: str) -> None:
    case = attention_case(3, **PACKED, tree=None, window=None, causal=causal)
    for window in [(70, 70), (None, 69), (69, None), (2**31 - 1, 2**31 - 1)]:
        assert_matches(case, *run(replace(case, window=window), attention_impl))


def test_one_document_is_causal(attention_impl: str) -> None:
    case = attention_case(4, **PACKED, tree=None, causal=True)
    ends = torch.cat([torch.full((keys,), keys, dtype=INT32) for _, keys in PACKED["lengths"]])
    got = run(replace(case, subtree_end=ends, causal=False), attention_impl)
    assert_matches(case, *got)


def test_documents_are_packed_sequences(attention_impl: str) -> None:
    lengths = [31, 64, 1, 40]
    case = attention_case(
        5, packed=True, lengths=[(n, n) for n in lengths], tree=None, causal=True, window=(50, None)
    )
    layout = subtree_end.of_documents(lengths)
    one = {
        n: torch.tensor([0, sum(lengths)], dtype=INT32) for n in ("cu_seqlens_q", "cu_seqlens_k")
    }
    got = run(replace(case, **one, subtree_end=layout.subtree_end), attention_impl)
    assert_matches(case, *got)


@pytest.mark.parametrize("cut", [0, 1, 33, 70])
def test_cut_and_merge(cut: int, attention_name: str) -> None:
    """Attention over two sets of keys, merged by lse, is attention over both; so are gradients."""
    case = attention_case(
        6, **BATCH, **F32, tree=None, causal=False, window=None, with_dlse=True, magnitude=1.0
    )
    leaves = [x.detach().requires_grad_() for x in (case.q, case.k, case.v)]
    q, k, v = leaves
    options = {"softmax_scale": case.softmax_scale, "softcap": case.softcap, "impl": attention_name}
    parts = [
        ridgeline.attention(q, k[:, keys], v[:, keys], **options, return_lse=True)
        for keys in (slice(0, cut), slice(cut, None))
    ]
    out, lse = ridgeline.merge(*zip(*parts, strict=True))
    grads = torch.autograd.grad((out, lse), leaves, (case.dout, case.dlse))
    assert_matches(case, out.detach(), lse.detach(), *grads)


def test_hints_change_nothing() -> None:
    case = attention_case(7, **PACKED)
    plain = ridgeline.attention(case.q, case.k, case.v, **case.options())
    hinted = ridgeline.attention(
        case.q,
        case.k,
        case.v,
        **case.options(),
        max_seqlen_q=64,
        max_seqlen_k=500,
        deterministic=True,
    )
    assert torch.equal(plain, hinted)


def part(case: AttentionCase, rows: slice, keys: slice) -> AttentionCase:
    """One sequence of a packed case."""
    queries = {n: getattr(case, n)[rows] for n in ("q", "dout")}
    queries["dlse"] = None if case.dlse is None else case.dlse[rows]
    others = {n: getattr(case, n)[keys] for n in ("k", "v")}
    others["subtree_end"] = None if case.subtree_end is None else case.subtree_end[keys]
    starts = {
        "cu_seqlens_q": torch.tensor([0, rows.stop - rows.start], dtype=INT32),
        "cu_seqlens_k": torch.tensor([0, keys.stop - keys.start], dtype=INT32),
    }
    return replace(case, **queries, **others, **starts)
