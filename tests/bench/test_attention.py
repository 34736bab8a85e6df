"""Every way to compute a row is held against float32 autograd, and what it says follows."""

import matplotlib.image
import pytest
import torch

from ridgeline.bench import table, timing, verify
from ridgeline.bench.attention import calls, measure, peers, plot, report
from ridgeline.bench.attention.calls import Inputs
from ridgeline.bench.attention.measure import AttentionOptions, Row
from ridgeline.bench.attention.shapes import AttentionShape
from ridgeline.ops.attention import attention

SMALL = {"heads": 4, "kv_heads": 2, "head_dim": 16}
UNEQUAL = AttentionShape.tree([(9, 5, 4), (7, 3, 6)], **SMALL)
OPTIONS = AttentionOptions(impl="reference", reps=1)


@pytest.fixture
def made_row():
    """A row of given numbers: 268 MFLOP forward."""

    def make(which="forward", seconds=0.001, **given) -> Row:
        shape = AttentionShape(1, 512, 2, 2, 128, mask="full")
        fields = {"gemm": 400e9, "peers": {}, "error": 1e-3, "drift": 0.0}
        return Row(shape, which, seconds, **fields | given)

    return make


@pytest.mark.parametrize(
    "shape",
    [
        AttentionShape(2, 33, **SMALL, value_dim=8),
        AttentionShape(2, 33, **SMALL, mask="full"),
        AttentionShape(1, 33, **SMALL, dtype="fp16"),
        AttentionShape(1, 33, **SMALL, dtype="fp32"),
    ],
    ids=lambda s: f"{s.mask} {s.dtype}",
)
def test_ours_and_every_peer_compute_the_same(shape) -> None:
    forward, backward = measure.measure(shape, OPTIONS)
    assert (forward.which, backward.which) == ("forward", "backward")
    names = {f"sdpa {shape.dtype}", "sdpa fp32"}
    for row in (forward, backward):
        assert set(row.peers) == names
        assert 0 <= row.error <= verify.OURS_BUDGET * verify.ROUNDING[shape.dtype]
        assert row.gemm > 0


@pytest.mark.parametrize(
    "shape", [UNEQUAL, AttentionShape.tree([(8, 4, 4)] * 3, **SMALL)], ids=["unequal", "equal"]
)
def test_every_way_of_a_tree(shape) -> None:
    inputs = Inputs(shape)
    want = peers.exact(inputs)
    ways = [
        calls.ours(inputs, "reference"),
        calls.unpacked(inputs, "reference"),
        peers.sdpa_unpacked(inputs, "bf16"),
        peers.sdpa_unpacked(inputs, "fp32"),
    ]
    for call in ways:
        found = call.results("forward") | call.results("backward")
        assert set(found) == set(want)
        for name, x in found.items():
            verify.relative_error(f"{call.name}: {name}", x, want[name], 0.02)


def test_a_tree_row_says_what_flex_attention_lacks() -> None:
    forward, backward = measure.measure(UNEQUAL, OPTIONS)
    ours = {"causal", "unpacked", "sdpa unpacked bf16", "sdpa unpacked fp32"}
    for row in (forward, backward):
        assert set(row.peers) >= ours
        assert {*row.peers, *row.absent} == {*ours, "flex bf16"}
    for why in backward.absent.values():
        assert "does not support backward on CPU" in why
        assert measure.record(backward)["torch_flex_bf16_absent"] == why


def test_the_truth_is_attention() -> None:
    """The oracle's own mask, groups and gradients, against the reference in float64."""
    for shape in (UNEQUAL, AttentionShape(2, 21, 6, 2, 16, 8)):
        inputs = Inputs(shape)
        q, k, v = (x.double().requires_grad_() for x in inputs.all()[:3])
        mask = {"causal": shape.mask == "causal", "subtree_end": shape.subtree_end}
        out = attention(q, k, v, **mask, impl="reference")
        grads = torch.autograd.grad(out, (q, k, v), inputs.dout.double())
        want = dict(zip(("out", "dq", "dk", "dv"), (out.detach(), *grads), strict=True))
        for name, x in peers.exact(inputs).items():
            torch.testing.assert_close(x.double(), want[name], rtol=1e-4, atol=1e-5)


def test_of_long_rows_the_first_and_last_heads_are_compared(monkeypatch) -> None:
    shape = AttentionShape(1, 12, 8, 4, 16)
    inputs = Inputs(shape)
    everything = peers.exact(inputs)
    monkeypatch.setattr(peers, "ALL_HEADS", 1)
    some = peers.exact(inputs)
    assert some["out"].shape[2] == some["dq"].shape[2] == 4
    assert some["dk"].shape[2] == some["dv"].shape[2] == 2
    for name, x in some.items():
        assert torch.equal(x, peers.checked_heads(name, everything[name], shape))
    measure.measure(shape, OPTIONS)


@pytest.mark.parametrize("name", ["out", "dq", "dk", "dv"])
@pytest.mark.parametrize("who", ["ours", "sdpa bf16", "sdpa fp32"])
def test_a_wrong_result_is_not_timed(who: str, name: str, monkeypatch) -> None:
    right = calls.Call.results

    def wrong(call, which):
        found = right(call, which)
        if call.name == who and name in found:
            found[name] = found[name] * 1.1
        return found

    monkeypatch.setattr(calls.Call, "results", wrong)
    with pytest.raises(RuntimeError, match=f"^{who}: {name}: relative error"):
        measure.measure(AttentionShape(1, 20, **SMALL), OPTIONS)


def test_a_failing_call_of_ours_is_no_absence(monkeypatch) -> None:
    def broken(*_, **__):
        raise RuntimeError("broken")

    monkeypatch.setattr(calls, "attention", broken)
    with pytest.raises(RuntimeError, match=r"^broken"):
        measure.measure(UNEQUAL, OPTIONS)


def test_a_compiler_that_fails_is_an_absence(monkeypatch) -> None:
    def broken(*_, **__):
        raise RuntimeError("no C++ compiler\nand more")

    monkeypatch.setattr(peers, "flex_attention", broken)
    monkeypatch.setattr(peers, "_flex_forward_only", lambda where: None)
    forward, backward = measure.measure(UNEQUAL, OPTIONS)
    for row in (forward, backward):
        assert list(row.absent) == ["flex bf16"]
        assert "no C++ compiler" in row.absent["flex bf16"]


def test_without_peers_and_without_backward() -> None:
    options = AttentionOptions(impl="reference", reps=1, with_peers=False, backward=False)
    (row,) = measure.measure(UNEQUAL, options)
    assert row.which == "forward"
    assert set(row.peers) == {"causal", "unpacked"}
    assert not row.absent


def test_slow_peers_are_timed_once(monkeypatch) -> None:
    monkeypatch.setattr(measure, "SLOW", 0.0)
    timed = []
    steady = timing.steady

    def watched(calls, reps, roofs, clock):
        timed.extend(name for name, _ in calls)
        return steady(calls, reps, roofs, clock)

    monkeypatch.setattr(timing, "steady", watched)
    row, _ = measure.measure(AttentionShape(1, 20, **SMALL), OPTIONS)
    assert timed == ["ours", "ours", "gemm"]
    assert row.peers["sdpa bf16"] > 0


def test_the_clock_of_a_backward_pass_leaves_the_forward_out() -> None:
    inputs = Inputs(AttentionShape(1, 20, **SMALL))
    runs = []

    def function(q, k, v):
        runs.append(1)
        return (attention(q, k, v, causal=True, impl="reference"),)

    call = calls.Call("x", function, tuple(x.clone() for x in inputs.all()[:3]), (inputs.dout,))
    first = call.backward()
    second = call.backward()
    assert len(runs) == 1
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    call.forward()
    assert len(runs) == 2


def test_rates_follow_from_seconds(made_row) -> None:
    row = made_row(seconds=0.002, peers={"sdpa bf16": 0.01})
    assert row.flop_rate == pytest.approx(4 * 128 * 512**2 * 2 / 0.002)
    assert row.percent == pytest.approx(100 * row.flop_rate / 400e9)
    assert row.speedup("sdpa bf16") == pytest.approx(5.0)
    found = measure.record(row)
    assert (found["ms"], found["GFLOP/s"], found["percent_of_gemm"]) == (2.0, 134.2, 33.6)
    assert (found["torch_sdpa_bf16_ms"], found["torch_sdpa_bf16_ratio"]) == (10.0, 5.0)


def test_table_names_every_row_and_peer(made_row) -> None:
    rows = [
        made_row("forward", peers={"sdpa bf16": 0.0042, "sdpa fp32": 0.0021}),
        made_row("backward", peers={"sdpa bf16": 0.009}, absent={"flex bf16": "cannot"}, drift=0.3),
    ]
    console = table.console()
    with console.capture() as captured:
        console.print(report.attention_table(rows))
        for line in report.notes(rows):
            console.print(line, soft_wrap=True)
    text = captured.get()
    for part in ("1 x 512, 2 heads, d 128", "4.2x", "2.1x", "9.0x", " no ", "Flex-"):
        assert part in text
    assert text.count("1 x 512, 2 heads, d 128 ") == 1
    assert "flex bf16, backward: no. cannot" in text
    assert "drifted by 30%" in text
    assert "Trees" not in text


def test_plot_is_an_image(tmp_path, made_row) -> None:
    rows = [made_row("forward", peers={"sdpa bf16": 0.004}), made_row("backward")]
    for part in (rows, rows[:1]):
        plot.plot(tmp_path / "x.png", part, "a machine")
        height, width, _ = matplotlib.image.imread(tmp_path / "x.png").shape
        assert width > 600
        assert height > 200
