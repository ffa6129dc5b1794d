"""Counts of correct answers, and the accuracy over sites that comes of them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def count_correct(predictions: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Count samples and correct predictions of every class.

    Args:
        predictions: int64 (N,), the predicted class of each sample.
        labels: int64 (N,), its true class.
        num_classes: C.

    Returns:
        Correct (C,) and total (C,), int64, by true class. Counts of parts of a data set add up.

    Raises:
        ValueError: when the shapes differ or a label is not a class.
    """
    if predictions.shape != labels.shape or labels.ndim != 1:
        raise ValueError(
            f"predictions and labels must both be (N,), got {tuple(predictions.shape)} and {tuple(labels.shape)}"
        )
    if len(wrong := torch.nonzero((labels < 0) | (labels >= num_classes)).flatten()):
        row = int(wrong[0])
        raise ValueError(f"labels must lie in 0 to {num_classes - 1}, row {row} has {int(labels[row])}")
    total = torch.bincount(labels, minlength=num_classes)
    return torch.bincount(labels[predictions == labels], minlength=num_classes), total


def accuracy(correct: Tensor, total: Tensor) -> float | None:
    """Return the share of correct answers over all classes, or None where nothing was tested.

    Args:
        correct: (C,) counts.
        total: (C,) counts.

    Raises:
        ValueError: when the shapes differ or a class has more correct answers than samples.
    """
    if correct.shape != total.shape:
        raise ValueError(
            f"correct and total must have one shape, got {tuple(correct.shape)} and {tuple(total.shape)}"
        )
    if len(wrong := torch.nonzero((correct < 0) | (correct > total)).flatten()):
        label = int(wrong[0])
        raise ValueError(f"class {label} has {int(correct[label])} correct of {int(total[label])}")
    tested = int(total.sum())
    return int(correct.sum()) / tested if tested else None


def mean_and_std(per_site: Sequence[float | None]) -> tuple[float | None, float | None]:
    r"""Return the unweighted mean over sites and the population standard deviation.

    .. math:: m = \frac1S \sum_i a_i, \qquad s = \sqrt{\frac1S \sum_i (a_i - m)^2}

    over the S sites that have a test split. Every site counts the same, whatever the size of its split.

    DEPARTURE: FedProto's released code never resets its counters between sites, so its accuracy of site i is
    a running mean over sites 1 to i and its published standard deviations are far too small. Here the counts
    of every site stand alone.

    Args:
        per_site: accuracy of every site, None for one without a test split.

    Returns:
        Mean and standard deviation, both None when no site has a test split.
    """
    values = [value for value in per_site if value is not None]
    if not values:
        return None, None
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
