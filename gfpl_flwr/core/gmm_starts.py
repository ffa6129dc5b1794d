"""Hard partitions for mixture fits: k-means++ starts, and a local search in the likelihood of a partition.

All functions work on Q independent problems at once. ``rows`` is (Q, L, D): the samples of each problem,
centred, padded with zeros to L rows; ``present`` is (Q, L), false on the padding. The likelihood has a great
many local optima where D is large against n: expectation-maximisation then never changes its start, because
each sample sits in the variance of its own component. The search here moves single samples by the exact
change of the likelihood, the way Hartigan's algorithm does for k-means, and so leaves those optima.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_LLOYD_STEPS = 10
_MOVE_ROUNDS = 50
# Smallest relative gain that counts as progress: rounding must not keep the search alive.
_PROGRESS = 1e-9
# Squared distances below this share of the squared lengths are rounding: the points are equal.
_EQUAL = 1e-13


def kmeans_starts(rows: Tensor, present: Tensor, components: int, uniforms: Tensor) -> Tensor:
    """Partition each problem by k-means++ and a few Lloyd steps, once for each restart.

    Args:
        rows: shape (Q, L, D), float64.
        present: shape (Q, L), bool.
        components: K, clusters to look for; fewer where a problem has fewer distinct rows.
        uniforms: draws from [0, 1), shape (Q, R, K): one for each centre of each of R restarts.

    Returns:
        Cluster of every row, shape (Q, R, L), int64.

    Source: Arthur and Vassilvitskii, "k-means++" (2007).
    """
    problems, _, dim = rows.shape
    restarts = uniforms.shape[1]
    norms = rows.square().sum(-1, keepdim=True)  # (Q, L, 1)
    problem = torch.arange(problems, device=rows.device)[:, None]
    last = present.sum(-1, keepdim=True) - 1
    potential = present[..., None].double().expand(-1, -1, restarts)
    closest = torch.full_like(potential, torch.inf)
    centres = rows.new_zeros(problems, restarts, components, dim)
    found = torch.zeros(problems, restarts, components, dtype=torch.bool, device=rows.device)
    for k in range(components):
        reach = potential.cumsum(1)
        total = reach[:, -1]
        chosen = (reach <= (uniforms[..., k] * total)[:, None]).sum(1).minimum(last)  # (Q, R)
        found[..., k] = total > 0
        centres[..., k, :] = rows[problem, chosen]
        scale = norms + norms[problem, chosen].transpose(1, 2)
        gap = scale - 2.0 * rows @ centres[..., k, :].transpose(1, 2)
        closest = closest.minimum(gap.masked_fill(gap <= _EQUAL * scale, 0.0))
        potential = closest * present[..., None]

    # Lloyd steps choose a start and no more: single precision is enough for them.
    single = rows.float()
    clusters = _nearest(single, centres.float(), found)
    for _ in range(_LLOYD_STEPS):
        members = _members(clusters, present, components, single.dtype)
        sizes = members.sum(-1).view(problems, restarts, components)
        centres = (members @ single).view_as(centres) / sizes.clamp_min(1.0)[..., None]
        previous, clusters = clusters, _nearest(single, centres, sizes > 0)
        if torch.equal(previous, clusters):
            break
    return clusters


def improve_partitions(
    rows: Tensor, present: Tensor, clusters: Tensor, components: int, *, floor: float, smallest: float
) -> Tensor:
    """Raise the likelihood of one partition of each problem until no move of the search helps.

    The moves: any single sample to another cluster; and, where a cluster of one sample is allowed, the
    cheapest merge of two clusters with the sample that gains most taking the free place, followed by single
    moves.

    Args:
        rows: shape (Q, L, D), float64.
        present: shape (Q, L), bool.
        clusters: shape (Q, L), int64.
        components: K.
        floor: lower bound of every variance, in squared units of ``rows``.
        smallest: samples that a cluster must keep.

    Returns:
        Partitions of the same shape, none of lower likelihood than the one given.
    """
    scaled = rows / math.sqrt(floor)
    stack = torch.cat([scaled, scaled.square()], dim=-1)
    data = _Problems(components, present, stack, scaled.float())
    best, score = _move_samples(data, clusters, smallest)
    if smallest > 1:
        return best
    active = torch.arange(len(rows), device=rows.device)
    for _ in range(2 * components):
        trial, reached = _move_samples(data, _split_off(data, best[active]), smallest)
        better = reached > score[active] + _PROGRESS * score[active].abs()
        active = active[better]
        best[active], score[active] = trial[better], reached[better]
        if len(active) == 0:
            break
        data = data.only(better)
    return best


@dataclass(frozen=True)
class _Problems:
    """Samples of Q problems in units of the floor, so that the formulas below have a floor of 1."""

    components: int
    present: Tensor  # (Q, L)
    stack: Tensor  # (Q, L, 2 D): samples and their squares
    single: Tensor  # (Q, L, D): samples, float32

    def only(self, keep: Tensor) -> _Problems:
        """Return the problems where ``keep`` is true."""
        if bool(keep.all()):
            return self
        return _Problems(self.components, self.present[keep], self.stack[keep], self.single[keep])


def _nearest(rows: Tensor, centres: Tensor, alive: Tensor) -> Tensor:
    """Nearest centre that is alive, shape (Q, R, L)."""
    problems, restarts, components, dim = centres.shape
    offset = (-0.5 * centres.square().sum(-1)).masked_fill(~alive, -torch.inf)
    score = rows @ centres.view(problems, -1, dim).transpose(1, 2)
    return (score.view(problems, -1, restarts, components) + offset[:, None]).argmax(-1).transpose(1, 2)


def _move_samples(data: _Problems, clusters: Tensor, smallest: float) -> tuple[Tensor, Tensor]:
    """Move single samples until nothing improves; return the partitions and their log-likelihoods, (Q,)."""
    score, sizes = (value[:, 0] for value in _partition_score(data, clusters[:, None]))
    out, final = clusters.clone(), score.clone()
    clusters = out.clone()
    index = torch.arange(len(out), device=out.device)
    running = torch.ones_like(index, dtype=torch.bool)
    shares = torch.tensor([1.0, 0.25, 0.0625, 0.0], device=out.device)
    for _ in range(_MOVE_ROUNDS):
        gain, target = _move_gains(data, clusters, smallest).max(-1)
        rank = gain.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        rising = (gain > 0).sum(-1, keepdim=True)
        # The gains hold for one move at a time. All rising moves together, a quarter of them, and so on down
        # to the best alone are scored exactly, and the best of these is taken: the likelihood cannot fall.
        taken = (rising * shares).ceil().clamp_min(1).minimum(rising)  # (Q, T)
        moved = torch.where(rank[:, None] < taken[..., None], target[:, None], clusters[:, None])  # (Q, T, L)
        value, left = _partition_score(data, moved)
        # Moves that are legal one by one may together take too much from one cluster.
        drained = (left < sizes[:, None].clamp_max(smallest)).any(-1)
        reached, choice = value.masked_fill(drained, -torch.inf).max(-1)
        running = running & (reached > score + _PROGRESS * score.abs())
        at = running.nonzero()[:, 0]
        if len(at) == 0:
            break
        clusters[at], sizes[at], score[at] = moved[at, choice[at]], left[at, choice[at]], reached[at]
        out[index[at]], final[index[at]] = clusters[at], score[at]
        # Dropping problems copies the samples of the others: worth it once half of them have ended.
        if 2 * len(at) <= len(index):
            data, index, running = data.only(running), index[at], running[at]
            clusters, sizes, score = clusters[at], sizes[at], score[at]
    return out, final


def _split_off(data: _Problems, clusters: Tensor) -> Tensor:
    """Merge the two clusters that lose least, and give the free place to the sample that gains most."""
    counts, moments = (value[:, 0] for value in _moments(data, clusters[:, None]))
    own = _cluster_score(counts, _mean_variance(counts, moments)[1])
    u, v = torch.triu_indices(data.components, data.components, 1, device=clusters.device)
    joint = counts[:, u] + counts[:, v]
    cost = own[:, u] + own[:, v] - _cluster_score(joint, _mean_variance(joint, moments[:, u] + moments[:, v])[1])
    pair = cost.argmin(-1)
    into, free = u[pair][:, None], v[pair][:, None]
    merged = torch.where(clusters == free, into, clusters)
    gains = _move_gains(data, merged, 1.0)
    alone = gains.gather(-1, free[:, None].expand(-1, clusters.shape[1], 1))[..., 0].argmax(-1, keepdim=True)
    return merged.scatter(1, alone, free)


def _move_gains(data: _Problems, clusters: Tensor, smallest: float) -> Tensor:
    """Change of the log-likelihood for each single move, shape (Q, L, K), float32; -inf where barred."""
    counts, moments = (value[:, 0] for value in _moments(data, clusters[:, None]))
    exact_mean, exact_variance = _mean_variance(counts, moments)  # (Q, K, D)
    own = _cluster_score(counts, exact_variance).float()
    counts, mean, variance = counts.float(), exact_mean.float(), exact_variance.float()
    problem = torch.arange(len(clusters), device=clusters.device)[:, None]
    sample = torch.arange(clusters.shape[1], device=clusters.device)
    joined = (data.single[:, :, None] - mean[:, None]).square_()  # (Q, L, K, D)
    without = joined[problem, sample, clusters]
    size = counts[problem, clusters]  # (Q, L)
    rest = (size - 1.0).clamp_min(1.0)[..., None]
    without = without.div_(-rest).add_(variance[problem, clusters]).clamp_min_(0.0).mul_(size[..., None] / rest)
    leave = _cluster_score(size - 1.0, without) - own[problem, clusters]
    grown = (counts + 1.0)[:, None, :, None]  # (Q, 1, K, 1)
    joined = joined.div_(grown).add_(variance[:, None]).mul_(counts[:, None, :, None] / grown)
    gains = leave[..., None] + _cluster_score(grown[..., 0], joined) - own[:, None]
    barred = (~data.present | (size - 1.0 < smallest))[..., None] | (
        clusters[..., None] == torch.arange(data.components, device=clusters.device)
    )
    return gains.masked_fill(barred, -torch.inf)


def _partition_score(data: _Problems, clusters: Tensor) -> tuple[Tensor, Tensor]:
    """Log-likelihood (Q, T) of T partitions of each problem, up to a constant of the problem, and sizes (Q, T, K)."""
    counts, moments = _moments(data, clusters)
    return _cluster_score(counts, _mean_variance(counts, moments)[1]).sum(-1), counts


def _moments(data: _Problems, clusters: Tensor) -> tuple[Tensor, Tensor]:
    """Counts (Q, T, K) and sums of values and squares (Q, T, K, 2 D) of the clusters of T partitions."""
    members = _members(clusters, data.present, data.components, data.stack.dtype)
    shape = (*clusters.shape[:2], data.components)
    return members.sum(-1).view(shape), (members @ data.stack).view(*shape, -1)


def _members(clusters: Tensor, present: Tensor, components: int, dtype: torch.dtype) -> Tensor:
    """Indicator of each cluster, shape (Q, T * K, L), zero on the padding."""
    names = torch.arange(components, device=clusters.device)[:, None]
    members = (clusters[:, :, None] == names) & present[:, None, None]
    return members.flatten(1, 2).to(dtype)


def _mean_variance(counts: Tensor, moments: Tensor) -> tuple[Tensor, Tensor]:
    mean, square = (moments / counts.clamp_min(1.0)[..., None]).chunk(2, dim=-1)
    return mean, (square - mean.square()).clamp_min_(0.0)


def _cluster_score(counts: Tensor, variance: Tensor) -> Tensor:
    """``n (ln n - 1/2 sum_q (ln s2_q + v_q / s2_q))`` with ``s2 = max(v, 1)``; zero for an empty cluster."""
    spread = variance.clamp_min(1.0).log_().sum(-1) + variance.clamp_max(1.0).sum(-1)
    return counts * counts.clamp_min(1.0).log() - 0.5 * counts * spread
