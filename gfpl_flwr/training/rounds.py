"""Local rounds: training and testing of a site's own model."""

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from gfpl_flwr.core.losses import cross_entropy
from gfpl_flwr.models import SplitModel
from gfpl_flwr.training.descent import Descent, Loss
from gfpl_flwr.training.evaluation import Counts, Scores, evaluate
from gfpl_flwr.training.site import Site
from gfpl_flwr.training.work import Steps


def local_rounds(
    site: Site, rounds: Iterable[int], loss: Loss, *, scores: Scores | None = None, **options: Any
) -> Steps[tuple[list[Counts], float]]:
    """Train a site's whole model for some local rounds, testing it after each.

    Args:
        site: its model is changed in place.
        rounds: their numbers, from 1; with the site and the seed they determine every random number.
        loss: as in :class:`Descent`.
        scores: inference heads that are tested, as in :func:`evaluate`.
        options: further attributes of each :class:`Descent`.

    Returns:
        The counts after every round, and the mean loss of the last one (NaN without rounds).
    """
    counts, mean = [], math.nan
    for round in rounds:
        mean = yield Descent(site, "train", site.train, loss, round, site.config.local_epochs, **options)
        counts.append((yield from evaluate(site, round=round, phase="train", scores=scores)))
    return counts, mean


def classifier_loss(model: SplitModel, features: Tensor, labels: Tensor) -> Tensor:
    """Plain cross-entropy of the trainable classifier."""
    return cross_entropy(model.logits(features), labels)
