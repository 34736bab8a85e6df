"""The block manager, case by case: reuse, salt, eviction, fork, copy-on-write, errors."""

import copy
import hashlib

import pytest

from ridgeline.cache import BlockManager, OutOfBlocks
from ridgeline.cache.block_manager import block_digest, root_digest


def committed(manager, seq_id, tokens, **options):
    """Allocate and write, as a forward pass would."""
    cached = manager.allocate(seq_id, tokens, **options)
    manager.commit(seq_id)
    return cached


def test_blocks_are_given_as_tokens_need_them():
    manager = BlockManager(8, 4)
    assert manager.allocate("a", range(5)) == 0
    assert (manager.length("a"), len(manager.block_table("a")), manager.num_free) == (5, 2, 6)
    assert manager.append("a", [5, 6, 7]) == []
    assert (manager.length("a"), len(manager.block_table("a"))) == (8, 2)
    assert manager.append("a", range(8, 17)) == []
    assert (manager.length("a"), len(manager.block_table("a"))) == (17, 5)
    assert manager.append("a", []) == []
    manager.free("a")
    assert manager.num_free == 8


def test_an_empty_sequence_grows_later():
    manager = BlockManager(2, 4)
    assert manager.allocate("a", []) == 0
    assert manager.block_table("a") == []
    assert manager.append("a", [1]) == []
    assert len(manager.block_table("a")) == 1


def test_first_blocks_come_first_so_that_unneeded_pages_are_never_touched():
    manager = BlockManager(100, 1)
    manager.allocate("a", [1, 2])
    manager.free("a")
    manager.allocate("b", [3, 4])
    assert sorted(manager.block_table("b")) == [0, 1]


@pytest.mark.parametrize(
    ("prompt", "cached"),
    [
        (range(12), 8),  # the same prompt: its last block is computed again, to go on from
        (range(13), 12),
        (range(9), 8),
        (range(8), 4),
        (range(4), 0),
        ([0, 1, 2, 3, 9, 5, 6, 7, 8], 4),  # a difference in the second block
        ([9, 1, 2, 3, 4, 5, 6, 7, 8], 0),  # equal blocks after another beginning
        ([], 0),
    ],
)
def test_prefix_reuse_takes_whole_blocks_and_leaves_a_token(prompt, cached):
    manager = BlockManager(16, 4)
    committed(manager, "a", range(12))
    free = manager.num_free
    assert manager.allocate("b", prompt) == cached
    shared = cached // 4
    assert manager.block_table("b")[:shared] == manager.block_table("a")[:shared]
    assert not set(manager.block_table("b")[shared:]) & set(manager.block_table("a"))
    assert free - manager.num_free == -(-len(prompt) // 4) - shared


def test_reuse_outlives_the_sequence_and_its_blocks_count_as_free():
    manager = BlockManager(4, 4)
    committed(manager, "a", range(10))
    table = manager.block_table("a")
    manager.free("a")
    assert manager.num_free == 4
    assert manager.allocate("b", range(10)) == 8
    assert manager.block_table("b")[:2] == table[:2]
    assert manager.num_free == 1


def test_nobody_is_offered_a_block_before_it_is_written():
    manager = BlockManager(8, 4)
    manager.allocate("a", range(9))
    assert manager.allocate("b", range(9)) == 0
    assert not set(manager.block_table("a")) & set(manager.block_table("b"))
    manager.commit("a")
    manager.append("a", range(9, 12))  # full now, but not written
    assert manager.allocate("c", range(13)) == 8


def test_a_sequence_freed_before_it_was_written_is_not_offered():
    manager = BlockManager(8, 4)
    manager.allocate("a", range(9))
    manager.free("a")
    assert manager.allocate("b", range(9)) == 0


def test_a_block_becomes_reusable_only_when_full():
    manager = BlockManager(8, 4)
    committed(manager, "a", range(7))
    assert committed(manager, "b", range(9)) == 4
    manager.append("a", [7])
    manager.commit("a")
    assert manager.allocate("c", range(9)) == 8


def test_equal_blocks_computed_twice_are_kept_once():
    manager = BlockManager(8, 4)
    manager.allocate("a", range(5))
    manager.allocate("b", range(5))
    manager.commit("a")
    manager.commit("b")
    manager.free("a")
    # b still offers the block, whichever of the two is gone.
    assert manager.allocate("c", range(5)) == 4
    assert manager.block_table("c")[0] == manager.block_table("b")[0]
    manager.free("b")
    manager.free("c")
    assert manager.num_free == 8
    assert manager.allocate("d", range(5)) == 4


def test_a_block_in_use_is_shared_before_a_free_one():
    manager = BlockManager(8, 4)
    committed(manager, "a", range(4))
    manager.free("a")  # its block is free, and offered
    committed(manager, "b", range(4))  # the whole prompt: computed again
    free = manager.num_free
    assert manager.allocate("c", range(5)) == 4
    assert manager.block_table("c")[0] == manager.block_table("b")[0]
    assert free - manager.num_free == 1


def test_reuse_can_be_turned_off():
    manager = BlockManager(8, 4, prefix_reuse=False)
    committed(manager, "a", range(9))
    assert manager.allocate("b", range(9)) == 0
    manager.free("a")
    manager.fork("b", "c")
    assert manager.block_table("c") == manager.block_table("b")


def test_salt_keeps_tenants_apart():
    manager = BlockManager(16, 4)
    committed(manager, "a", range(9), salt=b"one")
    assert committed(manager, "b", range(9), salt=b"two") == 0
    assert committed(manager, "c", range(9)) == 0
    assert manager.allocate("d", range(9), salt=b"one") == 8
    manager.fork("a", "e")
    manager.append("e", [9, 10, 11])
    manager.commit("e")
    assert manager.allocate("f", range(13)) == 8
    assert manager.allocate("g", range(13), salt=b"one") == 12


def test_least_recently_used_blocks_go_first_and_prefixes_last():
    manager = BlockManager(4, 1)
    committed(manager, "a", [1, 2])
    committed(manager, "b", [3, 4])
    manager.free("b")
    manager.free("a")
    # Kept, oldest first: b's second, b's first, a's second, a's first block.
    for taken, (of_a, of_b) in enumerate([(2, 2), (2, 1), (2, 0), (1, 0), (0, 0)]):
        trial = copy.deepcopy(manager)
        trial.allocate("new", range(100, 100 + taken))
        trial.free("new")
        cached = [copy.deepcopy(trial).allocate("probe", [*t, 0]) for t in ([1, 2], [3, 4])]
        assert cached == [of_a, of_b], taken


def test_a_hit_makes_blocks_recent_again():
    manager = BlockManager(3, 1)
    for seq_id, token in (("a", 1), ("b", 2), ("c", 3)):
        committed(manager, seq_id, [token])
    for seq_id in "abc":
        manager.free(seq_id)
    # Order of eviction a, b, c. A hit on a takes it out, its new token takes b's block.
    assert manager.allocate("again", [1, 9]) == 1
    manager.free("again")
    assert manager.allocate("x", [3, 9]) == 1
    manager.free("x")
    assert manager.allocate("y", [1, 9]) == 1
    manager.free("y")
    assert manager.allocate("z", [2, 9]) == 0


def test_blank_blocks_are_taken_before_reusable_ones():
    manager = BlockManager(4, 2)
    committed(manager, "a", [1, 2, 3])
    manager.free("a")
    manager.allocate("b", range(10, 16))
    manager.free("b")
    assert manager.allocate("c", [1, 2, 3]) == 2


def test_fork_shares_all_and_the_first_to_append_copies():
    manager = BlockManager(8, 4)
    committed(manager, "a", range(6))
    table, free = manager.block_table("a"), manager.num_free
    manager.fork("a", "b")
    manager.fork("a", "c")
    assert manager.block_table("b") == manager.block_table("c") == table
    assert manager.num_free == free
    ((src, dst),) = manager.append("b", [10])
    assert src == table[1]
    assert dst not in table
    assert manager.block_table("b") == [table[0], dst]
    assert manager.block_table("a") == manager.block_table("c") == table
    ((src, dst),) = manager.append("a", [11])
    assert (src, manager.block_table("a")) == (table[1], [table[0], dst])
    # c is the last owner: it writes in place.
    assert manager.append("c", [12]) == []
    assert manager.block_table("c") == table
    assert manager.num_free == free - 2
    for seq_id in "abc":
        manager.free(seq_id)
    assert manager.num_free == 8


def test_fork_at_a_block_boundary_needs_no_copy():
    manager = BlockManager(8, 4)
    committed(manager, "a", range(4))
    manager.fork("a", "b")
    assert manager.append("a", [4]) == manager.append("b", [5]) == []
    assert manager.block_table("a")[0] == manager.block_table("b")[0]
    assert manager.block_table("a")[1] != manager.block_table("b")[1]


def test_a_fork_outlives_its_parent():
    manager = BlockManager(2, 4)
    committed(manager, "a", range(6))
    table = manager.block_table("a")
    manager.fork("a", "b")
    manager.free("a")
    assert (manager.block_table("b"), manager.length("b"), manager.num_free) == (table, 6, 0)
    assert manager.append("b", [6]) == []


def test_truncate_gives_blocks_back():
    manager = BlockManager(8, 4)
    manager.allocate("a", range(14))
    table = manager.block_table("a")
    manager.truncate("a", 14)
    assert manager.block_table("a") == table
    manager.truncate("a", 5)
    assert (manager.block_table("a"), manager.length("a"), manager.num_free) == (table[:2], 5, 6)
    manager.truncate("a", 4)
    assert manager.block_table("a") == table[:1]
    manager.truncate("a", 0)
    assert (manager.block_table("a"), manager.num_free) == ([], 8)
    assert manager.append("a", [1]) == []


def test_a_cut_block_is_no_longer_offered_once_it_is_written_again():
    manager = BlockManager(8, 4)
    committed(manager, "a", range(8))
    manager.truncate("a", 6)
    assert manager.allocate("b", range(9)) == 8  # nothing was overwritten yet
    manager.free("b")
    block = manager.block_table("a")[1]
    assert manager.append("a", [20, 21]) == []
    assert manager.block_table("a")[1] == block
    assert manager.allocate("c", range(9)) == 4
    manager.commit("a")
    assert manager.allocate("d", [*range(6), 20, 21, 0]) == 8


def test_a_cut_block_that_others_read_is_copied():
    manager = BlockManager(8, 4)
    committed(manager, "a", range(8))
    assert manager.allocate("b", range(9)) == 8
    manager.truncate("b", 7)
    ((src, dst),) = manager.append("b", [9])
    assert src == manager.block_table("a")[1]
    assert dst == manager.block_table("b")[1]
    assert manager.allocate("c", range(9)) == 8


def test_failed_allocation_changes_nothing():
    manager = BlockManager(4, 4)
    committed(manager, "old", range(50, 58))
    manager.free("old")
    committed(manager, "a", range(6))
    before = state(manager)
    with pytest.raises(OutOfBlocks, match="3 more blocks are needed, 2 of 4 are free") as error:
        manager.allocate("b", range(100, 112))
    assert (error.value.needed, error.value.free, error.value.total) == (3, 2, 4)
    # Two blocks would be reused, which leaves none to compute the others in.
    with pytest.raises(OutOfBlocks, match="1 more blocks are needed, 0 of 4 are free"):
        manager.allocate("b", range(50, 59))
    with pytest.raises(OutOfBlocks):
        manager.append("a", range(20))
    assert state(manager) == before
    assert isinstance(error.value, RuntimeError)


def test_failed_copy_on_write_changes_nothing():
    manager = BlockManager(2, 4)
    committed(manager, "a", range(6))
    manager.fork("a", "b")
    before = state(manager)
    with pytest.raises(OutOfBlocks, match="1 more blocks are needed, 0 of 2"):
        manager.append("b", [1])
    assert state(manager) == before


def state(manager):
    fields = copy.deepcopy(vars(manager))
    fields["_cached"] = list(fields["_cached"])  # with its order
    return fields


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.allocate("a", [1]), ValueError, "seq_id: sequence 'a' exists already"),
        (lambda m: m.fork("a", "a"), ValueError, "child_id: sequence 'a' exists already"),
        (lambda m: m.fork("z", "b"), KeyError, "seq_id: no live sequence 'z'"),
        (lambda m: m.append("z", [1]), KeyError, "no live sequence 'z'"),
        (lambda m: m.free("z"), KeyError, "no live sequence 'z'"),
        (lambda m: m.commit("z"), KeyError, "no live sequence 'z'"),
        (lambda m: m.truncate("z", 0), KeyError, "no live sequence 'z'"),
        (lambda m: m.length("z"), KeyError, "no live sequence 'z'"),
        (lambda m: m.block_table("z"), KeyError, "no live sequence 'z'"),
        (lambda m: m.truncate("a", 6), ValueError, "length: .*the 5 tokens of sequence 'a', got 6"),
        (lambda m: m.truncate("a", -1), ValueError, "length: .*got -1"),
        (lambda m: m.append("a", [-1]), ValueError, "token_ids: .*got -1"),
        (lambda m: m.append("a", [0.5]), TypeError, "token_ids: expected a sequence of integers"),
        (lambda m: m.append("a", "text"), TypeError, "token_ids: "),
        (lambda m: m.append("a", [2**63]), TypeError, "token_ids: .*64 bits"),
        (lambda m: m.append("a", 7), TypeError, "token_ids: "),
        (lambda m: m.allocate("b", [[1]]), TypeError, "token_ids: "),
        (lambda m: m.allocate("b", [1], salt="x"), TypeError, "salt: expected bytes, got str"),
    ],
)
def test_bad_calls_change_nothing(call, error, message):
    manager = BlockManager(4, 4)
    committed(manager, "a", range(5))
    before = state(manager)
    with pytest.raises(error, match=message):
        call(manager)
    assert state(manager) == before


def test_double_free_raises():
    manager = BlockManager(4, 4)
    manager.allocate("a", range(5))
    manager.free("a")
    with pytest.raises(KeyError, match="no live sequence 'a'"):
        manager.free("a")
    assert manager.num_free == 4


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 4), ValueError, "num_blocks: .*got 0"),
        ((4, 0), ValueError, "block_size: .*got 0"),
        ((4.0, 4), TypeError, "num_blocks: .*got float"),
    ],
)
def test_impossible_sizes(arguments, error, message):
    with pytest.raises(error, match=message):
        BlockManager(*arguments)
    with pytest.raises(TypeError, match="prefix_reuse: expected a bool"):
        BlockManager(4, 4, prefix_reuse=1)


def test_digests_are_sha256_chained_over_the_whole_prefix():
    first = b"".join(t.to_bytes(8, "little") for t in (1, 2, 300, 4))
    second = b"".join(t.to_bytes(8, "little") for t in (5, 6, 7, 2**40))
    root = hashlib.sha256(b"tenant").digest()
    one = hashlib.sha256(root + first).digest()
    two = hashlib.sha256(one + second).digest()
    assert root_digest(b"tenant") == root
    assert block_digest(root_digest(b"tenant"), [1, 2, 300, 4]) == one
    assert block_digest(one, [5, 6, 7, 2**40]) == two
