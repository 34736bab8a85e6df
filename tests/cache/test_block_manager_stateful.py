"""Random histories of a block manager over a real cache, against a model that keeps plain lists.

What a token leaves in the cache depends on all tokens before it, so the contents written here are
numbers that stand for whole prefixes: a sequence that reads back the number of each of its own
prefixes shares, copies and reuses blocks soundly.
"""

import copy
from collections import Counter
from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ridgeline.cache import BlockManager, CacheSpec, CacheStep, OutOfBlocks, PagedCache

# Few different tokens, so that prefixes meet; few blocks, so that they run out.
TOKENS = st.lists(st.integers(0, 1), max_size=9)
SALTS = st.sampled_from([b"", b"tenant"])


@dataclass
class Expected:
    salt: bytes
    tokens: list[int]
    written: int
    committed: int = 0


class Machine(RuleBasedStateMachine):
    @initialize(blocks=st.integers(2, 10), size=st.integers(1, 4))
    def start(self, blocks, size):
        self.size = size
        self.manager = BlockManager(blocks, size)
        self.cache = PagedCache(CacheSpec("tied", 1, 1), 1, blocks, size, dtype=torch.float64)
        self.cache.layer(0)[0].fill_(-1.0)
        self.numbers = {}
        self.live = {}
        self.count = 0

    def number(self, seq, length):
        """The cache contents of token ``length - 1``: one number for each prefix and salt."""
        prefix = (seq.salt, *seq.tokens[:length])
        return float(self.numbers.setdefault(prefix, len(self.numbers)))

    def new_id(self):
        self.count += 1
        return self.count

    def pick(self, data):
        return data.draw(st.sampled_from(sorted(self.live)), label="sequence")

    def or_unchanged(self, call):
        """The call's result, or ``None`` where it fails for lack of blocks and changes nothing."""
        before = state(self.manager)
        try:
            return call()
        except OutOfBlocks:
            assert state(self.manager) == before
            return None

    @rule(tokens=TOKENS, salt=SALTS)
    def allocate(self, tokens, salt):
        # A fresh prompt, or one that goes on from a live sequence's tokens.
        self.start_sequence(tokens, salt)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), tokens=TOKENS, salt=SALTS)
    def allocate_like_another(self, data, tokens, salt):
        other = self.live[self.pick(data)]
        keep = data.draw(st.integers(0, len(other.tokens)), label="kept")
        self.start_sequence(other.tokens[:keep] + tokens, salt)

    def start_sequence(self, tokens, salt):
        seq_id = self.new_id()
        needed = -(-len(tokens) // self.size)
        offered = max((self.common(seq, tokens, salt) for seq in self.live.values()), default=0)
        room = self.manager.num_free + offered >= needed
        cached = self.or_unchanged(lambda: self.manager.allocate(seq_id, tokens, salt=salt))
        if cached is None:
            assert not room
            return
        assert cached % self.size == 0
        assert cached < max(len(tokens), 1)
        # At least what live sequences have committed is reused.
        assert cached >= offered * self.size
        self.live[seq_id] = Expected(salt, list(tokens), cached, cached)

    def common(self, seq, tokens, salt):
        """Leading blocks of ``tokens`` that ``seq`` has committed, one token left to compute."""
        if seq.salt != salt:
            return 0
        limit = min(seq.committed, len(tokens) - 1)
        same = 0
        while same < limit and seq.tokens[same] == tokens[same]:
            same += 1
        return same // self.size

    @precondition(lambda self: self.live)
    @rule(data=st.data(), tokens=TOKENS)
    def append(self, data, tokens):
        seq_id = self.pick(data)
        seq = self.live[seq_id]
        copies = self.or_unchanged(lambda: self.manager.append(seq_id, tokens))
        if copies is not None:
            self.cache.copy_pages(copies)
            seq.tokens += tokens

    @precondition(lambda self: self.live)
    @rule(data=st.data(), commit=st.booleans())
    def forward(self, data, commit):
        """Write the unwritten tokens of some sequences in one left-padded step."""
        batch = data.draw(st.lists(st.sampled_from(sorted(self.live)), unique=True, min_size=1))
        new_lens = [len(self.live[i].tokens) - self.live[i].written for i in batch]
        query_len = max(1, *new_lens)
        step = CacheStep.build(self.cache, self.manager, batch, new_lens, query_len)
        new = torch.full((len(batch), query_len, 1, 1), -2.0, dtype=torch.float64)
        for row, seq_id, n in zip(new, batch, new_lens, strict=True):
            seq = self.live[seq_id]
            for i in range(n):
                row[query_len - n + i] = self.number(seq, seq.written + i + 1)
        for slot in step.slots[step.slots >= 0].tolist():
            block = slot // self.size
            assert self.manager._owners[block] == 1, "a shared block is written"
            assert block not in self.manager._digest_of, "an offered block is written"
        step.write(0, new, new.new_empty(*new.shape[:2], 0))
        for seq_id in batch:
            seq = self.live[seq_id]
            seq.written = len(seq.tokens)
            if commit:
                self.manager.commit(seq_id)
                seq.committed = seq.written

    @precondition(lambda self: any(s.written == len(s.tokens) for s in self.live.values()))
    @rule(data=st.data())
    def fork(self, data):
        ready = [i for i, seq in self.live.items() if seq.written == len(seq.tokens)]
        parent, child = data.draw(st.sampled_from(ready), label="parent"), self.new_id()
        self.manager.fork(parent, child)
        self.live[child] = copy.deepcopy(self.live[parent])

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def truncate(self, data):
        seq_id = self.pick(data)
        seq = self.live[seq_id]
        length = data.draw(st.integers(0, len(seq.tokens)), label="length")
        self.manager.truncate(seq_id, length)
        del seq.tokens[length:]
        seq.written = min(seq.written, length)
        seq.committed = min(seq.committed, length)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def free(self, data):
        seq_id = self.pick(data)
        self.manager.free(seq_id)
        del self.live[seq_id]
        with pytest.raises(KeyError):
            self.manager.free(seq_id)

    @invariant()
    def sequences_read_back_their_own_tokens(self):
        contents = self.cache.layer(0)[0].flatten().tolist()
        for seq_id, seq in self.live.items():
            table = self.manager.block_table(seq_id)
            assert self.manager.length(seq_id) == len(seq.tokens)
            assert len(table) == -(-len(seq.tokens) // self.size)
            for p in range(seq.written):
                have = contents[table[p // self.size] * self.size + p % self.size]
                assert have == self.number(seq, p + 1), f"token {p} of sequence {seq_id}"

    @invariant()
    def blocks_are_free_or_owned(self):
        manager = self.manager
        owners = Counter(block for i in self.live for block in manager.block_table(i))
        free = [*manager._blank, *manager._cached]
        assert len(free) == len(set(free)) == manager.num_free
        assert set(free) | set(owners) == set(range(manager.num_blocks))
        assert not set(free) & set(owners)
        assert manager._owners == [owners[block] for block in range(manager.num_blocks)]

    @invariant()
    def offers_agree(self):
        manager = self.manager
        offers = {block: d for d, blocks in manager._blocks_of.items() for block in blocks}
        assert offers == manager._digest_of
        assert all(manager._blocks_of.values())
        assert set(manager._cached) <= set(offers)
        assert not set(manager._blank) & set(offers)

    def teardown(self):
        if not hasattr(self, "manager"):
            return
        for seq_id in list(self.live):
            self.manager.free(seq_id)
        assert self.manager.num_free == self.manager.num_blocks
        assert self.manager._owners == [0] * self.manager.num_blocks
        # Every block can be given out again.
        self.manager.allocate("all", [2] * (self.manager.num_blocks * self.size))
        assert sorted(self.manager.block_table("all")) == list(range(self.manager.num_blocks))
        assert not self.manager._digest_of


def state(manager):
    fields = copy.deepcopy(vars(manager))
    fields["_cached"] = list(fields["_cached"])  # with its order
    return fields


def test_random_histories():
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=100,
            stateful_step_count=40,
            derandomize=True,
            deadline=None,
            database=None,
        ),
    )
