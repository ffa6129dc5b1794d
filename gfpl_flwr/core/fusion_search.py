"""Bounded distances and merged moments: what both rules of the fusion are made of."""

from __future__ import annotations

import functools
import math
from typing import Any, Literal

from torch import Tensor

from gfpl_flwr.core.bhattacharyya import Gaussians, Scratch, summed_terms, tiles

Merge = Literal["moment", "average"]

# Coordinates that are looked at before the rest of a pair, where there are enough pairs to give up.
_FIRST_LOOK = 128
_FIRST_LOOK_FROM_ROWS = 64
# Rows of one class from which on compiled loops repay the five seconds that they take to compile: an app's bundle is
# unpacked anew for every run, so that nothing compiled before is found there.
COMPILED_FROM_ROWS = 1000


@functools.cache
def kernels() -> Any:
    """Return the module of compiled loops; None where numba, the extra ``fast``, is not installed."""
    try:
        from gfpl_flwr.core import fusion_kernels
    except ImportError:
        return None
    return fusion_kernels


class Search:
    """Computes distances as far as they matter.

    Args:
        like: tells the device.
        rows: of the class, as far as known: decides whether giving up pairs and compiled loops pay.
        tiny: whether any variance is, see ``Gaussians.tiny``.
    """

    def __init__(self, like: Tensor, rows: int, *, tiny: bool) -> None:
        loops_pay = rows >= COMPILED_FROM_ROWS and like.device.type == "cpu" and not tiny
        self.kernels = kernels() if loops_pay else None
        self.first_look = _FIRST_LOOK if rows >= _FIRST_LOOK_FROM_ROWS else 0
        self._scratch = Scratch(like, roots=tiny)

    def within(self, a: Gaussians, b: Gaussians, caps: Tensor) -> Tensor:
        """Return the distances of all pairs that are not above the cap, and infinity for the others.

        Every term of equation 7 is at least 0, so a pair ends where the sum over its first coordinates is above
        the cap: the result is what the whole sum would give.

        Args:
            a: A rows.
            b: B rows.
            caps: largest distance of interest for each row of b, shape (B,), float64, in nats.

        Returns:
            Shape (A, B), in nats.
        """
        out = a.means.new_empty(len(a.means), len(b.means))
        if self.kernels is not None:
            arrays = [value.numpy() for value in (*a, *b, caps, out)]
            self.kernels.within(*arrays)
            return out
        if not self.first_look or a.means.shape[1] <= self.first_look:
            self._add_terms(out.zero_(), a, b)
            return out.masked_fill_(out > caps, math.inf)
        first, rest = slice(self.first_look), slice(self.first_look, None)
        self._add_terms(out.zero_(), _columns(a, first), _columns(b, first))
        near = out <= caps
        survivors = int(near.sum())
        if 2 * survivors > near.numel():
            self._add_terms(out, _columns(a, rest), _columns(b, rest))
            return out.masked_fill_(out > caps, math.inf)
        out.masked_fill_(~near, math.inf)
        if survivors:
            self._add_terms_of_pairs(out, _columns(a, rest), _columns(b, rest), near)
            out.masked_fill_(out > caps, math.inf)
        return out

    def _add_terms(self, out: Tensor, a: Gaussians, b: Gaussians) -> None:
        for i, j in tiles(len(a.means), len(b.means), a.means.shape[1], self._scratch):
            left = Gaussians(a.means[i, None], a.variances[i, None])
            out[i, j] += summed_terms(left, b.rows(j), self._scratch)

    def _add_terms_of_pairs(self, out: Tensor, a: Gaussians, b: Gaussians, pairs: Tensor) -> None:
        step = max(1, self._scratch.elements // a.means.shape[1])
        places = pairs.nonzero()
        for start in range(0, len(places), step):
            i, j = places[start : start + step].unbind(1)
            out[i, j] += summed_terms(a.rows(i), b.rows(j), self._scratch)


def merge_into(
    counts: Tensor, components: Gaussians, u: int, count: float, new: Gaussians, row: int, merge: Merge
) -> None:
    """Merge a row of ``new``, which stands for ``count`` samples, into component u, in place."""
    means, variances = (value[u] for value in components)
    mine = float(counts[u])
    counts[u] = whole = mine + count
    mine, yours = mine / whole, count / whole
    gap = new.means[row] - means
    variances.mul_(mine).add_(new.variances[row], alpha=yours)
    if merge == "moment":
        variances.addcmul_(gap, gap, value=mine * yours)
    means.add_(gap, alpha=yours)


def discriminating(components: Gaussians) -> Tensor:
    """Return the coordinates, those that tell components apart first: a pair that is far ends soonest there.

    The expected term of coordinate q is about ``Var(m_q) / (4 mean(v_q)) + Var(ln v_q) / 8``.
    """
    means, variances = components
    power = means.var(0, correction=0) / variances.mean(0) / 4 + variances.log().var(0, correction=0) / 8
    return power.nan_to_num(nan=math.inf).argsort(descending=True, stable=True)


def reordered(components: Gaussians, columns: Tensor) -> Gaussians:
    """Return the components with their coordinates in another order."""
    return Gaussians(components.means[:, columns], components.variances[:, columns])


def _columns(side: Gaussians, columns: slice) -> Gaussians:
    return Gaussians(*(value[..., columns] for value in side))
