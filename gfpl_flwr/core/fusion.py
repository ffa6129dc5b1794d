"""Algorithm 1: fusion of the components that sites sent, class by class, by Bhattacharyya distance."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from gfpl_flwr.core.bhattacharyya import Gaussians, distance_float64
from gfpl_flwr.core.prototypes import GaussianPrototypes

Scale = Literal["mean", "sum"]
Rule = Literal["closest_pair", "first_fit"]
Merge = Literal["moment", "average"]

# Rows of a block of the distance matrix: the pairs inside a block are computed twice.
_HALF_MATRIX_ROWS = 32


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
            counts, means, variances = (value.to(bank.means.dtype) for value in fuse_class(rows, limit, merge))
            labels = torch.full_like(counts, label, dtype=torch.int64)
            rows = GaussianPrototypes(labels, counts, means, variances)
        parts.append(rows)
    fused = GaussianPrototypes.concat(parts)
    return fused.canonical() if rule == "closest_pair" else fused


def _closest_pair(rows: GaussianPrototypes, limit: float, merge: Merge) -> tuple[Tensor, Tensor, Tensor]:
    """Fuse the rows of one class, in canonical order; ties go to the lowest pair of rows."""
    counts, gaussians = rows.counts.double(), Gaussians.prepare(rows.means, rows.variances)
    distances = _pairwise(gaussians)
    # Each row remembers its nearest row, so a merge costs one new row of distances and not a full search.
    nearest, partner = distances.min(dim=1)
    alive = torch.ones(len(counts), dtype=torch.bool, device=counts.device)
    for _ in range(len(counts) - 1):
        u = int(nearest.argmin())
        # Without a limit even distances that overflowed to infinity merge.
        if not (nearest[u] < limit or limit == math.inf):
            break
        # Distances are symmetric to the bit: the partner of the first closest row comes after it.
        v = int(partner[u])
        _merge_into(counts, gaussians, u, counts[v], gaussians.rows(slice(v, v + 1)), merge)
        alive[v] = False
        others = alive.nonzero()[:, 0]
        row = torch.full_like(nearest, math.inf)
        row[others] = distance_float64(gaussians.rows(slice(u, u + 1)), gaussians.rows(others))[0]
        row[u] = math.inf
        distances[u] = distances[:, u] = row
        distances[v] = distances[:, v] = math.inf
        closer = (row < nearest) | ((row == nearest) & (u < partner))
        stale = alive & ((partner == u) | (partner == v))
        stale[u] = True
        nearest, partner = torch.where(closer, row, nearest), partner.masked_fill(closer, u)
        nearest[v] = math.inf
        nearest[stale], partner[stale] = distances[stale].min(dim=1)
    return counts[alive], gaussians.means[alive], gaussians.variances[alive]


def _first_fit(rows: GaussianPrototypes, limit: float, merge: Merge) -> tuple[Tensor, Tensor, Tensor]:
    """Fuse the rows of one class in their order, in place: the first ``kept`` are the components so far."""
    counts, gaussians = rows.counts.double(), Gaussians.prepare(rows.means, rows.variances)
    kept = 1
    for row in range(1, len(counts)):
        new = gaussians.rows(slice(row, row + 1))
        to_kept = distance_float64(new, gaussians.rows(slice(kept)))[0]
        near = int(to_kept.argmin())
        if to_kept[near] < limit or limit == math.inf:
            _merge_into(counts, gaussians, near, counts[row], new, merge)
        else:
            counts[kept] = counts[row]
            for mine, value in zip(gaussians, new, strict=True):
                mine[kept] = value[0]
            kept += 1
    return counts[:kept], gaussians.means[:kept], gaussians.variances[:kept]


def _pairwise(gaussians: Gaussians) -> Tensor:
    """Distances of all pairs, infinite on the diagonal; each pair is computed once, up to the blocks on it."""
    rows = len(gaussians.means)
    out = gaussians.means.new_empty(rows, rows)
    for i in range(0, rows, _HALF_MATRIX_ROWS):
        block = slice(i, i + _HALF_MATRIX_ROWS)
        part = distance_float64(gaussians.rows(block), gaussians.rows(slice(i, None)))
        out[block, i:], out[i:, block] = part, part.T
    return out.fill_diagonal_(math.inf)


def _merge_into(counts: Tensor, gaussians: Gaussians, u: int, count_v: Tensor, v: Gaussians, merge: Merge) -> None:
    means, variances, deviations = gaussians
    count = counts[u] + count_v
    share_u, share_v = counts[u] / count, count_v / count
    gap = v.means[0] - means[u]
    variance = share_u * variances[u] + share_v * v.variances[0]
    if merge == "moment":
        variance = variance + share_u * share_v * gap.square()
    counts[u], means[u], variances[u], deviations[u] = count, means[u] + share_v * gap, variance, variance.sqrt()
