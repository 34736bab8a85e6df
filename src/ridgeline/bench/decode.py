"""``ridgeline bench decode``: one row per shape, ours beside its roofs and its peers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from ridgeline.bench import files, peers, timing
from ridgeline.bench.inputs import DecodeInputs
from ridgeline.bench.machine import cold_bytes
from ridgeline.bench.shapes import DTYPES, VARIANTS, DecodeShape, all_shapes
from ridgeline.bench.verify import OURS_BUDGET, PEER_BUDGET, ROUNDING, relative_error
from ridgeline.ops.common import check, core
from ridgeline.ops.common.dispatch import Impl
from ridgeline.roofline import roofs

SIZES = ((1, 32768), (4, 8192), (16, 2048))
PEER_ROUNDS = 3  # one round of the peers for so many of ours: they are slow
# Read at once for the memory roof: enough that starting the threads does not count.
ROOF_BYTES = 64_000_000


@dataclass(frozen=True)
class Row:
    """Medians of one shape; times in seconds, rates per second.

    ``seconds``, ``no_prefetch`` and ``roofs`` are of one loop; ``peers`` and ``beside_peers``, ours
    among them, of a second, so that gigabytes of PyTorch's reads do not stand between ours.
    """

    shape: DecodeShape
    seconds: float
    roofs: roofs.Roofs
    no_prefetch: float | None
    peers: dict[str, float]
    error: float
    drift: float
    samples: timing.Samples = field(repr=False, compare=False)
    beside_peers: float | None = None

    @property
    def bandwidth(self) -> float:
        return self.shape.cache_bytes / self.seconds

    @property
    def flop_rate(self) -> float:
        return self.shape.flops / self.seconds

    @property
    def percent(self) -> float:
        return self.roofs.percent(self.shape.cache_bytes, self.shape.flops, self.seconds)

    @property
    def binding(self) -> str:
        return self.roofs.binding(self.shape.cache_bytes, self.shape.flops)

    @property
    def prefetch_gain(self) -> float | None:
        return None if self.no_prefetch is None else self.no_prefetch / self.seconds

    def speedup(self, peer: str) -> float:
        return self.peers[peer] / (self.beside_peers or self.seconds)

    @property
    def fastest_peer(self) -> str | None:
        return min(self.peers, key=self.peers.__getitem__, default=None)


@dataclass(frozen=True)
class DecodeOptions:
    """What to run; sizes are ``(batch, length)``. ``heads=None``: those of each variant."""

    variants: Sequence[str] = VARIANTS
    sizes: Sequence[tuple[int, int]] = SIZES
    query_lens: Sequence[int] = (1,)
    dtypes: Sequence[str] = ("bf16",)
    heads: tuple[int, ...] | None = None
    kv_heads: int = 8
    latent_heads: int = 2
    head_dim: int = 128
    page_size: int = 64
    reps: int = 15
    with_peers: bool = True
    impl: Impl = "auto"
    one_head_count: bool = False

    @classmethod
    def quick(cls) -> "DecodeOptions":
        """For a first look: one size, one head count of each variant, few rounds."""
        return cls(sizes=((4, 4096),), reps=7, one_head_count=True)

    def replace(self, **given: object) -> "DecodeOptions":
        """These options with what was given; ``None`` means not given."""
        return replace(self, **{name: x for name, x in given.items() if x is not None})

    def __post_init__(self) -> None:
        check.count("reps", self.reps, minimum=1)
        check.count("page_size", self.page_size, minimum=1)
        for dtype in self.dtypes:
            if dtype not in DTYPES:
                raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")

    def shapes(self) -> list[DecodeShape]:
        """All combinations; with ``one_head_count`` the first of each variant and size."""
        found = all_shapes(
            self.variants,
            self.sizes,
            self.query_lens,
            self.dtypes,
            self.heads,
            kv_heads=self.kv_heads,
            latent_heads=self.latent_heads,
            head_dim=self.head_dim,
        )
        if not self.one_head_count:
            return found
        first = {}
        for s in found:
            first.setdefault((s.variant, s.batch, s.length, s.query_len, s.dtype), s)
        return list(first.values())


def run(options: DecodeOptions) -> Iterator[Row]:
    """The rows in order, each as soon as it is measured."""
    for shape in options.shapes():
        yield measure(shape, options)


def measure(shape: DecodeShape, options: DecodeOptions) -> Row:
    """One row; measured again while a roof drifts during the loop.

    Raises:
        RuntimeError: a result is wrong, so its time would mean nothing.
    """
    inputs = DecodeInputs(shape, page_size=options.page_size, cold_bytes=cold_bytes())
    calls, found_peers, error = _checked_calls(inputs, options)
    storage_bytes = sum(x.nbytes for x in inputs.storage(ROOF_BYTES))
    gemm, gemm_flops = roofs.gemm(shape.torch_dtype)
    calls["memory roof"] = lambda: [roofs.read(x) for x in inputs.storage(ROOF_BYTES)]
    calls["gemm roof"] = gemm
    timing.interleave({name: calls[name] for name in ("memory roof", "gemm roof")}, 1)
    samples, drift = timing.steady(calls, options.reps, ("memory roof", "gemm roof"))
    times = timing.medians(samples)
    rounds = -(-options.reps // PEER_ROUNDS) if found_peers else 0
    beside = timing.interleave({"ours": calls["ours"], **found_peers}, rounds)
    peer_times = timing.medians(beside) if rounds else {}
    return Row(
        shape=shape,
        seconds=times["ours"],
        roofs=roofs.Roofs(storage_bytes / times["memory roof"], gemm_flops / times["gemm roof"]),
        no_prefetch=times.get("no prefetch"),
        beside_peers=peer_times.pop("ours", None),
        peers=peer_times,
        error=error,
        drift=drift,
        samples=samples,
    )


def _checked_calls(inputs: DecodeInputs, options: DecodeOptions) -> tuple[dict, dict, float]:
    """Our calls and the peers', each run once and held against float32 attention."""
    dtype = inputs.shape.dtype
    exact = peers.Dense(inputs, torch.float32)
    want = peers.oracle(exact)
    calls = {"ours": lambda: inputs.decode(options.impl)}
    ours = calls["ours"]()
    error = relative_error("ours", ours, want, OURS_BUDGET * ROUNDING[dtype])
    if options.impl in ("auto", "cpu") and core.missing() is None:
        calls["no prefetch"] = inputs.decode_without_prefetch
        if not torch.equal(calls["no prefetch"](), ours):
            raise RuntimeError(f"{inputs.shape.label}: prefetch changed the result")
    found_peers = {}
    if options.with_peers:
        for peer in _peers(inputs, exact):
            relative_error(
                peer.name, peer.canonical(peer.run()), want, PEER_BUDGET * ROUNDING[peer.dtype]
            )
            found_peers[peer.name] = peer.run
    return calls, found_peers, error


def _peers(inputs: DecodeInputs, exact: peers.Dense) -> list[peers.Peer]:
    """PyTorch on the row's dtype and on float32; a tied cache also as it lies.

    float16 rows have float32 alone: torch's float16 on a CPU is slower than that by orders.
    """
    found, dtype = peers.peers(exact), inputs.shape.torch_dtype
    if dtype == torch.bfloat16:
        found += peers.peers(peers.Dense(inputs, dtype))
    if dtype != torch.float16 and inputs.shape.spec.kind == "tied":
        found.append(peers.eager_on_records(peers.Dense(inputs, dtype, records=True)))
    return found


def record(row: Row) -> files.Record:
    """One row as flat columns; a unit ends the name where there is one."""
    columns = shape_columns(row.shape) | measured_columns(row)
    if row.no_prefetch is not None:
        columns["no_prefetch_ms"] = files.ms(row.no_prefetch)
        columns["no_prefetch_ratio"] = round(row.prefetch_gain, 3)
    if row.beside_peers is not None:
        columns["beside_peers_ms"] = files.ms(row.beside_peers)
    for name, seconds in row.peers.items():
        column = "torch_" + name.replace(" ", "_")
        columns[f"{column}_ms"] = files.ms(seconds)
        columns[f"{column}_ratio"] = round(row.speedup(name), 2)
    return columns


def shape_columns(shape: DecodeShape) -> files.Record:
    """What was computed."""
    return {
        "variant": shape.variant,
        "heads": shape.heads,
        "cache_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "batch": shape.batch,
        "length": shape.length,
        "query_len": shape.query_len,
        "dtype": shape.dtype,
        "bytes_per_token": shape.bytes_per_token,
        "flop_per_byte": round(shape.intensity, 2),
    }


def measured_columns(row: Row) -> files.Record:
    """How fast it was, beside its roofs, and how exact."""
    roofs = row.roofs
    return {
        "ms": files.ms(row.seconds),
        "GB/s": round(row.bandwidth / 1e9, 3),
        "GFLOP/s": round(row.flop_rate / 1e9, 1),
        "percent_of_roof": round(row.percent, 1),
        "binding_roof": row.binding,
        "memory_roof_GB/s": round(roofs.memory / 1e9, 3),
        "gemm_roof_GFLOP/s": round(roofs.gemm / 1e9, 1),
        "roof_drift": round(row.drift, 3),
        "relative_error": float(f"{row.error:.2e}"),
    }
