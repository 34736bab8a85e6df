"""Lengths of preference datasets: the six of prefix sharing's paper, drawn around their medians."""

import random
from dataclasses import dataclass
from math import exp
from statistics import NormalDist

Pair = tuple[list[int], list[int], list[int]]  # token ids of prompt, chosen and rejected


@dataclass(frozen=True)
class Profile:
    """A dataset as "Accelerating Direct Preference Optimization with Prefix Sharing" describes it.

    Wang and Hegde, arXiv 2410.20305.

    Attributes:
        name: of the dataset.
        length: median tokens of a prompt with one response.
        rho: median ratio of prompt to response.
        published: their speed-up with sharing, both packed, on 8 H100 with FlashAttention-3.
    """

    name: str
    length: int
    rho: float
    published: float

    @property
    def bound(self) -> float:
        """Tokens without sharing over tokens with, where both responses are equally long."""
        return (2 * self.rho + 2) / (self.rho + 2)

    def scale(self, count: int, tokens: int) -> float:
        """Of the lengths, at most 1, so that ``count`` pairs of the medians have so many tokens.

        Without sharing, a prompt for each response.
        """
        return min(1.0, tokens / (2 * count * self.length))

    def draw(self, count: int, scale: float, spread: float, seed: int, vocab: int) -> list[Pair]:
        """``count`` pairs of random tokens.

        Prompts, chosen and rejected responses are log-normal of deviation ``spread``, one at each
        quantile in an order of its own: few pairs, but the medians and their ratio are those of
        the profile times ``scale``.
        """
        rng = random.Random(seed)
        response = scale * self.length / (1 + self.rho)
        quantiles = [NormalDist().inv_cdf((i + 0.5) / count) for i in range(count)]

        def part(median: float) -> list[list[int]]:
            sizes = [max(1, round(median * exp(spread * z))) for z in quantiles]
            return [rng.choices(range(vocab), k=n) for n in rng.sample(sizes, count)]

        parts = part(response * self.rho), part(response), part(response)
        return list(zip(*parts, strict=True))


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("capybara", 1160, 1.59, 1.34),
        Profile("hh-rlhf", 186, 2.15, 1.41),
        Profile("metamath-dpo", 872, 3.91, 1.57),
        Profile("tldr", 416, 11.14, 1.35),
        Profile("tulu-helpsteer", 775, 6.34, 1.48),
        Profile("ultrafeedback", 409, 0.42, 1.17),
    )
}


def chosen(names: tuple[str, ...]) -> tuple[Profile, ...]:
    """Raises ``ValueError`` naming what is no profile."""
    for name in names:
        if name not in PROFILES:
            raise ValueError(f"--profiles: expected some of {', '.join(PROFILES)}, got {name!r}")
    return tuple(PROFILES[name] for name in names)
