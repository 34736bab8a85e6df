"""Before TRL is imported: no network and no progress bars. A run of a test has one thread."""

import gc
import os

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TQDM_DISABLE"] = "1"

import datasets
import pytest
import torch
from trl.trainer import base_trainer

datasets.disable_progress_bars()
gc.freeze()  # every run ends with a full collection, which would walk all that was imported


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def no_telemetry(monkeypatch):
    monkeypatch.setattr(base_trainer, "send_telemetry", lambda **_: None)
