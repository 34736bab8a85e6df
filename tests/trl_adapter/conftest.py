"""Before TRL is imported: no network and no progress bars."""

import gc
import os

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TQDM_DISABLE"] = "1"

import datasets
import pytest
from trl.trainer import base_trainer

datasets.disable_progress_bars()
gc.freeze()  # every run ends with a full collection, which would walk all that was imported


@pytest.fixture(autouse=True)
def no_telemetry(monkeypatch):
    monkeypatch.setattr(base_trainer, "send_telemetry", lambda **_: None)
