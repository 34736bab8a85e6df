"""Right before fast: a call whose result is wrong is not timed."""

import math

from torch import Tensor

# Relative error (Frobenius norm) against float32 attention on the same inputs. Ours rounds the
# probabilities and the output once each: twice 2^-9 in BF16, 2^-12 in FP16, doubled. Eager PyTorch
# also rounds scores, of size up to 2^3, before their exponential: 2^3 times more.
# Of FP8 caches the quantised values are the truth, and what is computed from them is BF16.
ROUNDING = {"bf16": 2.0**-9, "fp16": 2.0**-12, "fp32": 2.0**-19, "fp8": 2.0**-9}
OURS_BUDGET, PEER_BUDGET = 4, 32
# FP8 attention rounds q, k, v and probabilities by up to 2^-4, 0.4 of that in the mean: errors of
# scores, probabilities and values add up to some 0.06.
FP8_BUDGET = 2.0**-3


def relative_error(name: str, out: Tensor, want: Tensor, budget: float) -> float:
    """The error of ``out`` against ``want``.

    Raises:
        RuntimeError: it exceeds ``budget``, so the time of ``name`` would mean nothing.
    """
    error = ((out.float() - want).norm() / want.norm()).item()
    if not error <= budget or math.isnan(error):
        raise RuntimeError(f"{name}: relative error {error:.1e} exceeds {budget:.1e}; not timed")
    return error
