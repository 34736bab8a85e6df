"""A warp-specialised transposed decode kernel on the interpreter, with every mistake made in it."""

import importlib.util
from pathlib import Path
from types import ModuleType

import gluon_etap
import pytest

from ridgeline.testing import gluon as interp
from ridgeline.testing.gluon import mutations

LENGTHS = [(1,), (64,), (65, 300), (383, 7, 128)]
# Wrong, but with every synchronising call in its place.
PLANTED = {
    "phase of one stage": ("(i // self.STAGES) & 1)\n", "i & 1)\n"),
    "both workers start at the first tile": ("in range(worker,", "in range(0,"),
    "other stage": ("return self.tiles.index(stage)", "return self.tiles.index(stage ^ 1)"),
    "too early a release": (
        "        o = warpgroup_mma_wait(0, [o])\n        ring.release(i)\n",
        "        ring.release(i)\n        o = warpgroup_mma_wait(0, [o])\n",
    ),
    "fence before the store": (
        "        p_smem.store(p.to(gl.bfloat16))\n        fence_async_shared()\n",
        "        fence_async_shared()\n        p_smem.store(p.to(gl.bfloat16))\n",
    ),
    "handed over before the store": (
        "    exchange[2].store(o)\n    mbarrier.arrive(given)\n",
        "    mbarrier.arrive(given)\n    exchange[2].store(o)\n",
    ),
    "one exchange for two": ("exchange[1].store(l)", "exchange[0].store(l)"),
    "one tile too few": ("load_tiles, (k_desc, ring, pid * tokens_per_row, num_tiles,",
                         "load_tiles, (k_desc, ring, pid * tokens_per_row, num_tiles - 1,"),
    "tail not masked": ("tokens[:, None] < num_tokens - i * cfg.BLOCK_N", "tokens[:, None] < 64"),
}  # fmt: skip


def check(
    seed: int, lengths: tuple[int, ...] = (300, 65), module: ModuleType = gluon_etap
) -> interp.Report:
    arguments, constants = module.problem(lengths, seed=seed)
    report = interp.run(module.decode, (len(lengths),), *arguments, seed=seed, **constants)
    out, lse = module.expected(arguments, constants)
    assert (arguments[2].base.double() - out).abs().max() < 0.02
    assert (arguments[3].double() - lse).abs().max() < 1e-3
    return report


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_it_is_right_on_every_schedule(lengths: tuple[int, ...]) -> None:
    for seed in range(5):
        check(seed, lengths)


def test_every_synchronising_call_is_needed() -> None:
    found = mutations.outcomes(check)
    assert len(found) >= 35
    assert not [str(o.mutation) for o in found if o.caught is None]


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_caught(name: str, tmp_path: Path) -> None:
    source = Path(gluon_etap.__file__).read_text()
    assert source.count(PLANTED[name][0]) == 1
    path = tmp_path / "planted.py"
    path.write_text(source.replace(*PLANTED[name]))
    spec = importlib.util.spec_from_file_location("planted", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    caught = 0
    for seed in range(20):
        try:
            check(seed, module=module)
        except (AssertionError, interp.GluonError):
            caught += 1
    assert caught >= 10
