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


def dot_regression(projected: Tensor, targets: Tensor) -> Tensor:
    """Return the squared distance of each projection's cosine from 1.

    Equations 11 and 12 of the GFPL paper: ``mu_b = z_b / max(|z_b|, 1e-12)`` and
    ``L_DR = 1 / (2 B) sum_b (v_{y_b} . mu_b - 1)^2``.

    A projection shorter than 1e-12 has no direction: its value follows the formula, its gradient is set to
    zero, where equation 11 would give one of the order of 1e12.

    Args:
        projected: output of the projection layer, shape (..., B, P), not normalised.
        targets: unit class direction of each row, shape (..., B, P): ``etf.T[labels]``; fixed, they get no gradient.

    Returns:
        The loss of each batch, shape (...): a scalar for one batch.

    Raises:
        ValueError: shapes that differ or are not (..., B, P) with B >= 1.

    Source: Lu et al., "GFPL", equations 11 and 12; Yang et al., "Inducing neural collapse in imbalanced
    learning" (NeurIPS 2022).
    """
    if projected.ndim < 2 or projected.shape != targets.shape or projected.shape[-2] < 1:
        raise ValueError(
            "projected and targets must share one shape (..., B, P) with B >= 1, "
            f"got {tuple(projected.shape)} and {tuple(targets.shape)}"
        )
    loss: Tensor = _DotRegression.apply(projected, targets)
    return loss


class _DotRegression(torch.autograd.Function):
    """Dot regression with its gradient written down: derived by autograd it took a third of a step of the heads.

    With the cosine ``c = v . mu`` and ``mu = z / |z|``: ``dL/dz = (c - 1) (v - c mu) / (B |z|)``.
    """

    @staticmethod
    def forward(ctx: Any, projected: Tensor, targets: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(projected, dim=-1, keepdim=True).clamp_min_(_MIN_NORM)
        direction = projected / length
        cosine = (direction * targets).sum(dim=-1, keepdim=True)
        ctx.save_for_backward(direction, targets, cosine, length)
        loss: Tensor = 0.5 * (cosine - 1.0).square_().mean((-2, -1))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None]:
        direction, targets, cosine, length = ctx.saved_tensors
        scale = (cosine - 1.0).mul_(length > _MIN_NORM).mul_(outer[..., None, None] / targets.shape[-2])
        return torch.addcmul(targets, cosine, direction, value=-1.0).mul_(scale.div_(length)), None


def hybrid_loss(logits: Tensor, projected: Tensor, labels: Tensor, etf: Tensor, *, dr_weight: float) -> Tensor:
    """Return cross-entropy of the trainable classifier plus weighted dot regression.

    Equation 13 of the GFPL paper, and 14 when the inputs are pseudo-features:
    ``L = L_CE(h(z), y) + dr_weight * L_DR(mu, y)``.

    Args:
        logits: output of the trainable classifier, shape (..., B, C).
        projected: output of the projection layer, shape (..., B, P), not normalised.
        labels: class of each row, shape (..., B), int64.
        etf: unit columns of the fixed classifier, shape (P, C).
        dr_weight: weight of the dot regression, lambda, at least 0.

    Returns:
        The loss of each batch in nats, shape (...): a scalar for one batch.

    Raises:
        ValueError: shapes that do not fit, or a negative weight.

    Source: Lu et al., "GFPL", equations 13 and 14.
    """
    batch, classes = projected.shape[:-1], etf.shape[-1]
    if etf.ndim != 2 or projected.ndim < 2 or projected.shape[-1] != etf.shape[0]:
        raise ValueError(
            f"projected (..., B, P) must fit etf (P, C), got {tuple(projected.shape)} and {tuple(etf.shape)}"
        )
    if logits.shape != (*batch, classes) or labels.shape != batch:
        raise ValueError(
            f"logits and labels must have shapes {(*batch, classes)} and {tuple(batch)} "
            f"to match projected and etf, got {tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    if not dr_weight >= 0:
        raise ValueError(f"dr_weight must be at least 0, got {dr_weight}")
    return cross_entropy(logits, labels) + dr_weight * dot_regression(projected, F.embedding(labels, etf.T))
