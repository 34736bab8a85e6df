"""Which sequence owns which page: reference counts, prefix reuse, fork, copy-on-write, free.

Pure bookkeeping over token ids and block numbers. A block is one page of a ``PagedCache``; the
manager never touches its contents.
"""

import hashlib
import struct
from array import array
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from ridgeline.ops.common import check


class OutOfBlocks(RuntimeError):
    """More blocks are needed than are free; the manager is as it was before the call."""

    def __init__(self, needed: int, free: int, total: int) -> None:
        super().__init__(f"{needed} more blocks are needed, {free} of {total} are free")
        self.needed, self.free, self.total = needed, free, total


def root_digest(salt: bytes = b"") -> bytes:
    """The digest of an empty prefix."""
    return hashlib.sha256(salt).digest()


def block_digest(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """SHA-256 of the digest of all tokens before a full block and of the block's own tokens.

    It names the whole prefix. Tokens count as 64-bit little-endian integers, so it is the same on
    every machine and in every process, and nobody can build two prefixes that share one.
    """
    return hashlib.sha256(parent + struct.pack(f"<{len(token_ids)}q", *token_ids)).digest()


@dataclass(slots=True)
class _Sequence:
    tokens: array
    blocks: list[int]
    # digests[i] names the first i blocks; only as many as were needed so far.
    digests: list[bytes]
    # Leading full blocks that were reused or committed.
    committed: int = 0


class BlockManager:
    """Gives blocks of tokens to sequences, and gives the same block to sequences that agree.

    Life of a block: ``allocate`` or ``append`` hands it to a sequence; a forward pass writes it;
    ``commit`` says so. From then on, if it is full, any sequence whose tokens up to the block's end
    are the same may share it. Until then nobody is offered it, so two sequences of one batch with
    the same prompt each compute their own. When its last owner lets it go, a committed block
    remains reusable until it is the least recently used one and a block is needed.

    Invariant: a slot is written only while its block has one owner and is not offered for reuse.

    Args:
        num_blocks: blocks to give out, numbered from 0.
        block_size: tokens a block, the ``page_size`` of the cache.
        prefix_reuse: share committed blocks between sequences; forks share in any case.
    """

    def __init__(self, num_blocks: int, block_size: int, *, prefix_reuse: bool = True) -> None:
        self.num_blocks = check.count("num_blocks", num_blocks, minimum=1)
        self.block_size = check.count("block_size", block_size, minimum=1)
        self.prefix_reuse = check.flag("prefix_reuse", prefix_reuse)
        self._sequences: dict[Hashable, _Sequence] = {}
        self._owners = [0] * num_blocks
        # Free blocks without reusable contents. The last one freed is given out first: its memory
        # is warm, and pages that were never needed are never touched.
        self._blank = list(range(num_blocks))[::-1]
        # Free blocks with reusable contents, the least recently used first.
        self._cached: OrderedDict[int, None] = OrderedDict()
        # Committed blocks by name and back. Several hold the same where several computed it.
        self._blocks_of: dict[bytes, set[int]] = {}
        self._digest_of: dict[int, bytes] = {}

    @property
    def num_free(self) -> int:
        """Blocks without an owner, those with reusable contents included."""
        return len(self._blank) + len(self._cached)

    def length(self, seq_id: Hashable) -> int:
        """Tokens of a sequence."""
        return len(self._get(seq_id).tokens)

    def block_table(self, seq_id: Hashable) -> list[int]:
        """The blocks of a sequence, in order."""
        return list(self._get(seq_id).blocks)

    def allocate(self, seq_id: Hashable, token_ids: Sequence[int], *, salt: bytes = b"") -> int:
        """Start a sequence, on committed blocks as far as its tokens match.

        Args:
            seq_id: a name that no live sequence has.
            token_ids: its first tokens; may be empty.
            salt: sequences share blocks only under the same salt. Give whatever else decides the
                contents, such as a tenant or an adapter.

        Returns:
            How many leading tokens are cached already: whole blocks, and never all of the tokens,
            since the last one must be computed to go on.

        Raises:
            OutOfBlocks, TypeError, ValueError: nothing has changed.
        """
        self._check_new("seq_id", seq_id)
        tokens = _as_tokens(token_ids)
        if not isinstance(salt, bytes):
            raise TypeError(f"salt: expected bytes, got {type(salt).__name__}")
        seq = _Sequence(tokens, [], [root_digest(salt)])
        reused = self._match(seq)
        self._reserve(
            self._blocks_for(len(tokens)) - len(reused),
            keep=sum(self._owners[block] == 0 for block in reused),
        )
        for block in reused:
            self._cached.pop(block, None)
            self._owners[block] += 1
        seq.blocks, seq.committed = reused, len(reused)
        self._grow(seq)
        self._sequences[seq_id] = seq
        return seq.committed * self.block_size

    def append(self, seq_id: Hashable, token_ids: Sequence[int]) -> list[tuple[int, int]]:
        """Make room for new tokens at the end of a sequence.

        Returns:
            Page copies ``(src, dst)`` to do before the new tokens are written, in the order in
            which the manager returned them: the last block was shared and is now the sequence's
            own.

        Raises:
            OutOfBlocks, KeyError, TypeError, ValueError: nothing has changed.
        """
        seq = self._get(seq_id)
        tokens = _as_tokens(token_ids)
        if not tokens:
            return []
        partial = len(seq.tokens) % self.block_size != 0
        shared = partial and self._owners[seq.blocks[-1]] > 1
        needed = self._blocks_for(len(seq.tokens) + len(tokens)) - len(seq.blocks)
        self._reserve(needed + shared)
        copies = []
        if shared:
            src = seq.blocks[-1]
            self._owners[src] -= 1
            seq.blocks[-1] = self._take()
            copies.append((src, seq.blocks[-1]))
        elif partial:
            # A full block that was cut by `truncate` may still be offered under its old tokens.
            self._forget(seq.blocks[-1])
        seq.tokens.extend(tokens)
        self._grow(seq)
        return copies

    def commit(self, seq_id: Hashable) -> None:
        """Say that every token of a sequence is written in every layer: share its full blocks.

        Call it after the forward pass. A sequence that is never committed is served as well, but
        its blocks are not reused.

        Raises:
            KeyError: an unknown sequence.
        """
        seq = self._get(seq_id)
        if not self.prefix_reuse:
            return
        full = len(seq.tokens) // self.block_size
        for i in range(seq.committed, full):
            block, digest = seq.blocks[i], self._digest(seq, i)
            self._digest_of[block] = digest
            self._blocks_of.setdefault(digest, set()).add(block)
        seq.committed = full

    def fork(self, parent_id: Hashable, child_id: Hashable) -> None:
        """Start ``child_id`` as a copy of ``parent_id`` that shares all its blocks.

        The parent's tokens must be written before either of the two appends: the copy of a shared
        last block takes what is there.

        Raises:
            KeyError, ValueError: an unknown parent, or a child that exists. Nothing has changed.
        """
        parent = self._get(parent_id)
        self._check_new("child_id", child_id)
        for block in parent.blocks:
            self._owners[block] += 1
        self._sequences[child_id] = _Sequence(
            parent.tokens[:], list(parent.blocks), list(parent.digests), parent.committed
        )

    def truncate(self, seq_id: Hashable, length: int) -> None:
        """Keep the first ``length`` tokens, as when speculated tokens are rejected.

        Raises:
            KeyError, TypeError, ValueError: an unknown sequence or a length beyond its own.
                Nothing has changed.
        """
        seq = self._get(seq_id)
        if check.count("length", length) > len(seq.tokens):
            raise ValueError(
                f"length: expected at most the {len(seq.tokens)} tokens of sequence {seq_id!r}, "
                f"got {length}"
            )
        keep, full = self._blocks_for(length), length // self.block_size
        self._release(seq.blocks[keep:])
        del seq.tokens[length:]
        del seq.blocks[keep:]
        del seq.digests[full + 1 :]
        seq.committed = min(seq.committed, full)

    def free(self, seq_id: Hashable) -> None:
        """End a sequence.

        Raises:
            KeyError: an unknown sequence, such as one already freed.
        """
        self._release(self._get(seq_id).blocks)
        del self._sequences[seq_id]

    def _get(self, seq_id: Hashable) -> _Sequence:
        try:
            return self._sequences[seq_id]
        except KeyError:
            raise KeyError(f"seq_id: no live sequence {seq_id!r}") from None

    def _check_new(self, name: str, seq_id: Hashable) -> None:
        if seq_id in self._sequences:
            raise ValueError(f"{name}: sequence {seq_id!r} exists already; free it first")

    def _blocks_for(self, length: int) -> int:
        return -(-length // self.block_size)

    def _digest(self, seq: _Sequence, i: int) -> bytes:
        """The name of the first ``i + 1`` blocks; those before must have theirs."""
        if i + 1 == len(seq.digests):
            tokens = seq.tokens[i * self.block_size : (i + 1) * self.block_size]
            seq.digests.append(block_digest(seq.digests[i], tokens))
        return seq.digests[i + 1]

    def _match(self, seq: _Sequence) -> list[int]:
        """The reusable blocks of the longest known prefix that leaves a token to compute."""
        blocks: list[int] = []
        if not self.prefix_reuse:
            return blocks
        for i in range((len(seq.tokens) - 1) // self.block_size):
            same = self._blocks_of.get(self._digest(seq, i))
            if same is None:
                break
            # One that is in use if any is, so that a free one stays free.
            blocks.append(max(same, key=self._owners.__getitem__))
        return blocks

    def _reserve(self, needed: int, keep: int = 0) -> None:
        """Raise unless ``needed`` blocks are free besides ``keep`` free ones about to be reused."""
        free = self.num_free - keep
        if needed > free:
            raise OutOfBlocks(needed, free, self.num_blocks)

    def _grow(self, seq: _Sequence) -> None:
        for _ in range(self._blocks_for(len(seq.tokens)) - len(seq.blocks)):
            seq.blocks.append(self._take())

    def _take(self) -> int:
        """A free block with one owner; ``_reserve`` has made sure that there is one."""
        if self._blank:
            block = self._blank.pop()
        else:
            block, _ = self._cached.popitem(last=False)
            self._forget(block)
        self._owners[block] = 1
        return block

    def _forget(self, block: int) -> None:
        """Offer a block no longer."""
        digest = self._digest_of.pop(block, None)
        if digest is not None:
            self._blocks_of[digest].remove(block)
            if not self._blocks_of[digest]:
                del self._blocks_of[digest]

    def _release(self, blocks: Sequence[int]) -> None:
        """Take one owner from each block, the last first: prefixes outlive what follows them."""
        for block in reversed(blocks):
            self._owners[block] -= 1
            if self._owners[block] > 0:
                continue
            digest = self._digest_of.get(block)
            if digest is not None and len(self._blocks_of[digest]) == 1:
                self._cached[block] = None
            else:
                # Never committed, or another block holds the same.
                self._forget(block)
                self._blank.append(block)


def _as_tokens(token_ids: Iterable[int]) -> array:
    try:
        # `list` first: an array would take bytes for machine words.
        tokens = array("q", list(token_ids))
    except (TypeError, OverflowError) as e:
        raise TypeError(f"token_ids: expected a sequence of integers of 64 bits ({e})") from None
    if tokens and min(tokens) < 0:
        raise ValueError(f"token_ids: expected ids of at least 0, got {min(tokens)}")
    return tokens
