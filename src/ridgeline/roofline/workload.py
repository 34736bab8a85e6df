"""What users ask of a server: lengths of prompts and outputs, and how requests arrive."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ridgeline.ops.common import check
from ridgeline.roofline import fields

FORMS = "8192, uniform:1-131072, lognormal:MEDIAN,SIGMA or lognormal:MEDIAN,SIGMA,MAX"
_LARGEST = 2**31 - 1


@dataclass(frozen=True)
class Lengths:
    """Tokens, at least 1: ``kind`` is "fixed" (low), "uniform" (low to high, both included) or
    "lognormal" (median ``low``, deviation ``sigma`` of the logarithm, cut at ``high``).
    """

    kind: str
    low: int
    high: int
    sigma: float = 0.0

    @classmethod
    def parse(cls, name: str, text: str) -> "Lengths":
        """Raises ``ValueError`` naming the argument ``name`` and the forms that exist."""
        number = r"(\d+)"
        if found := re.fullmatch(number, text):
            low = high = int(found[1])
            parsed = cls("fixed", low, high)
        elif found := re.fullmatch(rf"uniform:{number}-{number}", text):
            parsed = cls("uniform", int(found[1]), int(found[2]))
        elif found := re.fullmatch(rf"lognormal:{number},([\d.]+)(?:,{number})?", text):
            high = int(found[3] or min(_LARGEST, 100 * int(found[1])))
            parsed = cls("lognormal", int(found[1]), high, float(found[2]))
        else:
            raise ValueError(f"{name}: expected {FORMS}, got {text!r}")
        if not 1 <= parsed.low <= parsed.high <= _LARGEST:
            raise ValueError(f"{name}: expected 1 <= low <= high, got {text!r}")
        return parsed

    def draw(self, n: int, generator: np.random.Generator) -> np.ndarray:
        """``[n]`` int64."""
        match self.kind:
            case "fixed":
                return np.full(n, self.low)
            case "uniform":
                return generator.integers(self.low, self.high, n, endpoint=True)
            case _:
                drawn = generator.lognormal(np.log(self.low), self.sigma, n)
                return np.clip(np.rint(drawn), 1, self.high).astype(np.int64)

    @property
    def mean(self) -> float:
        """Of a lognormal distribution before it is cut."""
        if self.kind == "lognormal":
            return self.low * float(np.exp(self.sigma**2 / 2))
        return (self.low + self.high) / 2


@dataclass(frozen=True)
class Workload:
    """``requests`` requests, ``(prompt, output)`` tokens each, from ``concurrency`` clients that
    each wait for their answer, or arriving at ``rate`` a second (Poisson).
    """

    prompts: tuple[int, ...]
    outputs: tuple[int, ...]
    concurrency: int | None = None
    rate: float | None = None

    def __post_init__(self) -> None:
        if (self.concurrency is None) == (self.rate is None):
            raise ValueError("concurrency, rate: expected one of them")
        if self.concurrency is not None:
            check.count("concurrency", self.concurrency, minimum=1)
        else:
            fields.positive(rate=self.rate)
        if not self.prompts or len(self.prompts) != len(self.outputs):
            raise ValueError("outputs: expected one for each prompt, and at least one prompt")

    @classmethod
    def drawn(
        cls,
        prompt: Lengths,
        output: Lengths,
        requests: int,
        *,
        concurrency: int | None = None,
        rate: float | None = None,
        seed: int = 0,
    ) -> "Workload":
        check.count("requests", requests, minimum=1)
        generator = np.random.default_rng(check.count("seed", seed))
        prompts = tuple(prompt.draw(requests, generator).tolist())
        return cls(prompts, tuple(output.draw(requests, generator).tolist()), concurrency, rate)

    @classmethod
    def from_file(
        cls, path: Path, *, concurrency: int | None = None, rate: float | None = None
    ) -> "Workload":
        """Rows of a CSV file with the columns ``prompt`` and ``output``.

        Raises:
            ValueError: a column is missing, or a cell is no whole number above 0.
        """
        columns: dict[str, list[int]] = {"prompt": [], "output": []}
        for i, row in enumerate(fields.read_rows(path), start=1):
            for name, found in columns.items():
                x = fields.number(path, i, row, name)
                if x != int(x):
                    raise ValueError(f"{path}, row {i}: {name}: expected whole tokens, got {x}")
                found.append(int(x))
        return cls(tuple(columns["prompt"]), tuple(columns["output"]), concurrency, rate)

    @property
    def longest(self) -> int:
        """Tokens of the longest request."""
        return max(p + o for p, o in zip(self.prompts, self.outputs, strict=True))
