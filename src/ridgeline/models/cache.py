"""The paged cache behind transformers' cache interface: what ``past_key_values`` is here."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count

import torch
from torch import Tensor
from transformers import Cache

from ridgeline.cache import BlockManager, CacheSpec, CacheStep, OutOfBlocks, PagedCache
from ridgeline.ops.common import check

PAGE_SIZE = 64


class RidgelineCache(Cache):
    """Cached tokens of a batch, page by page, in rows that may share pages.

    Rows have lengths of their own: padding is not stored. Beams fork rows, which copies a page
    only when one of its owners writes to it. The pool of pages grows as the rows do.

    Args:
        spec, num_layers: the cache of one layer, and how many there are.
        rows, max_length: the first pool has pages for so many rows of so many tokens.
        copies: rows of the first forward come in groups of so many equal ones (the beams of one
            prompt), of which one is computed and stored.
        page_size: tokens a page.
        dtype, device: of the cached tokens.
    """

    def __init__(
        self,
        spec: CacheSpec,
        num_layers: int,
        *,
        rows: int = 1,
        max_length: int = 0,
        copies: int = 1,
        page_size: int = PAGE_SIZE,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(layers=[])
        self._copies = check.count("copies", copies, minimum=1)
        check.count("page_size", page_size, minimum=1)
        self._make = lambda pages: PagedCache(
            spec, num_layers, pages, page_size, dtype=dtype, device=device
        )
        self._page_bytes = num_layers * page_size * spec.bytes_per_token(dtype)
        self._page_size, self._num_layers = page_size, num_layers
        self.rows: list[int] = []
        self._ids = count()
        self._columns = 0
        pages = max(1, -(-check.count("max_length", max_length) // page_size))
        self._new_pool(check.count("rows", rows, minimum=1) * pages)

    def __len__(self) -> int:
        return self._num_layers

    def __repr__(self) -> str:
        return f"RidgelineCache({len(self.rows)} rows, {self.nbytes} bytes)"

    @property
    def batch_size(self) -> int:
        return len(self.rows) or -1

    @property
    def is_initialized(self) -> bool:
        return bool(self.rows)

    @property
    def nbytes(self) -> int:
        """Bytes of the pages in use; a page that rows share counts once."""
        return (self.manager.num_blocks - self.manager.num_free) * self._page_bytes

    def lengths(self, batch: int) -> list[int]:
        """Cached tokens of each row, padding left out; zeros before the first forward."""
        if not self.rows:
            return [0] * batch
        if batch != len(self.rows):
            raise ValueError(
                f"past_key_values: expected a cache of the {batch} rows of the input, "
                f"got one of {len(self.rows)}"
            )
        return [self.manager.length(row) for row in self.rows]

    def take_copies(self, batch: int) -> int:
        """How many equal rows in a row the next forward's ``batch`` rows come in."""
        if self.rows:
            return 1
        check.divides("copies", self._copies, "rows of the input", batch)
        return self._copies

    @contextmanager
    def step(self, batch: int, columns: int, lengths: Sequence[int] | None) -> Iterator[CacheStep]:
        """Room for ``columns`` new tokens a row, of which the last ``lengths[b]`` are real.

        An exception inside, or for want of memory, leaves the rows as they were.
        """
        before = dict(zip(self.rows, self.lengths(batch), strict=False))
        columns_before = self._columns
        lengths = [columns] * batch if lengths is None else lengths
        try:
            if not before:
                self.rows = [self._allocate() for _ in range(batch)]
            for row, n in zip(self.rows, lengths, strict=True):
                self._append(row, n)
            self._columns += columns
            yield CacheStep.build(self.pages, self.manager, self.rows, lengths, columns)
        except BaseException:
            if before:
                for row, length in before.items():
                    self.manager.truncate(row, length)
                self._columns = columns_before
            else:
                self.reset()
            raise

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns so far, padding included: what transformers slices its inputs by."""
        return self._columns

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self._columns + query_length, 0

    def reset(self) -> None:
        for row in self.rows:
            self.manager.free(row)
        self.rows, self._columns = [], 0

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the last ``-tokens_to_remove`` tokens of each row."""
        if tokens_to_remove > 0:
            raise ValueError(f"tokens_to_remove: expected at most 0, got {tokens_to_remove}")
        lengths = [n + tokens_to_remove for n in self.lengths(len(self.rows))]
        if min(lengths, default=0) < 0:
            raise ValueError(
                f"tokens_to_remove: expected at least {tokens_to_remove - min(lengths)} "
                f"(the shortest row), got {tokens_to_remove}"
            )
        for row, length in zip(self.rows, lengths, strict=True):
            self.manager.truncate(row, length)
        self._columns += tokens_to_remove if self.rows else 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        rows = torch.arange(len(self.rows))
        self.batch_select_indices(rows.repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Row i becomes what row ``indices[i]`` was; rows taken twice share their pages."""
        taken: set[int] = set()
        rows = []
        for i in indices.tolist():
            row = self.rows[i]
            if row in taken:
                row = next(self._ids)
                self.manager.fork(self.rows[i], row)
            taken.add(row)
            rows.append(row)
        for row in set(self.rows) - taken:
            self.manager.free(row)
        self.rows = rows

    def _new_pool(self, pages: int) -> None:
        self.pages = self._make(pages)
        # Rows share pages by forks alone: what a page holds also depends on masks and positions.
        self.manager = BlockManager(pages, self._page_size, prefix_reuse=False)

    def _allocate(self) -> int:
        row = next(self._ids)
        self.manager.allocate(row, [])
        return row

    def _append(self, row: int, tokens: int) -> None:
        # The manager counts tokens; without prefix reuse their ids mean nothing to it.
        new = [0] * tokens
        try:
            copies = self.manager.append(row, new)
        except OutOfBlocks:
            self._grow(tokens)
            copies = self.manager.append(row, new)
        self.pages.copy_pages(copies)

    def _grow(self, tokens: int) -> None:
        """Move to a pool of twice the pages that the rows fill, and room for ``tokens`` more.

        Rows no longer share pages there.
        """
        old = self.pages
        tables = {row: self.manager.block_table(row) for row in self.rows}
        lengths = [self.manager.length(row) for row in self.rows]
        used = sum(map(len, tables.values()))
        self._new_pool(2 * used + len(tables) * (1 + -(-tokens // self._page_size)))
        for (row, table), length in zip(tables.items(), lengths, strict=True):
            self.manager.allocate(row, [0] * length)
            src, dst = (
                torch.tensor(pages, dtype=torch.int64, device=old.device)
                for pages in (table, self.manager.block_table(row))
            )
            for layer in range(self._num_layers):
                for new, x in zip(self.pages.layer(layer), old.layer(layer), strict=True):
                    new[dst] = x[src]
