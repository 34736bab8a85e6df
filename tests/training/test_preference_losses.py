"""The losses of preference pairs against TRL's own, in float64."""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer

from ridgeline.training.preference import (
    LossOptions,
    PairLogps,
    collate,
    losses,
    of_pair,
    pairs,
    responses,
    scored,
)
from ridgeline.training.preference.losses import DIVERGENCES, LOSSES, OF_SCORES

NO_WEIGHTS = ("aot", "aot_unpaired", "sft")
SMOOTHED = {"exo_pair": 1e-3, "robust": 0.1, "aot": 0.1, "aot_unpaired": 0.2}


@pytest.fixture(autouse=True)
def doubles():
    """TRL makes tensors of some options, in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def loss_of(*args, **options) -> Tensor:
    """Through the module, where the tests of planted bugs replace it."""
    return losses.preference_loss(*args, **options)


class Case:
    """Pairs with log-probabilities of every token, in TRL's layout and in ours."""

    def __init__(self, count: int = 6, seed: int = 0, dtype: torch.dtype = torch.float64) -> None:
        g = torch.Generator().manual_seed(seed)
        sizes = torch.randint(1, 9, (count, 3), generator=g).tolist()
        ids = [tuple(torch.randint(50, (n,), generator=g).tolist() for n in s) for s in sizes]
        names = ("prompt_ids", "chosen_ids", "rejected_ids")
        collator = DataCollatorForPreference(pad_token_id=0)
        self.theirs = collator([dict(zip(names, x, strict=True)) for x in ids])
        self.batch = collate([of_pair(*x) for x in ids], budget=40)

        def tokens(scale: float) -> Tensor:
            found = -torch.rand(len(self.batch.score_index), generator=g, dtype=torch.float64)
            return (scale * found).to(dtype)

        self.logps = tokens(3.0).requires_grad_()
        self.log_sum_sq_probs = tokens(1.0)
        self.ref = tokens(3.0)

    def rows(self, values: Tensor) -> Tensor:
        """Of scored tokens ``[S]``, where our rows have them."""
        shape = self.batch.input_ids.shape
        found = values.new_zeros(shape.numel())
        return found.index_copy(0, self.batch.score_index, values).view(shape)

    def padded(self, values: Tensor) -> Tensor:
        """The same where TRL's padded and shifted rows have them, chosen before rejected."""
        mask = self.theirs["completion_mask"][:, 1:].bool()
        each = values.split(self.batch.response_lengths.tolist())
        return values.new_zeros(mask.shape).masked_scatter(mask, torch.cat(each[::2] + each[1::2]))

    def pair_logps(self, ld_alpha: float | None = None) -> PairLogps:
        weights = None if ld_alpha is None else responses.ld_weights(self.batch, ld_alpha)
        policy = pairs(responses.per_response(self.rows(self.logps), self.batch, weights))
        ref = pairs(responses.per_response(self.rows(self.ref), self.batch, weights))
        sums = pairs(responses.per_response(self.rows(self.logps), self.batch))[0]
        return PairLogps(*policy, *ref, *pairs(self.batch.response_lengths), sums)

    def wpo_weights(self) -> Tensor:
        return responses.wpo_weights(
            self.rows(self.logps), self.rows(self.log_sum_sq_probs), self.batch
        )


def trl_loss(case: Case, options: LossOptions, ld_alpha=None, use_weighting=False):
    """TRL's own loss and what it logs, of a model that gives the case's log-probabilities."""
    outputs = SimpleNamespace(
        log_probs=case.padded(case.logps),
        log_sum_sq_probs=case.padded(case.log_sum_sq_probs),
        entropy=case.padded(case.ref),
        mean_logits=case.padded(case.ref),
        is_top1=case.padded(case.ref) > 1,
    )
    ref = case.padded(case.ref)
    mask = case.theirs["completion_mask"][:, 1:]
    if ld_alpha is not None:
        shorter = torch.minimum(*mask.sum(1).chunk(2)).repeat(2)
        ref = ref * torch.where(mask.cumsum(1) <= shorter[:, None], 1.0, ld_alpha)
    ref_chosen, ref_rejected = ref.sum(1).chunk(2)
    itself = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(
            device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x
        ),
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        ld_alpha=ld_alpha,
        use_weighting=use_weighting,
        loss_types=list(options.types),
        loss_weights=list(options.weights),
        beta=options.beta,
        label_smoothing=options.label_smoothing,
        f_divergence_type=options.f_divergence,
        f_alpha_divergence_coef=options.f_alpha,
        args=SimpleNamespace(discopop_tau=options.discopop_tau),
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    inputs = case.theirs | {"ref_chosen_logps": ref_chosen, "ref_rejected_logps": ref_rejected}
    loss = DPOTrainer._compute_loss(itself, lambda **_: outputs, inputs, False)
    return loss, itself._metrics["train"]


def assert_equal_to_trl(case, options, ours, tolerance=1e-12, **how) -> None:
    theirs, _ = trl_loss(case, options, **how)
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(
        torch.autograd.grad(ours, case.logps),
        torch.autograd.grad(theirs, case.logps),
        rtol=tolerance,
        atol=tolerance,
    )


def check_loss(name: str, **changes) -> None:
    """One loss and its gradient equal TRL's; called by the tests of planted bugs, too."""
    options = LossOptions((name,), **{"label_smoothing": SMOOTHED.get(name, 0.0)} | changes)
    for seed in range(3):
        case = Case(seed=seed)
        assert_equal_to_trl(case, options, loss_of(case.pair_logps(), options))


def check_weights() -> None:
    """LD-DPO and WPO equal TRL's, and micro-batches add up to their step."""
    case, options = Case(), LossOptions()
    assert_equal_to_trl(case, options, loss_of(case.pair_logps(0.4), options), ld_alpha=0.4)
    ours = loss_of(case.pair_logps(), options, pair_weights=case.wpo_weights())
    assert_equal_to_trl(case, options, ours, use_weighting=True)
    check_micro_batches("sigmoid")


def check_micro_batches(name: str) -> None:
    """However unevenly pairs are dealt, with the counts of the whole step."""
    case = Case(count=7)
    p = case.pair_logps()
    options = LossOptions((name, "sft"), (1.0, 0.5), label_smoothing=0.1)
    step = {"step_pairs": 7, "step_chosen_tokens": p.chosen_lengths.sum()}
    parts = []
    for some in (slice(0, 1), slice(1, 5), slice(5, 7), slice(7, 7)):
        fields = (getattr(p, name)[some] for name in PairLogps.__dataclass_fields__)
        parts.append(loss_of(PairLogps(*fields), options, **step))
    whole, _ = trl_loss(case, options)
    torch.testing.assert_close(sum(parts), whole, rtol=1e-12, atol=1e-12)
    assert parts[3] == 0


@pytest.mark.parametrize("beta", [0.1, 0.7])
@pytest.mark.parametrize("name", LOSSES)
def test_equals_trl(name, beta):
    check_loss(name, beta=beta)


@pytest.mark.parametrize("divergence", [d for d in DIVERGENCES if d != "alpha_divergence"])
@pytest.mark.parametrize("name", sorted(OF_SCORES))
def test_f_divergences(name, divergence):
    check_loss(name, f_divergence=divergence)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_alpha_divergence(alpha):
    """In float32: TRL has no bound for float64."""
    case = Case(dtype=torch.float32)
    options = LossOptions(f_divergence="alpha_divergence", f_alpha=alpha)
    ours = loss_of(case.pair_logps(), options)
    assert_equal_to_trl(case, options, ours, tolerance=2e-6)


def test_alpha_divergence_in_fp64():
    case = Case()
    p = case.pair_logps()
    ours = loss_of(p, LossOptions(f_divergence="alpha_divergence", f_alpha=3.0))
    chosen, rejected = (
        ((x.exp() ** 2) - 1) / 2 for x in (p.chosen_logratios, p.rejected_logratios)
    )
    want = -torch.nn.functional.logsigmoid(0.1 * (chosen - rejected)).mean()
    torch.testing.assert_close(ours, want, rtol=1e-13, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_alpha_divergence_stays_finite(dtype):
    zero = torch.zeros(1, dtype=dtype)
    far = zero + 2000
    far.requires_grad_()
    p = PairLogps(far, zero, zero, zero, zero + 1, zero + 1)
    loss = loss_of(p, LossOptions(f_divergence="alpha_divergence", f_alpha=2.0))
    loss.backward()
    assert loss.isfinite()
    assert far.grad.isfinite()


@pytest.mark.parametrize("name", ["sigmoid", "ipo", "sft", "aot", "nca_pair"])
@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_ld_dpo(name, alpha):
    case, options = Case(), LossOptions((name,))
    ours = loss_of(case.pair_logps(alpha), options)
    assert_equal_to_trl(case, options, ours, ld_alpha=alpha)


# TRL's own hinge fails in its backward with these weights: it changes what relu needs.
@pytest.mark.parametrize("name", [n for n in LOSSES if n not in (*NO_WEIGHTS, "hinge")])
def test_wpo(name):
    case, options = Case(), LossOptions((name,), label_smoothing=0.1)
    ours = loss_of(case.pair_logps(), options, pair_weights=case.wpo_weights())
    assert_equal_to_trl(case, options, ours, use_weighting=True)


def test_mixtures():
    """MPO's: preference, quality and generation."""
    case = Case()
    options = LossOptions(("sigmoid", "bco_pair", "sft"), (0.8, 0.2, 1.5), beta=0.3)
    assert_equal_to_trl(case, options, loss_of(case.pair_logps(), options))
    parts = [loss_of(case.pair_logps(), LossOptions((n,), beta=0.3)) for n in options.types]
    whole = sum(w * x for w, x in zip(options.weights, parts, strict=True))
    torch.testing.assert_close(loss_of(case.pair_logps(), options), whole)


def test_rewards_are_those_of_trl():
    case = Case()
    p = case.pair_logps()
    _, logged = trl_loss(case, LossOptions(beta=0.3))
    chosen, rejected = p.rewards(0.3)
    assert not chosen.requires_grad
    found = {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": (chosen > rejected).double(),
        "logps/chosen": p.chosen,
        "logps/rejected": p.rejected,
    }
    for name, values in found.items():
        assert values.mean().item() == pytest.approx(logged[name][0], abs=1e-12), name


@pytest.mark.parametrize("name", [n for n in LOSSES if not n.startswith("aot")])
def test_micro_batches_add_up_to_the_step(name):
    check_micro_batches(name)


def test_a_step_without_pairs_has_no_part():
    nothing = torch.zeros(0)
    p = PairLogps(*[nothing] * 4, nothing.long(), nothing.long())
    assert loss_of(p, LossOptions(), step_pairs=4) == 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"types": ("sigmoid", "dpo")}, ValueError, "types: expected some of sigmoid.*'dpo'"),
        ({"types": "sigmoid"}, TypeError, "types: expected names of losses, got the str"),
        ({"types": ()}, ValueError, "types: expected at least one loss, got none"),
        ({"weights": (1.0, 2.0)}, ValueError, "weights: expected 1, one a type, got 2"),
        ({"weights": ("a",)}, TypeError, r"weights\[0\]: expected a float, got str"),
        ({"beta": 0}, ValueError, "beta: expected more than 0, got 0"),
        ({"discopop_tau": -1}, ValueError, "discopop_tau: expected more than 0, got -1"),
        ({"f_divergence": "kl"}, ValueError, "f_divergence: expected one of .*, got 'kl'"),
        ({"f_divergence": "forward_kl", "types": ("apo_zero",)}, ValueError, "with apo_zero"),
        ({"label_smoothing": 0.5, "types": ("robust",)}, ValueError, "less than 0.5 for robust"),
        ({"label_smoothing": 1.0}, ValueError, "label_smoothing: expected less than 1, got 1"),
        ({"label_smoothing": -0.1}, ValueError, "label_smoothing: .* >= 0, got -0.1"),
        ({"types": ("exo_pair",)}, ValueError, "label_smoothing: .* more than 0 for exo_pair"),
    ],
    ids=lambda x: "+".join(f"{k}-{v}" for k, v in x.items()) if isinstance(x, dict) else None,
)  # fmt: skip
def test_impossible_options_are_named(change, error, message):
    with pytest.raises(error, match=message):
        LossOptions(**change)


def test_arguments_that_do_not_go_together():
    case = Case()
    p = case.pair_logps()
    with pytest.raises(ValueError, match="step_chosen_tokens: expected together with step_pairs"):
        loss_of(p, LossOptions(("sft",)), step_pairs=8)
    for name in NO_WEIGHTS:
        with pytest.raises(ValueError, match=f"pair_weights: expected None with {name}"):
            loss_of(p, LossOptions((name,)), pair_weights=torch.ones(6))
    with pytest.raises(ValueError, match=r"pair_weights: expected shape \[6\], got \[5\]"):
        loss_of(p, LossOptions(), pair_weights=torch.ones(5))
    with pytest.raises(ValueError, match=r"rejected: expected shape \[6\], got \[5\]"):
        PairLogps(p.chosen, p.rejected[1:], *[p.chosen] * 4)


def test_scored_tokens_of_a_response():
    case = Case()
    assert torch.equal(scored(case.rows(case.ref), case.batch), case.ref)
