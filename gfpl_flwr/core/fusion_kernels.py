"""Compiled inner loops of the fusion, for one core; needs numba, which the extra ``fast`` installs.

The terms of the distance are those of :mod:`gfpl_flwr.core.bhattacharyya`, summed 64 coordinates at a time: a
pair ends where the sum so far says that it cannot matter. Only the order of additions differs from the torch
path, so the two agree up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Coordinates between two looks at the sum so far, which also share one logarithm.
_BLOCK = 64
# Below this sum of terms a logarithm of 1 + t loses digits, and eight terms of its series are exact to rounding.
_SERIES_BELOW = 0.02


def _compiled(function: Callable[..., Any], *, reorder: bool = False) -> Any:
    """Compile a function; with ``reorder`` its sums may be taken in any order, which vectorises them."""
    fastmath: bool | set[str] = {"reassoc", "contract", "nsz"} if reorder else False
    try:
        return numba.njit(cache=True, error_model="numpy", fastmath=fastmath)(function)
    except RuntimeError:  # no folder for the cache can be written: compile anew in every process
        return numba.njit(error_model="numpy", fastmath=fastmath)(function)


def _whole_block(m: Array, v: Array, i: int, n: Array, w: Array, j: int, q: int) -> tuple[float, float, float]:
    """Sum the terms of row i of (m, v) and row j of (n, w) over one block from coordinate q on.

    Returns:
        Sum of the terms of the means, sum of the x of the ``ln(1 + x)`` of the variances, product of the 1 + x.
    """
    # Of a signed index numba asks each time whether it counts from the end, which keeps a loop from being
    # vectorised; so does a width that only the running program knows.
    row, other, start = np.uint64(i), np.uint64(j), np.uint64(q)
    shift, spread, product = 0.0, 0.0, 1.0
    for offset in range(_BLOCK):
        k = start + np.uint64(offset)
        gap, step = m[row, k] - n[other, k], v[row, k] - w[other, k]
        x = 0.25 * (step * step / (v[row, k] * w[other, k]))
        shift += gap * gap / (v[row, k] + w[other, k])
        spread += x
        product *= 1.0 + x
    return shift, spread, product


def _last_block(m: Array, v: Array, i: int, n: Array, w: Array, j: int, q: int) -> tuple[float, float, float]:
    """Sum the terms as ``_whole_block`` does, over the coordinates from q on."""
    row, other, start = np.uint64(i), np.uint64(j), np.uint64(q)
    shift, spread, product = 0.0, 0.0, 1.0
    for offset in range(m.shape[1] - q):
        k = start + np.uint64(offset)
        gap, step = m[row, k] - n[other, k], v[row, k] - w[other, k]
        x = 0.25 * (step * step / (v[row, k] * w[other, k]))
        shift += gap * gap / (v[row, k] + w[other, k])
        spread += x
        product *= 1.0 + x
    return shift, spread, product


def _series(v: Array, i: int, w: Array, j: int, q: int) -> float:
    """Sum ``ln(1 + x)`` over one block, for x so small that eight terms of the series are exact."""
    row, other, start = np.uint64(i), np.uint64(j), np.uint64(q)
    total = 0.0
    for offset in range(min(_BLOCK, v.shape[1] - q)):
        k = start + np.uint64(offset)
        step = v[row, k] - w[other, k]
        x = 0.25 * (step * step / (v[row, k] * w[other, k]))
        rest = 1 / 5 - x * (1 / 6 - x * (1 / 7 - x * (1 / 8)))
        total += x * (1 - x * (1 / 2 - x * (1 / 3 - x * (1 / 4 - x * rest))))
    return total


def _logarithms(v: Array, i: int, w: Array, j: int, q: int) -> float:
    """Sum ``ln(1 + x)`` over one block in which a product overflows."""
    total = 0.0
    for k in range(q, min(q + _BLOCK, v.shape[1])):
        s, t = math.sqrt(v[i, k]), math.sqrt(w[j, k])
        total += 2.0 * math.log1p(0.5 * ((s - t) * (s - t) / (s * t)))
    return total


whole_block = _compiled(_whole_block, reorder=True)
last_block = _compiled(_last_block, reorder=True)
series = _compiled(_series, reorder=True)
logarithms = _compiled(_logarithms)


def _pair(m: Array, v: Array, i: int, n: Array, w: Array, j: int, cap: float) -> float:
    """Return the distance of row i of (m, v) and row j of (n, w), or infinity once it is above the cap."""
    total = 0.0
    dim = m.shape[1]
    for q in range(0, dim, _BLOCK):
        if q + _BLOCK <= dim:
            shift, spread, product = whole_block(m, v, i, n, w, j, q)
        else:
            shift, spread, product = last_block(m, v, i, n, w, j, q)
        if spread < _SERIES_BELOW:
            log = series(v, i, w, j, q) if spread > 0 else 0.0
        elif product < math.inf:
            log = math.log(product)
        else:
            log = logarithms(v, i, w, j, q)
        total += 0.25 * (shift + log)
        if not total <= cap:
            return math.inf
    return total


pair = _compiled(_pair)


def _within(m: Array, v: Array, n: Array, w: Array, caps: Array, out: Array) -> None:
    """Write the distances of all rows of (m, v) and (n, w), infinite where above the cap of the latter."""
    for j in range(len(n)):  # each row of the longer side is read from memory once
        for i in range(len(m)):
            out[i, j] = pair(m, v, i, n, w, j, caps[j])


def _absorb(
    counts: Array,
    means: Array,
    variances: Array,
    size: int,
    new_counts: Array,
    new_means: Array,
    new_variances: Array,
    limit: float,
    moment: bool,
) -> tuple[int, int]:
    """Merge rows, in order, into the nearest of the first ``size`` components below the limit, or append them.

    Returns:
        The new size, and how many rows were taken: fewer than came where there is no room to append one.
    """
    for row in range(len(new_counts)):
        near, best = -1, limit
        if limit == math.inf and size > 0:
            near = 0
        elif limit > 0:
            for k in range(size):
                found = pair(means, variances, k, new_means, new_variances, row, best)
                if found < best:
                    near, best = k, found
        if near < 0:
            if size == len(counts):
                return size, row
            counts[size], means[size], variances[size] = new_counts[row], new_means[row], new_variances[row]
            size += 1
            continue
        count = counts[near] + new_counts[row]
        mine, yours = counts[near] / count, new_counts[row] / count
        counts[near] = count
        for q in range(means.shape[1]):
            gap = new_means[row, q] - means[near, q]
            merged = mine * variances[near, q] + yours * new_variances[row, q]
            if moment:
                merged += mine * yours * gap * gap
            means[near, q] += yours * gap
            variances[near, q] = merged
    return size, len(new_counts)


within = _compiled(_within)
absorb = _compiled(_absorb)
