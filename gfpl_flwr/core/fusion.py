"""Algorithm 1: fusion of the components that sites sent, class by class, by Bhattacharyya distance."""

from __future__ import annotations

from typing import Literal, get_args

import torch

from gfpl_flwr.core.fusion_closest_pair import closest_pair
from gfpl_flwr.core.fusion_first_fit import FirstFit, Scale, check_options, limit_of
from gfpl_flwr.core.fusion_search import Merge
from gfpl_flwr.core.prototypes import GaussianPrototypes

__all__ = ["FirstFit", "Merge", "Rule", "Scale", "fuse"]

Rule = Literal["closest_pair", "first_fit"]


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
    check_options(threshold, scale, merge)
    if rule not in get_args(Rule):
        raise ValueError(f"rule must be one of {list(get_args(Rule))}, got {rule!r}")
    if rule == "first_fit":
        fusion = FirstFit(threshold=threshold, scale=scale, merge=merge)
        fusion.add(bank)
        return fusion.result()
    limit = limit_of(threshold, scale, bank.dim)
    source = bank.canonical()
    if len(bank) == 0 or limit == 0:
        return source
    parts = []
    for label in source.classes:
        rows = source.of_class(label)
        if len(rows) > 1:
            counts, means, variances = (value.to(bank.means.dtype) for value in closest_pair(rows, limit, merge))
            labels = torch.full_like(counts, label, dtype=torch.int64)
            rows = GaussianPrototypes(labels, counts, means, variances)
        parts.append(rows)
    return GaussianPrototypes.concat(parts).canonical()
