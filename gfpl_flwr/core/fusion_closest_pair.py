"""Rule ``closest_pair`` of Algorithm 1: merge the two closest components until none are closer than the limit."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gfpl_flwr.core.bhattacharyya import Gaussians
from gfpl_flwr.core.fusion_search import Merge, Search, discriminating, merge_into, reordered
from gfpl_flwr.core.prototypes import GaussianPrototypes

# Rows of the distance matrix that exist at a time: the pairs inside a block are computed twice.
_BLOCK_ROWS = 32


def closest_pair(rows: GaussianPrototypes, limit: float, merge: Merge) -> tuple[Tensor, Tensor, Tensor]:
    """Fuse the rows of one class, in canonical order; ties go to the lowest pair of rows.

    No matrix of distances is kept: of each row only its nearest row below the limit, and a lower bound of the
    distances to the others. A merge costs one new row of distances. Where the nearest row was merged, the new one
    takes its place if it is closer than the bound; else the bound stands in for the distance, and the row is
    searched again only when that comes to be the lowest of all. This is the generic algorithm of Müllner
    (arXiv 1109.2378) with one bound more. Chains of nearest neighbours would not do: merging moments can bring
    two components closer to each other than those were that they were made of.

    Args:
        rows: N components of one class.
        limit: merge strictly below it, in nats, above 0.
        merge: how two components become one.

    Returns:
        Counts, means and variances of what is left, in float64.
    """
    counts, given = rows.counts.double(), Gaussians.prepare(rows.means, rows.variances)
    if limit == math.inf:
        return _pooled(counts, given, merge)
    columns = discriminating(given)
    components, counts = reordered(given, columns), counts.to("cpu", copy=True)
    del given
    search = Search(components.means, len(counts), tiny=components.tiny)
    near = _Nearest(components.means)
    for start in range(0, len(counts), _BLOCK_ROWS):
        _first_search(near, components, start, limit, search)
    caps = near.distance.new_full((len(counts),), limit)
    alive, dead = torch.ones_like(near.stale), 0
    while near.distance[u := int(near.distance.argmin())] < limit:
        stale, v = bool(near.stale[u]), int(near.partner[u])
        if not stale:
            # Distances are symmetric to the bit, so that of an equally close pair u is the lower row.
            merge_into(counts, components, u, float(counts[v]), components, v, merge)
            caps[v], alive[v], dead = -1.0, False, dead + 1
        row = search.within(components.rows(slice(u, u + 1)), components, caps)[0]
        row[u] = math.inf
        if not stale:
            near.replace(u, v, row)
        near.forget(u)
        near.note(slice(u, u + 1), row[None])
        if 4 * dead > len(caps):
            counts, components = counts[alive.cpu()], components.rows(alive)
            near.keep(alive)
            caps, alive, dead = caps[alive], alive[alive], 0
    left = reordered(components.rows(alive), columns.argsort())
    return counts[alive.cpu()].to(left.means.device), left.means, left.variances


class _Nearest:
    """What is known of the nearest row of each row, infinitely far if there is none below the limit.

    Attributes:
        distance: to the nearest row; where stale, a lower bound of it.
        partner: lowest of the nearest rows.
        bound: lower bound of the distances to all rows but the partner.
        stale: the nearest row was merged away, and nothing was found that must be the next.
    """

    def __init__(self, rows: Tensor) -> None:
        self.distance, self.bound = (rows.new_full((len(rows),), math.inf) for _ in range(2))
        self.partner = torch.zeros_like(self.distance, dtype=torch.int64)
        self.stale = torch.zeros_like(self.distance, dtype=torch.bool)

    def note(self, rows: slice, distances: Tensor, first: int = 0) -> None:
        """Take distances into account, shape (rows, columns), where the columns are the rows from ``first`` on."""
        low, place = distances.min(dim=1, keepdim=True)
        others = distances.scatter(1, place, math.inf).amin(dim=1)
        low, place, before = low[:, 0], place[:, 0] + first, self.distance[rows]
        self.bound[rows] = self.bound[rows].minimum(others).minimum(before.maximum(low))
        self.partner[rows] = torch.where(low < before, place, self.partner[rows])
        self.distance[rows] = low.minimum(before)

    def forget(self, row: int) -> None:
        """Know nothing of the row."""
        self.distance[row] = self.bound[row] = math.inf
        self.stale[row] = False

    def replace(self, u: int, v: int, row: Tensor) -> None:
        """Take into account that v was merged into u, which has these distances since, shape (N,)."""
        lost = ((self.partner == u) | (self.partner == v)) & ~self.stale
        floor = torch.where(lost, self.bound, self.distance)
        closer = row < floor
        # At an equal distance the lowest row is the partner; a mere bound does not tell who is that near.
        equal = (row == floor) & (row < math.inf) & ~lost & ~self.stale & (self.partner > u)
        self.bound = torch.where(closer, floor, self.bound.minimum(row))
        self.distance = torch.where(closer, row, floor)
        self.partner.masked_fill_(closer | equal, u)
        self.stale = (self.stale | lost) & ~closer
        self.forget(v)

    def keep(self, rows: Tensor) -> None:
        """Drop the other rows; ``rows`` is a mask, shape (N,)."""
        places = rows.cumsum(0) - 1
        self.partner = places[self.partner[rows]]
        self.distance, self.bound, self.stale = self.distance[rows], self.bound[rows], self.stale[rows]


def _first_search(near: _Nearest, components: Gaussians, start: int, limit: float, search: Search) -> None:
    """Compute the distances of one block of rows to each other and to the rows after them."""
    rows = len(components.means)
    block = components.rows(slice(start, start + _BLOCK_ROWS))
    later = components.rows(slice(start, None))
    distances = search.within(block, later, near.distance.new_full((rows - start,), limit))
    size = len(distances)
    distances[:, :size].fill_diagonal_(math.inf)
    near.note(slice(start, start + size), distances, start)
    if start + size < rows:
        near.note(slice(start + size, rows), distances[:, size:].T, start)


def _pooled(counts: Tensor, given: Gaussians, merge: Merge) -> tuple[Tensor, Tensor, Tensor]:
    """Merge all rows at once: both ways to merge are associative, so no order needs to be found."""
    total = counts.sum(0, keepdim=True)
    shares = (counts / total)[:, None]
    mean = (shares * given.means).sum(0, keepdim=True)
    variance = (shares * given.variances).sum(0, keepdim=True)
    if merge == "moment":
        variance += (shares * (given.means - mean).square()).sum(0, keepdim=True)
    return total, mean, variance
