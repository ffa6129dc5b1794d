"""Expectation-maximisation of many independent Gaussian mixtures at once.

Q problems of at most L samples each, padded with zeros, R restarts of K components in each problem. The samples of
a problem are centred, so that the sums over all of them are known before the first step: component 0 is what the
other components leave of these sums, and its log-density is never formed sample by sample. Each step is then one
matrix product with K - 1 columns a restart for the log-odds against component 0, and one for the moments.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

LOG_2PI = math.log(2.0 * math.pi)
# Effective samples under which a component is rounding: it divides the moments of one that no sample belongs to.
TINY = 1e-10


class Space:
    """Memory for the samples of one chunk of problems after the other.

    Fresh memory costs several times what is done with it: the system hands it out page by page.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._buffer = torch.empty(0, dtype=torch.float64, device=device)
        self._used = 0

    def reset(self) -> None:
        """Give all memory free again."""
        self._used = 0

    def take(self, *shape: int) -> Tensor:
        """Return memory of a shape, float64, with what was in it before."""
        size = math.prod(shape)
        if self._used == 0 and len(self._buffer) < 2 * size:
            # A batch and its remains, which are at most half of it each time, fit in twice its size.
            self._buffer = torch.empty(2 * size, dtype=torch.float64, device=self._buffer.device)
        if self._used + size > len(self._buffer):
            return torch.empty(shape, dtype=torch.float64, device=self._buffer.device)
        self._used += size
        return self._buffer[self._used - size : self._used].view(shape)


@dataclass(frozen=True)
class Problems:
    """Samples of Q problems, centred, zero on the padding; squares beside them, so that moments are one product."""

    stack: Tensor  # (Q, L, 2 D), float64: samples and their squares
    present: Tensor  # (Q, L), bool: false on the padding
    sizes: Tensor  # (Q,), float64: number of samples
    totals: Tensor  # (Q, 2 D), float64: sums over the samples
    floor: Tensor  # (Q,), float64: lower bound of every variance, in squared units of the samples

    @property
    def rows(self) -> Tensor:
        """Samples, shape (Q, L, D)."""
        return self.stack[..., : self.stack.shape[-1] // 2]

    def only(self, index: Tensor, space: Space | None = None) -> Problems:
        """Return the problems of an index (Q',), their samples in ``space`` if there is one."""
        stack = (space or Space(index.device)).take(len(index), *self.stack.shape[1:])
        torch.index_select(self.stack, 0, index, out=stack)
        return Problems(stack, self.present[index], self.sizes[index], self.totals[index], self.floor[index])


@dataclass(frozen=True)
class Mixtures:
    """R fitted mixtures of each of Q problems.

    ``log_likelihood`` (nats a sample) belongs to the last E-step; the parameters are one M-step further, so they
    are at least as likely.
    """

    counts: Tensor  # (Q, R, K)
    means: Tensor  # (Q, R, K, D)
    variances: Tensor  # (Q, R, K, D)
    log_likelihood: Tensor  # (Q, R)

    def only(self, keep: Tensor) -> Mixtures:
        """Return the problems that a mask or an index (Q',) names."""
        return Mixtures(*(getattr(self, field.name)[keep] for field in fields(self)))

    def take(self, restarts: Tensor) -> Mixtures:
        """Return restarts ``(Q, T)`` of each problem."""
        problem = torch.arange(len(restarts), device=restarts.device)[:, None]
        return Mixtures(*(getattr(self, field.name)[problem, restarts] for field in fields(self)))


def padded(rows: Tensor, sizes: Tensor, floor: Tensor, *, space: Space | None = None) -> tuple[Problems, Tensor]:
    """Centre the samples of each problem.

    Args:
        rows: shape (Q, L, D), floating point; what stands beyond the size of a problem has no influence.
        sizes: samples of each problem, shape (Q,), int64.
        floor: lower bound of the variances of each problem, shape (Q,), float64.
        space: memory for the samples.

    Returns:
        The problems, and the means that were taken off, shape (Q, D), float64.
    """
    problems, longest, dim = rows.shape
    present = torch.arange(longest, device=rows.device) < sizes[:, None]
    stack = (space or Space(rows.device)).take(problems, longest, 2 * dim)
    samples, squares = stack.chunk(2, dim=-1)
    samples.copy_(rows)
    count = sizes.double()
    weight = present.double()[:, None]
    centre = (weight @ samples) / count[:, None, None]
    samples.sub_(centre)
    if not bool(present.all()):
        samples.masked_fill_(~present[..., None], 0.0)
    torch.mul(samples, samples, out=squares)
    totals = torch.cat([torch.zeros_like(centre), weight @ squares], dim=-1)[:, 0]
    return Problems(stack, present, count, totals, floor), centre[:, 0]


def hard_shares(data: Problems, clusters: Tensor, components: int) -> Tensor:
    """Responsibilities (Q, R, K - 1, L) of partitions (Q, R, L): one inside the clusters 1 to K - 1."""
    names = torch.arange(1, components, device=clusters.device)[:, None]
    return ((clusters[:, :, None] == names) & data.present[:, None, None]).double()


def maximise(
    data: Problems,
    shares: Tensor,
    *,
    max_iter: int,
    tol: float,
    space: Space | None = None,
    trace: list[Tensor] | None = None,
) -> Mixtures:
    """Run expectation-maximisation from given responsibilities until the gain of a step falls below ``tol``.

    Equations 5 and 6 of the GFPL paper. Every restart of every problem ends by itself: its result does not depend
    on the others beside it. A problem leaves the batch when the last of its restarts has ended.

    Args:
        data: Q problems.
        shares: responsibilities of the components 1 to K - 1, shape (Q, R, K - 1, L), zero on the padding; component
            0 has the rest. Conditioning is best where component 0 is the largest.
        max_iter: most steps, at least 1.
        tol: in nats a sample.
        space: memory for the samples of the problems that are left.
        trace: receives the log-likelihood (Q, R) of each step of the problems still in the batch.

    Returns:
        The mixtures reached.
    """
    counts, means, variances = _m_step(data, shares)
    likelihood = counts.new_empty(counts.shape[:2])
    out = Mixtures(torch.empty_like(counts), torch.empty_like(means), torch.empty_like(variances), likelihood)
    index = torch.arange(len(counts), device=counts.device)
    previous = torch.full_like(out.log_likelihood, -torch.inf)
    running = torch.ones_like(previous, dtype=torch.bool)
    for step in range(1, max_iter + 1):
        shares, likelihood = _e_step(data, counts, means, variances)
        if trace is not None:
            trace.append(likelihood)
        counts, means, variances = _m_step(data, shares)
        ended = running & (likelihood - previous < tol) if step < max_iter else running
        previous = likelihood
        at, restart = ended.nonzero(as_tuple=True)
        if len(at) == 0:
            continue
        for kept, now in (
            (out.counts, counts),
            (out.means, means),
            (out.variances, variances),
            (out.log_likelihood, likelihood),
        ):
            kept[index[at], restart] = now[at, restart]
        running = running & ~ended
        left = running.any(-1).nonzero()[:, 0]
        if len(left) == 0:
            break
        # Dropping problems copies the samples of the others: worth it once half of them have ended.
        if 2 * len(left) <= len(index):
            data, index, previous, running = data.only(left, space), index[left], previous[left], running[left]
            counts, means, variances = counts[left], means[left], variances[left]
    return out


def assign(data: Problems, fitted: Mixtures) -> Tensor:
    """Most responsible component of each sample, shape (Q, R, L)."""
    odds = _log_odds(data, fitted.counts, fitted.means, fitted.variances)[0]
    best, component = odds.max(2)
    return torch.where(best > 0, component + 1, 0)


def _m_step(data: Problems, shares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    problems, restarts, others, _ = shares.shape
    counts = shares.sum(-1)
    moments = (shares.flatten(1, 2) @ data.stack).view(problems, restarts, others, -1)
    rest = (data.sizes[:, None, None] - counts.sum(2, keepdim=True)).clamp_min_(0.0)
    counts = torch.cat([rest, counts], dim=2)
    moments = torch.cat([data.totals[:, None, None] - moments.sum(2, keepdim=True), moments], dim=2)
    means, squares = moments.div_(counts.clamp_min(TINY)[..., None]).chunk(2, dim=-1)
    variances = torch.addcmul(squares, means, means, value=-1.0)
    return counts, means, torch.maximum(variances, data.floor[:, None, None, None])


def _log_odds(data: Problems, counts: Tensor, means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
    """Log-odds of the components 1 to K - 1 against 0, (Q, R, K - 1, L), and the log-density of 0 summed, (Q, R)."""
    precision = variances.reciprocal()
    linear = means * precision
    energy = (linear * means).add_(variances.log_()).sum(-1)
    constant = (counts.clamp_min(TINY) / data.sizes[:, None, None]).log_().sub_(energy, alpha=0.5)
    factors = torch.cat([linear, precision.mul_(-0.5)], dim=-1)
    against = factors[:, :, 1:] - factors[:, :, :1]
    # In this order, because a batch of one product with a single column is added up in another order than more are.
    odds = (against.flatten(1, 2) @ data.stack.mT).view(*against.shape[:3], -1)
    odds = odds + (constant[:, :, 1:] - constant[:, :, :1])[..., None]
    first = constant[..., 0] - 0.5 * LOG_2PI * means.shape[-1]
    first = first * data.sizes[:, None] + (data.totals[:, None] @ factors[:, :, 0].mT)[:, 0]
    return odds, first


def _e_step(data: Problems, counts: Tensor, means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
    odds, first = _log_odds(data, counts, means, variances)
    top = odds.amax(2, keepdim=True).clamp_min_(0.0)
    shares = odds.sub_(top).exp_()
    evidence = shares.sum(2, keepdim=True).add_((-top).exp_())
    mask = data.present[:, None, None]
    shares = shares.div_(evidence).mul_(mask)
    likelihood = (top.add_(evidence.log_()).mul_(mask)).sum((2, 3)).add_(first) / data.sizes[:, None]
    return shares, likelihood
