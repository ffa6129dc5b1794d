"""Class-balanced pseudo-features drawn from the mixtures of a prototype bank."""

from __future__ import annotations

import torch
from torch import Tensor

from gfpl_flwr.core.prototypes import GaussianPrototypes


def sample(
    bank: GaussianPrototypes,
    *,
    per_class: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Draw the same number of features from the mixture of every class in the bank.

    Equation 4 of the GFPL paper as a generator: component k of the class with probability ``w_k``, then
    ``means_k + sqrt(variances_k) * eps`` with standard normal ``eps``.

    Args:
        bank: the mixtures, dimension D.
        per_class: features drawn from each class, at least 0.
        generator: source of all draws; the result depends on its state, the bank and ``per_class`` alone.

    Returns:
        Features, shape (per_class * number of classes, D), in the dtype and on the device of the bank, and
        their labels, int64; sorted by class, to be shuffled by the caller.

    Raises:
        ValueError: ``per_class`` is negative.

    Source: Lu et al., "GFPL" (arXiv 2602.21873), section 3.4.
    """
    if per_class < 0:
        raise ValueError(f"per_class must be at least 0, got {per_class}")
    device, dtype = bank.means.device, bank.means.dtype
    if per_class == 0 or len(bank) == 0:
        return bank.means.new_empty(0, bank.dim), bank.labels.new_empty(0)
    order = bank.labels.argsort(stable=True)
    classes, group, sizes = torch.unique(bank.labels[order], return_inverse=True, return_counts=True)
    first = sizes.cumsum(0) - sizes
    place = torch.arange(len(bank), device=device) - first[group]
    weights = torch.zeros(len(classes), int(sizes.max()), dtype=torch.float64, device=device)
    weights[group, place] = bank.counts[order].double()
    component = torch.multinomial(weights.to(generator.device), per_class, replacement=True, generator=generator).to(
        device
    )
    rows = order[(first[:, None] + component).flatten()]
    noise = torch.randn(len(rows), bank.dim, generator=generator, device=generator.device, dtype=dtype)
    features = torch.addcmul(bank.means[rows], bank.variances[rows].sqrt(), noise.to(device))
    return features, classes.repeat_interleave(per_class)
