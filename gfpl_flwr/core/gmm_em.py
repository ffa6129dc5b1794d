"""Expectation-maximisation of many independent Gaussian mixtures at once.

Q problems of at most L samples each, padded with zeros, R restarts of K components in each problem. The
restarts share the samples, so that they widen the matrix products instead of adding passes over the data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gfpl_flwr.core.gmm_starts import improve_partitions, kmeans_starts

_LOG_2PI = math.log(2.0 * math.pi)
# Divides the moments of a component that no sample belongs to.
_TINY = 1e-300

# Effective samples are sums of probabilities: what should be exactly 5 may come out as 5 less rounding.
_COUNT_ROUNDING = 1e-9
# A component around one sample shares some of it with the others and stays under 1: only less than half is
# empty.
_EMPTY = 0.5


@dataclass(frozen=True)
class Mixtures:
    """R fitted mixtures of each of Q problems.

    ``log_likelihood`` (nats a sample) and ``responsibilities`` belong to the last E-step; the parameters are
    one M-step further, so they are at least as likely.
    """

    counts: Tensor  # (Q, R, K)
    means: Tensor  # (Q, R, K, D)
    variances: Tensor  # (Q, R, K, D)
    log_likelihood: Tensor  # (Q, R)
    responsibilities: Tensor  # (Q, L, R, K)

    def fields(self) -> tuple[Tensor, ...]:
        """Return the five tensors in the order of declaration."""
        return self.counts, self.means, self.variances, self.log_likelihood, self.responsibilities

    def take(self, restarts: Tensor) -> Mixtures:
        """Return restarts ``(Q, T)`` of each problem."""
        problem = torch.arange(len(restarts), device=restarts.device)[:, None]
        return Mixtures(
            self.counts[problem, restarts],
            self.means[problem, restarts],
            self.variances[problem, restarts],
            self.log_likelihood[problem, restarts],
            self.responsibilities[problem, :, restarts].transpose(1, 2),
        )


def fit_problems(
    rows: Tensor,
    present: Tensor,
    uniforms: Tensor,
    *,
    floor: float,
    max_iter: int,
    tol: float,
    smallest: float,
    refine: bool,
) -> tuple[Mixtures, Tensor]:
    """Fit Q problems of K components each; return one mixture a problem, and the components it may keep.

    That number is K where every component has ``smallest`` samples, and else the K to try next.
    """
    components = uniforms.shape[-1]
    if components == 1:
        shares = present[..., None, None].to(rows.dtype)
        fitted = maximise(rows, present, shares, floor=floor, max_iter=1, tol=tol)
        return fitted, torch.ones(len(rows), dtype=torch.int64, device=rows.device)

    clusters = kmeans_starts(rows, present, components, uniforms)
    shares = _shares(clusters, present, components)
    fitted = maximise(rows, present, shares, floor=floor, max_iter=max_iter, tol=tol)
    fitted = fitted.take(_merit(fitted, smallest).argmax(-1, keepdim=True))
    if refine:
        hard = fitted.responsibilities[:, :, 0].argmax(-1)
        better = improve_partitions(rows, present, hard, components, floor=floor, smallest=smallest)
        at = (better != hard).any(-1).nonzero()[:, 0]
        if len(at):
            shares = _shares(better[at, None], present[at], components)
            second = maximise(rows[at], present[at], shares, floor=floor, max_iter=max_iter, tol=tol)
            won = (_merit(second, smallest) > _merit(fitted, smallest)[at])[:, 0]
            for mine, new in zip(fitted.fields(), second.fields(), strict=True):
                mine[at[won]] = new[won]
    legal = (fitted.counts >= _least(smallest)).all(-1)[:, 0]
    populated = (fitted.counts[:, 0] >= _EMPTY).sum(-1).clamp(1, components - 1)
    return fitted, torch.where(legal, components, populated)


def _merit(fitted: Mixtures, smallest: float) -> Tensor:
    """Log-likelihood of each restart, minus infinity where a component has too few samples, shape (Q, R)."""
    legal = (fitted.counts >= _least(smallest)).all(-1)
    return fitted.log_likelihood.masked_fill(~legal, -torch.inf)


def _least(smallest: float) -> float:
    """Effective samples under which a component is illegal."""
    return _EMPTY if smallest == 1 else smallest * (1.0 - _COUNT_ROUNDING)


def _shares(clusters: Tensor, present: Tensor, components: int) -> Tensor:
    """Responsibilities (Q, L, R, K) of partitions (Q, R, L)."""
    members = torch.nn.functional.one_hot(clusters, components).double() * present[:, None, :, None]
    return members.transpose(1, 2).contiguous()


def maximise(
    rows: Tensor,
    present: Tensor,
    responsibilities: Tensor,
    *,
    floor: float,
    max_iter: int,
    tol: float,
    trace: list[Tensor] | None = None,
) -> Mixtures:
    """Run expectation-maximisation from given responsibilities until every restart gains less than ``tol``.

    Equations 5 and 6 of the GFPL paper. A problem ends when the last of its restarts does, and its result
    does not depend on the problems beside it.

    Args:
        rows: samples of each problem, centred, zero on the padding, shape (Q, L, D), float64.
        present: false on the padding, shape (Q, L), bool.
        responsibilities: shape (Q, L, R, K), zero on the padding, summing to 1 over K elsewhere.
        floor: lower bound of the variances, in squared units of ``rows``.
        max_iter: most steps, at least 1.
        tol: in nats a sample.
        trace: receives the log-likelihood (Q, R) of each step of the problems still in the batch.

    Returns:
        The mixtures reached.
    """
    problems, _, restarts, components = responsibilities.shape
    dim = rows.shape[-1]
    stack = torch.cat([rows, rows.square()], dim=-1)
    out = Mixtures(
        rows.new_empty(problems, restarts, components),
        rows.new_empty(problems, restarts, components, dim),
        rows.new_empty(problems, restarts, components, dim),
        rows.new_empty(problems, restarts),
        torch.empty_like(responsibilities),
    )
    index = torch.arange(problems, device=rows.device)
    running = torch.ones_like(index, dtype=torch.bool)
    previous = rows.new_full((problems, restarts), -torch.inf)
    counts, means, variances = _m_step(stack, responsibilities, floor)
    for step in range(1, max_iter + 1):
        responsibilities, likelihood = _e_step(stack, present, counts, means, variances)
        if trace is not None:
            trace.append(likelihood)
        counts, means, variances = _m_step(stack, responsibilities, floor)
        ended = running & ((likelihood - previous) < tol).all(-1) if step < max_iter else running
        previous = likelihood
        if not ended.any():
            continue
        at = index[ended]
        out.counts[at], out.means[at], out.variances[at] = counts[ended], means[ended], variances[ended]
        out.log_likelihood[at], out.responsibilities[at] = likelihood[ended], responsibilities[ended]
        running = running & ~ended
        left = int(running.sum())
        if left == 0:
            break
        # Dropping problems copies the samples of the others: worth it once half of them have ended.
        if 2 * left <= len(running):
            stack, present, index, previous = (
                stack[running],
                present[running],
                index[running],
                previous[running],
            )
            counts, means, variances = counts[running], means[running], variances[running]
            running = running[running]
    return out


def _m_step(stack: Tensor, responsibilities: Tensor, floor: float) -> tuple[Tensor, Tensor, Tensor]:
    problems, _, restarts, components = responsibilities.shape
    counts = responsibilities.sum(1)
    moments = responsibilities.flatten(2).transpose(1, 2) @ stack
    moments = moments.view(problems, restarts, components, -1) / counts.clamp_min(_TINY)[..., None]
    means, squares = moments.chunk(2, dim=-1)
    return counts, means, (squares - means.square()).clamp_min_(floor)


def _e_step(
    stack: Tensor, present: Tensor, counts: Tensor, means: Tensor, variances: Tensor
) -> tuple[Tensor, Tensor]:
    problems, restarts, components = counts.shape
    samples = present.sum(1)
    linear = means / variances
    quadratic = (linear * means + variances.log()).sum(-1) + means.shape[-1] * _LOG_2PI
    constant = (counts / samples[:, None, None]).log() - 0.5 * quadratic
    factors = torch.cat([linear, -0.5 / variances], dim=-1).view(problems, restarts * components, -1)
    density = torch.baddbmm(constant.view(problems, 1, -1), stack, factors.transpose(1, 2))
    density = density.view(problems, -1, restarts, components)
    evidence = density.logsumexp(-1, keepdim=True)
    mask = present[:, :, None, None]
    likelihood = (evidence * mask).sum(1)[..., 0] / samples[:, None]
    return (density - evidence).exp_().mul_(mask), likelihood
