"""Gradients by the Hopper kernels against the float64 oracle, random and chosen."""

import random
from dataclasses import replace

import pytest
import torch
from hopper_attention_backward_cases import SHARED, gradients, small

import ridgeline
from ridgeline.ops.attention import reference
from ridgeline.ops.attention.hopper import backward
from ridgeline.ops.attention.hopper.backward_config import backward_config
from ridgeline.ops.common.triton import INTERPRETED
from ridgeline.testing import AttentionCase, assert_matches, attention_case

MODES = pytest.mark.parametrize("deterministic", [False, True], ids=["reduced", "ordered"])
LENGTHS = [[(70, 150)], [(130, 130), (0, 9), (5, 0), (1, 66)], [(190, 70)], [(65, 129), (64, 64)]]


def drawn(seed: int) -> AttentionCase:
    rng = random.Random(seed)
    packed = seed % 2 == 0
    lengths = rng.choice(LENGTHS)
    dim = rng.choice([64, 64, 40, 17, 32])
    return attention_case(
        seed,
        dtype=rng.choice([torch.bfloat16, torch.float16]),
        packed=packed,
        lengths=lengths if packed else lengths[:1] * rng.choice([1, 2]),
        kv_heads=rng.choice([1, 2]),
        group=rng.choice([1, 1, 2]),
        dim=dim,
        value_dim=rng.choice([dim, 64, 24]),
    )


@MODES
@pytest.mark.parametrize("seed", range(6))
def test_any_case(seed: int, deterministic: bool) -> None:
    case = drawn(2 * seed + deterministic)
    changes = SHARED if seed % 3 == 0 else {}
    assert_matches(case, *gradients(case, seed, deterministic=deterministic, **changes))


@MODES
@pytest.mark.parametrize(
    ("dim", "value_dim"), [(96, 96), (128, 128), (192, 128), (192, 192), (256, 256)]
)
def test_widths(dim: int, value_dim: int, deterministic: bool) -> None:
    case = small(dim, dim=dim, value_dim=value_dim, lengths=[(80, 130)])
    assert_matches(case, *gradients(case, deterministic=deterministic))


@MODES
@pytest.mark.parametrize(
    "chosen",
    [
        {"causal": False, "window": (20, None)},
        {"causal": False, "window": (None, 3)},
        {"softcap": 0.5, "magnitude": 3.0},
        {"tree": "nested", "group": 2, "lengths": [(150, 150)]},
        {"tree": "any", "packed": True, "lengths": [(130, 130), (0, 5), (70, 70)]},
        {"softmax_scale": -0.2, "magnitude": 1e2},
    ],
    ids=["left", "right", "softcap", "tree", "packed-tree", "negative-scale"],
)
def test_masks_and_scores(chosen: dict, deterministic: bool) -> None:
    case = small(3, **chosen)
    assert_matches(case, *gradients(case, 1, deterministic=deterministic))


@pytest.mark.parametrize("lengths", [[], [(0, 5), (5, 0)], [(0, 0)]])
def test_nothing_to_see(lengths: list) -> None:
    case = small(0, packed=True, lengths=lengths)
    assert_matches(case, *gradients(case))


@MODES
@pytest.mark.parametrize("names", ["q", "k", "v", "qv", "kv"])
def test_only_what_is_needed(names: str, deterministic: bool, monkeypatch) -> None:
    """The same bits as those of all, and nothing else is touched."""
    case = small(1, lengths=[(70, 130)])
    whole = gradients(case, deterministic=deterministic)
    launch = backward.backward

    def some(*args, **options) -> None:
        kept = [x if name in names else None for x, name in zip(args[-3:], "qkv", strict=True)]
        launch(*args[:-3], *kept, **options)

    monkeypatch.setattr(backward, "backward", some)
    found = gradients(case, deterministic=deterministic)
    for name, x, y in zip("qkv", found[2:], whole[2:], strict=True):
        assert torch.equal(x, y) if name in names else x.isnan().all()


def test_no_gradient_of_lse() -> None:
    case = small(2, with_dlse=False, lengths=[(40, 70)])
    assert_matches(case, *gradients(case))


@pytest.mark.parametrize("changes", [{}, SHARED], ids=["registers", "shared"])
def test_deterministic_gradients_are_the_same_bits_under_any_schedule(changes: dict) -> None:
    case = small(4, group=2, lengths=[(130, 150)])
    first = gradients(case, 0, deterministic=True, **changes)
    for seed in range(1, 4):
        found = gradients(case, seed, deterministic=True, **changes)
        assert all(torch.equal(x, y) for x, y in zip(first, found, strict=True))


def test_added_dq_does_depend_on_the_schedule() -> None:
    """The control of the test above; dK and dV are sums of one program even so."""
    case = small(4, dtype=torch.float16, lengths=[(64, 500)], causal=False, kv_heads=2)
    runs = [gradients(case, seed, **SHARED) for seed in range(4)]
    assert any(not torch.equal(runs[0][2], found[2]) for found in runs)
    for found in runs:
        assert torch.equal(found[3], runs[0][3])
        assert torch.equal(found[4], runs[0][4])


@MODES
def test_keys_past_the_end_have_no_probability(deterministic: bool) -> None:
    """As 0 they would have 2^(0 - lse): infinity where all scores are far below 0."""
    case = small(7, lengths=[(130, 70)], causal=False, softmax_scale=1.0)
    case = replace(case, k=torch.ones_like(case.k), q=case.q.abs() - 4)
    assert_matches(case, *gradients(case, deterministic=deterministic))


@MODES
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_garbage_reaches_nobody_who_does_not_see_it(
    value: float, deterministic: bool, monkeypatch
) -> None:
    """A sequence's neighbours in a packed row, and keys out of every query's sight."""
    case = small(5, packed=True, lengths=[(70, 90), (50, 60), (33, 200)], window=(40, 0))
    clean = gradients(case, deterministic=deterministic)
    rows, keys = slice(70, 120), slice(90, 150)
    hidden = slice(150, 150 + 200 - 33 - 40)
    spoilt = {name: getattr(case, name).clone() for name in ("q", "k", "v", "dout")}
    for name, where in (("q", rows), ("dout", rows), ("k", keys), ("v", keys)):
        spoilt[name][where] = value
    for name in ("k", "v"):
        spoilt[name][hidden] = value
    forward = reference.forward
    monkeypatch.setattr(reference, "forward", lambda *args: (
        args[-2].copy_(clean[0]), args[-1].copy_(clean[1])
    ))  # fmt: skip
    found = gradients(replace(case, **spoilt), deterministic=deterministic)
    monkeypatch.setattr(reference, "forward", forward)
    for x, y, theirs in zip(found[2:], clean[2:], (rows, keys, keys), strict=True):
        kept = torch.ones(len(x), dtype=torch.bool)
        kept[theirs] = False
        assert torch.equal(x[kept], y[kept])


def test_stages_with_which_dq_would_hang_are_refused() -> None:
    with pytest.raises(ValueError, match="dq_stages: expected at least 3, got 2"):
        replace(backward_config(64, 64), dq_stages=2)


@pytest.mark.skipif(not INTERPRETED, reason="on a GPU nothing has to be patched")
def test_the_public_function(monkeypatch) -> None:
    """Forward and backward by Hopper's kernels; ``deterministic`` takes one more."""
    from ridgeline.testing.gluon import interpreted

    case = small(6, lengths=[(40, 70)])
    monkeypatch.setattr("ridgeline.ops.attention.hopper.config.unsupported", lambda *_: None)
    leaves = [x.clone().requires_grad_() for x in (case.q, case.k, case.v)]
    options = case.options() | {"return_lse": True, "impl": "hopper"}
    launches = []
    for asked in (False, True):
        with interpreted(seed=0) as reports:
            out, lse = ridgeline.attention(*leaves, **options, deterministic=asked)
            grads = torch.autograd.grad([out, lse], leaves, [case.dout, case.dlse])
        assert_matches(case, out.detach(), lse.detach(), *grads)
        launches.append(len(reports))
    assert launches[1] == launches[0] + 1
