"""Tools to test attention implementations, ours and others'.

========== =======================================================================================
cases      one call of an operation: ``PagedCase``, ``TiedCase``, ``MergeCase``, ``AttentionCase``
generate   random cases from a seed: ``paged_case``, ``tied_case``, ``merge_case``; and, in
           ``generate_attention``, ``attention_case``
layouts    tensors with awkward strides in NaN memory
oracle     the float64 truth, by plain loops: ``expected``; of ``attention`` and its gradients in
           ``oracle_attention``
naive      the same-precision yardstick in eager PyTorch
tolerance  the one error budget: ``assert_matches``, ``violations``
poison     garbage where nobody may look: ``poisoned``
run        a case on an implementation or an instruction set: ``run``, ``implementations``
suite      a compact suite that tells a right implementation from a wrong one: ``problem``
gluon      Gluon kernels on the CPU under adversarial schedules: ``run``, ``interpreted``,
           ``mutations``; imports Triton, so not with this package
========== =======================================================================================

>>> from ridgeline.testing import assert_matches, run, tied_case
>>> case = tied_case(7)
>>> assert_matches(case, *run(case, "reference"))
"""

from ridgeline.testing.cases import AttentionCase, MergeCase, PagedCase, TiedCase
from ridgeline.testing.generate import merge_case, paged_case, tied_case
from ridgeline.testing.generate_attention import attention_case
from ridgeline.testing.oracle import expected
from ridgeline.testing.poison import poisoned
from ridgeline.testing.run import attention_implementations, implementations, run
from ridgeline.testing.suite import problem
from ridgeline.testing.tolerance import assert_matches, violations

__all__ = [
    "AttentionCase",
    "MergeCase",
    "PagedCase",
    "TiedCase",
    "assert_matches",
    "attention_case",
    "attention_implementations",
    "expected",
    "implementations",
    "merge_case",
    "paged_case",
    "poisoned",
    "problem",
    "run",
    "tied_case",
    "violations",
]
