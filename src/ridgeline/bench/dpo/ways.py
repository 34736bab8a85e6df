"""A decoder, and every way to compute one training step of it on the same pairs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask
from transformers import LlamaConfig, LlamaForCausalLM

import ridgeline.transformers
from ridgeline.bench.dpo.profiles import Pair
from ridgeline.ops.attention import subtree_end
from ridgeline.training import preference
from ridgeline.training.preference import Batch

BETA = 0.1
BEST = "shared and packed"
MASKED, FLEX = "SDPA with mask", "FlexAttention"
TRL, OURS = "TRL", "our trainer"


@dataclass(frozen=True)
class ModelShape:
    """A Llama of random weights; by default one of 55 million parameters."""

    hidden: int = 768
    intermediate: int = 2048
    layers: int = 6
    heads: int = 12
    vocab: int = 8192

    def build(self) -> LlamaForCausalLM:
        torch.manual_seed(0)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=self.vocab,
                hidden_size=self.hidden,
                intermediate_size=self.intermediate,
                num_hidden_layers=self.layers,
                num_attention_heads=self.heads,
                num_key_value_heads=self.heads,
                head_dim=self.hidden // self.heads,
                max_position_embeddings=2**17,
                use_cache=False,
            )
        )


@dataclass(frozen=True, eq=False)
class Way:
    """One way to compute a step: ``loss`` runs the forward pass, the gradients are the model's.

    Attributes:
        name: what it is called.
        loss: returns the scalar.
        tokens: that the model computes, padding included.
    """

    name: str
    loss: Callable[[], Tensor]
    tokens: int
    model: LlamaForCausalLM = field(repr=False)

    def step(self) -> Tensor:
        """Forward and backward; the gradients replace those before."""
        self.model.zero_grad(set_to_none=True)
        loss = self.loss()
        loss.backward()
        return loss.detach()


class Pairs:
    """Pairs in the layouts of all ways, and their log-probabilities under a reference.

    The reference is the model itself with noise, so that no pair's margin is 0.
    """

    def __init__(self, model: LlamaForCausalLM, ids: Sequence[Pair]) -> None:
        self.model, self.ids = model, ids
        self.alone = [
            preference.of_responses(prompt, [response])
            for prompt, *both in ids
            for response in both
        ]
        self.shared = [preference.of_pair(*pair) for pair in ids]
        with torch.no_grad():
            batch = preference.collate(self.alone)
            found = preference.pairs(self._responses("sdpa", batch, **self._two_dimensional(batch)))
        g = torch.Generator().manual_seed(0)
        self.ref = tuple(x + torch.randn(len(ids), generator=g) for x in found)

    def ways(self) -> list[Way]:
        """Ridgeline's, and those of PyTorch that fit the same functions; ``padded`` first."""
        packed = {"budget": sum(map(len, self.alone))}
        padded = preference.collate(self.alone)
        row = preference.collate(self.shared, **packed)
        visible = _visible(row)
        return [
            self._way("padded", padded, "sdpa", **self._two_dimensional(padded)),
            self._way("packed", preference.collate(self.alone, **packed)),
            self._way("shared", preference.collate(self.shared)),
            self._way(BEST, row),
            self._way(MASKED, row, "sdpa", attention_mask=visible),
        ]

    def flex(self) -> Way:
        """FlexAttention with the paper's mask.

        Raises:
            NotImplementedError: of its backward, where this device has none.
        """
        row = preference.collate(self.shared, budget=sum(map(len, self.shared)))
        ends = row.subtree_end[0]
        length = row.input_ids.shape[1]
        mask = create_block_mask(
            lambda b, h, i, j: (j <= i) & (i < ends[j]), None, None, length, length, device="cpu"
        )
        return self._way(FLEX, row, "flex_attention", attention_mask=mask)

    def _way(
        self,
        name: str,
        batch: Batch,
        attention: str = ridgeline.transformers.NAME,
        **inputs: Tensor,
    ) -> Way:
        if attention == ridgeline.transformers.NAME:
            inputs["subtree_end"] = batch.subtree_end
        loss = partial(self._loss, attention, batch, **inputs)
        return Way(name, loss, batch.input_ids.numel(), self.model)

    def _loss(self, attention: str, batch: Batch, **inputs: Tensor) -> Tensor:
        policy = preference.pairs(self._responses(attention, batch, **inputs))
        lengths = preference.pairs(batch.response_lengths)
        logps = preference.PairLogps(*policy, *self.ref, *lengths)
        return preference.preference_loss(logps, preference.LossOptions(beta=BETA))

    def _responses(self, attention: str, batch: Batch, **inputs: Tensor) -> Tensor:
        self.model.set_attn_implementation(attention)
        hidden = self.model.model(
            input_ids=batch.input_ids, position_ids=batch.position_ids, **inputs
        ).last_hidden_state
        tokens = preference.token_logps(hidden, self.model.lm_head, batch.shift_labels)
        return preference.per_response(tokens.logps, batch)

    def _two_dimensional(self, batch: Batch) -> dict[str, Tensor]:
        """The mask of sequences alone in their padded rows."""
        lengths = torch.tensor([len(tree) for tree in self.alone])
        return {
            "attention_mask": (torch.arange(batch.input_ids.shape[1]) < lengths[:, None]).long()
        }


def _visible(batch: Batch) -> Tensor:
    """``[B, 1, L, L]`` bool: which keys each query sees."""
    subtree_end.check(batch.subtree_end)
    index = torch.arange(batch.input_ids.shape[1])
    before = index <= index[:, None]
    return (before & (index[:, None] < batch.subtree_end[:, None]))[:, None]
