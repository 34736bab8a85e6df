"""Training on a GPU; on a machine without one, the refusal."""

import pytest
import torch
from training_cases import tiny_config, write_text

from ridgeline.training.pretrain import pretrain


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_said_before_anything_is_written(tmp_path):
    text = write_text(tmp_path / "text.txt")
    with pytest.raises(
        ValueError, match=r"^device: expected cpu, since torch sees no GPU, got cuda"
    ):
        pretrain(tmp_path / "run", tiny_config(text, device="cuda"))
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("attention", ["gqa", "gta", "mla", "gla"])
def test_a_gpu_trains_as_the_cpu_does(attention, tmp_path):
    text = write_text(tmp_path / "text.txt")
    runs = {
        device: pretrain(
            tmp_path / device,
            tiny_config(text, model={"attention": attention}, dtype="fp32", device=device),
        )
        for device in ("cpu", "cuda")
    }
    losses = {device: [row.loss for row in run.rows] for device, run in runs.items()}
    assert losses["cuda"] == pytest.approx(losses["cpu"], abs=2e-3)
    assert runs["cuda"].held_out_loss == pytest.approx(runs["cpu"].held_out_loss, abs=2e-3)
    resumed = pretrain(
        tmp_path / "cuda",
        tiny_config(text, model={"attention": attention}, dtype="fp32", device="cuda"),
        checkpoint="step-00000004",
    )
    assert resumed.held_out_loss == pytest.approx(runs["cuda"].held_out_loss, abs=2e-3)
