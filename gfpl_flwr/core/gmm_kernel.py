"""The starts of a mixture fit and their expectation-maximisation, compiled for the processor by numba.

The same steps in the same precision as ``gmm_starts`` and ``gmm_em``, one problem after the other, so that its
samples stay in the cache for the whole fit. Needs the optional package numba; only ``gmm_batch`` imports this module,
and only when it fits.

One file, because numba keeps machine code by the date of the file of the outermost function alone: were the inner
ones elsewhere, a change of theirs would go on with the old code. So it is with the constants that come from other
modules: who changes one touches this file.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from gfpl_flwr.core.gmm_em import LOG_2PI, TINY
from gfpl_flwr.core.gmm_starts import EQUAL, LLOYD_STEPS, POWER_STEPS, SHORTEST

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def _compiled(function: Callable[..., Any]) -> Any:
    """Compile at the first call; sums may be taken in any order, which vectorises them.

    Infinities keep their meaning. The loops below are plain, element by element: array expressions take numba seconds
    to compile.
    """
    options: dict[str, Any] = {"error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz", "arcp"}}
    try:
        return numba.njit(cache=True, nogil=True, **options)(function)
    except RuntimeError:  # no folder for the cache can be written: compile anew in every process
        return numba.njit(nogil=True, **options)(function)


@_compiled
def _fill(out: Floats, value: float) -> None:
    for d in range(out.shape[0]):
        out[d] = value


@_compiled
def _dot(a: Floats, b: Floats) -> float:
    total = 0.0
    for d in range(a.shape[0]):
        total += a[d] * b[d]
    return total


@_compiled
def _add_scaled(out: Floats, weight: float, row: Floats) -> None:
    for d in range(row.shape[0]):
        out[d] += weight * row[d]


@_compiled
def _log_sum(values: Floats) -> float:
    """Sum of logarithms, one logarithm for four values: their product cannot leave the range of float64."""
    fours = values.shape[0] - values.shape[0] % 4
    total = 0.0
    for d in range(0, fours, 4):
        total += math.log((values[d] * values[d + 1]) * (values[d + 2] * values[d + 3]))
    for d in range(fours, values.shape[0]):
        total += math.log(values[d])
    return total


@_compiled
def _axis_start(rows: Floats, totals: Floats, components: int, clusters: Integers, scratch: Floats) -> None:
    size, dim = rows.shape
    mean, variance, axis = scratch[0], scratch[1], scratch[2]
    best_mean, best_variance = scratch[3], scratch[4]
    along = np.empty(size)
    for k in range(1, components):
        widest, width = 0, -1.0
        for j in range(k):
            _fill(mean, 0.0)
            _fill(variance, 0.0)
            count = 0
            if k == 1:
                count = size
                _add_scaled(variance, 1.0, totals)
            else:
                for i in range(size):
                    if clusters[i] == j:
                        count += 1
                        for d in range(dim):
                            mean[d] += rows[i, d]
                            variance[d] += rows[i, d] * rows[i, d]
            spread = 0.0
            for d in range(dim):
                mean[d] /= max(count, 1)
                variance[d] = variance[d] / max(count, 1) - mean[d] * mean[d]
                spread += variance[d]
            if spread * max(count, 1) > width:
                widest, width = j, spread * max(count, 1)
                for d in range(dim):
                    best_mean[d] = mean[d]
                    best_variance[d] = variance[d]
        coordinate = 0
        for d in range(dim):
            if best_variance[d] > best_variance[coordinate]:
                coordinate = d
        for i in range(size):
            along[i] = rows[i, coordinate] - best_mean[coordinate] if clusters[i] == widest else 0.0
        for _ in range(POWER_STEPS):
            _fill(axis, 0.0)
            shift = 0.0
            for i in range(size):
                if clusters[i] == widest:
                    _add_scaled(axis, along[i], rows[i])
                    shift += along[i]
            for d in range(dim):
                axis[d] -= shift * best_mean[d]
            length = max(math.sqrt(_dot(axis, axis)), SHORTEST)
            for d in range(dim):
                axis[d] /= length
            centre = _dot(axis, best_mean)
            for i in range(size):
                if clusters[i] == widest:
                    along[i] = _dot(rows[i], axis) - centre
        for i in range(size):
            if clusters[i] == widest and along[i] > 0:
                clusters[i] = k


@_compiled
def _kmeans_start(rows: Floats, draws: Floats, clusters: Integers) -> None:
    size = len(rows)
    norms, closest, potential = np.empty(size), np.empty(size), np.empty(size)
    for i in range(size):
        norms[i] = _dot(rows[i], rows[i])
        closest[i] = np.inf
        potential[i] = 1.0
    for k in range(len(draws)):
        target, reach, chosen = 0.0, 0.0, 0
        for i in range(size):
            target += draws[k] * potential[i]
        for i in range(size):
            reach += potential[i]
            chosen += reach <= target
        chosen = min(chosen, size - 1)
        for i in range(size):
            scale = norms[i] + norms[chosen]
            gap = scale - 2.0 * _dot(rows[i], rows[chosen])
            if gap <= EQUAL * scale:
                gap = 0.0
            if gap < closest[i]:
                clusters[i] = k
                closest[i] = gap
            potential[i] = closest[i]


@_compiled
def _lloyd(rows: Floats, clusters: Integers, components: int, sums: Floats) -> None:
    size = len(rows)
    counts = np.zeros(components, np.int64)
    for i in range(size):
        counts[clusters[i]] += 1
    place = np.zeros(components, np.int64)
    for k in range(components):
        for j in range(components):
            place[k] += counts[j] > counts[k] or (counts[j] == counts[k] and j < k)
    for i in range(size):
        clusters[i] = place[clusters[i]]
    offsets = np.empty(components)
    for _ in range(LLOYD_STEPS):
        for k in range(components):
            counts[k] = 0
            _fill(sums[k], 0.0)
        for i in range(size):
            counts[clusters[i]] += 1
            if clusters[i] > 0:
                _add_scaled(sums[clusters[i]], 1.0, rows[i])
        for k in range(1, components):
            _add_scaled(sums[0], -1.0, sums[k])
        for k in range(components):
            for d in range(sums.shape[1]):
                sums[k, d] /= max(counts[k], 1)
            offsets[k] = -0.5 * _dot(sums[k], sums[k])
        for k in range(1, components):
            _add_scaled(sums[k], -1.0, sums[0])
            offsets[k] = offsets[k] - offsets[0] if counts[k] else -np.inf
        moved = False
        for i in range(size):
            nearest, best = 0, 0.0
            for k in range(1, components):
                closer = _dot(rows[i], sums[k]) + offsets[k]
                if closer > best:
                    nearest, best = k, closer
            moved |= nearest != clusters[i]
            clusters[i] = nearest
        if not moved:
            break


@_compiled
def _hard_moments(rows: Floats, clusters: Integers, counts: Floats, means: Floats, variances: Floats) -> None:
    """Sums of counts, values and squares of each cluster but the first, which has what the others leave."""
    for k in range(len(counts)):
        counts[k] = 0.0
        _fill(means[k], 0.0)
        _fill(variances[k], 0.0)
    for i in range(len(rows)):
        k = clusters[i]
        if k > 0:
            counts[k] += 1.0
            for d in range(rows.shape[1]):
                means[k, d] += rows[i, d]
                variances[k, d] += rows[i, d] * rows[i, d]


@_compiled
def _m_step(size: int, totals: Floats, floor: float, counts: Floats, means: Floats, variances: Floats) -> None:
    """Turn the counts and sums of the components 1 to K - 1 into the parameters of all, in place."""
    components, dim = means.shape
    counts[0] = size
    _fill(means[0], 0.0)
    _fill(variances[0], 0.0)
    _add_scaled(variances[0], 1.0, totals)
    for k in range(1, components):
        counts[0] -= counts[k]
        _add_scaled(means[0], -1.0, means[k])
        _add_scaled(variances[0], -1.0, variances[k])
    counts[0] = max(counts[0], 0.0)
    for k in range(components):
        inverse = 1.0 / max(counts[k], TINY)
        for d in range(dim):
            mean = means[k, d] * inverse
            means[k, d] = mean
            variances[k, d] = max(variances[k, d] * inverse - mean * mean, floor)


@_compiled
def _log_odds(
    size: int,
    totals: Floats,
    counts: Floats,
    means: Floats,
    variances: Floats,
    constant: Floats,
    linear: Floats,
    square: Floats,
) -> float:
    """Fill the factors of the log-odds against component 0; return the log-density of component 0, summed."""
    components, dim = means.shape
    for k in range(components):
        energy = _log_sum(variances[k])
        for d in range(dim):
            precision = 1.0 / variances[k, d]
            linear[k, d] = means[k, d] * precision
            square[k, d] = -0.5 * precision
            energy += linear[k, d] * means[k, d]
        constant[k] = math.log(max(counts[k], TINY) / size) - 0.5 * energy
    for k in range(1, components):
        constant[k] -= constant[0]
        _add_scaled(linear[k], -1.0, linear[0])
        _add_scaled(square[k], -1.0, square[0])
    return float(size * (constant[0] - 0.5 * LOG_2PI * dim) + _dot(square[0], totals))


@_compiled
def _sweep(
    rows: Floats,
    constant: Floats,
    linear: Floats,
    square: Floats,
    shares: Floats,
    counts: Floats,
    sums: Floats,
    squares: Floats,
) -> float:
    """Responsibilities and the sums they weight, in one pass; return the log-evidence against component 0, summed.

    Four rows at a time: they stay in the first cache between the two uses, and factors and sums are loaded and stored
    a quarter as often. The last rows are repeated with weight zero.
    """
    size, dim = rows.shape
    components = len(constant)
    for k in range(components):
        counts[k] = 0.0
        _fill(sums[k], 0.0)
        _fill(squares[k], 0.0)
    total = 0.0
    for i in range(0, size, 4):
        a, b = rows[i], rows[min(i + 1, size - 1)]
        c, e = rows[min(i + 2, size - 1)], rows[min(i + 3, size - 1)]
        for k in range(1, components):
            odds_a = odds_b = odds_c = odds_e = constant[k]
            for d in range(dim):
                slope, bend = linear[k, d], square[k, d]
                odds_a += a[d] * (slope + a[d] * bend)
                odds_b += b[d] * (slope + b[d] * bend)
                odds_c += c[d] * (slope + c[d] * bend)
                odds_e += e[d] * (slope + e[d] * bend)
            shares[k, 0], shares[k, 1], shares[k, 2], shares[k, 3] = odds_a, odds_b, odds_c, odds_e
        for r in range(4):
            top = 0.0
            for k in range(1, components):
                top = max(top, shares[k, r])
            evidence = math.exp(-top)
            for k in range(1, components):
                shares[k, r] = math.exp(shares[k, r] - top)
                evidence += shares[k, r]
            inside = 1.0 if i + r < size else 0.0
            total += inside * (top + math.log(evidence))
            for k in range(1, components):
                shares[k, r] *= inside / evidence
                counts[k] += shares[k, r]
        for k in range(1, components):
            share_a, share_b, share_c, share_e = shares[k, 0], shares[k, 1], shares[k, 2], shares[k, 3]
            for d in range(dim):
                part_a, part_b, part_c, part_e = share_a * a[d], share_b * b[d], share_c * c[d], share_e * e[d]
                sums[k, d] += (part_a + part_b) + (part_c + part_e)
                squares[k, d] += (part_a * a[d] + part_b * b[d]) + (part_c * c[d] + part_e * e[d])
    return total


@_compiled
def _centred(features: NDArray[Any], source: Integers, rows: Floats, centre: Floats, totals: Floats) -> None:
    """Copy the rows of a problem, take their mean off, and sum their squares."""
    size, dim = rows.shape
    _fill(centre, 0.0)
    _fill(totals, 0.0)
    for i in range(size):
        for d in range(dim):
            value = np.float64(features[source[i], d])
            rows[i, d] = value
            centre[d] += value
    for d in range(dim):
        centre[d] /= size
    for i in range(size):
        for d in range(dim):
            value = rows[i, d] - centre[d]
            rows[i, d] = value
            totals[d] += value * value


@_compiled
def fit_starts(
    features: NDArray[Any],
    order: Integers,
    first: Integers,
    sizes: Integers,
    floor: Floats,
    draws: Floats,
    least: float,
    max_iter: int,
    tol: float,
    out_counts: Floats,
    out_means: Floats,
    out_variances: Floats,
    out_likelihood: Floats,
) -> None:
    """Fit every problem from the axis start and one k-means++ start a row of ``draws``; keep the likeliest legal one.

    Args:
        features: shape (N, D), float32 or float64, contiguous.
        order: rows of the problems, one problem after the other, int64.
        first, sizes: where the rows of each problem begin in ``order``, and how many they are, (Q,), int64.
        floor: lower bound of the variances of each problem, shape (Q,), float64.
        draws: shape (R, K), float64.
        least: effective samples that every component must have for a start to count.
        max_iter, tol: as in ``maximise``.
        out_counts, out_means, out_variances, out_likelihood: receive (Q, K), (Q, K, D), (Q, K, D) and (Q,); means are
            those of the features as they came.
    """
    components, dim, longest = out_means.shape[1], out_means.shape[2], 0
    for q in range(len(sizes)):
        longest = max(longest, sizes[q])
    space = np.empty((longest, dim))
    labels = np.empty(len(space), np.int64)
    scratch = np.empty((max(components, 5), dim))
    centre, totals = np.empty(dim), np.empty(dim)
    counts, constant, shares = np.empty(components), np.empty(components), np.empty((components, 4))
    means, variances = np.empty((components, dim)), np.empty((components, dim))
    linear, square = np.empty((components, dim)), np.empty((components, dim))
    for q in range(len(sizes)):
        size = sizes[q]
        rows, clusters = space[:size], labels[:size]
        _centred(features, order[first[q] : first[q] + size], rows, centre, totals)
        best = -np.inf
        for start in range(1 + len(draws)):
            for i in range(size):
                clusters[i] = 0
            if components > 1:
                if start == 0:
                    _axis_start(rows, totals, components, clusters, scratch)
                else:
                    _kmeans_start(rows, draws[start - 1], clusters)
                _lloyd(rows, clusters, components, scratch[:components])
            _hard_moments(rows, clusters, counts, means, variances)
            _m_step(size, totals, floor[q], counts, means, variances)
            likelihood, previous = 0.0, -np.inf
            for _ in range(max_iter if components > 1 else 0):
                first_part = _log_odds(size, totals, counts, means, variances, constant, linear, square)
                rest = _sweep(rows, constant, linear, square, shares, counts, means, variances)
                likelihood = (first_part + rest) / size
                _m_step(size, totals, floor[q], counts, means, variances)
                if likelihood - previous < tol:
                    break
                previous = likelihood
            smallest = counts[0]
            for k in range(1, components):
                smallest = min(smallest, counts[k])
            merit = likelihood if smallest >= least else -np.inf
            if start == 0 or merit > best:
                best = merit
                out_likelihood[q] = likelihood
                for k in range(components):
                    out_counts[q, k] = counts[k]
                    for d in range(dim):
                        out_means[q, k, d] = means[k, d] + centre[d]
                        out_variances[q, k, d] = variances[k, d]
