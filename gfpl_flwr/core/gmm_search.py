"""Search over hard partitions of small problems: single samples move while the likelihood of the partition rises.

The likelihood has a great many local optima where D is large against n: expectation-maximisation then never changes
its start, because each sample sits in the variance of its own component. The search here moves single samples by the
exact change of the likelihood, the way Hartigan's algorithm does for k-means, and so leaves those optima. All
functions work on Q independent problems at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gfpl_flwr.core.gmm_em import Problems

_MOVE_ROUNDS = 50
# Smallest relative gain that counts as progress: rounding must not keep the search alive.
_PROGRESS = 1e-9


def improve_partitions(problems: Problems, clusters: Tensor, components: int, *, smallest: float) -> Tensor:
    """Raise the likelihood of one partition of each problem until no move of the search helps.

    The moves: any single sample to another cluster; and, where a cluster of one sample is allowed, the
    cheapest merge of two clusters with the sample that gains most taking the free place, followed by single
    moves.

    Args:
        problems: Q problems.
        clusters: shape (Q, L), int64.
        components: K.
        smallest: samples that a cluster must keep.

    Returns:
        Partitions of the same shape, none of lower likelihood than the one given.
    """
    scaled = problems.rows / problems.floor.sqrt()[:, None, None]
    stack = torch.cat([scaled, scaled.square()], dim=-1)
    data = _Scaled(components, problems.present, stack, scaled.float())
    best, score = _move_samples(data, clusters, smallest)
    if smallest > 1:
        return best
    active = torch.arange(len(clusters), device=clusters.device)
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
class _Scaled:
    """Samples of Q problems in units of the floor, so that the formulas below have a floor of 1."""

    components: int
    present: Tensor  # (Q, L)
    stack: Tensor  # (Q, L, 2 D): samples and their squares
    single: Tensor  # (Q, L, D): samples, float32

    def only(self, keep: Tensor) -> _Scaled:
        """Return the problems where ``keep`` is true."""
        if bool(keep.all()):
            return self
        return _Scaled(self.components, self.present[keep], self.stack[keep], self.single[keep])


def _move_samples(data: _Scaled, clusters: Tensor, smallest: float) -> tuple[Tensor, Tensor]:
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


def _split_off(data: _Scaled, clusters: Tensor) -> Tensor:
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


def _move_gains(data: _Scaled, clusters: Tensor, smallest: float) -> Tensor:
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


def _partition_score(data: _Scaled, clusters: Tensor) -> tuple[Tensor, Tensor]:
    """Log-likelihood (Q, T) of T partitions of each problem, up to a constant of the problem, and sizes (Q, T, K)."""
    counts, moments = _moments(data, clusters)
    return _cluster_score(counts, _mean_variance(counts, moments)[1]).sum(-1), counts


def _moments(data: _Scaled, clusters: Tensor) -> tuple[Tensor, Tensor]:
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
