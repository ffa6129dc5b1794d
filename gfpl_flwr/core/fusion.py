"""Algorithm 1: fusion of the components that sites sent, class by class, by Bhattacharyya distance."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from gfpl_flwr.core.bhattacharyya import distance_float64
from gfpl_flwr.core.prototypes import GaussianPrototypes

Scale = Literal["mean", "sum"]
Rule = Literal["closest_pair", "first_fit"]
Merge = Literal["moment", "average"]


def fuse(
    bank: GaussianPrototypes,
    *,
    threshold: float,
    scale: Scale = "mean",
    rule: Rule = "closest_pair",
    merge: Merge = "moment",
) -> GaussianPrototypes:
    """Merge components of one class that are closer than the threshold; classes never mix.

    Algorithm 1 of the GFPL paper. Two components (a, m, v) and (b, n, w), each (count, mean, variance),
    become one of count ``a + b``, which with ``p = a / (a + b)`` and ``q = b / (a + b)`` has

    * ``moment``: mean ``p m + q n`` and variance ``p v + q w + p q (m - n)^2``: mass, mean and second moment
      of the class stay what they were;
    * ``average``: the same mean, and variance ``p v + q w``. It lacks the between-mean term, so that the
      fused class is narrower than the pooled data.

    The rules: ``closest_pair`` merges the closest pair of all until none is under the threshold. The order of
    the rows, hence of the sites, has no influence, not even on the last bit. ``first_fit`` walks the rows in
    their order and merges each into the nearest component so far, or appends it; its result depends on the
    order.

    DEPARTURE: the distance is divided by D by default. It adds over the coordinates, so two components fitted
        on
    n samples of the same distribution are already about D / (2 n) nats apart, and no fixed threshold on the
    sum suits two feature sizes. ``scale="sum"`` is the literal formula.

    Args:
        bank: components of all sites, joined by ``GaussianPrototypes.concat``.
        threshold: merge strictly below this, in nats (``sum``) or nats a coordinate (``mean``), at least 0.
            With 0 nothing merges, not even equal components; with ``math.inf`` one component a class is left.
        scale: ``"mean"`` or ``"sum"`` of the distance over the coordinates.
        rule: ``"closest_pair"`` or ``"first_fit"``.
        merge: ``"moment"`` or ``"average"``.

    Returns:
        The fused bank, in the dtype of the input (computed in float64), sorted by class. Within a class
        ``closest_pair`` gives the canonical order, ``first_fit`` the order of first appearance.

    Raises:
        ValueError: the threshold is negative or NaN, or an option has an unknown name.

    Source: Lu et al., "GFPL" (arXiv 2602.21873), Algorithm 1, equations 7 and 8; Runnalls (2007) for the
    moment-preserving merge.
    """
    if not threshold >= 0:
        raise ValueError(f"threshold must be a number >= 0, got {threshold}")
    for name, value, allowed in (
        ("scale", scale, get_args(Scale)),
        ("rule", rule, get_args(Rule)),
        ("merge", merge, get_args(Merge)),
    ):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {list(allowed)}, got {value!r}")
    if len(bank) == 0:
        return bank
    limit = threshold * bank.dim if scale == "mean" else threshold
    source = bank.canonical() if rule == "closest_pair" else bank
    fuse_class = _closest_pair if rule == "closest_pair" else _first_fit
    parts = []
    for label in bank.classes:
        rows = source.of_class(label)
        if len(rows) > 1 and limit > 0:
            counts, means, variances = (
                value.to(bank.means.dtype)
                for value in fuse_class(
                    rows.counts.double(), rows.means.double(), rows.variances.double(), limit, merge
                )
            )
            rows = GaussianPrototypes(
                counts.new_full(counts.shape, label, dtype=torch.int64), counts, means, variances
            )
        parts.append(rows)
    fused = GaussianPrototypes.concat(parts)
    return fused.canonical() if rule == "closest_pair" else fused


def _closest_pair(
    counts: Tensor, means: Tensor, variances: Tensor, limit: float, merge: Merge
) -> tuple[Tensor, Tensor, Tensor]:
    """Fuse float64 rows in canonical order; ties go to the lowest pair of rows."""
    distances = distance_float64(means, variances, means, variances).fill_diagonal_(math.inf)
    # Each row remembers its nearest row, so a merge costs one new row of distances and not a full search.
    nearest, partner = distances.min(dim=1)
    alive = torch.ones(len(counts), dtype=torch.bool, device=counts.device)
    for _ in range(len(counts) - 1):
        u = int(nearest.argmin())
        if not nearest[u] < limit:
            break
        # Distances are symmetric to the bit: the partner of the first closest row comes after it.
        v = int(partner[u])
        counts[u], means[u], variances[u] = _merged(
            counts[u], means[u], variances[u], counts[v], means[v], variances[v], merge
        )
        alive[v] = False
        row = distance_float64(means[u : u + 1], variances[u : u + 1], means, variances)[0]
        row[~alive] = math.inf
        row[u] = math.inf
        distances[u] = distances[:, u] = row
        distances[v] = distances[:, v] = math.inf
        closer = (row < nearest) | ((row == nearest) & (u < partner))
        stale = alive & ((partner == u) | (partner == v))
        stale[u] = True
        nearest, partner = torch.where(closer, row, nearest), partner.masked_fill(closer, u)
        nearest[v] = math.inf
        nearest[stale], partner[stale] = distances[stale].min(dim=1)
    return counts[alive], means[alive], variances[alive]


def _first_fit(
    counts: Tensor, means: Tensor, variances: Tensor, limit: float, merge: Merge
) -> tuple[Tensor, Tensor, Tensor]:
    """Fuse float64 rows in their order, in place: the first ``kept`` rows are the components so far."""
    kept = 1
    for row in range(1, len(counts)):
        to_kept = distance_float64(means[row : row + 1], variances[row : row + 1], means[:kept], variances[:kept])[0]
        near = int(to_kept.argmin())
        if to_kept[near] < limit:
            counts[near], means[near], variances[near] = _merged(
                counts[near], means[near], variances[near], counts[row], means[row], variances[row], merge
            )
        else:
            counts[kept], means[kept], variances[kept] = counts[row], means[row], variances[row]
            kept += 1
    return counts[:kept], means[:kept], variances[:kept]


def _merged(
    count_u: Tensor,
    mean_u: Tensor,
    variance_u: Tensor,
    count_v: Tensor,
    mean_v: Tensor,
    variance_v: Tensor,
    merge: Merge,
) -> tuple[Tensor, Tensor, Tensor]:
    count = count_u + count_v
    share_u, share_v = count_u / count, count_v / count
    gap = mean_v - mean_u
    variance = share_u * variance_u + share_v * variance_v
    if merge == "moment":
        variance = variance + share_u * share_v * gap.square()
    return count, mean_u + share_v * gap, variance
