"""Hard partitions to start mixture fits from: one split along principal axes, and k-means++, both without chance.

All functions work on Q independent problems at once, and the partition of a problem does not depend on the problems
beside it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gfpl_flwr.core.gmm_em import Problems, hard_shares

POWER_STEPS = 2
LLOYD_STEPS = 3
# Squared distances below this share of the squared lengths are rounding: the points are equal.
EQUAL = 1e-13
# Divides an axis that has no length, of samples that are equal.
SHORTEST = 1e-150


def axis_start(data: Problems, components: int) -> Tensor:
    """Partition each problem by splitting the widest cluster at its mean along its principal axis, K - 1 times.

    Widest is the cluster with the largest sum of squared distances to its mean. The axis comes from a few power
    iterations that begin at the coordinate of largest variance.

    Args:
        data: Q problems.
        components: K, at least 1.

    Returns:
        Cluster of every sample, shape (Q, L), int64; fewer than K clusters where the samples are equal.

    Source: Su and Dy, "In search of deterministic methods for initializing k-means and Gaussian mixture
    clustering" (2007).
    """
    rows = data.rows
    problem = torch.arange(len(rows), device=rows.device)
    clusters = torch.zeros(data.present.shape, dtype=torch.int64, device=rows.device)
    for k in range(1, components):
        names = torch.arange(k, device=rows.device)[:, None]
        members = ((clusters[:, None] == names) & data.present[:, None]).double()
        sizes = members.sum(-1, keepdim=True).clamp_min_(1.0)
        # The clusters of the first split are the problems, whose sums are known.
        mean, square = ((members @ data.stack if k > 1 else data.totals[:, None]) / sizes).chunk(2, dim=-1)
        variance = square - mean.square()
        widest = (variance.sum(-1) * sizes[..., 0]).argmax(-1)
        inside, mean = members[problem, widest][:, None], mean[problem, widest][:, None]
        coordinate = variance[problem, widest].argmax(-1)
        along = (rows[problem, :, coordinate] - mean[problem, 0, coordinate, None])[:, None] * inside
        for _ in range(POWER_STEPS):
            axis = along @ rows - along.sum(-1, keepdim=True) * mean
            axis = axis / torch.linalg.vector_norm(axis, dim=-1, keepdim=True).clamp_min(SHORTEST)
            along = (axis @ rows.mT - (axis * mean).sum(-1, keepdim=True)) * inside
        clusters = torch.where(along[:, 0] > 0, k, clusters)
    return clusters


def kmeans_starts(data: Problems, components: int, restarts: int) -> Tensor:
    """Choose K centres of each problem by k-means++, and give every sample to the nearest, R times.

    The draws of k-means++ are a sequence that fills the unit cube of K dimensions evenly, the same for every problem.

    Args:
        data: Q problems; their samples in an order of their own, see ``canonical_order``.
        components: K, clusters to look for; fewer where a problem has fewer distinct samples.
        restarts: R, at least 1.

    Returns:
        Cluster of every sample, shape (Q, R, L), int64.

    Source: Arthur and Vassilvitskii, "k-means++" (2007).
    """
    rows = data.rows
    norms = data.stack[..., rows.shape[-1] :].sum(-1, keepdim=True)  # (Q, L, 1)
    problem = torch.arange(len(rows), device=rows.device)[:, None]
    last = data.present.sum(-1, keepdim=True) - 1
    potential = data.present[..., None].double().expand(-1, -1, restarts)
    closest = torch.full_like(potential, torch.inf)
    clusters = torch.zeros(closest.shape, dtype=torch.int64, device=rows.device)
    for k, draws in enumerate(even_draws(restarts, components).to(rows.device).unbind(-1)):
        reach = potential.cumsum(1)
        chosen = (reach <= (draws * reach[:, -1])[:, None]).sum(1).minimum(last)  # (Q, R)
        scale = norms + norms[problem, chosen].mT
        gap = scale - 2.0 * rows @ rows[problem, chosen].mT
        gap = gap.masked_fill_(gap <= EQUAL * scale, 0.0)
        clusters = torch.where(gap < closest, k, clusters)
        closest = closest.minimum(gap)
        potential = closest * data.present[..., None]
    return clusters.mT


def even_draws(restarts: int, components: int) -> Tensor:
    """Points of the unit cube that fill it evenly, shape (R, K), float64.

    Point r is the fractional part of ``1/2 + (r + 1) (g^-1, g^-2, ..., g^-K)``, g the root above 1 of
    ``x^(K+1) = x + 1``: the golden ratio for K = 1 and its kin beyond.

    Source: Roberts, "The unreasonable effectiveness of quasirandom sequences" (2018).
    """
    ratio = 2.0
    for _ in range(60):
        ratio = (1.0 + ratio) ** (1.0 / (components + 1))
    steps = torch.tensor([ratio**-k for k in range(1, components + 1)], dtype=torch.float64)
    return (0.5 + torch.arange(1, restarts + 1, dtype=torch.float64)[:, None] * steps).frac()


def lloyd(data: Problems, clusters: Tensor, components: int) -> Tensor:
    """Improve partitions by at most three steps of Lloyd's algorithm.

    Args:
        data: Q problems.
        clusters: shape (Q, R, L), int64.
        components: K.

    Returns:
        Partitions of the same shape, cluster 0 the largest at the start. A cluster but the first that becomes empty
        stays so.

    Source: Lloyd, "Least squares quantization in PCM" (1982).
    """
    names = torch.arange(components, device=clusters.device)[:, None]
    sizes = ((clusters[:, :, None] == names) & data.present[:, None, None]).sum(-1)
    rank = sizes.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    clusters = rank.gather(-1, clusters)
    for _ in range(LLOYD_STEPS):
        members = hard_shares(data, clusters, components)
        count = members.sum(-1)
        sums = (members.flatten(1, 2) @ data.rows).view(*members.shape[:3], -1)
        rest = (data.sizes[:, None] - count.sum(-1)).clamp_min_(1.0)
        first = sums.sum(2, keepdim=True).div_(-rest[..., None, None])  # of centred samples the sums add up to zero
        centres = sums / count.clamp_min(1.0)[..., None]
        offset = 0.5 * (first.square().sum(-1) - centres.square().sum(-1)).masked_fill_(count == 0, -torch.inf)
        against = centres - first
        closer = (against.flatten(1, 2) @ data.rows.mT).view(members.shape) + offset[..., None]
        best, cluster = closer.max(2)
        previous, clusters = clusters, torch.where((best > 0) & data.present[:, None], cluster + 1, 0)
        if torch.equal(previous, clusters):
            break
    return clusters
