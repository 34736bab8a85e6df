"""Wrong arguments of ``attention`` raise an error that names them: eager, fake, and compiled."""

import math
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ridgeline import attention
from ridgeline.testing.generate import FP8

INT32 = torch.int32


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=INT32)


def arguments(layout: str) -> dict[str, Tensor]:
    """Two sequences of 3 and 2 queries, 5 and 4 keys; or a batch of two of 3 and 5."""
    lead_q, lead_k = ((2, 3), (2, 5)) if layout == "batch" else ((5,), (9,))
    q, k, v = (torch.randn(*s) for s in ((*lead_q, 4, 8), (*lead_k, 2, 8), (*lead_k, 2, 6)))
    if layout == "batch":
        return {"q": q, "k": k, "v": v, "subtree_end": int32(5, 5, 4, 4, 5).expand(2, -1)}
    starts = {"cu_seqlens_q": int32(0, 3, 5), "cu_seqlens_k": int32(0, 5, 9)}
    return {"q": q, "k": k, "v": v, **starts, "subtree_end": int32(5, 5, 4, 4, 5, 4, 4, 4, 4)}


def every_other(x: Tensor) -> Tensor:
    """The same shape with a last dim of stride 2."""
    return x.repeat_interleave(2, -1)[..., ::2]


Change = Callable[[Tensor], object]
# layout, argument, how it is made wrong, the error, what its message must hold
SHAPES: list[tuple[str, str, Change, type[Exception], str]] = [
    ("batch", "q", lambda x: x[0], ValueError, "q: expected shape [B, L_q, h_q, d], got [3, 4, 8]"),
    ("batch", "q", lambda x: x[:1], ValueError, "k: expected shape [1, L_k, h_kv, 8]"),
    ("batch", "q", lambda x: x[..., :7], ValueError, "k: expected shape [2, L_k, h_kv, 7]"),
    ("batch", "q", lambda x: x[:, :, :3], ValueError, "k.shape[2]: expected a divisor of q.shape"),
    ("batch", "q", lambda x: x[:, :, :0], ValueError, "q: expected at least one head"),
    ("batch", "q", lambda x: x.int(), TypeError, "q: expected dtype bfloat16"),
    ("batch", "q", lambda x: x.half(), TypeError, "k: expected dtype float16, got float32"),
    ("batch", "q", every_other, ValueError, "q: expected a contiguous last dim"),
    ("batch", "k", lambda x: x[0], ValueError, "k: expected shape [2, L_k, h_kv, 8]"),
    ("batch", "k", lambda x: x[:, :4], ValueError, "v: expected shape [2, 4, 2, d_v]"),
    ("batch", "k", lambda x: x[:, :, :1], ValueError, "v: expected shape [2, 5, 1, d_v]"),
    ("batch", "k", lambda x: x.bfloat16(), TypeError, "k: expected dtype float32, got bfloat16"),
    ("batch", "k", every_other, ValueError, "k: expected a contiguous last dim"),
    ("batch", "v", lambda x: x[:, 1:], ValueError, "v: expected shape [2, 5, 2, d_v]"),
    ("batch", "v", lambda x: x[..., :0], ValueError, "v: expected at least one head of width 1"),
    ("batch", "v", lambda x: x.double(), TypeError, "v: expected dtype float32, got float64"),
    ("batch", "v", every_other, ValueError, "v: expected a contiguous last dim"),
    ("batch", "subtree_end", lambda x: x[0], ValueError, "subtree_end: expected shape [2, 5]"),
    ("batch", "subtree_end", lambda x: x[:, :3], ValueError, "subtree_end: expected shape [2, 5]"),
    ("batch", "subtree_end", lambda x: x.long(), TypeError, "subtree_end: expected dtype int32"),
    ("packed", "q", lambda x: x[None], ValueError, "q: expected shape [total_q, h_q, d]"),
    ("packed", "q", lambda x: x[:, :3], ValueError, "k.shape[1]: expected a divisor of q.shape[1]"),
    ("packed", "k", lambda x: x[None], ValueError, "k: expected shape [total_k, h_kv, 8]"),
    ("packed", "v", lambda x: x[1:], ValueError, "v: expected shape [9, 2, d_v]"),
    (
        "packed",
        "cu_seqlens_q",
        lambda x: x[None],
        ValueError,
        "cu_seqlens_q: expected shape [B + 1",
    ),
    ("packed", "cu_seqlens_q", lambda x: x[:0], ValueError, "cu_seqlens"),
    ("packed", "cu_seqlens_q", lambda x: x[1:], ValueError, "cu_seqlens_k: expected shape [2]"),
    ("packed", "cu_seqlens_q", lambda x: x.long(), TypeError, "cu_seqlens_q: expected dtype int32"),
    ("packed", "cu_seqlens_k", lambda x: x[:2], ValueError, "cu_seqlens_k: expected shape [3]"),
    ("packed", "cu_seqlens_k", lambda x: x.long(), TypeError, "cu_seqlens_k: expected dtype int32"),
    ("packed", "cu_seqlens_q", lambda _: None, TypeError, "cu_seqlens_q: expected a torch.Tensor"),
    ("packed", "cu_seqlens_k", lambda _: None, TypeError, "cu_seqlens_k: expected a torch.Tensor"),
    ("packed", "subtree_end", lambda x: x[:5], ValueError, "subtree_end: expected shape [9]"),
]
DEVICES = [("batch", n) for n in ("k", "v", "subtree_end")]
DEVICES += [("packed", n) for n in ("cu_seqlens_q", "cu_seqlens_k", "subtree_end")]
OPTIONS = [
    ("causal", 1, TypeError),
    ("causal", None, TypeError),
    ("softmax_scale", True, TypeError),
    ("softmax_scale", "1", TypeError),
    ("softmax_scale", math.nan, ValueError),
    ("softmax_scale", torch.tensor(1.0), TypeError),
    ("softcap", -1.0, ValueError),
    ("softcap", math.inf, ValueError),
    ("softcap", True, TypeError),
    ("window", 3, TypeError),
    ("window", (1, 2, 3), TypeError),
    ("window", (-1, 0), ValueError),
    ("window", (None, 2**63 - 1), ValueError),
    ("window", (1.5, 0), TypeError),
    ("deterministic", 1, TypeError),
    ("return_lse", None, TypeError),
    ("impl", "fast", ValueError),
    ("impl", None, ValueError),
    ("impl", "cuda", ValueError),
    ("max_seqlen_q", -1, ValueError),
    ("max_seqlen_q", 3.0, TypeError),
    ("max_seqlen_k", True, TypeError),
    ("q_scale", 0.5, ValueError),
    ("k_scale", torch.ones(2), ValueError),
    ("v_scale", 0.5, ValueError),
]
VALUES = [
    ("cu_seqlens_q", int32(1, 3, 5), "cu_seqlens_q: expected to rise from 0 to 5 (the rows of q)"),
    ("cu_seqlens_q", int32(0, 3, 4), "cu_seqlens_q: expected to rise from 0 to 5"),
    ("cu_seqlens_q", int32(0, 6, 5), "cu_seqlens_q: expected to rise from 0 to 5"),
    ("cu_seqlens_q", int32(0, -1, 5), "cu_seqlens_q: expected to rise from 0 to 5"),
    ("cu_seqlens_k", int32(0, 5, 2**31 - 1), "cu_seqlens_k: expected to rise from 0 to 9"),
    ("cu_seqlens_k", int32(0, -(2**31), 9), "cu_seqlens_k: expected to rise from 0 to 9"),
    ("max_seqlen_q", 2, "max_seqlen_q: expected at least 3, the longest sequence, got 2"),
    ("max_seqlen_k", 4, "max_seqlen_k: expected at least 5, the longest sequence, got 4"),
    (
        "subtree_end",
        int32(5, 5, 2, 4, 5, 4, 4, 4, 4),
        "subtree_end: expected more than its own index (2), got 2 at [2]",
    ),
    (
        "subtree_end",
        int32(5, 5, 4, 4, 5, 4, 4, 4, 3),
        "subtree_end: expected more than its own index (3), got 3 at [8]",
    ),
    ("subtree_end", int32(5, 5, 4, 4, 5, -1, 4, 4, 4), "subtree_end: expected more than its own"),
]


def ids(table: list[tuple]) -> list[str]:
    return [re.sub(r"[^\w\-.=]+", "-", "-".join(map(str, row[:2])))[:50] for row in table]


@pytest.mark.parametrize("layout", ["batch", "packed"])
def test_the_arguments_are_right_before_they_are_made_wrong(layout: str) -> None:
    attention(**arguments(layout))
    attention(**arguments(layout), max_seqlen_q=3, max_seqlen_k=5)


@pytest.mark.parametrize("fake", [False, True], ids=["eager", "fake"])
@pytest.mark.parametrize(
    ("layout", "argument", "change", "error", "message"),
    SHAPES,
    ids=[f"{row[0]}-{row[1]}-{row[4][:40]}" for row in SHAPES],
)
def test_shapes_dtypes_strides(layout, argument, change, error, message, fake: bool) -> None:
    given = arguments(layout)
    given[argument] = change(given[argument])
    if fake:
        with FakeTensorMode() as mode:
            given = {k: None if x is None else mode.from_tensor(x) for k, x in given.items()}
            with pytest.raises(error, match=re.escape(message)):
                attention(**given)
    else:
        with pytest.raises(error, match=re.escape(message)):
            attention(**given)


@pytest.mark.parametrize(
    ("layout", "argument", "change", "error", "message"),
    [SHAPES[n] for n in (0, 3, 6, 11, 19, 25, 31)],
    ids=[f"{SHAPES[n][0]}-{SHAPES[n][1]}" for n in (0, 3, 6, 11, 19, 25, 31)],
)
def test_the_same_message_while_compiling(layout, argument, change, error, message) -> None:
    """Dynamo shows the exception as part of its own."""
    torch._dynamo.reset()
    given = arguments(layout)
    given[argument] = change(given[argument])
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    with pytest.raises(torch._dynamo.exc.Unsupported) as caught:
        compiled(**given)
    assert f"{error.__name__}({message!r}"[:-1] in str(caught.value)


@pytest.mark.parametrize("bad", [3, [1.0]], ids=str)
@pytest.mark.parametrize("argument", ["q", "k", "v", "subtree_end", "cu_seqlens_q", "cu_seqlens_k"])
def test_not_a_tensor(argument: str, bad: object) -> None:
    with pytest.raises(TypeError, match=f"{argument}: expected a torch.Tensor"):
        attention(**arguments("packed") | {argument: bad})


@pytest.mark.parametrize(("layout", "argument"), DEVICES)
def test_devices(layout: str, argument: str) -> None:
    given = arguments(layout)
    given[argument] = given[argument].to("meta")
    with pytest.raises(ValueError, match=f"{argument}: expected device cpu as .*, got meta"):
        attention(**given)


@pytest.mark.parametrize(("argument", "value", "error"), OPTIONS, ids=ids(OPTIONS))
def test_options(argument: str, value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"{argument}.*(expected|not built)"):
        attention(**arguments("batch") | {argument: value})


@pytest.mark.parametrize(("argument", "value", "message"), VALUES, ids=ids(VALUES))
def test_values(argument: str, value, message: str, attention_name: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        attention(**arguments("packed") | {argument: value}, impl=attention_name)


def test_values_of_a_batch() -> None:
    ends = int32(5, 5, 4, 4, 5).repeat(2, 1)
    ends[1, 3] = 3
    with pytest.raises(ValueError, match=r"subtree_end: .*own index \(3\), got 3 at \[1, 3\]"):
        attention(**arguments("batch") | {"subtree_end": ends})
    with pytest.raises(ValueError, match="max_seqlen_k: expected at least 5"):
        attention(**arguments("batch"), max_seqlen_k=4)


def test_values_when_compiled() -> None:
    """One graph for all; the operation itself looks at the values."""
    torch._dynamo.reset()
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    compiled(**arguments("packed"))
    for argument, value, message in VALUES:
        if isinstance(value, Tensor):
            with pytest.raises(ValueError, match=re.escape(message)):
                compiled(**arguments("packed") | {argument: value})


def test_float64_is_not_for_the_core() -> None:
    given = {k: x.double() if x.is_floating_point() else x for k, x in arguments("batch").items()}
    with pytest.raises(ValueError, match=r"impl='cpu': "):
        attention(**given, impl="cpu")
    assert attention(**given).dtype == torch.float64


def test_float8_is_forward_only() -> None:
    q, k, v = (torch.randn(1, 4, 2, 8).to(FP8) for _ in range(3))
    assert attention(q, k, v).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="q: float8 attention is forward only"):
        attention(q, k, v, k_scale=torch.ones(2, requires_grad=True))
