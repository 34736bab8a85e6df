"""The storage of the cache: pages of tokens, for all layers, that layers write and kernels read."""

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from ridgeline.cache.spec import CacheSpec
from ridgeline.ops.common import check

HUGE_PAGE = 2 << 20  # bytes


def _storage(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Uninitialised memory; on a CPU in huge pages, where the system gives them.

    Reading a cache in random pages misses the TLB at every 4 KiB otherwise, and the prefetch with
    it. numpy asks for huge pages (madvise), torch does not.
    """
    nbytes = math.prod(shape) * dtype.itemsize
    if torch.device(device).type != "cpu" or nbytes < HUGE_PAGE:
        return torch.empty(shape, dtype=dtype, device=device)
    memory = np.empty(nbytes + HUGE_PAGE, dtype=np.uint8)
    start = -memory.ctypes.data % HUGE_PAGE
    return torch.from_numpy(memory[start : start + nbytes]).view(dtype).view(shape)


class PagedCache:
    """Pages of cached tokens for every layer of one rank.

    A paired cache holds K ``[num_layers, num_pages, page_size, heads, dim]`` and V of the same
    shape with ``value_dim``. A tied cache holds one record per token, the states of this rank and
    then the RoPE key: ``[num_layers, num_pages, page_size, heads * dim + rope_dim]``.

    The memory is uninitialised: on a CPU the system commits a page of it when it is first
    written (a huge page of 2 MiB), so a large ``num_pages`` costs address space only.

    Args:
        spec: the cache of one layer on this rank.
        num_layers, num_pages, page_size: at least 1 each; ``page_size`` is in tokens.
        dtype: bfloat16, float16, float32 or float64.
        device: where the pages live.

    Raises:
        TypeError, ValueError: an argument has the wrong type or an impossible size.
    """

    def __init__(
        self,
        spec: CacheSpec,
        num_layers: int,
        num_pages: int,
        page_size: int = 64,
        *,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        if not isinstance(spec, CacheSpec):
            raise TypeError(f"spec: expected a CacheSpec, got {type(spec).__name__}")
        if dtype not in check.FLOATS:
            names = ", ".join(str(d).removeprefix("torch.") for d in check.FLOATS)
            raise TypeError(f"dtype: expected {names}, got {dtype}")
        self.spec = spec
        self.num_layers = check.count("num_layers", num_layers, minimum=1)
        self.num_pages = check.count("num_pages", num_pages, minimum=1)
        self.page_size = check.count("page_size", page_size, minimum=1)
        self.dtype = dtype
        tokens = (num_layers, num_pages, page_size)
        # Made outside inference mode, so that a cache made inside it can be written outside.
        with torch.inference_mode(False):
            if spec.kind == "paired":
                self._stores = tuple(
                    _storage((*tokens, spec.heads, dim), dtype, device)
                    for dim in (spec.dim, spec.value_dim)
                )
                views = self._stores
            else:
                width = spec.heads * spec.dim
                record = _storage((*tokens, width + spec.rope_dim), dtype, device)
                self._stores = (record,)
                views = (
                    record[..., :width].unflatten(-1, (spec.heads, spec.dim)),
                    record[..., width:],
                )
            self._layers = [tuple(view[i] for view in views) for i in range(num_layers)]
            # [num_pages * page_size, ...]: what a slot indexes. Pages are dense, so this is a view.
            self._slots = [tuple(view.flatten(0, 1) for view in layer) for layer in self._layers]
        self.device = self._stores[0].device
        self._names = ("k", "v") if spec.kind == "paired" else ("state", "rope")

    @property
    def nbytes(self) -> int:
        """Bytes of all pages of all layers, written or not."""
        return sum(store.nbytes for store in self._stores)

    def layer(self, i: int) -> tuple[Tensor, Tensor]:
        """The pages of layer ``i`` as the decode operations take them.

        Returns:
            paired: ``k_cache [num_pages, page_size, heads, dim]`` and ``v_cache`` (``value_dim``);
            tied: ``state_cache [num_pages, page_size, heads, dim]`` and
            ``rope_cache [num_pages, page_size, rope_dim]``, views of the same records.
        """
        return self._layers[self._index(i)]

    def write(self, i: int, slots: Tensor, *new: Tensor) -> None:
        """Store new tokens in layer ``i``.

        Args:
            i: the layer.
            slots: ``[T]`` int64 on the cache's device, ``page * page_size + offset`` of each token,
                or -1 for a token that is not stored (padding). No slot may occur twice. Their
                values are read on the host: on a GPU that waits for the device, once a call.
                ``CacheStep`` reads them once a step instead.
            new: paired ``k [T, heads, dim]``, ``v [T, heads, value_dim]``; tied
                ``state [T, heads, dim]``, ``rope [T, rope_dim]``; in the dtype of the cache. They
                are stored without their autograd history.

        Raises:
            TypeError, ValueError, IndexError: a wrong type, shape, dtype, device, slot or layer.
                Nothing was written.
        """
        rows, kept = self.check_slots(slots)
        self.store(i, slots.shape[0], rows, kept, *new)

    def check_slots(self, slots: Tensor) -> tuple[Tensor | None, Tensor]:
        """Check ``slots`` and leave out the -1s: ``(rows, slots[rows])``.

        ``rows`` is ``None`` where every token is stored.
        """
        check.tensor("slots", slots)
        check.shape("slots", slots, ("T",))
        check.dtype("slots", slots, (torch.int64,))
        self._same_device("slots", slots)
        if slots.shape[0] == 0:
            return None, slots
        low, high = (int(x) for x in slots.aminmax())
        if low < -1 or high >= self.num_pages * self.page_size:
            raise ValueError(
                f"slots: expected -1 or a slot in [0, {self.num_pages * self.page_size}) "
                f"({self.num_pages} pages of {self.page_size}), got {low if low < -1 else high}"
            )
        if low >= 0:
            return None, slots
        rows = (slots >= 0).nonzero().squeeze(1)
        return rows, slots[rows]

    def store(self, i: int, tokens: int, rows: Tensor | None, kept: Tensor, *new: Tensor) -> None:
        """``write`` of ``tokens`` tokens with what ``check_slots`` made of their slots."""
        views = self._slots[self._index(i)]
        if len(new) != len(views):
            raise TypeError(f"new: expected {' and '.join(self._names)}, got {len(new)} tensors")
        for name, view, x in zip(self._names, views, new, strict=True):
            check.tensor(name, x)
            check.shape(name, x, (tokens, *view.shape[1:]))
            check.dtype(name, x, (self.dtype,))
            self._same_device(name, x)
        for view, x in zip(views, new, strict=True):
            x = x.detach()
            view.index_copy_(0, kept, x if rows is None else x[rows])

    def copy_pages(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Copy page ``src`` to page ``dst`` in every layer, pair by pair in the order given.

        Raises:
            TypeError, ValueError: a page id is not an integer in ``[0, num_pages)``. Nothing was
                copied.
        """
        pairs = list(pairs)
        for pair in pairs:
            for name, page in zip(("src", "dst"), pair, strict=True):
                if check.count(name, page) >= self.num_pages:
                    raise ValueError(
                        f"{name}: expected a page in [0, {self.num_pages}), got {page}"
                    )
        for src, dst in pairs:
            for store in self._stores:
                store[:, dst].copy_(store[:, src])

    def _index(self, i: int) -> int:
        if not 0 <= i < self.num_layers:
            raise IndexError(f"layer: expected an index in [0, {self.num_layers}), got {i}")
        return i

    def _same_device(self, name: str, x: Tensor) -> None:
        if x.device != self.device:
            raise ValueError(f"{name}: expected device {self.device} as the cache, got {x.device}")
