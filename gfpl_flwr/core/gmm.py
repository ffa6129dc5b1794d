"""Gaussian mixtures with diagonal covariance, fitted to every class at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gfpl_flwr.core.gmm_em import fit_problems
from gfpl_flwr.core.prototypes import GaussianPrototypes

# Elements of the widest temporary of one chunk of problems. On a processor a chunk should stay in its cache.
_CHUNK_ELEMENTS = 1 << 20
_CHUNK_ELEMENTS_ACCELERATOR = 1 << 27


def fit_class_mixtures(
    features: Tensor,
    labels: Tensor,
    *,
    num_components: int = 2,
    variance_floor: float = 1e-6,
    max_iter: int = 100,
    tol: float = 1e-3,
    min_samples: int = 1,
    min_component_samples: float = 1.0,
    num_starts: int = 24,
    refine: bool = True,
    generator: torch.Generator,
) -> GaussianPrototypes:
    """Fit one diagonal Gaussian mixture to the features of each class by expectation-maximisation.

    Equations 4 to 6 of the GFPL paper. The M-step maximises under the bound ``variance >= variance_floor``,
    so the likelihood never falls. Every class is fitted from several k-means++ starts; the best is refined by
    moving single samples between components, and the highest likelihood wins. Likelihood rewards a component
    on the floor around one sample: ``min_component_samples`` is the guard against prototypes that are one
    sample.

    A class of n samples gets ``min(num_components, n // min_component_samples)`` components. If, in every
    start, a component ends with less than ``min_component_samples`` effective samples, as with samples that
    are equal, the class is fitted again with fewer. All classes are one batched problem, in float64 and
    centred per class. The result does not depend on the order of the rows, up to rounding.

    Args:
        features: shape (N, D), floating point, finite.
        labels: class of each row, shape (N,), int64, at least 0.
        num_components: K, components asked for in each class, at least 1.
        variance_floor: lower bound of every variance, in squared units of the features, above 0; see
            ``relative_floor`` for a bound that follows the scale of a layer.
        max_iter: most EM steps of a fit, at least 1.
        tol: a fit ends when a step gains less than this, in nats a sample.
        min_samples: a class with fewer samples gets no rows.
        min_component_samples: effective samples that a component must stand for, at least 1. A class with
            fewer samples gets no rows.
        num_starts: k-means++ starts of each class, at least 1.
        refine: search on from the best start by moving single samples; takes longer than all the starts.
        generator: source of the starts.

    Returns:
        The components in canonical order, in the dtype and on the device of ``features``; ``counts`` are
        effective samples and add up to the samples of the class.

    Raises:
        ValueError: shapes, dtypes or values that are not as above.

    Source: Dempster, Laird and Rubin (1977); Lu et al., "GFPL" (arXiv 2602.21873), equations 4 to 6.
    """
    _check_data(features, labels)
    for name, value, least in (
        ("num_components", num_components, 1),
        ("max_iter", max_iter, 1),
        ("tol", tol, 0),
        ("min_samples", min_samples, 0),
        ("min_component_samples", min_component_samples, 1),
        ("num_starts", num_starts, 1),
    ):
        if not value >= least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if not 0 < variance_floor < math.inf:
        raise ValueError(f"variance_floor must be finite and > 0, got {variance_floor}")

    order = _canonical_rows(features, labels)
    classes, sizes = torch.unique_consecutive(labels[order], return_counts=True)
    first = sizes.cumsum(0) - sizes
    fits = sizes >= max(min_samples, min_component_samples)
    classes, sizes, first = classes[fits], sizes[fits], first[fits]
    uniforms = torch.rand(
        (len(classes), num_starts, num_components),
        generator=generator,
        device=generator.device,
        dtype=torch.float64,
    ).to(features.device)

    lengths = sizes.tolist()
    components = [min(num_components, int(n // min_component_samples)) for n in lengths]
    pending = list(range(len(components)))
    banks = [GaussianPrototypes.empty(features.shape[1], dtype=features.dtype, device=features.device)]
    while pending:
        again = []
        for chunk in _chunks(pending, components, lengths, num_starts, features):
            wanted = components[chunk[0]]
            index = torch.tensor(chunk, device=features.device)
            slot = torch.arange(max(lengths[problem] for problem in chunk), device=features.device)
            present = slot < sizes[index, None]
            source = order[(first[index, None] + slot).clamp_max(len(order) - 1)]
            rows = features[source].double()
            centre = (rows * present[..., None]).sum(1, keepdim=True) / sizes[index, None, None]
            rows = (rows - centre) * present[..., None]
            fitted, kept = fit_problems(
                rows,
                present,
                uniforms[index, :, :wanted],
                floor=variance_floor,
                max_iter=max_iter,
                tol=tol,
                smallest=min_component_samples,
                refine=refine,
            )
            done = kept >= wanted
            banks.append(
                GaussianPrototypes(
                    classes[index][done].repeat_interleave(wanted),
                    fitted.counts[done].flatten().to(features.dtype),
                    (fitted.means[:, 0] + centre)[done].flatten(0, 1).to(features.dtype),
                    fitted.variances[done].flatten(0, 2).to(features.dtype),
                )
            )
            for problem, left in zip(chunk, kept.tolist(), strict=True):
                if left < wanted:
                    components[problem] = left
                    again.append(problem)
        pending = again
    return GaussianPrototypes.concat(banks).canonical()


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
        for part in torch.split(samples, max(1, _CHUNK_ELEMENTS // means.numel())):
            mahalanobis = ((part[:, None] - means).square_() / variances).sum(-1)
            total += (constant - 0.5 * mahalanobis).logsumexp(-1).sum().item()
    return total / len(features)


def _canonical_rows(features: Tensor, labels: Tensor) -> Tensor:
    """Order of the rows by class, and inside a class by value, so that the input order has no influence."""
    dim = features.shape[1]
    # Fractions of multiples of the golden ratio: equal sums for different rows are all but impossible.
    direction = 0.5 + (torch.arange(1, dim + 1, dtype=torch.float64) * 0.6180339887498949).frac()
    direction = direction.to(features.device)
    blocks = torch.split(features, 1 << 14)
    key = torch.cat([block.double() @ direction for block in blocks])
    order = key.argsort(stable=True)
    return order[labels[order].argsort(stable=True)]


def _chunks(
    pending: Sequence[int], components: Sequence[int], lengths: Sequence[int], restarts: int, features: Tensor
) -> Iterator[list[int]]:
    """Group problems of one K and similar length, so that the temporaries of a group stay under the budget."""
    budget = _CHUNK_ELEMENTS if features.device.type == "cpu" else _CHUNK_ELEMENTS_ACCELERATOR
    chunk: list[int] = []
    for problem in sorted(pending, key=lambda q: (components[q], lengths[q])):
        wanted = components[problem]
        width = max(2, wanted) * features.shape[1] + restarts * wanted
        full = (len(chunk) + 1) * lengths[problem] * width > budget
        if chunk and (full or components[chunk[0]] != wanted):
            yield chunk
            chunk = []
        chunk.append(problem)
    if chunk:
        yield chunk


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
    bad = ~features.isfinite()
    if bad.any():
        row, column = bad.nonzero()[0].tolist()
        raise ValueError(
            f"features must be finite, row {row} (class {labels[row].item()}) has "
            f"{features[row, column].item()} at feature {column}"
        )
    if (labels < 0).any():
        row = int((labels < 0).nonzero()[0, 0])
        raise ValueError(f"labels must be >= 0, row {row} has {labels[row].item()}")
