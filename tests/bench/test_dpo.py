"""The benchmark of preference training: what is drawn, what is checked, what is shown."""

import csv
from statistics import median

import pytest
import torch

from ridgeline.bench import table
from ridgeline.bench.dpo import measure as measuring
from ridgeline.bench.dpo import report
from ridgeline.bench.dpo.measure import DpoOptions, measure, record
from ridgeline.bench.dpo.profiles import PROFILES, chosen
from ridgeline.bench.dpo.run import bench_dpo
from ridgeline.bench.dpo.ways import BEST, FLEX, MASKED, OURS, TRL, ModelShape, Pairs

TINY = ModelShape(hidden=32, intermediate=48, layers=2, heads=4, vocab=61)
WAYS = ("padded", "packed", "shared", BEST, MASKED)


def tiny(**changes) -> DpoOptions:
    given = {"profiles": chosen(("tldr",)), "pairs": 3, "tokens": 100, "model": TINY, "reps": 1}
    return DpoOptions(**(given | changes))


@pytest.fixture(scope="module")
def row():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield measure(PROFILES["tldr"], tiny())[0]
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", PROFILES)
def test_lengths_are_those_of_the_profile(name):
    profile = PROFILES[name]
    pairs = profile.draw(count=33, scale=1.0, spread=0.5, seed=0, vocab=50)
    prompt, *responses = ([len(x) for x in part] for part in zip(*pairs, strict=True))
    for response in responses:
        assert median(prompt) / median(response) == pytest.approx(profile.rho, rel=0.02)
        assert median(prompt) + median(response) == pytest.approx(profile.length, rel=0.01)
        assert max(response) > 2 * median(response)
    tokens = sum(map(sum, (prompt, *responses)))
    assert (tokens + sum(prompt)) / tokens == pytest.approx(profile.bound, rel=0.02)
    assert {token for pair in pairs for part in pair for token in part} == set(range(50))


def test_lengths_are_scaled_to_a_steps_tokens():
    profile = PROFILES["capybara"]
    assert profile.scale(count=8, tokens=10**6) == 1
    scale = profile.scale(count=9, tokens=4000)
    pairs = profile.draw(9, scale, spread=0.0, seed=0, vocab=9)
    assert sum(2 * len(p) + len(c) + len(r) for p, c, r in pairs) == pytest.approx(4000, rel=0.02)


def test_bounds_are_the_papers():
    bounds = [round(profile.bound, 2) for profile in PROFILES.values()]
    assert bounds == [1.44, 1.52, 1.66, 1.85, 1.76, 1.17]


def test_every_way_is_timed_or_says_why_not(row):
    assert set(row.seconds) == {*WAYS, TRL, OURS}
    assert "backward" in row.absent[FLEX]
    assert 0 < row.error < measuring.BUDGET
    assert all(seconds > 0 for seconds in row.seconds.values())


def test_tokens_of_every_way(row):
    profile, o = PROFILES["tldr"], tiny()
    pairs = profile.draw(o.pairs, 100 / (6 * 416), o.spread, seed=0, vocab=61)
    sizes = [tuple(map(len, pair)) for pair in pairs]
    longest = max(p + max(c, r) for p, c, r in sizes)
    row_of_pair = max(p + c + 1 + r for p, c, r in sizes)
    logical = sum(2 * p + c + r for p, c, r in sizes)
    physical = sum(p + c + 1 + r for p, c, r in sizes)
    assert (row.logical, row.physical) == (logical, physical)
    assert row.tokens == {
        TRL: 6 * longest,
        OURS: physical,
        "padded": 6 * longest,
        "packed": logical,
        "shared": 3 * row_of_pair,
        BEST: physical,
        MASKED: physical,
    }
    assert row.parameters == sum(p.numel() for p in TINY.build().parameters())


def test_losses_of_all_ways_agree():
    model = TINY.build()
    pairs = Pairs(model, PROFILES["hh-rlhf"].draw(4, 0.1, 0.5, seed=1, vocab=61))
    losses = [way.step() for way in pairs.ways()]
    assert len(losses) == len(WAYS)
    torch.testing.assert_close(losses, losses[:1] * len(losses), rtol=1e-5, atol=0)


def test_wrong_gradients_are_not_timed(monkeypatch):
    ways = measuring.Pairs.ways

    def wrong(pairs):
        found = ways(pairs)
        labels = found[3].loss.args[1].shift_labels
        labels[0, (labels[0] >= 0).nonzero()[0]] = 1
        return found

    monkeypatch.setattr(measuring.Pairs, "ways", wrong)
    with pytest.raises(RuntimeError, match="shared and packed: gradients: relative error"):
        measure(PROFILES["hh-rlhf"], tiny(with_peers=False))


def test_without_peers():
    found = measure(PROFILES["hh-rlhf"], tiny(with_peers=False))[0]
    assert set(found.seconds) == set(WAYS) - {MASKED}
    assert not found.absent
    assert report.dpo_table([found])


def test_without_trl_its_trainers_are_absent(monkeypatch):
    monkeypatch.setattr(measuring, "find_spec", lambda name: None)
    found = measure(PROFILES["tldr"], tiny())[0]
    assert found.absent[TRL] == found.absent[OURS] == "trl is not installed"
    assert set(found.seconds) == set(WAYS)
    assert report.dpo_table([found])


def test_table_files_and_plot(tmp_path, capsys):
    out = {"csv": tmp_path / "dpo.csv", "plot_file": tmp_path / "dpo.png"}
    (found,) = bench_dpo(tiny(), table.console(), **out)
    printed = capsys.readouterr().out
    assert "tldr" in printed
    assert "FlexAttention: no." in printed
    assert "SDPA with the same mask" in printed
    lines = [x for x in out["csv"].read_text().splitlines() if not x.startswith("#")]
    (saved,) = csv.DictReader(lines)
    want = record(found)
    assert saved == {name: str(value) for name, value in want.items()}
    assert float(saved["shared_and_packed_samples/s"]) == pytest.approx(found.rate(BEST), abs=1e-3)
    assert float(saved["bound"]) == 1.848
    assert out["plot_file"].stat().st_size > 10_000


def test_gains(row):
    seconds = {TRL: 9.0, "packed": 3.0, BEST: 2.0}
    made = type(row)(**{**vars(row), "seconds": seconds})
    assert made.rate(BEST) == 1.5
    assert made.speedup(BEST, TRL) == 4.5
    assert made.speedup(BEST, "padded") is None
    assert made.percent_of_bound == pytest.approx(100 * 1.5 / PROFILES["tldr"].bound)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"pairs": 0}, ValueError, "pairs: expected at least 1, got 0"),
        ({"tokens": 0}, ValueError, "tokens: expected at least 1, got 0"),
        ({"spread": -1.0}, ValueError, "spread: expected a finite number >= 0, got -1"),
        ({"reps": 1.5}, TypeError, "reps: expected an int, got float"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else None,
)
def test_impossible_options_are_named(change, error, message):
    with pytest.raises(error, match=message):
        tiny(**change)


def test_unknown_profiles_are_named():
    with pytest.raises(ValueError, match=r"--profiles: expected some of capybara, .* got 'orca'"):
        chosen(("tldr", "orca"))
