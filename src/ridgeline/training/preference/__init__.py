"""Preference training that computes no prefix twice: layouts, log-probabilities and losses.

========= =====================================================================
trees     sequences with common prefixes as one depth-first row, and back
packing   first-fit-decreasing packing to a token budget
rows      trees as a padded batch, and back; what that saves, counted
logps     log-probabilities of labelled tokens from hidden states, in chunks
responses from tokens to responses: sums, the weights of LD-DPO and WPO
losses    the losses of TRL's DPOTrainer as pure functions
========= =====================================================================

Nothing here holds a model: give ``Batch.model_inputs()`` to a decoder whose attention is
``ridgeline``, its hidden states to ``token_logps``, those to ``per_response``, and pairs of them to
``preference_loss``.
"""

from ridgeline.training.preference.logps import LogitTransform, TokenLogps, token_logps
from ridgeline.training.preference.losses import LossOptions, PairLogps, preference_loss
from ridgeline.training.preference.packing import first_fit_decreasing
from ridgeline.training.preference.responses import (
    ld_weights,
    pairs,
    per_response,
    scored,
    wpo_weights,
)
from ridgeline.training.preference.rows import Batch, Counts, collate
from ridgeline.training.preference.trees import Tree, of_pair, of_responses, of_sequences

__all__ = [
    "Batch",
    "Counts",
    "LogitTransform",
    "LossOptions",
    "PairLogps",
    "TokenLogps",
    "Tree",
    "collate",
    "first_fit_decreasing",
    "ld_weights",
    "of_pair",
    "of_responses",
    "of_sequences",
    "pairs",
    "per_response",
    "preference_loss",
    "scored",
    "token_logps",
    "wpo_weights",
]
