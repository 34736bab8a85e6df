"""A cache of transformers that grows in place."""

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

MIN_ROOM = 256  # tokens


class GrowingCache(DynamicCache):
    """As ``DynamicCache``, without its copy of all cached tokens in every step.

    Full layers keep room for later tokens and grow by half when it is used up: over a whole
    generation each token is copied about twice more. Layers with a sliding window are transformers'
    own. Pass it to ``generate(..., past_key_values=GrowingCache(model.config))`` where the length
    is not known before; where it is, ``cache_implementation="static"`` does the same.

    Args:
        config: of the model.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config=config)
        self.layers = [GrowingLayer() if type(x) is DynamicLayer else x for x in self.layers]


class GrowingLayer(DynamicLayer):
    """``keys`` and ``values [B, h, n, d]`` are the first n tokens of stores with room for more."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self._key_store = self._value_store = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Add ``[B, h, L, d]`` and ``[B, h, L, d_v]``; all keys and values so far.

        Where a gradient flows into the new ones they are concatenated, as transformers does it.
        """
        if torch.is_grad_enabled() and (key_states.requires_grad or value_states.requires_grad):
            return super().update(key_states, value_states)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        length = self.get_seq_length()
        self._key_store, self.keys = _append(self._key_store, self.keys, length, key_states)
        self._value_store, self.values = _append(
            self._value_store, self.values, length, value_states
        )
        return self.keys, self.values


def _append(store: Tensor | None, old: Tensor, length: int, new: Tensor) -> tuple[Tensor, Tensor]:
    """A store that begins with the ``length`` tokens of ``old`` and then ``new``; and their view.

    ``old`` may have been replaced since by reordered or selected rows, or been cropped.
    """
    total = length + new.shape[2]
    begins = store is not None and old.data_ptr() == store.data_ptr()
    if not begins or old.stride() != store.stride() or store.shape[2] < total:
        room = total + max(total // 2, MIN_ROOM)
        # Made outside inference mode, so that it can be written outside.
        with torch.inference_mode(False):
            store = torch.empty(
                (*new.shape[:2], room, new.shape[3]), dtype=new.dtype, device=new.device
            )
        if length:
            store[:, :, :length] = old
    store[:, :, length:total] = new
    return store, store[:, :, :total]
