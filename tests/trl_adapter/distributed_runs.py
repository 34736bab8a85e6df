"""The same two steps in one process, in two, and in two that shard the weights (FSDP2).

``python distributed_runs.py OUT`` leaves ``OUT/<run>.pt``: logs and weights. One process imports
TRL, and the others are its forks.
"""

import os
import socket
import sys
import traceback
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TQDM_DISABLE"] = "1"

import datasets
import pytest
import torch
from accelerate import DistributedType, PartialState
from dpo_cases import preference_data, trainer, work_in_float64
from torch.distributed.tensor import DTensor

from ridgeline.trl import PrefixSharedDPOTrainer

DATA = 8
RUNS = {
    "single": (1, {"per_device_train_batch_size": 4}),
    "data-parallel": (2, {"per_device_train_batch_size": 2}),
    "accumulated": (
        2,
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2},
    ),
    "fsdp2": (
        2,
        {
            "per_device_train_batch_size": 2,
            "fsdp": True,
            "fsdp_config": {
                "version": 2,
                "reshard_after_forward": True,
                "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
                "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"],
            },
        },
    ),
}


class OnManyDevices(PrefixSharedDPOTrainer):
    """accelerate shards weights over accelerators only; it is told that these processes are."""

    def __init__(self, *args, **kwargs) -> None:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        super().__init__(*args, **kwargs)


def whole(p: torch.Tensor) -> torch.Tensor:
    return (p.full_tensor() if isinstance(p, DTensor) else p).detach()


def run(name: str, out: Path) -> None:
    cls = OnManyDevices if name == "fsdp2" else PrefixSharedDPOTrainer
    run = trainer(True, out / "run", data=preference_data(DATA), cls=cls, **RUNS[name][1])
    run.train()
    sharded = [isinstance(p, DTensor) for p in run.model.parameters()]
    weights = {k: whole(p) for k, p in run.model.named_parameters()}
    if run.is_world_process_zero():
        found = {"logs": run.state.log_history, "weights": weights, "sharded": sharded}
        torch.save(found, out / f"{name}.pt")


def in_processes(name: str, out: Path) -> bool:
    """Forks the run's processes; whether all succeeded."""
    world = RUNS[name][0]
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    children = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                if world > 1:
                    os.environ |= {
                        "RANK": str(rank),
                        "LOCAL_RANK": str(rank),
                        "WORLD_SIZE": str(world),
                        "MASTER_ADDR": "127.0.0.1",
                        "MASTER_PORT": str(port),
                    }
                run(name, out)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    codes = [os.waitpid(child, 0)[1] for child in children]
    return not any(codes)


if __name__ == "__main__":
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    work_in_float64(pytest.MonkeyPatch())
    for name in sys.argv[2:] or RUNS:
        if not in_processes(name, Path(sys.argv[1])):
            sys.exit(f"{name} failed")
