"""Bhattacharyya distance between Gaussians with diagonal covariance, in nats."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Elements of the largest temporary: 2 MiB of float64, so that a block stays in the cache of one core.
_BLOCK_ELEMENTS = 1 << 18
_BLOCK_ELEMENTS_ACCELERATOR = 1 << 26
# Eight terms share a logarithm.
_FOLDINGS = 3
# The product of two variances above it has all its digits.
_ROOTS_BELOW = 1e-140


def distance(means_a: Tensor, variances_a: Tensor, means_b: Tensor, variances_b: Tensor) -> Tensor:
    """Return the Bhattacharyya distance of every pair of diagonal Gaussians.

    Equation 8 of the GFPL paper, which for diagonal covariances is equation 7 summed over the coordinates q::

        D_B(a, b) = sum_q (m_aq - m_bq)^2 / (4 (v_aq + v_bq)) + 1/2 ln( (v_aq + v_bq) / (2 s_aq s_bq) ),  s^2
        = v

    The logarithm is computed as ``1/2 log1p((v_a - v_b)^2 / (4 v_a v_b))``, the same number: never negative,
    zero to the last bit for equal variances, symmetric, and exact for variances that differ by many orders of
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

    @classmethod
    def prepare(cls, means: Tensor, variances: Tensor) -> Gaussians:
        """Return the rows in float64, one after the other in memory."""
        return cls(means.double().contiguous(), variances.double().contiguous())

    @property
    def tiny(self) -> bool:
        """Whether a product of two variances could lose digits, so that they must be compared by their roots."""
        return self.variances.numel() > 0 and bool(self.variances.min() < _ROOTS_BELOW)

    def rows(self, index: slice | Tensor) -> Gaussians:
        """Return some of the rows."""
        return Gaussians(self.means[index], self.variances[index])


class Scratch:
    """Memory for the temporaries of one block at a time: to allocate them anew costs more than to fill them.

    Args:
        like: tells the device.
        roots: compare variances by their roots, for rows that are ``tiny``.
    """

    def __init__(self, like: Tensor, *, roots: bool = False) -> None:
        self.roots = roots
        self.elements = _BLOCK_ELEMENTS if like.device.type == "cpu" else _BLOCK_ELEMENTS_ACCELERATOR
        self._buffers = [like.new_empty(0, dtype=torch.float64) for _ in range(2)]

    def views(self, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return two tensors of this shape, whatever they hold."""
        size = math.prod(shape)
        if len(self._buffers[0]) < size:
            self._buffers = [buffer.new_empty(size) for buffer in self._buffers]
        first, second = (buffer[:size].view(*shape) for buffer in self._buffers)
        return first, second


def distance_float64(a: Gaussians, b: Gaussians) -> Tensor:
    """Compute ``distance`` of prepared rows, float64."""
    rows_a, rows_b = len(a.means), len(b.means)
    scratch = Scratch(a.means, roots=a.tiny or b.tiny)
    out = a.means.new_empty(rows_a, rows_b)
    for i, j in tiles(rows_a, rows_b, a.means.shape[1], scratch):
        left = Gaussians(*(value[i, None] for value in a))
        out[i, j] = summed_terms(left, b.rows(j), scratch)
    return out


def tiles(rows_a: int, rows_b: int, width: int, scratch: Scratch) -> Iterator[tuple[slice, slice]]:
    """Cut an A x B matrix into pieces whose terms, ``width`` a pair, fit into the scratch memory."""
    step_b = max(1, min(rows_b, scratch.elements // width))
    step_a = max(1, scratch.elements // (step_b * width))
    for i in range(0, rows_a, step_a):
        for j in range(0, rows_b, step_b):
            yield slice(i, i + step_a), slice(j, j + step_b)


def summed_terms(left: Gaussians, right: Gaussians, scratch: Scratch) -> Tensor:
    """Sum the terms of the distance over the last dimension; never NaN.

    The sides are (A, 1, D) and (B, D), for all pairs, or both (B, D), row by row.

    Every term is at least 0, also in rounded arithmetic, so that the sum over some of the coordinates is a lower
    bound of the distance.
    """
    value, scale = scratch.views((*left.means.shape[:-2], *right.means.shape))
    torch.sub(left.means, right.means, out=value)
    torch.add(left.variances, right.variances, out=scale)
    shift = value.square_().div_(scale).sum(-1).mul_(0.25)
    spread = _spread(left, right, value, scale, foldings=_FOLDINGS, roots=scratch.roots)
    total = torch.add(shift, spread)
    if not bool(total.isfinite().all()):
        # A product of variances or of terms that share a logarithm overflowed, or the distance itself did.
        spread = _spread(left, right, value, scale, foldings=0, roots=True)
        total = torch.add(shift, spread).nan_to_num_(nan=math.inf, posinf=math.inf)
    return total


def _spread(left: Gaussians, right: Gaussians, value: Tensor, scale: Tensor, *, foldings: int, roots: bool) -> Tensor:
    """Sum ``1/2 ln((v + w) / (2 s t))`` over the last dimension, in the memory of ``value`` and ``scale``."""
    v, w = left.variances, right.variances
    if roots:
        v, w = v.sqrt(), w.sqrt()
    torch.sub(v, w, out=value)
    torch.mul(v, w, out=scale)
    terms = value.square_().div_(scale).mul_(0.5 if roots else 0.25)
    return _sum_log1p(terms, scale, foldings=foldings).mul_(0.5 if roots else 0.25)


def _sum_log1p(terms: Tensor, spare: Tensor, *, foldings: int) -> Tensor:
    """``sum ln(1 + t)`` over the last dimension, for t >= 0; destroys both arguments.

    Halves of the terms are folded into each other by ``(1 + t)(1 + u) = 1 + (t + u + t u)``, which keeps
    small terms to full precision and saves most of the logarithms.
    """
    total = terms.new_zeros(terms.shape[:-1])
    for _ in range(foldings):
        half = terms.shape[-1] // 2
        if terms.shape[-1] % 2:
            total += terms[..., -1].log1p()
        first, second = terms[..., :half], terms[..., half : 2 * half]
        folded = spare.view(-1)[: first.numel()].view(first.shape)
        torch.add(first, second, out=folded).addcmul_(first, second)
        terms, spare = folded, terms
    return total + terms.log1p_().sum(-1)


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
