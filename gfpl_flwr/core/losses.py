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
    """Division by the length, with its gradient written down: autograd takes half as many calls again.

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
    missing = (directions * targets).sum(-1) - 1
    return 0.5 * missing.square().mean(-1)


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
        ValueError: shapes that do not fit, an empty batch, or a negative weight.

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
    if not batch[-1]:
        raise ValueError("a batch must have a row at least")
    if not dr_weight >= 0:
        raise ValueError(f"dr_weight must be at least 0, got {dr_weight}")
    loss: Tensor = _HybridLoss.apply(logits, directions, labels, F.embedding(labels, etf.T), dr_weight)
    return loss


class _HybridLoss(torch.autograd.Function):
    """Cross-entropy and dot regression with their gradient written down: autograd takes half as many calls again.

    With ``p = softmax(h)`` and the cosine ``c = v . mu``: ``dL/dh = (p - e_y) / B`` and
    ``dL/dmu = dr_weight (c - 1) v / B``.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, directions: Tensor, labels: Tensor, targets: Tensor, dr_weight: float
    ) -> Tensor:
        logarithms, index = logits.log_softmax(-1), labels[..., None]
        of_label = logarithms.gather(-1, index)
        missing = (directions * targets).sum(-1, keepdim=True).sub_(1.0)
        ctx.save_for_backward(logarithms, of_label, index, missing, targets)
        ctx.dr_weight = dr_weight
        losses = missing.square().mul_(0.5 * dr_weight).sub_(of_label)
        return losses.sum((-2, -1)).div_(labels.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        logarithms, of_label, index, missing, targets = ctx.saved_tensors
        share = (outer / index.shape[-2])[..., None, None]
        for_logits = logarithms.exp().scatter_(-1, index, of_label.expm1()).mul_(share)
        return for_logits, targets * (missing * share).mul_(ctx.dr_weight), None, None, None
