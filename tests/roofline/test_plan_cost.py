"""The cost model gives independent numbers, and would not with a bug in it."""

from collections.abc import Callable

import pytest
from plan_checks import CHECKS

from planting import plant

ROOT = "ridgeline.roofline"
PLANTED = {
    "factor-of-flops": ("cost", "return 2.0 * m.layers * cached", "return m.layers * cached"),
    "rows-not-sharded": (
        "cost",
        "self.model.heads // self.parallel.tp * query_len",
        "self.model.heads * query_len",
    ),
    "query-len-dropped": ("cost", "// self.parallel.tp * query_len //", "// self.parallel.tp //"),
    "tiles-never-padded": (
        "cost",
        "rows = -(-self._rows(query_len) // tile_rows) * tile_rows * heads",
        "rows = self._rows(query_len) * heads",
    ),
    "experts-not-sharded": (
        "cost",
        "read, used = m.ffn_parameters(tokens) / n, m.ffn_parameters(1) / n",
        "read, used = m.ffn_parameters(tokens), m.ffn_parameters(1)",
    ),
    "one-multiply-add-is-one-flop": (
        "cost",
        "return max(moved, 2 * used * tokens / rate)",
        "return max(moved, used * tokens / rate)",
    ),
    "roofs-added": (
        "cost",
        "return max(moved, 2 * used * tokens / rate)",
        "return moved + 2 * used * tokens / rate",
    ),
    "all-reduce-in-one-pass": (
        "cost",
        "seconds = 2 * self._exchange(p.tp",
        "seconds = self._exchange(p.tp",
    ),
    "no-gather": ("cost", "if p.dp > 1:", "if p.dp > 8:"),
    "ring-of-all-bytes": ("cost", "(ranks - 1) / ranks * nbytes", "nbytes"),
    "mean-of-ranks": (
        "cost",
        "attention=max(self.decode_attention(w) + self.prefill_attention(w) for w in work)",
        "attention=sum(self.decode_attention(w) for w in work) / len(work)",
    ),
    "attention-prefill-not-sharded": (
        "cost",
        "(m.heads // self.parallel.tp) * pairs",
        "m.heads * pairs",
    ),
    "chunks-always-expanded": (
        "cost",
        "old = m.score_width if absorbed else m.expanded_width",
        "old = m.expanded_width",
    ),
    "layers-forgotten": ("model", "return self.layers * one", "return one"),
    "rope-key-in-fp8": (
        "model",
        'wider = 1 if self.cache_dtype == "fp8" else 0',
        "wider = 0",
    ),
    "cache-of-tp-1": (
        "model",
        "return CacheSpec.gla(self.kv_heads, self.latent_dim, self.rope_dim, tp)",
        "return CacheSpec.gla(self.kv_heads, self.latent_dim, self.rope_dim)",
    ),
    "up-projection-forgotten": (
        "model",
        "spec.elements_per_token + up +",
        "spec.elements_per_token +",
    ),
    "two-matrices-of-an-mlp": (
        "model",
        "dense = 3 * self.hidden * self.intermediate",
        "dense = 2 * self.hidden * self.intermediate",
    ),
    "no-shared-experts": ("model", "(routed + x.shared)", "routed"),
    "experts-in-every-layer": (
        "model",
        "(self.layers - x.dense_layers) * experts",
        "self.layers * experts",
    ),
    "experts-never-meet": (
        "model",
        "return self.count * (1 - (1 - self.per_token / self.count) ** tokens)",
        "return min(self.count, self.per_token * tokens)",
    ),
    "chunk-without-prefix": (
        "schedule",
        "pairs = n * r.computed + n * (n + 1) / 2",
        "pairs = n * (n + 1) / 2",
    ),
    "drafts-always-accepted": ("schedule", "self.acceptance**i", "1"),
    "block-timed-at-its-start": (
        "simulate",
        "ahead = (steps - 1) / 2 * self.policy.tokens_per_step",
        "ahead = 0",
    ),
    "first-token-decoded": ("simulate", "            r.generated += 1\n", ""),
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_independent_number(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, old, new = PLANTED[name]
    plant(monkeypatch, f"{ROOT}.{module}", old, new, within=ROOT)
    with pytest.raises(AssertionError):
        _all_checks()


def _all_checks() -> None:
    for check in CHECKS:
        check()
