"""Seconds of one step of an engine, from roofs, shares of them and overheads.

A step is bound by the slowest data-parallel rank's attention, since all ranks meet in the MLPs.
Each part takes the longer of its bytes and its FLOPs (roofline model: Williams, Waterman,
Patterson, CACM 52(4), 2009).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from ridgeline.cache import CacheSpec
from ridgeline.roofline.efficiency import Efficiency
from ridgeline.roofline.hardware import Hardware
from ridgeline.roofline.model import ModelShape
from ridgeline.roofline.parallel import Parallelism

ACTIVATION = 2  # bytes of an element that a collective moves
PARTIAL = 4  # bytes of an element of a split's partial output
SPLIT_TOKENS = 64  # the fewest that a split gets
TILE = 64  # query rows that one thread block takes

KernelTime = Callable[[int, float], float]
"""Seconds of a decode kernel over one layer: of (sequences, cached tokens of all of them)."""


@dataclass(frozen=True)
class Work:
    """What one data-parallel rank does in a step.

    Args:
        sequences: that decode, each with ``query_len`` tokens.
        cached: tokens that these attend to, summed over them.
        prefill: tokens of prompts.
        new_pairs: of a prompt's query and a key of the same prompt's first chunk.
        old_pairs: of a query and a key of a later chunk, whose keys are (partly) cached.
    """

    sequences: int = 0
    cached: float = 0.0
    query_len: int = 1
    prefill: int = 0
    new_pairs: float = 0.0
    old_pairs: float = 0.0

    @property
    def tokens(self) -> int:
        return self.sequences * self.query_len + self.prefill


@dataclass(frozen=True)
class StepCost:
    """Seconds of the parts of a step."""

    attention_weights: float
    ffn_weights: float
    attention: float
    collectives: float
    overhead: float

    @property
    def weights(self) -> float:
        return self.attention_weights + self.ffn_weights

    @property
    def total(self) -> float:
        return self.weights + self.attention + self.collectives + self.overhead


@dataclass(frozen=True)
class Engine:
    """A model on the devices of a node, and what a step of it costs.

    ``kernel_time``: measured times of the decode kernel, in place of ``efficiency.decode``.

    Raises:
        ValueError: the parallelism does not fit the model, or the weights not the memory.
    """

    model: ModelShape
    hardware: Hardware
    parallel: Parallelism = field(default_factory=Parallelism)
    efficiency: Efficiency = field(default_factory=Efficiency)
    kernel_time: KernelTime | None = None

    def __post_init__(self) -> None:
        self.parallel.check_fits(self.model)
        if self.parallel.devices > 1 and not self.hardware.link:
            raise ValueError(
                f"tp * dp: {self.hardware.name} has no link, expected 1, "
                f"got {self.parallel.devices}"
            )
        if self.cache_memory <= 0:
            raise ValueError(
                f"memory: the weights need {self.weight_bytes / 1e9:.1f} GB a device, "
                f"{self.hardware.name} gives {self._usable / 1e9:.1f} GB; expected more devices, "
                "a narrower weight_dtype or a larger memory_fraction"
            )

    @property
    def _usable(self) -> float:
        return self.hardware.memory * self.efficiency.memory_fraction

    @cached_property
    def weight_bytes(self) -> float:
        """Of all weights on one device."""
        m, n = self.model, self.parallel.devices
        tables = (1 if m.tied_embeddings else 2) * m.embedding_parameters * m.embedding_width
        inner = self._attention_parameters + m.ffn_parameters() / n
        return tables / n + inner * m.weight_width

    @cached_property
    def _attention_parameters(self) -> int:
        """Of all layers on one device."""
        return self.model.layers * self.model.attention_parameters(self.parallel.tp)

    @cached_property
    def _spec(self) -> CacheSpec:
        return self.model.spec(self.parallel.tp)

    @property
    def cache_memory(self) -> float:
        """Bytes of one device that are left for the cache."""
        return self._usable - self.weight_bytes

    @cached_property
    def cache_bytes_per_token(self) -> int:
        """On one device of the token's data-parallel group."""
        return self.model.cache_bytes(self.parallel.tp)

    @cached_property
    def cache_tokens(self) -> int:
        """Tokens that fit into the cache of one data-parallel group."""
        return int(self.cache_memory // self.cache_bytes_per_token)

    def step(self, work: Sequence[Work]) -> StepCost:
        """The cost of a step of all ranks, ``len(work) == parallel.dp``."""
        total = sum(w.tokens for w in work)
        e, m = self.efficiency, self.model
        attention_weights = max(self._attention_weights(w.tokens) for w in work)
        return StepCost(
            attention_weights=attention_weights,
            ffn_weights=self._ffn_weights(total),
            attention=max(self.decode_attention(w) + self.prefill_attention(w) for w in work),
            collectives=m.layers * self._collectives(max(w.tokens for w in work), total),
            overhead=e.step_overhead + m.layers * e.layer_overhead,
        )

    def _linear(self, parameters: float, width: int, tokens: float, used: float) -> float:
        """``parameters`` read; ``used`` multiply-adds of every token."""
        e, device = self.efficiency, self.hardware
        moved = parameters * width / (device.bandwidth * e.linear_memory)
        rate = device.flops(self.model.weight_dtype) * e.linear_compute
        return max(moved, 2 * used * tokens / rate)

    def _attention_weights(self, tokens: int) -> float:
        parameters = self._attention_parameters
        return self._linear(parameters, self.model.weight_width, tokens, parameters)

    def _ffn_weights(self, tokens: int) -> float:
        """MLPs and logits, shared out over all devices."""
        m, n = self.model, self.parallel.devices
        read, used = m.ffn_parameters(tokens) / n, m.ffn_parameters(1) / n
        ffn = self._linear(read, m.weight_width, tokens, used)
        head = m.embedding_parameters / n
        return ffn + self._linear(head, m.embedding_width, 1, head)

    def decode_bytes(self, cached: float) -> float:
        """Cache that one rank's kernels read in a step."""
        return cached * self.cache_bytes_per_token

    def decode_flops(self, cached: float, query_len: int, tile_rows: int = 1) -> float:
        """Of one rank's decode attention; rows of a cached head padded to ``tile_rows``."""
        m, heads = self.model, self._spec.heads
        rows = -(-self._rows(query_len) // tile_rows) * tile_rows * heads
        return 2.0 * m.layers * cached * rows * m.score_width

    def _rows(self, query_len: int) -> int:
        """Query rows of a cached head on one rank."""
        return self.model.heads // self.parallel.tp * query_len // self._spec.heads

    def _partial_bytes(self, w: Work) -> float:
        """What the splits of one rank's decode kernels write, and their merges read."""
        heads = self._spec.heads
        tiles = w.sequences * heads * -(-self._rows(w.query_len) // TILE)
        most = max(1.0, w.cached / w.sequences / SPLIT_TOKENS)
        splits = min(self.efficiency.decode.blocks / tiles, most)
        if splits <= 1:
            return 0.0
        width = self._spec.value_dim or self._spec.dim
        outputs = w.sequences * self._rows(w.query_len) * heads * width
        return 2 * PARTIAL * self.model.layers * splits * outputs

    def decode_attention(self, w: Work) -> float:
        """Seconds of the decode kernels of all layers on one rank."""
        if not w.sequences:
            return 0.0
        m, kernel = self.model, self.efficiency.decode
        if self.kernel_time is not None:
            return m.layers * self.kernel_time(w.sequences, w.cached)
        bandwidth = self.hardware.bandwidth * kernel.memory
        moved = self.decode_bytes(w.cached) / bandwidth
        flops = self.decode_flops(w.cached, w.query_len, kernel.tile_rows)
        rate = self.hardware.flops(m.cache_dtype) * kernel.compute
        merge = self._partial_bytes(w) / bandwidth
        return m.layers * kernel.fixed + merge + max(moved, flops / rate)

    def prefill_attention(self, w: Work) -> float:
        """Seconds of the prompts' attention in all layers on one rank."""
        return self.prefill_flops(w) / (self.hardware.bf16 * self.efficiency.prefill)

    def prefill_flops(self, w: Work) -> float:
        """Of one rank's attention over prompts."""
        m = self.model
        absorbed = m.is_latent and self.efficiency.absorbed_prefill
        old = m.score_width if absorbed else m.expanded_width
        pairs = w.new_pairs * m.expanded_width + w.old_pairs * old
        return 2.0 * m.layers * (m.heads // self.parallel.tp) * pairs

    def _collectives(self, most: int, total: int) -> float:
        """Of one layer: the group's all-reduce after attention (``most`` tokens of the fullest
        rank), all ranks' all-reduce after the MLP, and the gather that data parallelism adds.
        """
        p, width = self.parallel, self.model.hidden * ACTIVATION
        seconds = 2 * self._exchange(p.tp, most * width) + 2 * self._exchange(
            p.devices, total * width
        )
        if p.dp > 1:
            seconds += self._exchange(p.devices, total * width)
        return seconds

    def _exchange(self, ranks: int, nbytes: float) -> float:
        """One ring pass (a reduce-scatter or an all-gather) of ``nbytes``; an all-reduce is two."""
        if ranks == 1:
            return 0.0
        rate = self.hardware.link * self.efficiency.link
        return self.hardware.link_latency / 2 + (ranks - 1) / ranks * nbytes / rate
