"""The tests of the cache find bugs that are planted in it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
BLOCKS, PAGED, STEP, SPEC = "block_manager", "paged", "step", "spec"
PLANTED = {
    "shared-block-written": (BLOCKS, "needed + shared)", "needed + shared); shared = False"),
    "copy-of-a-lone-block": (BLOCKS, "self._owners[seq.blocks[-1]] > 1", "True"),
    "copy-keeps-an-owner": (BLOCKS, "self._owners[src] -= 1", "pass"),
    "all-tokens-reused": (
        BLOCKS,
        "range((len(seq.tokens) - 1) // self.block_size)",
        "range(len(seq.tokens) // self.block_size)",
    ),
    "salt-ignored": (BLOCKS, "[root_digest(salt)]", "[root_digest()]"),
    "digest-without-prefix": (BLOCKS, "sha256(parent + struct", "sha256(struct"),
    "partial-block-offered": (
        BLOCKS,
        "full = len(seq.tokens) // self.block_size",
        "full = len(seq.blocks)",
    ),
    "offered-before-commit": (BLOCKS, "seq.committed, full):", "seq.committed, full + 1):"),
    "stale-name-after-truncate": (
        BLOCKS,
        "            self._forget(seq.blocks[-1])\n        seq.tokens.extend",
        "            pass\n        seq.tokens.extend",
    ),
    "stale-digests-after-truncate": (BLOCKS, "        del seq.digests[full + 1 :]\n", ""),
    "fork-shares-the-list": (BLOCKS, "list(parent.blocks)", "parent.blocks"),
    "fork-without-owner": (
        BLOCKS,
        "for block in parent.blocks:\n            self._owners[block] += 1",
        "for block in parent.blocks:\n            pass",
    ),
    "reused-block-still-free": (BLOCKS, "self._cached.pop(block, None)", "pass"),
    "evicted-block-still-offered": (
        BLOCKS,
        "popitem(last=False)\n            self._forget(block)",
        "popitem(last=False)",
    ),
    "most-recent-evicted": (BLOCKS, "popitem(last=False)", "popitem(last=True)"),
    "free-count-forgets-cached": (
        BLOCKS,
        "return len(self._blank) + len(self._cached)",
        "return len(self._blank)",
    ),
    "double-free-silent": (BLOCKS, "        del self._sequences[seq_id]\n", ""),
    "reused-free-blocks-counted-twice": (
        BLOCKS,
        "free = self.num_free - keep",
        "free = self.num_free",
    ),
    "padding-written-to-slot-0": (
        PAGED,
        "return rows, slots[rows]",
        "return None, slots.clamp(min=0)",
    ),
    "rows-of-padding-kept": (PAGED, "x if rows is None else x[rows]", "x[: len(kept)]"),
    "slot-beyond-the-cache": (
        PAGED,
        "high >= self.num_pages * self.page_size",
        "high > self.num_pages * self.page_size",
    ),
    "copies-only-layer-0": (
        PAGED,
        "store[:, dst].copy_(store[:, src])",
        "store[0, dst].copy_(store[0, src])",
    ),
    "copy-reversed": (
        PAGED,
        "store[:, dst].copy_(store[:, src])",
        "store[:, src].copy_(store[:, dst])",
    ),
    "written-before-checked": (
        PAGED,
        "        for view, x in zip(views, new, strict=True):\n            x = x.detach()",
        "            x = x.detach()",
    ),
    "right-padded-positions": (STEP, "column < query_len - torch", "column >= query_len - torch"),
    "positions-off-by-one": (
        STEP,
        "seqlens[:, None] - query_len + column",
        "seqlens[:, None] - query_len + column - 1",
    ),
    "offset-dropped": (STEP, "page * page_size + position % page_size", "page * page_size"),
    "prefill-forever": (STEP, "is_prefill=lengths == list(new_lens)", "is_prefill=True"),
    "heads-rounded-down": (SPEC, "return -(-heads // tp)", "return heads // tp"),
    "rope-key-sharded": (
        SPEC,
        'return cls("tied", _share("latent_heads", latent_heads, tp), latent_dim, rope_dim)',
        'return cls("tied", _share("latent_heads", latent_heads, tp), latent_dim, rope_dim // tp)',
    ),
}
TESTS = {
    BLOCKS: ["test_block_manager.py", "test_block_manager_stateful.py"],
    PAGED: ["test_paged.py"],
    STEP: ["test_step.py"],
    SPEC: ["test_spec.py"],
}


@pytest.fixture(scope="module")
def planter() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(HERE / "plant.py")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as process:
        yield process
        process.stdin.close()


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_found(name: str, planter: subprocess.Popen[str]) -> None:
    module, old, new = PLANTED[name]
    arguments = ["-x", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "-o", "addopts="]
    arguments += [str(HERE / test) for test in TESTS[module]]
    bug = [f"ridgeline.cache.{module}", old, new, arguments]
    print(json.dumps(bug), file=planter.stdin, flush=True)
    code, output = json.loads(planter.stdout.readline())
    assert "is not one place" not in output, output
    assert code == pytest.ExitCode.TESTS_FAILED, output
