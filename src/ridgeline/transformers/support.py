"""Whether all of a model's attention is Ridgeline's, asked before it computes something."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ridgeline import subtree_end
from ridgeline.transformers.masks import refuse_model

TOLERANCE = 0.05  # of the state's norm; bfloat16 rounds a few layers to some parts in a thousand


def check_model(model: PreTrainedModel) -> None:
    """Raise unless every layer of ``model`` keeps the sequences of a row apart.

    A model that calls no ``AttentionInterface`` never reaches Ridgeline: it ignores the selected
    implementation and ``subtree_end``, and lets packed sequences see each other. Its class tells,
    or else three forwards of at most eight tokens.

    Args:
        model: with ``"ridgeline"`` selected; weights, modes and gradients stay as they are.

    Raises:
        TypeError: not a model of transformers, one whose attention does not go through
            ``AttentionInterface``, or one with another implementation selected.
        NotImplementedError: layers that are not plain attention, state that runs along the row, or
            a forward in which a sequence depends on another or not on its positions.
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"model: expected a PreTrainedModel, got {type(model).__name__}")
    name, config = type(model).__name__, model.config.get_text_config(decoder=True)
    refuse_model(config)
    if any(getattr(x, "_is_stateful", False) for x in model.modules()):
        raise NotImplementedError(
            f"model: expected attention alone, got {name}, whose recurrent layers carry state "
            "across packed sequences"
        )
    if not model._can_set_attn_implementation():
        raise TypeError(
            "model: expected one that calls its attention through transformers' "
            f"AttentionInterface, got {name}, which ignores attn_implementation"
        )
    if config._attn_implementation != "ridgeline":
        raise TypeError(
            "model: expected attn_implementation='ridgeline', got "
            f"{config._attn_implementation!r} in {name}; call set_attn_implementation first"
        )
    try:
        why = leak(model.base_model)
    except ValueError as e:
        raise NotImplementedError(f"model: {name} cannot take subtree_end: {e}") from e
    if why is not None:
        raise NotImplementedError(f"model: expected sequences kept apart, got {name}: {why}")


@torch.no_grad()
def leak(decoder: nn.Module) -> str | None:
    """Why a rejected response in a shared row is not what it is alone; ``None``: it is.

    ``decoder`` takes ``input_ids``; the first of its outputs is the last hidden state.
    """
    modes = [(module, module.training) for module in decoder.modules()]
    decoder.eval()
    try:
        # prompt 1 2 3 | chosen x 8 | 3 | rejected 5 6, for two x; and prompt | rejected.
        pair = subtree_end.of_pair(3, 2, 2)
        tree = {"position_ids": pair.position_ids, "subtree_end": pair.subtree_end}
        first, other = (_last_state(decoder, [1, 2, 3, x, 8, 3, 5, 6], **tree) for x in (4, 7))
        alone = _last_state(decoder, [1, 2, 3, 5, 6])
    finally:
        for module, training in modes:
            module.training = training
    if not torch.equal(first, other):
        return "a rejected response in a shared row depends on the chosen one"
    if not (first - alone).norm() <= TOLERANCE * alone.norm():
        return "it does not use the positions that it is given"
    return None


def _last_state(decoder: nn.Module, ids: list[int], **tree: Tensor) -> Tensor:
    device = next(decoder.parameters()).device
    inputs = {name: x[None].to(device) for name, x in tree.items()}
    out = decoder(input_ids=torch.tensor([ids], device=device), use_cache=False, **inputs)
    return out[0][0, -1].float()
