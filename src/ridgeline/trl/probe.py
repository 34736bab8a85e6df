"""Whether a decoder keeps the responses of a shared row apart."""

import torch
from torch import Tensor, nn

from ridgeline.training.preference import Tree, collate, of_pair, of_responses

TOLERANCE = 0.05  # of the state's norm; bfloat16 rounds a few layers to some parts in a thousand


@torch.no_grad()
def refuse_leaks(decoder: nn.Module) -> None:
    """Raises ``ValueError`` unless a rejected response is what it is alone.

    A model may take ``subtree_end`` and pass it on to no layer, or have state that runs along the
    row beside attention. Three forwards of a handful of tokens find out.

    Args:
        decoder: from ``input_ids`` to ``last_hidden_state``, as it will be trained.
    """
    training = decoder.training
    decoder.eval()
    try:
        # [1 2 3 | x 8 | 3 | 5 6]: the last token's state, for two x, and in its sequence alone.
        first, other = (_last_state(decoder, of_pair([1, 2, 3], [x, 8], [5, 6])) for x in (4, 7))
        alone = _last_state(decoder, of_responses([1, 2, 3], [[5, 6]]))
    except (TypeError, ValueError) as e:
        raise _refusal(decoder, f"a row with subtree_end fails ({e})") from e
    finally:
        decoder.train(training)
    if not torch.equal(first, other):
        raise _refusal(decoder, "a rejected response in a shared row depends on the chosen one")
    if not (first - alone).norm() <= TOLERANCE * alone.norm():
        raise _refusal(decoder, "it does not use the positions that it is given")


def _last_state(decoder: nn.Module, tree: Tree) -> Tensor:
    device = next(decoder.parameters()).device
    inputs = {name: x.to(device) for name, x in collate([tree]).model_inputs().items()}
    return decoder(**inputs, use_cache=False).last_hidden_state[0, -1].float()


def _refusal(decoder: nn.Module, why: str) -> ValueError:
    return ValueError(
        f"model: expected a decoder that can keep sequences of a row apart, got "
        f"{type(decoder).__name__}: {why}; the trainer takes it with prefix_sharing and packing "
        "set to False"
    )
