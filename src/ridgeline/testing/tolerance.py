r"""The one error budget: twice the same-precision PyTorch error, plus a rounding band.

An element passes if ``|actual - exact| <= 2 * (largest error of the naive computation in its row)
+ band``. The band stands for the roundings that no implementation can avoid, so that a row in which
the naive computation happens to be exact does not ask for the impossible. With u the unit roundoff
of the accumulation (2^-24; 2^-53 for float64) and eps the spacing of the cache's dtype at 1, and
``p, v, o, a`` as in ``oracle.Expected``:

- The result is rounded once, and so may each p be before it multiplies v:
  ``(eps/2) |o| + (eps/2) sum p |v| <= eps * weight``.
- A score is a sum of d products. Its rounding error is at most ``c sqrt(d) u a`` with high
  probability (Higham and Mary, SIAM J. Sci. Comput. 41(5), 2019), c = 4 here. An error e_n in score
  n moves the result by ``sum p_n e_n (v_n - o)`` at first order: ``4 sqrt(d) u * swing``.
- Sums over n tokens of p and of p v, and exp itself: ``4 u (sqrt(n) + 4) * weight``.
- A p below the normal range of the dtype is rounded absolutely: ``n * subnormal * max |v|``, and
  so is a result: one ``subnormal``.

For the lse, ``sum p_n e_n`` plus the rounding of ``max + log(sum)``:
``4 u (sqrt(d) * score + sqrt(n) + 4 + |lse|)``. It does not depend on the cache's dtype: an lse is
float32 or better. Rows that see nothing must be exactly 0 and -inf.

The gradients of ``attention`` are sums of the same kind. With ``g = dp - delta + dlse``,
``dp_n = dout · v_n``, ``delta = sum p dp`` and ``ds = scale * slope * p * g`` (slope: of the soft
cap), ``oracle_attention`` gives for each of their elements the factors of eps, u and the subnormal:

- p and ds are rounded before they multiply a row, the result once:
  ``(eps/2) (sum |ds k| + |dq|)``, ``(eps/2) (sum p |dout| + |dv|)``.
- delta is computed from a rounded p, or from a rounded out, whose roundings are independent:
  ``eps (sum p |dp| / 2 + 2 |out * dout|_2)``. It moves all of a query's ds alike, so dq by
  ``|sum scale slope p k|`` times that.
- p carries the errors of its score, of the lse and of exp, dp and delta those of their sums of d_v
  products, each as above; so does the slope, ``1 - t^2`` with ``dt = (1 - t^2) ds / softcap``.
  Errors of different scores are independent: their squares add up.
"""

from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ridgeline.testing import oracle_attention
from ridgeline.testing.cases import AttentionCase, Case
from ridgeline.testing.naive import naive
from ridgeline.testing.oracle import Expected, expected
from ridgeline.testing.oracle_attention import ExpectedAttention, Gradient

_TRUTHS = WeakKeyDictionary()


def bands(exact: Expected, dtype: torch.dtype, lse_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The rounding bands of ``out`` and ``lse``, as derived above."""
    u = torch.finfo(lse_dtype).eps / 2
    info = torch.finfo(dtype)
    subnormal = info.smallest_normal * info.eps
    root_n, root_d = exact.tokens.sqrt(), exact.width**0.5
    row = (4 * u * (root_n + 4))[..., None]
    out = (info.eps + row) * exact.weight + 4 * u * root_d * exact.swing
    tiny = subnormal * (exact.tokens * exact.peak + 1)
    lse = 4 * u * (root_d * exact.score + root_n + 4 + exact.lse.abs())
    seen = exact.tokens > 0
    return out + (tiny * seen)[..., None], lse.masked_fill(~seen, 0.0)


def violations(case: Case, out: Tensor, lse: Tensor, *gradients: Tensor) -> str | None:
    """Why the results are not within the budget of the case, or ``None``.

    ``gradients`` are the ``dq``, ``dk`` and ``dv`` of a case of ``attention``.
    """
    exact, (naive_out, naive_lse, *naive_gradients) = truth(case)
    forward = exact.forward if isinstance(exact, ExpectedAttention) else exact
    out_band, lse_band = bands(forward, out.dtype, lse.dtype)
    worst = _largest_finite((naive_out - forward.out).abs())
    wrong = _outside("out", out, forward.out, 2 * worst + out_band) or _outside(
        "lse", lse, forward.lse, 2 * _finite((naive_lse - forward.lse).abs()) + lse_band
    )
    if wrong or not gradients:
        return wrong
    names = ("dq", "dk", "dv")
    for name, got, near in zip(names, gradients, naive_gradients, strict=True):
        want = getattr(exact, name)
        worst = _largest_finite((near - want.exact).abs())
        wrong = wrong or _outside(name, got, want.exact, 2 * worst + gradient_band(want, got.dtype))
    return wrong


def gradient_band(gradient: Gradient, dtype: torch.dtype) -> Tensor:
    """The rounding band of a gradient, as derived above."""
    u = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps / 2
    info = torch.finfo(dtype)
    subnormal = info.smallest_normal * info.eps
    return info.eps * gradient.coarse + u * gradient.fine + subnormal * gradient.tiny


def assert_matches(case: Case, out: Tensor, lse: Tensor, *gradients: Tensor) -> None:
    """Raises ``AssertionError`` with the worst element if the case's budget is exceeded."""
    problem = violations(case, out, lse, *gradients)
    assert problem is None, f"{problem}\n{case}"


def truth(case: Case) -> tuple[Expected | ExpectedAttention, tuple[Tensor, ...]]:
    """The exact and the naive results; computed once, however many implementations are compared."""
    if case not in _TRUTHS:
        of_attention = isinstance(case, AttentionCase)
        exact = oracle_attention.attention(case) if of_attention else expected(case)
        _TRUTHS[case] = exact, naive(case)
    return _TRUTHS[case]


def _finite(x: Tensor) -> Tensor:
    """A row where the naive computation overflowed gets the band alone."""
    return torch.nan_to_num(x, nan=0.0, posinf=0.0)


def _largest_finite(x: Tensor) -> Tensor:
    return _finite(x).amax(-1, keepdim=True) if x.shape[-1] else x


def _outside(name: str, actual: Tensor, exact: Tensor, budget: Tensor) -> str | None:
    if actual.shape != exact.shape:
        return f"{name}: expected shape {list(exact.shape)}, got {list(actual.shape)}"
    if actual.numel() == 0:
        return None
    right = actual.double() == exact
    right |= exact.isfinite() & (exact.abs() > torch.finfo(actual.dtype).max)  # may overflow
    error = torch.where(right, 0.0, (actual.double() - exact).abs())
    excess = torch.nan_to_num(error - budget, nan=torch.inf)
    if (excess <= 0).all():
        return None
    at = tuple(int(i) for i in torch.unravel_index(excess.argmax(), excess.shape))
    return (
        f"{name}{list(at)}: expected {exact[at]:.9g}, got {actual[at]:.9g}; error "
        f"{error[at]:.3g} over the budget {budget[at]:.3g} ({int((excess > 0).sum())} of "
        f"{excess.numel()} elements)"
    )
