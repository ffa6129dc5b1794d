"""Bhattacharyya distance between Gaussians with diagonal covariance, in nats."""

from __future__ import annotations

import torch
from torch import Tensor

# Elements of the largest temporary: 2 MiB of float64, so that a block stays in the cache of one core.
_BLOCK_ELEMENTS = 1 << 18
_BLOCK_ELEMENTS_ACCELERATOR = 1 << 26


def distance(means_a: Tensor, variances_a: Tensor, means_b: Tensor, variances_b: Tensor) -> Tensor:
    """Return the Bhattacharyya distance of every pair of diagonal Gaussians.

    Equation 8 of the GFPL paper, which for diagonal covariances is equation 7 summed over the coordinates q::

        D_B(a, b) = sum_q (m_aq - m_bq)^2 / (4 (v_aq + v_bq)) + 1/2 ln( (v_aq + v_bq) / (2 s_aq s_bq) ),  s^2
        = v

    The logarithm is computed as ``log1p((s_a - s_b)^2 / (2 s_a s_b))``, the same number: never negative, zero
    to the last bit for equal variances, symmetric, and exact for variances that differ by many orders of
    magnitude. Computed in float64 and in blocks, so that no temporary of A x B x D elements exists.

    Args:
        means_a: shape (A, D), in units of the features.
        variances_a: shape (A, D), in squared units, finite and above 0.
        means_b: shape (B, D).
        variances_b: shape (B, D).

    Returns:
        Distances in nats, shape (A, B), at least 0, in the promoted dtype of the two means. The Bhattacharyya
        coefficient is ``exp(-distance)``.

    Raises:
        ValueError: shapes that do not fit, a value that is not finite, or a variance that is not above 0.

    Source: Bhattacharyya (1943); Lu et al., "GFPL" (arXiv 2602.21873), equations 7 and 8.
    """
    _check("a", means_a, variances_a)
    _check("b", means_b, variances_b)
    if means_a.shape[1] != means_b.shape[1]:
        raise ValueError(f"both sides must share one D, got {means_a.shape[1]} and {means_b.shape[1]}")
    exact = distance_float64(means_a.double(), variances_a.double(), means_b.double(), variances_b.double())
    return exact.to(torch.promote_types(means_a.dtype, means_b.dtype))


def distance_float64(means_a: Tensor, variances_a: Tensor, means_b: Tensor, variances_b: Tensor) -> Tensor:
    """Compute ``distance`` for float64 operands that are known to be valid: the inner loop of the fusion."""
    rows_a, rows_b, dim = means_a.shape[0], means_b.shape[0], means_a.shape[1]
    std_a, std_b = variances_a.sqrt(), variances_b.sqrt()
    out = means_a.new_empty(rows_a, rows_b)
    budget = _BLOCK_ELEMENTS if means_a.device.type == "cpu" else _BLOCK_ELEMENTS_ACCELERATOR
    step_b = max(1, min(rows_b, budget // dim))
    step_a = max(1, budget // (step_b * dim))
    for i in range(0, rows_a, step_a):
        a = slice(i, i + step_a)
        mean_a, variance_a, scale_a = means_a[a, None], variances_a[a, None], std_a[a, None]
        for j in range(0, rows_b, step_b):
            b = slice(j, j + step_b)
            shape = (scale_a - std_b[b]).square_().div_(scale_a * std_b[b]).mul_(0.5).log1p_().mul_(0.5)
            shift = (mean_a - means_b[b]).square_().div_((variance_a + variances_b[b]).mul_(4.0))
            out[a, b] = shape.add_(shift).sum(-1)
    return out


def _check(side: str, means: Tensor, variances: Tensor) -> None:
    if means.ndim != 2 or means.shape != variances.shape or means.shape[1] < 1:
        raise ValueError(
            f"means_{side} and variances_{side} must share one shape (rows, D) with D >= 1, "
            f"got {tuple(means.shape)} and {tuple(variances.shape)}"
        )
    for name, value, bad in (
        ("means", means, ~means.isfinite()),
        ("variances", variances, ~(variances.isfinite() & (variances > 0))),
    ):
        if bad.any():
            row, feature = bad.nonzero()[0].tolist()
            rule = "finite" if name == "means" else "finite and > 0"
            raise ValueError(
                f"{name}_{side} must be {rule}, row {row} has {value[row, feature].item():.8g} at feature {feature}"
            )
