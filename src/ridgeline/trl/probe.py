"""Whether a decoder keeps the responses of a shared row apart."""

from torch import nn

from ridgeline.transformers.support import leak


def refuse_leaks(decoder: nn.Module) -> None:
    """Raises ``ValueError`` unless a rejected response is what it is alone.

    A model may take ``subtree_end`` and pass it on to no layer, or have state that runs along the
    row beside attention. Three forwards of a handful of tokens find out.

    Args:
        decoder: from ``input_ids`` to ``last_hidden_state``, as it will be trained.
    """
    try:
        why = leak(decoder)
    except (TypeError, ValueError) as e:
        raise _refusal(decoder, f"a row with subtree_end fails ({e})") from e
    if why is not None:
        raise _refusal(decoder, why)


def _refusal(decoder: nn.Module, why: str) -> ValueError:
    return ValueError(
        f"model: expected a decoder that can keep sequences of a row apart, got "
        f"{type(decoder).__name__}: {why}; the trainer takes it with prefix_sharing and packing "
        "set to False"
    )
