"""Wrong arguments raise an error that names the argument, in eager mode and under fake tensors."""

import math
import re
from collections.abc import Callable

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import ridgeline
from ridgeline.testing import paged_case, tied_case
from ridgeline.testing.generate import FP8

PLAIN = {"dtype": torch.float32, "lengths": [9, 4], "query_len": 2, "kv_heads": 2, "group": 2}
PLAIN |= {"dim": 16, "page_size": 4, "strides": False, "spare_pages": 3}
INT32 = torch.int32


def paged() -> dict:
    case = paged_case(0, **PLAIN, value_dim=8, window=None)
    names = ("q", "k_cache", "v_cache", "block_table", "cache_seqlens")
    return {name: getattr(case, name) for name in names} | case.options()


def tied() -> dict:
    case = tied_case(0, **PLAIN, nope_dim=16, rope_dim=8)
    names = ("q_nope", "q_rope", "state_cache", "rope_cache", "block_table", "cache_seqlens")
    return {name: getattr(case, name) for name in names} | case.options()


def every_other(x: torch.Tensor) -> torch.Tensor:
    """The same shape with a last dim of stride 2."""
    return x.repeat_interleave(2, -1)[..., ::2]


Change = Callable[[torch.Tensor], object]
# operation, argument, how it is made wrong, the error, what its message must hold
SHAPES: list[tuple[str, str, Change, type[Exception], str]] = [
    ("paged", "q", lambda x: x[0], ValueError, r"q: expected shape \[B, L_q, h_q, d\]"),
    ("paged", "q", lambda x: x[:, :0], ValueError, "q: expected L_q"),
    ("paged", "q", lambda x: x[:, :, :0], ValueError, "q: expected L_q, h_q"),
    ("paged", "q", lambda x: x[..., :0], ValueError, "q: expected L_q, h_q and d"),
    ("paged", "q", lambda x: x[..., :8], ValueError, r"k_cache: expected shape .*, 8\]"),
    ("paged", "q", lambda x: x[:, :, :3], ValueError, r"k_cache.shape\[2\]: expected a divisor"),
    ("paged", "q", lambda x: x.int(), TypeError, "q: expected dtype"),
    ("paged", "q", lambda x: x.half(), TypeError, "k_cache: expected dtype float16"),
    ("paged", "q", every_other, ValueError, "q: expected a contiguous last dim"),
    ("paged", "q", lambda x: x[:1], ValueError, r"block_table: expected shape \[1, max_pages\]"),
    ("paged", "k_cache", lambda x: x[0], ValueError, "k_cache: expected shape"),
    ("paged", "k_cache", lambda x: x[:, :0], ValueError, "k_cache: expected page_size >= 1"),
    ("paged", "k_cache", lambda x: x[:, :, :0], ValueError, r"cache.*shape"),
    ("paged", "k_cache", lambda x: x[1:], ValueError, "v_cache: expected shape"),
    ("paged", "k_cache", every_other, ValueError, "k_cache: expected a contiguous last dim"),
    ("paged", "k_cache", lambda x: x.to(FP8), TypeError, "v_cache: expected the dtype of k_cache"),
    ("paged", "v_cache", lambda x: x[:, :3], ValueError, "v_cache: expected shape"),
    ("paged", "v_cache", lambda x: x[:, :, :1], ValueError, "v_cache: expected shape"),
    ("paged", "v_cache", lambda x: x[..., :0], ValueError, "v_cache: expected"),
    ("paged", "v_cache", lambda x: x.bfloat16(), TypeError, "v_cache: expected dtype"),
    ("paged", "v_cache", every_other, ValueError, "v_cache: expected a contiguous last dim"),
    ("paged", "block_table", lambda x: x[:1], ValueError, "block_table: expected shape"),
    ("paged", "block_table", lambda x: x[0], ValueError, "block_table: expected shape"),
    ("paged", "block_table", lambda x: x.long(), TypeError, "block_table: expected dtype int32"),
    ("paged", "cache_seqlens", lambda x: x[:1], ValueError, "cache_seqlens: expected shape"),
    (
        "paged",
        "cache_seqlens",
        lambda x: x.long(),
        TypeError,
        "cache_seqlens: expected dtype int32",
    ),
    ("tied", "q_nope", lambda x: x[0], ValueError, "q_nope: expected shape"),
    ("tied", "q_nope", lambda x: x[:, :0], ValueError, "q_nope: expected L_q"),
    ("tied", "q_nope", lambda x: x.half(), TypeError, "expected dtype float16"),
    ("tied", "q_nope", every_other, ValueError, "q_nope: expected a contiguous last dim"),
    (
        "tied",
        "q_nope",
        lambda x: torch.cat([x, x], -1),
        ValueError,
        "q_nope: expected a last dim of at most 16",
    ),
    ("tied", "q_rope", lambda x: x[:, :1], ValueError, "q_rope: expected shape"),
    ("tied", "q_rope", lambda x: x[..., :4], ValueError, "rope_cache: expected shape"),
    ("tied", "q_rope", lambda x: x.half(), TypeError, "q_rope: expected dtype float32"),
    ("tied", "q_rope", every_other, ValueError, "q_rope: expected a contiguous last dim"),
    ("tied", "state_cache", lambda x: x[0], ValueError, "state_cache: expected shape"),
    ("tied", "state_cache", lambda x: x[:, :0], ValueError, "state_cache: expected page_size >= 1"),
    ("tied", "state_cache", lambda x: x[:, :, :0], ValueError, "state_cache.*: expected"),
    ("tied", "state_cache", lambda x: x.half(), TypeError, "state_cache: expected dtype"),
    ("tied", "state_cache", every_other, ValueError, "state_cache: expected a contiguous last dim"),
    ("tied", "rope_cache", lambda x: x[1:], ValueError, "rope_cache: expected shape"),
    ("tied", "rope_cache", lambda x: x[:, :, None], ValueError, "rope_cache: expected shape"),
    ("tied", "rope_cache", lambda x: x.half(), TypeError, "rope_cache: expected dtype float32"),
    ("tied", "rope_cache", every_other, ValueError, "rope_cache: expected a contiguous last dim"),
    ("tied", "block_table", lambda x: x.long(), TypeError, "block_table: expected dtype int32"),
    ("tied", "cache_seqlens", lambda x: x[:1], ValueError, "cache_seqlens: expected shape"),
]
DEVICES = [("paged", n) for n in ("k_cache", "v_cache", "block_table", "cache_seqlens")]
DEVICES += [("tied", n) for n in ("q_rope", "state_cache", "rope_cache", "cache_seqlens")]
OPTIONS = [
    ("softmax_scale", True, TypeError),
    ("softmax_scale", "1", TypeError),
    ("softmax_scale", math.nan, ValueError),
    ("softmax_scale", math.inf, ValueError),
    ("softmax_scale", torch.tensor(1.0), TypeError),
    ("causal", 1, TypeError),
    ("causal", None, TypeError),
    ("num_splits", -1, ValueError),
    ("num_splits", 2.0, TypeError),
    ("num_splits", True, TypeError),
    ("num_splits", 2**63, ValueError),
    ("return_lse", 1, TypeError),
    ("impl", "fast", ValueError),
    ("impl", None, ValueError),
]
PAGED_OPTIONS = [
    ("softcap", -1.0, ValueError),
    ("softcap", math.nan, ValueError),
    ("softcap", True, TypeError),
    ("window", 3, TypeError),
    ("window", (1, 2, 3), TypeError),
    ("window", (-1, 0), ValueError),
    ("window", (None, 2**63 - 1), ValueError),
    ("window", (1.5, 0), TypeError),
    ("window", (True, 0), TypeError),
    ("k_scale", 0.5, ValueError),
    ("v_scale", 0.5, ValueError),
]
VALUES = [
    ("cache_seqlens", [-1, 4], "cache_seqlens: .*got -1 for sequence 0"),
    ("cache_seqlens", [9, 10**6], "cache_seqlens: .*got 1000000 for sequence 1"),
    ("cache_seqlens", [9, -(2**31)], "cache_seqlens: .*got -2147483648 for sequence 1"),
    ("block_table", 10**6, "block_table: .*got 1000000 for sequence 1"),
    ("block_table", -1, "block_table: .*got -1 for sequence 1"),
    ("block_table", 2**31 - 1, "block_table: .*got 2147483647 for sequence 1"),
]
FUNCTIONS = {"paged": ridgeline.paged_decode, "tied": ridgeline.tied_decode}
ARGUMENTS = {"paged": paged, "tied": tied}


def ids(table: list[tuple]) -> list[str]:
    return [re.sub(r"[^\w\-.=]+", "-", "-".join(map(str, row[:2])))[:50] for row in table]


@pytest.mark.parametrize("op", ["paged", "tied"])
def test_the_arguments_are_right_before_they_are_made_wrong(op: str) -> None:
    FUNCTIONS[op](**ARGUMENTS[op]())


@pytest.mark.parametrize("fake", [False, True], ids=["eager", "fake"])
@pytest.mark.parametrize(
    ("op", "argument", "change", "error", "message"),
    SHAPES,
    ids=[f"{row[0]}-{row[1]}-{row[4][:40]}" for row in SHAPES],
)
def test_shapes_dtypes_strides(op, argument, change, error, message, fake: bool) -> None:
    arguments = ARGUMENTS[op]()
    arguments[argument] = change(arguments[argument])
    with FakeTensorMode() as mode:
        if fake:
            tensors = {k: v for k, v in arguments.items() if isinstance(v, torch.Tensor)}
            arguments |= {k: mode.from_tensor(v) for k, v in tensors.items()}
            with pytest.raises(error, match=message):
                FUNCTIONS[op](**arguments)
    if not fake:
        with pytest.raises(error, match=message):
            FUNCTIONS[op](**arguments)


@pytest.mark.parametrize("bad", [None, 3, [1.0]], ids=str)
@pytest.mark.parametrize(("op", "argument"), [*DEVICES, ("paged", "q"), ("tied", "q_nope")])
def test_not_a_tensor(op: str, argument: str, bad: object) -> None:
    with pytest.raises(TypeError, match=f"{argument}: expected a torch.Tensor"):
        FUNCTIONS[op](**ARGUMENTS[op]() | {argument: bad})


@pytest.mark.parametrize(("op", "argument"), DEVICES)
def test_devices(op: str, argument: str) -> None:
    arguments = ARGUMENTS[op]()
    arguments[argument] = arguments[argument].to("meta")
    with pytest.raises(ValueError, match=f"{argument}: expected device cpu as .*, got meta"):
        FUNCTIONS[op](**arguments)


@pytest.mark.parametrize("op", ["paged", "tied"])
def test_all_on_meta_gives_meta(op: str) -> None:
    arguments = ARGUMENTS[op]()
    for name, x in arguments.items():
        if isinstance(x, torch.Tensor):
            arguments[name] = x.to("meta")
    assert FUNCTIONS[op](**arguments).device.type == "meta"


@pytest.mark.parametrize("op", ["paged", "tied"])
@pytest.mark.parametrize(("argument", "value", "error"), OPTIONS, ids=ids(OPTIONS))
def test_options(op: str, argument: str, value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"{argument}.*(expected|not built)"):
        FUNCTIONS[op](**ARGUMENTS[op]() | {argument: value})


@pytest.mark.parametrize(("argument", "value", "error"), PAGED_OPTIONS, ids=ids(PAGED_OPTIONS))
def test_options_of_paged_decode(argument: str, value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"{argument}.*expected"):
        ridgeline.paged_decode(**paged() | {argument: value})


@pytest.mark.parametrize("name", ["reference", "cpu", "auto"])
@pytest.mark.parametrize("op", ["paged", "tied"])
@pytest.mark.parametrize(("argument", "value", "message"), VALUES, ids=ids(VALUES))
def test_lengths_and_pages(op: str, argument: str, value, message: str, name: str) -> None:
    arguments = ARGUMENTS[op]()
    if argument == "cache_seqlens":
        arguments[argument] = torch.tensor(value, dtype=INT32)
    else:
        arguments[argument][1, 0] = value
    with pytest.raises(ValueError, match=message):
        FUNCTIONS[op](**arguments, impl=name)


@pytest.mark.parametrize("op", ["paged", "tied"])
@pytest.mark.parametrize("name", ["hopper"])
def test_an_implementation_without_its_device_is_refused(op: str, name: str) -> None:
    with pytest.raises(ValueError, match=f"impl='{name}': tensors are on cpu"):
        FUNCTIONS[op](**ARGUMENTS[op](), impl=name)


@pytest.mark.parametrize("op", ["paged", "tied"])
def test_an_explicit_choice_does_not_fall_back(op: str) -> None:
    arguments = ARGUMENTS[op]()
    for key, x in arguments.items():
        if isinstance(x, torch.Tensor) and x.is_floating_point():
            arguments[key] = x.double()
    with pytest.raises(ValueError, match=r"impl='cpu': .*float64"):
        FUNCTIONS[op](**arguments, impl="cpu")
    assert FUNCTIONS[op](**arguments, impl="auto").dtype == torch.float64
