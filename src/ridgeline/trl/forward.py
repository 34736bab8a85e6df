"""Hooks that put rows of shared prompts between TRL's call of a model and the model.

TRL's trainer calls ``model(input_ids, attention_mask, labels=..., fused_lm_head=True)`` with a
padded batch and reads per-token results of that shape: log-probabilities, and what its metrics
need. On a batch that carries rows (``collator``) these hooks

1. exchange, before the model, the padded batch for the rows;
2. keep, after its decoder, only the states that predict a scored token, so that no other is
   projected through the LM head;
3. put the head's results, after the model, where TRL expects them.

Everything between is TRL's and the model's own code, on as many tokens as there are: every loss,
every metric, adapters, wrappers for data parallelism, automatic mixed precision.
"""

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from ridgeline.training.preference import Counts
from ridgeline.training.preference.trees import IGNORE
from ridgeline.trl import collator


class RowForward:
    """The hooks of one model, and what they remember during a call.

    Args:
        model: what TRL calls, a causal language model or a PEFT model of one.
        decoder: the part of it below the LM head.
    """

    def __init__(self, model: nn.Module, decoder: nn.Module) -> None:
        self._shape: tuple[int, int] | None = None
        self._slots: Tensor | None = None
        self._score_index: Tensor | None = None
        model.register_forward_pre_hook(self._before_model, with_kwargs=True)
        model.register_forward_hook(self._after_model)
        decoder.register_forward_hook(self._after_decoder)

    def _before_model(
        self, _: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]]:
        rows = {name: kwargs[name] for name in collator.ROW_NAMES if name in kwargs}
        kwargs = {name: x for name, x in kwargs.items() if name not in rows}
        self._slots = None
        # Without the fused head a caller wants the logits of the padded batch.
        if not rows or not kwargs.get("fused_lm_head"):
            return args, kwargs
        labels = kwargs.pop("labels")[:, 1:]
        _check_rows(rows, labels)
        del kwargs["attention_mask"]
        self._shape, self._slots = labels.shape, rows[collator.SLOTS]
        self._score_index = rows[collator.SCORE_INDEX]
        kwargs["input_ids"] = rows[collator.INPUT_IDS]
        kwargs["position_ids"] = rows[collator.POSITION_IDS]
        kwargs["subtree_end"] = rows[collator.SUBTREE_END]
        kwargs["shift_labels"] = labels.flatten()[self._slots][None]
        return args, kwargs

    def _after_decoder(self, _: nn.Module, args: tuple, output: ModelOutput) -> ModelOutput | None:
        if self._slots is None:
            return None
        states = output.last_hidden_state.flatten(0, 1)
        output.last_hidden_state = states.index_select(0, self._score_index)[None]
        return output

    def _after_model(self, _: nn.Module, args: tuple, output: ModelOutput) -> ModelOutput | None:
        if self._slots is None:
            return None
        slots, self._slots = self._slots, None
        places = slots // self._shape[1], slots % self._shape[1]
        for name in ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1"):
            values = getattr(output, name)
            if values is not None:  # put in place and not viewed: FSDP2 hooks what comes out
                setattr(output, name, values.new_zeros(self._shape).index_put(places, values[0]))
        output.label_mask = torch.zeros(self._shape, dtype=torch.bool, device=slots.device)
        output.label_mask[places] = True
        return output


def _check_rows(rows: dict[str, Tensor], labels: Tensor) -> None:
    """Refuses rows that something between the collator and the model has cut."""
    missing = [name for name in collator.ROW_NAMES if name not in rows]
    if missing:
        raise ValueError(f"inputs: expected {', '.join(collator.ROW_NAMES)}, lacks {missing[0]}")
    scored = int((labels != IGNORE).sum())
    for name, expected in (
        (collator.SLOTS, scored),
        (collator.SCORE_INDEX, scored),
        (collator.COUNTS, len(fields(Counts))),
    ):
        if rows[name].shape != (expected,):
            raise ValueError(
                f"{name}: expected [{expected}] entries, as the collator makes them, got "
                f"{list(rows[name].shape)}; a loader that slices batches cuts their rows"
            )
