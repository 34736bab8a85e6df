"""Every rule of the interpreter: the right kernel passes, the wrong one is reported by name."""

import pytest
import torch
from gluon_kernels import RULES, Rule

from ridgeline.testing import gluon as interp

SEEDS = range(20)
WRONG = [
    pytest.param(rule, *variant, id=f"{name}-{variant[0]}")
    for name, rule in RULES.items()
    for variant in rule.wrong
]


def run(rule: Rule, seed: int, wrong: int = 0) -> tuple:
    torch.manual_seed(0)
    args = rule.arguments()
    interp.run(rule.kernel, rule.grid, *args, wrong, seed=seed)
    return args


@pytest.mark.parametrize("name", RULES)
def test_the_right_kernel_passes_on_every_seed(name: str) -> None:
    rule = RULES[name]
    for seed in SEEDS:
        args = run(rule, seed)
        out = args[rule.out]
        out = out if isinstance(out, torch.Tensor) else out.base
        torch.testing.assert_close(out.double(), rule.expected(args).double(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("rule", "wrong", "kind", "mark"), WRONG)
def test_the_wrong_kernel_is_reported(rule: Rule, wrong: int, kind: type, mark: str) -> None:
    reports = []
    for seed in SEEDS:
        try:
            run(rule, seed, wrong)
        except interp.GluonError as error:
            reports.append(error)
    assert any(isinstance(r, kind) and mark in str(r) for r in reports), reports
    assert all("gluon_kernels.py:" in str(r) for r in reports)
