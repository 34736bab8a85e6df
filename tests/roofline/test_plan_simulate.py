"""The simulated server keeps its books, and its limits are those of closed forms."""

from dataclasses import replace

import numpy as np
import pytest
from plan_checks import EXACT, engine

from ridgeline.roofline import configs, hardware, published
from ridgeline.roofline.cost import Engine, Work
from ridgeline.roofline.parallel import Parallelism
from ridgeline.roofline.schedule import Policy, Rank, Request
from ridgeline.roofline.simulate import Served, simulate
from ridgeline.roofline.workload import Lengths, Workload

LLAMA = configs.KNOWN["llama-3-8b"]
ONE = engine(LLAMA, Parallelism())
MIXED_LENGTHS = Lengths("lognormal", 700, 6000, 0.8), Lengths("uniform", 1, 400)
# A cache of about 12,000 tokens: many requests wait, and those that grow may be preempted.
SMALL = replace(hardware.find("H100"), memory=ONE.weight_bytes + 12_000 * ONE.cache_bytes_per_token)
CASES = {
    "prompts-first": (Policy(chunk=2048), 1),
    "mixed": (Policy(chunk=512, mixed=True), 1),
    "preempting": (Policy(reserve=0.0, page_size=16), 1),
    "mixed-preempting": (Policy(chunk=512, mixed=True, reserve=0.0), 1),
    "drafts": (Policy(draft=3, acceptance=0.7), 1),
    "data-parallel": (Policy(chunk=2048, reserve=0.5), 2),
}


def load(requests: int = 80, seed: int = 3, **how: float) -> Workload:
    return Workload.drawn(*MIXED_LENGTHS, requests, seed=seed, **(how or {"concurrency": 24}))


def small(dp: int) -> Engine:
    device = replace(SMALL, memory=SMALL.memory * (0.63 if dp == 2 else 1))
    return Engine(LLAMA, device, Parallelism(1, dp), EXACT)


@pytest.fixture(scope="module", params=CASES)
def served(request: pytest.FixtureRequest) -> tuple[Served, Engine, Policy]:
    policy, dp = CASES[request.param]
    return simulate(small(dp), load(), policy), small(dp), policy


def test_tokens_are_conserved(served):
    found, _, _ = served
    asked = load()
    assert len(found.requests) == len(asked.prompts)
    assert [r.generated for r in found.requests] == list(asked.outputs)
    assert found.output_tokens == sum(asked.outputs)
    assert found.gap_counts.sum() == sum(asked.outputs) - len(asked.outputs)


def test_the_cache_is_never_over_full(served):
    found, of, policy = served
    assert 0 < found.peak_tokens <= of.cache_tokens // policy.page_size * policy.page_size
    assert (found.preemptions > 0) == (policy.reserve == 0.0)


def test_times_are_in_order(served):
    found, _, _ = served
    assert (found.ttft > 0).all()
    assert (found.e2e >= found.ttft).all()
    assert (found.gaps >= 0).all()
    assert sum(found.e2e - found.ttft) == pytest.approx(
        float((found.gaps * found.gap_counts).sum()), rel=1e-3
    )


def test_littles_law(served):
    """Mean requests in the system are their rate times their mean time there."""
    found, _, _ = served
    ends = np.array([r.finish for r in found.requests])
    arrivals = ends - found.e2e
    moments = np.linspace(0, found.seconds, 20_001)
    inside = [((arrivals <= t) & (t < ends)).sum() for t in moments]
    rate = len(ends) / found.seconds
    assert np.mean(inside) == pytest.approx(rate * found.e2e.mean(), rel=0.01)


def test_the_same_seed_gives_the_same_run():
    runs = [
        simulate(small(1), load(40, rate=5.0), Policy(draft=2, acceptance=0.5), seed=seed)
        for seed in (1, 1, 2)
    ]
    assert (runs[0].e2e == runs[1].e2e).all()
    assert not np.array_equal(runs[0].e2e, runs[2].e2e)


def test_first_come_first_served():
    """Prompts of one length get their first tokens in the order of their arrival."""
    same = Workload((1000,) * 60, tuple(load(60).outputs), rate=20.0)
    found = simulate(small(1), same, Policy())
    first = [r.first_token for r in found.requests]
    assert first == sorted(first)
    assert found.mean_waiting > 1


def test_a_long_request_is_not_overtaken():
    rank = Rank(Policy(), capacity=6400)
    rank.queue.extend(Request(i, 0.0, n, 1) for i, n in enumerate((3000, 3500, 10)))
    rank.admit()
    assert [r.index for r in rank.running] == [0]


def test_the_youngest_is_preempted_and_computed_again_first():
    rank = Rank(Policy(reserve=0.0, page_size=1), capacity=200)
    rank.queue.extend(Request(i, 0.0, 100, 50, computed=100, generated=7) for i in range(3))
    rank.admit()
    assert [r.index for r in rank.running] == [0, 1]
    assert rank.make_room(5) == 5
    assert [r.index for r in rank.running] == [0]
    assert [r.index for r in rank.queue] == [1, 2]
    assert (rank.queue[0].target, rank.queue[0].computed) == (107, 0)


def test_slow_arrivals_see_an_empty_server():
    """At a low rate every request takes the time of a lone one, and throughput is what is asked."""
    asked = Workload((512,) * 40, (64,) * 40, rate=0.2)
    found = simulate(ONE, asked, Policy())
    alone = simulate(ONE, replace(asked, concurrency=1, rate=None), Policy())
    assert np.median(found.e2e) == pytest.approx(alone.e2e[0])
    assert found.throughput == pytest.approx(0.2 * 64, rel=0.35)


def test_throughput_of_a_full_batch_is_the_batch_over_its_step():
    """Lockstep: n requests prefill one after the other and decode together."""
    n, prompt, output = 8, 1024, 513
    found = simulate(
        ONE, Workload((prompt,) * n, (output,) * n, concurrency=n), Policy(chunk=prompt)
    )
    prefill = ONE.step([Work(prefill=prompt, new_pairs=prompt * (prompt + 1) / 2)]).total
    middle = ONE.step([Work(sequences=n, cached=n * (prompt + output / 2))]).total
    assert found.seconds == pytest.approx(n * prefill + (output - 1) * middle, rel=1e-4)
    assert np.sort(found.ttft) == pytest.approx(prefill * np.arange(1, n + 1), rel=1e-4)


def test_drafts_give_their_expected_tokens():
    policy = Policy(draft=4, acceptance=0.8)
    asked = Workload((64,), (20_000,), concurrency=1)
    found = simulate(ONE, asked, policy)
    step = ONE.step([Work(sequences=1, cached=10_000.0, query_len=5)]).total
    steps = (found.e2e[0] - found.ttft[0]) / step
    assert 20_000 / steps == pytest.approx(3.3616, rel=0.03)


def test_data_parallel_ranks_wait_for_each_other():
    """A rank that decodes sees the time of the other rank's chunks."""
    long_then_short = Workload((8192, 64), (1, 400), concurrency=2)
    of = Engine(LLAMA, hardware.find("H100"), Parallelism(1, 2), EXACT)
    found = simulate(of, long_then_short, Policy(chunk=2048))
    alone = simulate(of, Workload((64,), (400,), concurrency=1), Policy(chunk=2048))
    assert found.itl(100) > 4 * alone.itl(100)
    assert found.itl(50) == pytest.approx(alone.itl(50), rel=0.01)


def test_measured_kernel_times_replace_the_roofline():
    of = replace(ONE, kernel_time=lambda sequences, cached: 1e-3 * sequences + 1e-8 * cached)
    cost = of.step([Work(sequences=3, cached=5000.0)])
    assert cost.attention == pytest.approx(32 * (3e-3 + 5e-5))


def test_a_request_longer_than_the_cache_is_refused():
    with pytest.raises(ValueError, match="workload: expected requests of at most 11968"):
        simulate(small(1), Workload((13_000,), (1,), concurrency=1), Policy())


def test_drafts_beyond_the_end_need_no_cache():
    """A request that fills the cache to its last token ends."""
    of = small(1)
    longest = of.cache_tokens // 64 * 64
    full = Workload((longest - 50,) * 2, (50,) * 2, concurrency=2)
    found = simulate(of, full, Policy(draft=7, acceptance=0.9))
    assert found.preemptions == 0
    assert found.output_tokens == 100


def test_waves_of_the_published_queue():
    """40 of 64 requests of 12,288 tokens fit; the rest wait for a whole wave."""
    row = published.ROWS[3]
    capacity = row.engine.cache_tokens
    assert capacity // 12288 == 40
