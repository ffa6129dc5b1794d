"""Tests of a site's model: counts of what each inference head gets right."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gfpl_flwr.data.evaluation import count_correct
from gfpl_flwr.models import SplitModel
from gfpl_flwr.training.features import Features
from gfpl_flwr.training.site import Site
from gfpl_flwr.training.work import Steps

PHASES = ("train", "retrain", "received")
"""When a model was tested: after local training, after retraining on what the server handed down, or with what the
server handed down in its place. Of several tests of one round the last in this order tells what a site would use."""

Scores = Callable[[SplitModel, Tensor], dict[str, Tensor]]
"""Maps a model and features (B, D) to the scores (B, C) of every inference head."""


@dataclass(frozen=True)
class CommonCounts:
    """What a model gets right of test images of every class, the same images for all sites.

    Attributes:
        total: samples of classes that the site has training images of, and of those that it never saw.
        correct: inference head to the samples of both that it got right.
    """

    total: tuple[int, int]
    correct: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Counts:
    """Accuracy of a site's model as counts, never averages.

    Attributes:
        round: the local round after which it was measured, from 0.
        phase: one of :data:`PHASES`.
        total: (C,) int64 test samples of each class.
        correct: inference head to (C,) int64 samples of each class that it got right.
        common: the same on images of every class; None where that was not asked for.
    """

    round: int
    phase: str
    total: Tensor
    correct: dict[str, Tensor]
    common: CommonCounts | None = None


def evaluate(site: Site, *, round: int, phase: str, scores: Scores | None = None) -> Steps[Counts]:
    """Test a site's model on its own images, and on the common ones in the rounds that ask for it.

    Args:
        site: its model is put into evaluation mode.
        round, phase: as in :class:`Counts`.
        scores: of every head; the model's own by default.
    """
    config, model = site.config, site.model
    scores = scores or _own_scores
    features = yield Features(site, "evaluate", site.test)
    with site.watch("evaluate"), torch.no_grad():
        total, correct = _count(scores(model, features), site.test.labels, model.num_classes)
    common = None
    if site.common is not None and (round % config.common_test_every == 0 or round == config.rounds):
        features = yield Features(site, "evaluate", site.common)
        with site.watch("evaluate"), torch.no_grad():
            of_class, right = _count(scores(model, features), site.common.labels, model.num_classes)
            seen = torch.bincount(site.train.labels.cpu(), minlength=model.num_classes) > 0
            common = CommonCounts(_split(of_class, seen), {head: _split(its, seen) for head, its in right.items()})
    return Counts(round, phase, total, correct, common)


def _own_scores(model: SplitModel, features: Tensor) -> dict[str, Tensor]:
    return model.scores(features)


def _split(counts: Tensor, seen: Tensor) -> tuple[int, int]:
    return int(counts[seen].sum()), int(counts[~seen].sum())


def _count(heads: dict[str, Tensor], labels: Tensor, num_classes: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the samples of every class, and how many of them each head got right."""
    # Counted by the host: on a card every count would be a wait for it.
    labels = labels.cpu()
    predictions = torch.stack([scores.argmax(1) for scores in heads.values()]).cpu()
    counts = [count_correct(predicted, labels, num_classes) for predicted in predictions]
    return counts[0][1], dict(zip(heads, (right for right, _ in counts), strict=True))
