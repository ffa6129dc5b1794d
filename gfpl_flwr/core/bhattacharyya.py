"""Bhattacharyya distance between Gaussians with diagonal covariance, in nats."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

# Elements of the largest temporary: 2 MiB of float64, so that a block stays in the cache of one core.
_BLOCK_ELEMENTS = 1 << 18
_BLOCK_ELEMENTS_ACCELERATOR = 1 << 26
# Standard deviations further apart than this could overflow a product of 8 terms of half their ratio.
_FOLDING_RATIO = 1e36


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
    a, b = Gaussians.prepare(means_a, variances_a), Gaussians.prepare(means_b, variances_b)
    return distance_float64(a, b).to(torch.promote_types(means_a.dtype, means_b.dtype))


class Gaussians(NamedTuple):
    """Rows of valid diagonal Gaussians in float64, shape (rows, D) each: what the inner loop reads."""

    means: Tensor
    variances: Tensor
    deviations: Tensor

    @classmethod
    def prepare(cls, means: Tensor, variances: Tensor) -> Gaussians:
        """Compute the standard deviations once; roots cost more than the rest of the formula."""
        variances = variances.double()
        return cls(means.double(), variances, variances.sqrt())

    def rows(self, index: slice | Tensor) -> Gaussians:
        """Return some of the rows."""
        return Gaussians(self.means[index], self.variances[index], self.deviations[index])


def distance_float64(a: Gaussians, b: Gaussians) -> Tensor:
    """Compute ``distance`` of prepared rows, float64: the inner loop of the fusion."""
    rows_a, rows_b, dim = len(a.means), len(b.means), a.means.shape[1]
    out = a.means.new_empty(rows_a, rows_b)
    if out.numel() == 0:
        return out
    budget = _BLOCK_ELEMENTS if out.device.type == "cpu" else _BLOCK_ELEMENTS_ACCELERATOR
    step_b = max(1, min(rows_b, budget // dim))
    step_a = max(1, min(rows_a, budget // (step_b * dim)))
    foldings = _foldings(a, b)
    work, other = (a.means.new_empty(step_a * step_b * dim) for _ in range(2))
    for i in range(0, rows_a, step_a):
        left = a.rows(slice(i, i + step_a))
        for j in range(0, rows_b, step_b):
            right = b.rows(slice(j, j + step_b))
            shape = (len(left.means), len(right.means), dim)
            value, scale = (buffer[: math.prod(shape)].view(shape) for buffer in (work, other))
            torch.sub(left.means[:, None], right.means, out=value)
            torch.add(left.variances[:, None], right.variances, out=scale)
            shift = value.square_().div_(scale).sum(-1)
            torch.sub(left.deviations[:, None], right.deviations, out=value)
            torch.mul(left.deviations[:, None], right.deviations, out=scale)
            spread = _sum_log1p(value.square_().div_(scale).mul_(0.5), foldings)
            out[i : i + step_a, j : j + step_b] = shift.mul_(0.25).add_(spread, alpha=0.5)
    return out


def _sum_log1p(terms: Tensor, foldings: int) -> Tensor:
    """``sum ln(1 + t)`` over the last dimension, for t >= 0.

    Halves of the terms are folded into each other by ``(1 + t)(1 + u) = 1 + (t + u + t u)``, which keeps
    small terms to full precision and saves most of the logarithms.
    """
    total = terms.new_zeros(terms.shape[:-1])
    for _ in range(foldings):
        half = terms.shape[-1] // 2
        if terms.shape[-1] % 2:
            total += terms[..., -1].log1p()
        first, second = terms[..., :half], terms[..., half : 2 * half]
        terms = torch.addcmul(first + second, first, second)
    return total + terms.log1p().sum(-1)


def _foldings(a: Gaussians, b: Gaussians) -> int:
    """Return 3, so that 8 terms share a logarithm, unless their product could overflow."""
    low = torch.minimum(a.deviations.min(), b.deviations.min())
    high = torch.maximum(a.deviations.max(), b.deviations.max())
    return 3 if bool(high / low < _FOLDING_RATIO) else 0


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
