"""Gaussian mixtures with diagonal covariance, fitted to every class at once."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import get_args

import torch
from torch import Tensor

from gfpl_flwr.core.gmm_batch import (
    EFFORTS,
    EMPTY,
    Kernel,
    Samples,
    Search,
    Stop,
    canonical_order,
    compiled_kernel,
    fit_starts,
    grouped,
    level,
    move_samples,
)
from gfpl_flwr.core.gmm_em import Mixtures
from gfpl_flwr.core.prototypes import GaussianPrototypes

# Elements of the widest temporary of the likelihood.
_BLOCK_ELEMENTS = 1 << 20


def fit_class_mixtures(
    features: Tensor,
    labels: Tensor,
    *,
    num_components: int = 2,
    variance_floor: float | Tensor = 1e-6,
    max_iter: int = 100,
    tol: float = 1e-3,
    min_samples: int = 1,
    min_component_samples: float = 1.0,
    search: Search = "auto",
    kernel: Kernel = "auto",
    generator: torch.Generator | None = None,
) -> GaussianPrototypes:
    """Fit one diagonal Gaussian mixture to the features of each class by expectation-maximisation.

    Equations 4 to 6 of the GFPL paper. The M-step maximises under the bound ``variance >= variance_floor``, so the
    likelihood never falls. Every class is centred, and fitted in float64 whatever the dtype of the features. Nothing
    is random, and the fit of a class depends neither on the other classes of the call nor on the order of its rows,
    up to rounding: the classes of many sites can be fitted in one call, under labels ``site * C + class``.

    A class of n samples gets ``min(num_components, n // min_component_samples)`` components. If a component ends with
    less than ``min_component_samples`` effective samples, as with samples that are equal, the class is searched more
    thoroughly, and at last fitted with fewer. Likelihood rewards a component on the floor around one sample:
    ``min_component_samples`` is the guard against prototypes that are one sample.

    Args:
        features: shape (N, D), floating point, finite.
        labels: class of each row, shape (N,), int64, at least 0.
        num_components: K, components asked for in each class, at least 1.
        variance_floor: lower bound of every variance, in squared units of the features, above 0; a tensor holds one
            for each label value, shape (at least the highest label + 1,). See ``relative_floor`` for a bound that
            follows the scale of a layer.
        max_iter: most EM steps of a fit, at least 1.
        tol: a fit ends when a step gains less than this, in nats a sample.
        min_samples: a class with fewer samples gets no rows.
        min_component_samples: effective samples that a component must stand for, at least 1. A class with fewer
            samples gets no rows.
        search: ``"fast"`` splits a class along principal axes and starts once from there; ``"thorough"`` adds 24
            k-means++ starts and moves single samples of the best; ``"auto"`` is fast from 25 K^2 samples on, adds 8
            starts down to half of that, and is thorough below.
        kernel: ``"numba"`` runs the starts compiled, on the CPU, ``"torch"`` does without; ``"auto"`` takes numba
            where it is installed and there is enough work to repay compiling it, from 2^26 elements on. Both give the
            same result, up to rounding.
        generator: not used, since nothing is random; accepted so that all fits are called alike.

    Returns:
        The components in canonical order, in the dtype and on the device of ``features``; ``counts`` are effective
        samples and add up to the samples of the class.

    Raises:
        ValueError: shapes, dtypes or values that are not as above, or a kernel that cannot be had.

    Source: Dempster, Laird and Rubin (1977); Lu et al., "GFPL" (arXiv 2602.21873), equations 4 to 6.
    """
    _check_data(features, labels)
    for name, value, least in (
        ("num_components", num_components, 1),
        ("max_iter", max_iter, 1),
        ("tol", tol, 0),
        ("min_samples", min_samples, 0),
        ("min_component_samples", min_component_samples, 1),
    ):
        if not value >= least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    for name, choice, allowed in (("search", search, get_args(Search)), ("kernel", kernel, get_args(Kernel))):
        if choice not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {choice!r}")
    compiled = compiled_kernel(kernel, features.numel(), features.device)

    order = labels.argsort(stable=True)
    classes, sizes = torch.unique_consecutive(labels[order], return_counts=True)
    first = sizes.cumsum(0) - sizes
    large = sizes >= max(min_samples, min_component_samples)
    classes, sizes, first = classes[large], sizes[large], first[large]
    samples = Samples(features.detach(), order, first, sizes, _floors(variance_floor, classes))
    stop = Stop(max_iter, tol, min_component_samples)

    lengths = sizes.tolist()
    wanted = [min(num_components, int(n // min_component_samples)) for n in lengths]
    keys = [(k, level(search, n, k)) for k, n in zip(wanted, lengths, strict=True)]
    canonical = False
    parts: list[tuple[Tensor, Mixtures]] = []
    pending = list(range(len(keys)))
    while pending:
        again: list[int] = []
        for (components, effort), group in grouped(pending, keys):
            if EFFORTS[effort].restarts and not canonical:
                samples = replace(samples, order=canonical_order(features, order, labels))
                canonical = True
            index = torch.tensor(group, device=features.device)
            fitted = fit_starts(samples.of(index), components, EFFORTS[effort].restarts, stop, compiled=compiled)
            if EFFORTS[effort].moves and components > 1:
                move_samples(samples.of(index), fitted, stop)
            legal = (fitted.counts >= stop.least).all(-1)[:, 0]
            legal |= components == 1
            parts.append((classes[index[legal]], fitted.only(legal)))
            populated = (fitted.counts[:, 0] >= EMPTY).sum(-1).clamp(1, max(components - 1, 1))
            for problem, fits, left in zip(group, legal.tolist(), populated.tolist(), strict=True):
                if fits:
                    continue
                harder = effort + 1 if search == "auto" else len(EFFORTS)
                fewer = (left, level(search, lengths[problem], left))
                keys[problem] = (components, harder) if harder < len(EFFORTS) else fewer
                again.append(problem)
        pending = again
    return _bank(parts, features)


def _bank(parts: list[tuple[Tensor, Mixtures]], features: Tensor) -> GaussianPrototypes:
    if not parts:
        return GaussianPrototypes.empty(features.shape[1], dtype=features.dtype, device=features.device)
    fields = (
        torch.cat([labels.repeat_interleave(fitted.counts.shape[-1]) for labels, fitted in parts]),
        torch.cat([fitted.counts.flatten() for _, fitted in parts]).to(features.dtype),
        torch.cat([fitted.means.flatten(0, 2) for _, fitted in parts]).to(features.dtype),
        torch.cat([fitted.variances.flatten(0, 2) for _, fitted in parts]).to(features.dtype),
    )
    return GaussianPrototypes(*fields).canonical()


def relative_floor(features: Tensor, fraction: float = 1e-4, minimum: float = 1e-6) -> float:
    """Return a variance floor in proportion to the scale of a layer.

    ``max(fraction * mean over the coordinates of their variance, minimum)``. Units of a ReLU layer that are
    dead on a site have no variance at all; a floor that follows the layer keeps them from dominating every
    distance.

    Args:
        features: shape (N, D), of all classes together.
        fraction: share of the mean variance, at least 0.
        minimum: lowest floor, in squared units of the features, above 0.

    Returns:
        The floor, in squared units of the features.

    Raises:
        ValueError: ``features`` is not (N, D), or a bound is out of range.
    """
    if features.ndim != 2:
        raise ValueError(f"features must have shape (N, D), got {tuple(features.shape)}")
    if not fraction >= 0 or not minimum > 0:
        raise ValueError(f"fraction must be >= 0 and minimum > 0, got {fraction} and {minimum}")
    if features.numel() == 0:
        return minimum
    return max(fraction * features.double().var(dim=0, correction=0).mean().item(), minimum)


def log_likelihood(bank: GaussianPrototypes, features: Tensor, labels: Tensor) -> float:
    """Return the mean log-density of the features under the mixtures of their classes.

    ``1/N sum_n ln sum_k w_k N(z_n; means_k, variances_k)`` over the rows k of the class of sample n: the
    logarithm of equation 4 of the GFPL paper.

    Args:
        bank: mixtures that hold every class in ``labels``.
        features: shape (N, D), N at least 1.
        labels: shape (N,), int64.

    Returns:
        Nats a sample.

    Raises:
        ValueError: shapes that do not fit, no samples, or a class that the bank does not hold.
    """
    _check_data(features, labels)
    if len(features) == 0 or features.shape[1] != bank.dim:
        raise ValueError(f"features must have shape (N >= 1, {bank.dim}), got {tuple(features.shape)}")
    weights = bank.weights.double().log()
    total = 0.0
    for label in torch.unique(labels).tolist():
        rows = (bank.labels == label).nonzero()[:, 0]
        if len(rows) == 0:
            raise ValueError(f"the bank holds no component of class {label}, its classes are {bank.classes}")
        samples = features[labels == label].double()
        means, variances = bank.means[rows].double(), bank.variances[rows].double()
        constant = weights[rows] - 0.5 * (variances.log() + math.log(2.0 * math.pi)).sum(-1)
        for part in torch.split(samples, max(1, _BLOCK_ELEMENTS // means.numel())):
            mahalanobis = ((part[:, None] - means).square_() / variances).sum(-1)
            total += (constant - 0.5 * mahalanobis).logsumexp(-1).sum().item()
    return total / len(features)


def _floors(variance_floor: float | Tensor, classes: Tensor) -> Tensor:
    """Floor of each class, shape (C,), float64."""
    if not isinstance(variance_floor, Tensor):
        if not 0 < variance_floor < math.inf:
            raise ValueError(f"variance_floor must be finite and > 0, got {variance_floor}")
        return torch.full(classes.shape, variance_floor, dtype=torch.float64, device=classes.device)
    highest = int(classes.max()) if len(classes) else -1
    if variance_floor.ndim != 1 or len(variance_floor) <= highest:
        raise ValueError(
            f"variance_floor must hold one floor for each label up to {highest}, shape ({highest + 1},), "
            f"got {tuple(variance_floor.shape)}"
        )
    floors = variance_floor.to(device=classes.device, dtype=torch.float64)[classes]
    bad = ~((floors > 0) & floors.isfinite())
    if bad.any():
        row = int(bad.nonzero()[0, 0])
        raise ValueError(f"variance_floor must be finite and > 0, label {classes[row]} has {floors[row]}")
    return floors


def _check_data(features: Tensor, labels: Tensor) -> None:
    if features.ndim != 2 or features.shape[1] < 1 or not features.is_floating_point():
        raise ValueError(
            "features must be floating point of shape (N, D) with D >= 1, "
            f"got {features.dtype} {tuple(features.shape)}"
        )
    if labels.shape != features.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"labels must be int64 of shape {tuple(features.shape[:1])}, got {labels.dtype} {tuple(labels.shape)}"
        )
    # One pass where all is well: a sum hides no infinity and no NaN. A sum that overflows is looked at again.
    if not features.sum().isfinite() and not (finite := features.isfinite()).all():
        row, column = (~finite).nonzero()[0].tolist()
        raise ValueError(
            f"features must be finite, row {row} (class {labels[row].item()}) has "
            f"{features[row, column].item()} at feature {column}"
        )
    if (labels < 0).any():
        row = int((labels < 0).nonzero()[0, 0])
        raise ValueError(f"labels must be >= 0, row {row} has {labels[row].item()}")
