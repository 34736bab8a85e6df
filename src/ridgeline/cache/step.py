"""One forward step of a batch over a paged cache: what a layer sees of the cache."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ridgeline.cache.block_manager import BlockManager
from ridgeline.cache.paged import PagedCache
from ridgeline.ops.common import check, paging


@dataclass(frozen=True, eq=False)
class CacheStep:
    """Where the new tokens of a step are stored, and which pages its sequences read.

    The values of ``slots`` are checked here, once a step, so that a layer's write is only a copy.

    Args:
        cache: the pages of all layers.
        block_table: ``[B, max_pages]`` int32, the page ids of each sequence in order.
        cache_seqlens: ``[B]`` int32, tokens of each sequence, the new ones included.
        slots: ``[B * L_q]`` int64, ``page * page_size + offset`` of each new token; -1 for padding.
        query_lens: new tokens of each sequence where the batch is left-padded to ``L_q``;
            ``None`` where each has ``L_q``.
        is_prefill: every sequence of the batch starts here; nothing was cached before.

    Raises:
        TypeError, ValueError: a wrong type, shape, dtype, device or slot.
    """

    cache: PagedCache
    block_table: Tensor
    cache_seqlens: Tensor
    slots: Tensor
    query_lens: list[int] | None
    is_prefill: bool
    _rows: Tensor | None = field(init=False, repr=False)
    _kept: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check.tensor("block_table", self.block_table)
        check.shape("block_table", self.block_table, ("B", "max_pages"))
        paging.check_table(self.block_table, self.cache_seqlens, self.block_table.shape[0])
        rows, kept = self.cache.check_slots(self.slots)
        check.same_device(
            slots=self.slots, block_table=self.block_table, cache_seqlens=self.cache_seqlens
        )
        batch, tokens = self.batch, self.slots.shape[0]
        if tokens and (batch == 0 or tokens % batch):
            raise ValueError(
                f"slots: expected L_q for each of {batch} sequences of block_table, got {tokens}"
            )
        if self.query_lens is not None:
            _check_lens("query_lens", self.query_lens, batch, self.query_len)
        object.__setattr__(self, "_rows", rows)
        object.__setattr__(self, "_kept", kept)

    @property
    def batch(self) -> int:
        return self.block_table.shape[0]

    @property
    def query_len(self) -> int:
        """``L_q``, padding included."""
        return self.slots.shape[0] // max(self.batch, 1)

    @classmethod
    def build(
        cls,
        cache: PagedCache,
        manager: BlockManager,
        seq_ids: Sequence[Hashable],
        new_lens: Sequence[int],
        query_len: int,
    ) -> "CacheStep":
        """The step that computes the last ``new_lens[b]`` tokens of each sequence.

        The manager must know these tokens already (``allocate`` or ``append``), and the page
        copies it asked for must be done.

        Args:
            cache, manager: with the same page and block size, and a page for each block.
            seq_ids: the sequences of the batch, in order.
            new_lens: new tokens of each, 0 to ``query_len``; shorter ones are left-padded.
            query_len: ``L_q``, at least 1.

        Raises:
            TypeError, ValueError, KeyError: sizes that do not match, or an unknown sequence.
        """
        page_size = cache.page_size
        if manager.block_size != page_size:
            raise ValueError(
                f"manager: expected blocks of the cache's page_size {page_size}, "
                f"got {manager.block_size}"
            )
        if manager.num_blocks > cache.num_pages:
            raise ValueError(
                f"manager: expected at most the cache's {cache.num_pages} pages as blocks, "
                f"got {manager.num_blocks}"
            )
        check.count("query_len", query_len, minimum=1)
        _check_lens("new_lens", new_lens, len(seq_ids), query_len)
        tables = [manager.block_table(seq_id) for seq_id in seq_ids]
        lengths = [manager.length(seq_id) for seq_id in seq_ids]
        for seq_id, new, length in zip(seq_ids, new_lens, lengths, strict=True):
            if new > length:
                raise ValueError(
                    f"new_lens: expected at most the {length} tokens of sequence {seq_id!r}, "
                    f"got {new}"
                )
        width = max((len(table) for table in tables), default=0) or 1
        # Entries past a sequence's last page are never read; 0 is as good as any.
        table = torch.tensor(
            [row + [0] * (width - len(row)) for row in tables], dtype=torch.int32
        ).view(len(tables), width)
        seqlens = torch.tensor(lengths, dtype=torch.int32)
        column = torch.arange(query_len)
        # [B, L_q]: a token's position in its sequence; padding stands left of the new tokens.
        position = seqlens[:, None] - query_len + column
        padding = column < query_len - torch.tensor(new_lens, dtype=torch.int64)[:, None]
        position.masked_fill_(padding, 0)
        page = table.long().gather(1, position // page_size)
        slots = (page * page_size + position % page_size).masked_fill_(padding, -1)
        return cls(
            cache=cache,
            block_table=table.to(cache.device),
            cache_seqlens=seqlens.to(cache.device),
            slots=slots.flatten().to(cache.device),
            query_lens=None if all(n == query_len for n in new_lens) else list(new_lens),
            is_prefill=lengths == list(new_lens),
        )

    def write(self, layer: int, *new: Tensor) -> None:
        """Store this step's tokens in ``layer``.

        Args:
            layer: the layer's index in the cache.
            new: paired ``k [B, L_q, heads, dim]``, ``v [B, L_q, heads, value_dim]``; tied
                ``state [B, L_q, heads, dim]``, ``rope [B, L_q, rope_dim]``. The two leading
                dims may also come as one, ``[B * L_q, ...]``.
        """
        views = self.views(layer)
        if len(new) == len(views):
            new = tuple(self._tokens(x, view.dim()) for x, view in zip(new, views, strict=True))
        self.cache.store(layer, self.slots.shape[0], self._rows, self._kept, *new)

    def views(self, layer: int) -> tuple[Tensor, Tensor]:
        """The pages of ``layer``, as ``PagedCache.layer``."""
        return self.cache.layer(layer)

    def _tokens(self, x: Tensor, dims: int) -> Tensor:
        """``[B, L_q, ...]`` of ``dims`` dims as ``[B * L_q, ...]``; anything else as it is."""
        batched = isinstance(x, Tensor) and x.dim() == dims
        if batched and x.shape[:2] == (self.batch, self.query_len):
            return x.flatten(0, 1)
        return x


def _check_lens(name: str, lens: Sequence[int], batch: int, query_len: int) -> None:
    if len(lens) != batch:
        raise ValueError(f"{name}: expected one for each of {batch} sequences, got {len(lens)}")
    for b, n in enumerate(lens):
        if check.count(f"{name}[{b}]", n) > query_len:
            raise ValueError(f"{name}[{b}]: expected at most L_q ({query_len}), got {n}")
