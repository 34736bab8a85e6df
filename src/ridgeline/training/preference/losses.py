"""The losses of preference pairs: those of TRL 1.16's ``DPOTrainer``, as pure functions.

Every loss is a function of a batch of pairs and of ``LossOptions`` to one number a pair, ``[N]``.
``preference_loss`` mixes them and divides by the pairs of the whole optimizer step, so that neither
gradient accumulation nor packing nor the number of processes changes what a pair weighs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ridgeline.ops.common import check

DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")


@dataclass(frozen=True, eq=False)
class PairLogps:
    """N pairs: summed log-probabilities of the responses in nats, ``[N]`` each.

    Without a reference (as ORPO and SimPO do) give zeros for ``ref_chosen`` and ``ref_rejected``.

    Attributes:
        chosen, rejected: under the policy; they carry the gradient.
        ref_chosen, ref_rejected: under the reference.
        chosen_lengths, rejected_lengths: scored tokens.
        chosen_sums: of ``sft``, where ``chosen`` is weighted (``ld_weights``); ``None`` for
            ``chosen``.
    """

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor
    chosen_sums: Tensor | None = None

    def __post_init__(self) -> None:
        check.shape("chosen", check.tensor("chosen", self.chosen), ("N",))
        for name in ("rejected", "ref_chosen", "ref_rejected", "chosen_lengths"):
            check.shape(name, check.tensor(name, getattr(self, name)), self.chosen.shape)
        check.shape("rejected_lengths", self.rejected_lengths, self.chosen.shape)
        if self.chosen_sums is not None:
            check.shape("chosen_sums", self.chosen_sums, self.chosen.shape)

    @property
    def chosen_logratios(self) -> Tensor:
        return self.chosen - self.ref_chosen

    @property
    def rejected_logratios(self) -> Tensor:
        return self.rejected - self.ref_rejected

    def rewards(self, beta: float) -> tuple[Tensor, Tensor]:
        """``beta * log(policy / reference)`` of chosen and rejected, without gradient."""
        return beta * self.chosen_logratios.detach(), beta * self.rejected_logratios.detach()


@dataclass(frozen=True)
class LossOptions:
    """Which losses, mixed how.

    Attributes:
        types: names in ``LOSSES``.
        weights: of the types; ``None`` for 1 each.
        beta: strength of the reference; tau of ``ipo``.
        label_smoothing: probability that a label is flipped (``robust``, below 0.5; ``aot``,
            ``aot_unpaired``), or epsilon of ``exo_pair``, above 0 there.
        f_divergence: between policy and reference, one of ``DIVERGENCES``. Only losses of the
            difference of scores take another one than ``reverse_kl``.
        f_alpha: of ``alpha_divergence``.
        discopop_tau: temperature of ``discopop``.

    Raises:
        TypeError, ValueError: a value is impossible, or two do not go together.
    """

    types: tuple[str, ...] = ("sigmoid",)
    weights: tuple[float, ...] | None = None
    beta: float = 0.1
    label_smoothing: float = 0.0
    f_divergence: str = "reverse_kl"
    f_alpha: float = 0.5
    discopop_tau: float = 0.05

    def __post_init__(self) -> None:
        if isinstance(self.types, str):
            raise TypeError(f"types: expected names of losses, got the str {self.types!r}")
        object.__setattr__(self, "types", tuple(self.types))
        if not self.types:
            raise ValueError("types: expected at least one loss, got none")
        for name in self.types:
            if name not in LOSSES:
                raise ValueError(f"types: expected some of {', '.join(LOSSES)}, got {name!r}")
        weights = (1.0,) * len(self.types) if self.weights is None else tuple(self.weights)
        if len(weights) != len(self.types):
            raise ValueError(f"weights: expected {len(self.types)}, one a type, got {len(weights)}")
        for i, weight in enumerate(weights):
            check.finite(f"weights[{i}]", weight)
        object.__setattr__(self, "weights", weights)
        for name in ("beta", "discopop_tau"):
            if not check.finite(name, getattr(self, name)) > 0:
                raise ValueError(f"{name}: expected more than 0, got {getattr(self, name)}")
        check.finite("f_alpha", self.f_alpha)
        self._check_divergence()
        self._check_smoothing()

    def _check_divergence(self) -> None:
        if self.f_divergence not in DIVERGENCES:
            raise ValueError(
                f"f_divergence: expected one of {', '.join(DIVERGENCES)}, got {self.f_divergence!r}"
            )
        fixed = [name for name in self.types if name not in OF_SCORES]
        if fixed and self.f_divergence != "reverse_kl":
            raise ValueError(
                f"f_divergence: expected reverse_kl with {fixed[0]}, which is no function of the "
                f"difference of scores, got {self.f_divergence}"
            )

    def _check_smoothing(self) -> None:
        smoothing = check.finite("label_smoothing", self.label_smoothing, minimum=0.0)
        if smoothing >= 1:
            raise ValueError(f"label_smoothing: expected less than 1, got {smoothing}")
        if "robust" in self.types and smoothing >= 0.5:
            raise ValueError(f"label_smoothing: expected less than 0.5 for robust, got {smoothing}")
        if "exo_pair" in self.types and smoothing == 0:
            raise ValueError(f"label_smoothing: expected more than 0 for exo_pair, got {smoothing}")


def preference_loss(
    pairs: PairLogps,
    options: LossOptions,
    *,
    step_pairs: int | Tensor | None = None,
    step_chosen_tokens: int | Tensor | None = None,
    pair_weights: Tensor | None = None,
) -> Tensor:
    """The part of an optimizer step's loss that a micro-batch gives, a scalar.

    The parts of all micro-batches and processes add up to the mean over the step's pairs. Where
    gradients are averaged over processes (DDP, FSDP), multiply by their number; where a trainer
    divides by the number of micro-batches, multiply by that.

    Args:
        pairs: of the micro-batch. ``aot`` and ``aot_unpaired`` sort within it.
        options: which losses.
        step_pairs: pairs of the whole step, over all micro-batches and processes; ``None`` for
            those of ``pairs``.
        step_chosen_tokens: scored tokens of all of their chosen responses, over which ``sft`` is
            the mean; needed with ``step_pairs`` there, ``None`` for those of ``pairs``.
        pair_weights: ``[N]``, such as ``wpo_weights``; not with ``aot``, ``aot_unpaired`` and
            ``sft``, whose losses are none of single pairs.

    Raises:
        ValueError: the arguments do not go together.
    """
    if pair_weights is not None:
        check.shape("pair_weights", pair_weights, pairs.chosen.shape)
        for name in ("aot", "aot_unpaired", "sft"):
            if name in options.types:
                raise ValueError(f"pair_weights: expected None with {name}, got weights")
    if "sft" in options.types and (step_pairs is None) != (step_chosen_tokens is None):
        raise ValueError("step_chosen_tokens: expected together with step_pairs for sft")
    step_pairs = pairs.chosen.shape[0] if step_pairs is None else step_pairs
    if step_chosen_tokens is None:
        step_chosen_tokens = pairs.chosen_lengths.sum()
    total = pairs.chosen.new_zeros(())
    for name, weight in zip(options.types, options.weights, strict=True):
        each = LOSSES[name](pairs, options)
        if pair_weights is not None:
            each = each * pair_weights
        total = total + weight * each.sum() / (step_chosen_tokens if name == "sft" else step_pairs)
    return total


def scores(pairs: PairLogps, options: LossOptions) -> tuple[Tensor, Tensor]:
    """f'(policy / reference) of chosen and rejected, ``[N]`` (f-DPO, arXiv 2309.16240)."""
    ratios = pairs.chosen_logratios, pairs.rejected_logratios
    match options.f_divergence:
        case "forward_kl":
            return tuple(1 - (-x).exp() for x in ratios)
        case "js_divergence":
            return tuple(math.log(2) + F.logsigmoid(x) for x in ratios)
        case "alpha_divergence" if abs(options.f_alpha - 1) >= 1e-6:
            return tuple(_alpha_score(x, options.f_alpha - 1) for x in ratios)
        case _:
            return ratios


def _alpha_score(logratio: Tensor, power: float) -> Tensor:
    """``(t^power - 1) / power``, bounded where t^power would not be finite."""
    bound = {torch.float16: 11.0, torch.float64: 700.0}.get(logratio.dtype, 80.0)
    wide = logratio.to(torch.promote_types(logratio.dtype, torch.float32))
    return ((power * wide).clamp(max=bound).exp() - 1).to(logratio.dtype) / power


def _margin(pairs: PairLogps, options: LossOptions) -> Tensor:
    chosen, rejected = scores(pairs, options)
    return options.beta * (chosen - rejected)


def _mean_margin(pairs: PairLogps, options: LossOptions) -> Tensor:
    """The difference of scores a token."""
    chosen, rejected = scores(pairs, options)
    return chosen / pairs.chosen_lengths - rejected / pairs.rejected_lengths


def _rewards(pairs: PairLogps, options: LossOptions) -> tuple[Tensor, Tensor]:
    return options.beta * pairs.chosen_logratios, options.beta * pairs.rejected_logratios


def sigmoid(pairs: PairLogps, options: LossOptions) -> Tensor:
    """DPO (arXiv 2305.18290)."""
    return -F.logsigmoid(_margin(pairs, options))


def sigmoid_norm(pairs: PairLogps, options: LossOptions) -> Tensor:
    """DPO of scores averaged over tokens (Tulu 3, arXiv 2411.15124)."""
    return -F.logsigmoid(options.beta * _mean_margin(pairs, options))


def hinge(pairs: PairLogps, options: LossOptions) -> Tensor:
    """SLiC's (arXiv 2305.10425)."""
    return torch.relu(1 - _margin(pairs, options))


def ipo(pairs: PairLogps, options: LossOptions) -> Tensor:
    """IPO (arXiv 2310.12036, eq. 17) of scores averaged over tokens."""
    return (_mean_margin(pairs, options) - 1 / (2 * options.beta)) ** 2


def exo_pair(pairs: PairLogps, options: LossOptions) -> Tensor:
    """EXO (arXiv 2402.00856, eq. 16) of two responses."""
    margin = _margin(pairs, options)
    for_chosen, for_rejected = F.logsigmoid(margin), F.logsigmoid(-margin)
    epsilon = options.label_smoothing
    return torch.sigmoid(margin) * (for_chosen - math.log1p(-epsilon)) + torch.sigmoid(-margin) * (
        for_rejected - math.log(epsilon)
    )


def nca_pair(pairs: PairLogps, options: LossOptions) -> Tensor:
    """NCA (arXiv 2402.05369) of two responses."""
    chosen, rejected = _rewards(pairs, options)
    return -F.logsigmoid(chosen) - 0.5 * (F.logsigmoid(-chosen) + F.logsigmoid(-rejected))


def robust(pairs: PairLogps, options: LossOptions) -> Tensor:
    """Robust DPO (arXiv 2403.00409): unbiased under flipped labels."""
    margin, flipped = _margin(pairs, options), options.label_smoothing
    clean = -(1 - flipped) * F.logsigmoid(margin) + flipped * F.logsigmoid(-margin)
    return clean / (1 - 2 * flipped)


def bco_pair(pairs: PairLogps, options: LossOptions) -> Tensor:
    """BCO (arXiv 2404.04656) of pairs, without its reward shift."""
    chosen, rejected = _rewards(pairs, options)
    return -F.logsigmoid(chosen) - F.logsigmoid(-rejected)


def sppo_hard(pairs: PairLogps, options: LossOptions) -> Tensor:
    """SPPO (arXiv 2405.00675, eq. 4.7) with probabilities 1 and 0."""
    goal = 0.5 / options.beta
    return (pairs.chosen_logratios - goal) ** 2 + (pairs.rejected_logratios + goal) ** 2


def aot(pairs: PairLogps, options: LossOptions) -> Tensor:
    """AOT (arXiv 2406.05882) of paired data: quantiles of the policy's margins, and reference's."""
    policy = (pairs.chosen - pairs.rejected).sort(0).values
    reference = (pairs.ref_chosen - pairs.ref_rejected).sort(0).values
    return _smoothed(policy - reference, options)


def aot_unpaired(pairs: PairLogps, options: LossOptions) -> Tensor:
    """AOT of unpaired data: quantiles of chosen log-ratios, and of rejected ones."""
    chosen, rejected = pairs.chosen_logratios, pairs.rejected_logratios
    return _smoothed(chosen.sort(0).values - rejected.sort(0).values, options)


def _smoothed(delta: Tensor, options: LossOptions) -> Tensor:
    margin, flipped = options.beta * delta, options.label_smoothing
    return -(1 - flipped) * F.logsigmoid(margin) - flipped * F.logsigmoid(-margin)


def apo_zero(pairs: PairLogps, options: LossOptions) -> Tensor:
    """APO-zero (arXiv 2408.06266, eq. 7): chosen up, rejected down."""
    chosen, rejected = _rewards(pairs, options)
    return 1 - torch.sigmoid(chosen) + torch.sigmoid(rejected)


def apo_down(pairs: PairLogps, options: LossOptions) -> Tensor:
    """APO-down (arXiv 2408.06266, eq. 8): chosen down, rejected further down."""
    chosen, rejected = _rewards(pairs, options)
    return torch.sigmoid(chosen) + 1 - torch.sigmoid(chosen - rejected)


def discopop(pairs: PairLogps, options: LossOptions) -> Tensor:
    """DiscoPOP (arXiv 2406.08414, eq. 5): logistic and exponential loss, blended."""
    margin = _margin(pairs, options)
    blend = torch.sigmoid(margin / options.discopop_tau)
    return -F.logsigmoid(margin) * (1 - blend) + (-margin).exp() * blend


def sft(pairs: PairLogps, options: LossOptions) -> Tensor:
    """Negative log-likelihood of chosen, summed over its tokens."""
    return -(pairs.chosen if pairs.chosen_sums is None else pairs.chosen_sums)


LOSSES: dict[str, Callable[[PairLogps, LossOptions], Tensor]] = {
    f.__name__: f
    for f in (
        sigmoid,
        hinge,
        ipo,
        exo_pair,
        nca_pair,
        robust,
        bco_pair,
        sppo_hard,
        aot,
        aot_unpaired,
        apo_zero,
        apo_down,
        discopop,
        sft,
        sigmoid_norm,
    )
}
# Functions of the difference of scores, in which the partition function of f-DPO cancels.
OF_SCORES = {"sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"}
