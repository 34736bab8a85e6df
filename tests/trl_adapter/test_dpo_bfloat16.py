"""Gradients under automatic mixed precision: within twice TRL's own error."""

import copy

import pytest
import torch
from dpo_cases import tiny_model, tiny_model_like, trainer


@pytest.mark.parametrize("name", ["llama", "gla"])
def test_bfloat16_is_as_near_to_float64_as_trl(name, tmp_path):
    policy = tiny_model(name).float()
    ref = tiny_model_like(policy)

    def weights_after_a_step(shared: bool, *, wide: bool) -> torch.Tensor:
        models = [copy.deepcopy(x).double() if wide else copy.deepcopy(x) for x in (policy, ref)]
        run = trainer(
            shared,
            tmp_path,
            models[0],
            ref=models[1],
            bf16=not wide,
            max_steps=1,
            per_device_train_batch_size=8,
        )
        run.train()
        return flat(run.model)

    exact = weights_after_a_step(False, wide=True)
    ours, theirs = (
        (weights_after_a_step(shared, wide=False) - exact).norm() for shared in (True, False)
    )
    step = (exact - flat(policy)).norm()
    assert 1e-3 * step < theirs < 0.1 * step  # bfloat16 indeed
    assert ours <= 2 * theirs


def flat(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().double().flatten() for p in model.parameters()])
