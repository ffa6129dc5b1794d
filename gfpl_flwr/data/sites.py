"""What a partition is made of: the sample indices of one site, and the counting behind every scheme."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def label_counts(labels: Indices, indices: Indices, num_classes: int) -> Indices:
    """Count the samples of every class among some rows.

    Args:
        labels: (N,) class of every sample.
        indices: rows to count.
        num_classes: C.

    Returns:
        (C,) int64.
    """
    return np.bincount(labels[indices], minlength=num_classes).astype(np.int64)


def rows_by_class(labels: Indices, num_classes: int) -> list[Indices]:
    """Return the rows of every class in published order: C arrays, some of them perhaps empty."""
    order = np.argsort(labels, kind="stable").astype(np.int64)
    ends = np.cumsum(np.bincount(labels, minlength=num_classes))
    return np.split(order, ends[:-1])


def rows_of_each(labels: Indices, num_classes: int, count: int, *, seed: int) -> Indices:
    """Return ``count`` rows of every class, drawn without replacement, by class.

    Args:
        labels: (N,) class of every sample.
        num_classes: C.
        count: rows of each class.
        seed: of the draw.

    Raises:
        ValueError: a class has fewer samples.
    """
    generator = np.random.default_rng(seed)
    rows = rows_by_class(labels, num_classes)
    if few := [label for label, of_class in enumerate(rows) if len(of_class) < count]:
        raise ValueError(f"class {few[0]} has {len(rows[few[0]])} samples")
    return np.concatenate([generator.permutation(of_class)[:count] for of_class in rows])


def apportion(shares: NDArray[np.float64], sizes: Indices) -> Indices:
    """Divide every class among the sites by shares, in whole samples.

    Largest remainders; what rounding took from a site in one class is owed to it in the next, so no site is
    left short in all classes. A site with share 0 of a class never gets a sample of it.

    Args:
        shares: (S, C), >= 0; each column sums to 1, or to 0 where no site holds the class.
        sizes: (C,) samples of every class to divide.

    Returns:
        (S, C) int64; a column sums to the class's size, or to 0 where no site holds the class.
    """
    counts = np.zeros(shares.shape, np.int64)
    owed = np.zeros(len(shares))
    for label, size in enumerate(sizes):
        quota = shares[:, label] * size
        if not quota.any():
            continue
        counts[:, label] = np.floor(quota + 1e-9)
        owed += quota - counts[:, label]
        eligible = np.flatnonzero(quota)
        # One sample more than the floor at most, so the rest always fits the eligible sites.
        rest = int(size - counts[:, label].sum())
        first = eligible[np.argsort(-owed[eligible], kind="stable")[:rest]]
        counts[first, label] += 1
        owed[first] -= 1
    return counts


def deal(counts: Indices, rows: list[Indices]) -> list[Indices]:
    """Hand out the rows of every class in consecutive slices, in the order of the sites.

    Args:
        counts: (S, C) how many rows of every class each site gets; no column sums to more than there are
            rows.
        rows: C arrays of rows, in the order in which they are handed out.

    Returns:
        S arrays of rows, disjoint.
    """
    ends = np.cumsum(counts, axis=0)
    return [
        np.concatenate([rows[c][end[c] - count[c] : end[c]] for c in range(len(rows))])
        for count, end in zip(counts, ends, strict=True)
    ]


def deal_test(train_counts: Indices, test_labels: Indices, generator: np.random.Generator) -> list[Indices]:
    """Hand out the test split: of every class each site gets the share it holds of the training samples.

    So where both splits have the same class frequencies, a site is tested on the class frequencies it was
    trained on, and never on a class it does not hold.

    Args:
        train_counts: (S, C) training samples of every class at each site.
        test_labels: (M,).
        generator: shuffles the rows within each class.

    Returns:
        S arrays of test rows, disjoint; all rows of a class that some site holds are handed out.
    """
    rows = [generator.permutation(of_class) for of_class in rows_by_class(test_labels, train_counts.shape[1])]
    totals = train_counts.sum(axis=0)
    shares = train_counts / np.maximum(totals, 1)
    sizes = np.array([len(of_class) for of_class in rows], dtype=np.int64)
    return deal(apportion(shares, sizes), rows)


@dataclass(frozen=True, eq=False)
class SiteIndices:
    """The samples of one site: rows of the training split and rows of the test split.

    Attributes:
        train: int64, ascending, without repetition.
        test: the same for the test split; may be empty.

    Raises:
        ValueError: when a row is negative or comes twice.
    """

    train: Indices
    test: Indices

    def __post_init__(self) -> None:
        for name in ("train", "test"):
            rows = np.sort(np.asarray(getattr(self, name), dtype=np.int64))
            if rows.ndim != 1:
                raise ValueError(f"{name} must be one-dimensional, got shape {rows.shape}")
            if len(rows) and rows[0] < 0:
                raise ValueError(f"{name} must hold rows >= 0, got {rows[0]}")
            if len(repeated := rows[1:][rows[1:] == rows[:-1]]):
                raise ValueError(f"{name} holds row {repeated[0]} twice")
            object.__setattr__(self, name, rows)
