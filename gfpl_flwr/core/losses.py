"""Dot regression towards the fixed class directions, and the hybrid loss of the dual classifier."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Shortest length by which a projection is divided, equation 11.
_MIN_NORM = 1e-12


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of each batch.

    Args:
        logits: shape (..., B, C).
        labels: class of each row, shape (..., B), int64.

    Returns:
        The loss in nats, shape (...): a scalar for one batch.
    """
    losses = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none")
    return losses.view(labels.shape).mean(-1)


def directions_of(projected: Tensor) -> Tensor:
    """Return the direction of each projection, ``mu_b = z_b / max(|z_b|, 1e-12)``.

    A projection shorter than 1e-12 has no direction: its value follows the formula, its gradient is set to zero,
    where the formula would give one of the order of 1e12.

    Args:
        projected: output of the projection layer, shape (..., P), not normalised.

    Returns:
        Unit vectors of the same shape.

    Source: Lu et al., "GFPL", equation 11.
    """
    directions: Tensor = _Directions.apply(projected)
    return directions


class _Directions(torch.autograd.Function):
    """Division by the length, with its gradient written down: autograd takes twice as many operations.

    With ``mu = z / |z|``: ``dL/dz = (g - (g . mu) mu) / |z|``, where g is dL/dmu.
    """

    @staticmethod
    def forward(ctx: Any, projected: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(projected, dim=-1, keepdim=True).clamp_min_(_MIN_NORM)
        directions: Tensor = projected / length
        ctx.save_for_backward(directions, length)
        return directions

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> Tensor:
        directions, length = ctx.saved_tensors
        along = (outer * directions).sum(dim=-1, keepdim=True)
        gradient: Tensor = torch.addcmul(outer, along, directions, value=-1.0)
        return gradient.mul_((length > _MIN_NORM) / length)


def dot_regression(directions: Tensor, targets: Tensor) -> Tensor:
    """Return the squared distance of each projection's cosine from 1.

    Equation 12 of the GFPL paper: ``L_DR = 1 / (2 B) sum_b (v_{y_b} . mu_b - 1)^2``.

    Args:
        directions: of the projections, shape (..., B, P), see :func:`directions_of`.
        targets: unit class direction of each row, shape (..., B, P): ``etf.T[labels]``; fixed, they get no gradient.

    Returns:
        The loss of each batch, shape (...): a scalar for one batch.

    Raises:
        ValueError: shapes that differ or are not (..., B, P) with B >= 1.

    Source: Lu et al., "GFPL", equation 12; Yang et al., "Inducing neural collapse in imbalanced learning"
    (NeurIPS 2022).
    """
    if directions.ndim < 2 or directions.shape != targets.shape or directions.shape[-2] < 1:
        raise ValueError(
            "directions and targets must share one shape (..., B, P) with B >= 1, "
            f"got {tuple(directions.shape)} and {tuple(targets.shape)}"
        )
    loss: Tensor = _DotRegression.apply(directions, targets)
    return loss


class _DotRegression(torch.autograd.Function):
    """Dot regression with its gradient written down: with the cosine ``c = v . mu``, ``dL/dmu = (c - 1) v / B``."""

    @staticmethod
    def forward(ctx: Any, directions: Tensor, targets: Tensor) -> Tensor:
        missing = (directions * targets).sum(dim=-1, keepdim=True).sub_(1.0)
        ctx.save_for_backward(missing, targets)
        loss: Tensor = 0.5 * missing.square().mean((-2, -1))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None]:
        missing, targets = ctx.saved_tensors
        return targets * (missing * (outer[..., None, None] / targets.shape[-2])), None


def hybrid_loss(logits: Tensor, directions: Tensor, labels: Tensor, etf: Tensor, *, dr_weight: float) -> Tensor:
    """Return cross-entropy of the trainable classifier plus weighted dot regression.

    Equation 13 of the GFPL paper, and 14 when the inputs are pseudo-features:
    ``L = L_CE(h(z), y) + dr_weight * L_DR(mu, y)``.

    Args:
        logits: output of the trainable classifier, shape (..., B, C).
        directions: of the projections, shape (..., B, P), see :func:`directions_of`.
        labels: class of each row, shape (..., B), int64.
        etf: unit columns of the fixed classifier, shape (P, C).
        dr_weight: weight of the dot regression, lambda, at least 0.

    Returns:
        The loss of each batch in nats, shape (...): a scalar for one batch.

    Raises:
        ValueError: shapes that do not fit, or a negative weight.

    Source: Lu et al., "GFPL", equations 13 and 14.
    """
    batch, classes = directions.shape[:-1], etf.shape[-1]
    if etf.ndim != 2 or directions.ndim < 2 or directions.shape[-1] != etf.shape[0]:
        raise ValueError(
            f"directions (..., B, P) must fit etf (P, C), got {tuple(directions.shape)} and {tuple(etf.shape)}"
        )
    if logits.shape != (*batch, classes) or labels.shape != batch:
        raise ValueError(
            f"logits and labels must have shapes {(*batch, classes)} and {tuple(batch)} "
            f"to match directions and etf, got {tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    if not dr_weight >= 0:
        raise ValueError(f"dr_weight must be at least 0, got {dr_weight}")
    return cross_entropy(logits, labels) + dr_weight * dot_regression(directions, F.embedding(labels, etf.T))
