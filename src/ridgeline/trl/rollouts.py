"""Log-probabilities of the rollouts that GRPO scores, each prompt computed once.

GRPO (Shao et al., arXiv 2402.03300) samples G responses to a prompt and needs their per-token
log-probabilities three times: under the policy that sampled them, under the reference, and with
gradients under the policy in training. All three are this function.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakSet

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ridgeline.training.preference import (
    Counts,
    LogitTransform,
    collate,
    of_responses,
    scored,
    token_logps,
)
from ridgeline.trl.probe import refuse_leaks

# Some models take the name of an attention and do not use it: each is tried once.
_PROBED: WeakSet[PreTrainedModel] = WeakSet()


@dataclass(frozen=True, eq=False)
class RolloutLogps:
    """Per-token results of N prompts with G rollouts each, ``[N * G, C]``, prompt after prompt.

    Attributes:
        logps: log-probability of each token of the rollout in nats, 0 behind its end; float32 at
            least, and carries the gradient.
        entropy: of each prediction, without gradient; ``None`` if not asked for.
        mask: bool, where tokens are.
        counts: tokens computed, and what sharing saved.
    """

    logps: Tensor
    entropy: Tensor | None
    mask: Tensor
    counts: Counts


def rollout_logps(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    rollouts: Sequence[Sequence[Sequence[int]]],
    *,
    packing_length: int | None = None,
    temperature: float = 1.0,
    entropy: bool = False,
) -> RolloutLogps:
    """Packs every prompt with its rollouts and runs the model once.

    Args:
        model: a causal language model whose attention is ``"ridgeline"``
            (``model.set_attn_implementation("ridgeline")``), or a ``RidgelineForCausalLM``.
            Sampled with another temperature, its log-probabilities are those of ``temperature``.
        prompts: N prompts of token ids.
        rollouts: for each prompt its G sampled responses, token ids; G may differ.
        packing_length: most tokens of a row; ``None`` packs all into one.
        temperature: the logits are divided by it.
        entropy: give entropies, too.

    Raises:
        TypeError, ValueError: a prompt or rollout is empty or holds no token ids, a prompt with its
            rollouts is longer than ``packing_length``, the model's attention is another, or it does
            not keep the sequences of a row apart.
    """
    if len(prompts) != len(rollouts):
        raise ValueError(
            f"rollouts: expected those of {len(prompts)} prompts, got those of {len(rollouts)}"
        )
    text = model.config.get_text_config()
    if text.model_type != "ridgeline" and text._attn_implementation != "ridgeline":
        raise ValueError(
            "model: expected the attention 'ridgeline' (model.set_attn_implementation), got "
            f"{text._attn_implementation!r}"
        )
    if model not in _PROBED:
        refuse_leaks(model.base_model)
        _PROBED.add(model)
    trees = [of_responses(*group) for group in zip(prompts, rollouts, strict=True)]
    budget = packing_length or sum(map(len, trees))
    batch = collate(trees, budget=budget).to(model.device)
    states = model.base_model(**batch.model_inputs(), use_cache=False).last_hidden_state
    found = token_logps(
        states,
        model.get_output_embeddings(),
        batch.shift_labels,
        transform=LogitTransform(
            getattr(text, "final_logit_softcapping", None) or 0.0,
            getattr(text, "logit_scale", None) or 1.0,
            temperature,
        ),
        metrics=("entropy",) if entropy else (),
    )
    lengths = batch.response_lengths
    mask = torch.arange(int(lengths.max()), device=model.device) < lengths[:, None]

    def padded(values: Tensor) -> Tensor:
        return values.new_zeros(mask.shape).masked_scatter(mask, scored(values, batch))

    return RolloutLogps(
        padded(found.logps),
        padded(found.metrics["entropy"]) if entropy else None,
        mask,
        batch.counts,
    )
