"""Hard partitions for mixture fits: k-means++ starts, and a local search in the likelihood of a partition.

All functions work on Q independent problems at once. ``rows`` is (Q, L, D): the samples of each problem, centred,
padded with zeros to L rows; ``present`` is (Q, L), false on the padding. The likelihood has a great many local
optima where D is large against n: expectation-maximisation then never changes its start, because each sample sits
in the variance of its own component. The search here moves single samples by the exact change of the likelihood,
the way Hartigan's algorithm does for k-means, and so leaves those optima.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
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
    problems, length, dim = rows.shape
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

    clusters = _nearest(rows, centres, found)
    for _ in range(_LLOYD_STEPS):
        members = F.one_hot(clusters, components).to(rows.dtype) * present[:, None, :, None]  # (Q, R, L, K)
        sizes = members.sum(2)
        flat = members.permute(0, 1, 3, 2).reshape(problems, restarts * components, length)
        centres = (flat @ rows).view_as(centres) / sizes.clamp_min(1.0)[..., None]
        previous, clusters = clusters, _nearest(rows, centres, sizes > 0)
        if torch.equal(previous, clusters):
            break
    return clusters


def improve_partitions(
    rows: Tensor, present: Tensor, clusters: Tensor, components: int, *, floor: float, smallest: float
) -> Tensor:
    """Raise the likelihood of one partition of each problem until no move of the search helps.

    The moves: any single sample to another cluster; and, where a cluster of one sample is allowed, the cheapest
    merge of two clusters with the sample that gains most taking the free place, followed by single moves.

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
    best = clusters.clone()
    score = _move_samples(rows, present, best, components, floor, smallest)
    if smallest > 1:
        return best
    active = torch.arange(len(rows), device=rows.device)
    for _ in range(2 * components):
        trial = _split_off(rows[active], present[active], best[active], components, floor)
        reached = _move_samples(rows[active], present[active], trial, components, floor, smallest)
        better = reached > score[active] + _PROGRESS * score[active].abs()
        active = active[better]
        best[active], score[active] = trial[better], reached[better]
        if len(active) == 0:
            break
    return best


def _nearest(rows: Tensor, centres: Tensor, alive: Tensor) -> Tensor:
    """Nearest centre that is alive, shape (Q, R, L)."""
    problems, restarts, components, dim = centres.shape
    offset = (-0.5 * centres.square().sum(-1)).masked_fill(~alive, -torch.inf)
    score = rows @ centres.view(problems, -1, dim).transpose(1, 2)
    return (score.view(problems, -1, restarts, components) + offset[:, None]).argmax(-1).transpose(1, 2)


def _move_samples(
    rows: Tensor, present: Tensor, clusters: Tensor, components: int, floor: float, smallest: float
) -> Tensor:
    """Apply moves of single samples to ``clusters`` in place; return the likelihood reached, shape (Q,)."""
    total = present.sum(-1)
    score = _partition_score(rows, present, clusters[:, None], components, floor)[:, 0]
    active = torch.arange(len(rows), device=rows.device)
    for _ in range(_MOVE_ROUNDS):
        data, here, now = rows[active], present[active], clusters[active]
        gain, target = _move_gains(data, here, now, components, floor, smallest).max(-1)
        gain, order = gain.sort(dim=-1, descending=True, stable=True)
        rising = (gain > 0).sum(-1, keepdim=True)
        # The gains hold for one move at a time. All rising moves together, a quarter of them, and so on down to
        # the best alone are scored exactly, and the best of these is taken: the likelihood cannot fall.
        rank = order.argsort(dim=-1)
        shares = torch.tensor([1.0, 0.25, 0.0625, 0.0], device=rows.device)
        taken = (rising * shares).ceil().clamp_min(1).minimum(rising)  # (Q, T)
        moved = torch.where(rank[:, None] < taken[..., None], target[:, None], now[:, None])  # (Q, T, L)
        reached, choice = _partition_score(data, here, moved, components, floor).max(-1)
        better = reached > score[active] + _PROGRESS * score[active].abs()
        active = active[better]
        if len(active) == 0:
            break
        clusters[active] = moved[better, choice[better]]
        score[active] = reached[better]
    return score / total


def _split_off(rows: Tensor, present: Tensor, clusters: Tensor, components: int, floor: float) -> Tensor:
    """Merge the two clusters that lose least, and give the free place to the sample that gains most."""
    counts, sums, squares = _moments(rows, present, clusters[:, None], components)
    counts, sums, squares = counts[:, 0], sums[:, 0], squares[:, 0]
    own = _cluster_score(counts, *_mean_variance(counts, sums, squares), floor)
    u, v = torch.triu_indices(components, components, 1, device=rows.device)
    joint = (counts[:, u] + counts[:, v], sums[:, u] + sums[:, v], squares[:, u] + squares[:, v])
    cost = own[:, u] + own[:, v] - _cluster_score(joint[0], *_mean_variance(*joint), floor)
    pair = cost.argmin(-1)
    into, free = u[pair][:, None], v[pair][:, None]
    merged = torch.where(clusters == free, into, clusters)
    gains = _move_gains(rows, present, merged, components, floor, 1.0)
    alone = gains.gather(-1, free[:, None].expand(-1, rows.shape[1], 1))[..., 0].argmax(-1, keepdim=True)
    return merged.scatter(1, alone, free)


def _move_gains(
    rows: Tensor, present: Tensor, clusters: Tensor, components: int, floor: float, smallest: float
) -> Tensor:
    """Exact change of the partition's log-likelihood for each single move, shape (Q, L, K); -inf where barred."""
    counts, sums, squares = (m[:, 0] for m in _moments(rows, present, clusters[:, None], components))
    mean, variance = _mean_variance(counts, sums, squares)  # (Q, K, D)
    own = _cluster_score(counts, mean, variance, floor)
    spread = (rows[:, :, None] - mean[:, None]).square_()  # (Q, L, K, D)
    index = clusters[..., None]
    mine = spread.gather(2, index[..., None].expand(-1, -1, 1, rows.shape[-1]))[:, :, 0]
    size = counts.gather(1, clusters)  # (Q, L)
    rest = (size - 1.0).clamp_min(1.0)[..., None]
    own_variance = variance.gather(1, index.expand(-1, -1, rows.shape[-1]))
    without = (own_variance - mine.div_(rest)).clamp_min_(0.0).mul_(size[..., None] / rest)
    leave = _cluster_score(size - 1.0, mine, without, floor) - own.gather(1, clusters)
    grown = (counts + 1.0)[:, None]  # (Q, 1, K)
    joined = spread.div_(grown[..., None]).add_(variance[:, None]).mul_((counts[:, None] / grown)[..., None])
    gains = leave[..., None] + _cluster_score(grown, mean, joined, floor) - own[:, None]
    barred = (~present | (size - 1.0 < smallest))[..., None] | (
        index == torch.arange(components, device=rows.device)
    )
    return gains.masked_fill(barred, -torch.inf)


def _partition_score(
    rows: Tensor, present: Tensor, clusters: Tensor, components: int, floor: float
) -> Tensor:
    """Log-likelihood of T partitions of each problem, up to a constant of the problem, shape (Q, T)."""
    counts, sums, squares = _moments(rows, present, clusters, components)
    return _cluster_score(counts, *_mean_variance(counts, sums, squares), floor).sum(-1)


def _moments(
    rows: Tensor, present: Tensor, clusters: Tensor, components: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Counts (Q, T, K), sums and sums of squares (Q, T, K, D) of the clusters of T partitions."""
    problems, trials, length = clusters.shape
    members = F.one_hot(clusters, components).to(rows.dtype) * present[:, None, :, None]
    flat = members.permute(0, 1, 3, 2).reshape(problems, trials * components, length)
    shape = (problems, trials, components, rows.shape[-1])
    return members.sum(2), (flat @ rows).view(shape), (flat @ rows.square()).view(shape)


def _mean_variance(counts: Tensor, sums: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    size = counts.clamp_min(1.0)[..., None]
    mean = sums / size
    return mean, (squares / size - mean.square()).clamp_min_(0.0)


def _cluster_score(counts: Tensor, mean: Tensor, variance: Tensor, floor: float) -> Tensor:
    """``n_k (ln n_k - 1/2 sum_q (ln s2_q + v_q / s2_q))`` with ``s2 = max(v, floor)``; zero for an empty cluster."""
    floored = variance.clamp_min(floor)
    return torch.special.xlogy(counts, counts) - 0.5 * counts * (floored.log() + variance / floored).sum(-1)
