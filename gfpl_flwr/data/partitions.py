"""Which sample belongs to which site: every scheme behind one function of labels, sites and seed."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from gfpl_flwr.data.datasets import ImageDataset
from gfpl_flwr.data.shots import default_test_shots, n_way_k_shot, shot_range
from gfpl_flwr.data.sites import Indices, SiteIndices
from gfpl_flwr.data.skew import by_writer, dirichlet, iid, long_tail, shards


def partition(dataset: ImageDataset, num_sites: int, *, scheme: str, seed: int, **options: Any) -> list[SiteIndices]:
    """Spread a data set over sites.

    The same arguments give the same partition, on every machine with the same version of numpy: the streams
    of its generators are allowed to change between versions, so devices that each compute their own part must
    agree on it.

    Args:
        dataset: what to spread.
        num_sites: S, at least 1.
        scheme: a key of :data:`SCHEMES`.
        seed: at least 0.
        **options: fields of :class:`Options`; those that the scheme does not use are ignored.

    Returns:
        S pairs of row arrays. No sample is at two sites, and every site has a training sample.

    Raises:
        ValueError: when an option is unknown or impossible; the message says what to change.
    """
    return partition_labels(
        dataset.train_labels.numpy(),
        dataset.test_labels.numpy(),
        num_sites,
        num_classes=dataset.num_classes,
        scheme=scheme,
        seed=seed,
        dataset=dataset.name,
        train_writers=None if dataset.train_writers is None else dataset.train_writers.numpy(),
        test_writers=None if dataset.test_writers is None else dataset.test_writers.numpy(),
        **options,
    )


def partition_labels(
    train_labels: Indices,
    test_labels: Indices,
    num_sites: int,
    *,
    num_classes: int,
    scheme: str,
    seed: int,
    dataset: str = "",
    train_writers: Indices | None = None,
    test_writers: Indices | None = None,
    **options: Any,
) -> list[SiteIndices]:
    """Spread labelled samples over sites; see :func:`partition`.

    Args:
        train_labels: (N,), values 0 to C-1.
        test_labels: (M,).
        num_sites: S, at least 1.
        num_classes: C.
        scheme: a key of :data:`SCHEMES`.
        seed: at least 0.
        dataset: name of the data set, for the ranges that FedProto sets for each.
        train_writers: (N,), needed by the scheme ``writers``.
        test_writers: (M,), the same.
        **options: fields of :class:`Options`.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"unknown partition {scheme!r}: known are {', '.join(sorted(SCHEMES))}")
    known = [field.name for field in fields(Options)]
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"unknown partition option {unknown[0]!r}: known are {', '.join(known)}")
    if num_sites < 1 or seed < 0:
        raise ValueError(f"num_sites must be >= 1 and seed >= 0, got {num_sites} and {seed}")
    task = _Task(
        train_labels, test_labels, num_sites, num_classes, dataset, train_writers, test_writers,
        Options(**options), np.random.default_rng(seed),
    )  # fmt: skip
    sites = SCHEMES[scheme](task)
    if empty := [site for site, rows in enumerate(sites) if len(rows.train) == 0]:
        raise ValueError(
            f"{scheme}: site {empty[0]} has no training sample ({len(empty)} of {num_sites} sites have none, "
            f"{len(train_labels)} samples in all); lower the number of sites"
        )
    return sites


def _shots(task: "_Task") -> list[SiteIndices]:
    options = task.options
    shots = options.shots
    if isinstance(shots, int):
        spread = options.ways_spread if options.shots_spread is None else options.shots_spread
        shots = shot_range(task.dataset, shots, spread)
    test_shots = options.test_shots or default_test_shots(task.dataset)
    return n_way_k_shot(
        task.train_labels,
        task.test_labels,
        task.num_sites,
        num_classes=task.num_classes,
        ways=options.ways,
        ways_spread=options.ways_spread,
        shots=shots,
        test_shots=test_shots if len(task.test_labels) else 0,
        generator=task.generator,
    )


def _iid(task: "_Task") -> list[SiteIndices]:
    return iid(task.train_labels, task.test_labels, task.num_sites, generator=task.generator)


def _dirichlet(task: "_Task") -> list[SiteIndices]:
    return dirichlet(
        task.train_labels,
        task.test_labels,
        task.num_sites,
        num_classes=task.num_classes,
        alpha=task.options.alpha,
        min_samples=task.options.min_samples,
        generator=task.generator,
    )


def _shards(task: "_Task") -> list[SiteIndices]:
    return shards(
        task.train_labels,
        task.test_labels,
        task.num_sites,
        num_classes=task.num_classes,
        shards_per_site=task.options.shards_per_site,
        generator=task.generator,
    )


def _long_tail(task: "_Task") -> list[SiteIndices]:
    return long_tail(
        task.train_labels,
        task.test_labels,
        task.num_sites,
        num_classes=task.num_classes,
        tail_ratio=task.options.tail_ratio,
        alpha=task.options.alpha,
        min_samples=task.options.min_samples,
        generator=task.generator,
    )


def _writers(task: "_Task") -> list[SiteIndices]:
    if task.train_writers is None or task.test_writers is None:
        raise ValueError(
            f"writers: data set {task.dataset!r} does not say who produced its samples; femnist does, "
            "or choose another partition"
        )
    return by_writer(
        task.train_writers,
        task.test_writers,
        task.num_sites,
        writers_per_site=task.options.writers_per_site,
        generator=task.generator,
    )


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the schemes can be told.

    Attributes:
        ways: n-way-k-shot: centre of the range of classes a site holds.
        ways_spread: n-way-k-shot: half-width of that range.
        shots: n-way-k-shot: average training samples a class of a site, or the smallest and largest number.
        shots_spread: n-way-k-shot: half-width of their range; None: ``ways_spread``, FedProto has one for
            both.
        test_shots: n-way-k-shot: test samples a class of a site; 0: the data set's.
        alpha: dirichlet, long-tail: concentration; long-tail takes infinity for an even division.
        min_samples: dirichlet, long-tail: smallest training split of a site.
        tail_ratio: long-tail: samples of the first class over those of the last.
        shards_per_site: shards: pieces of the label-sorted data a site gets.
        writers_per_site: writers: people a site; 0 deals all of them out.
    """

    ways: int = 3
    ways_spread: int = 2
    shots: int | tuple[int, int] = 100
    shots_spread: int | None = None
    test_shots: int = 0
    alpha: float = 0.5
    min_samples: int = 10
    tail_ratio: float = 100.0
    shards_per_site: int = 2
    writers_per_site: int = 1

    def __post_init__(self) -> None:
        for name in ("test_shots", "min_samples", "writers_per_site"):
            if (value := getattr(self, name)) < 0:
                raise ValueError(f"{name} must be >= 0, got {value}")


@dataclass(frozen=True)
class _Task:
    train_labels: Indices
    test_labels: Indices
    num_sites: int
    num_classes: int
    dataset: str
    train_writers: Indices | None
    test_writers: Indices | None
    options: Options
    generator: np.random.Generator


SCHEMES: dict[str, Callable[[_Task], list[SiteIndices]]] = {
    "n-way-k-shot": _shots,
    "dirichlet": _dirichlet,
    "iid": _iid,
    "shards": _shards,
    "long-tail": _long_tail,
    "writers": _writers,
}
