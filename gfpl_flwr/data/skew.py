"""Partitions that hand out the whole data set: iid, Dirichlet, shards, long tail, writers."""

import numpy as np

from gfpl_flwr.data.sites import Indices, SiteIndices, apportion, deal, deal_test, label_counts, rows_by_class

DIRICHLET_TRIES = 1000


def iid(
    train_labels: Indices, test_labels: Indices, num_sites: int, *, generator: np.random.Generator
) -> list[SiteIndices]:
    """Shuffle each split and cut it into S parts whose sizes differ by one at most.

    Args:
        train_labels: (N,).
        test_labels: (M,).
        num_sites: S.
        generator: shuffles.
    """
    train = np.array_split(generator.permutation(len(train_labels)), num_sites)
    test = np.array_split(generator.permutation(len(test_labels)), num_sites)
    return [SiteIndices(*site) for site in zip(train, test, strict=True)]


def dirichlet(
    train_labels: Indices,
    test_labels: Indices,
    num_sites: int,
    *,
    num_classes: int,
    alpha: float,
    min_samples: int,
    generator: np.random.Generator,
    max_tries: int = DIRICHLET_TRIES,
) -> list[SiteIndices]:
    """Divide every class among the sites by shares drawn from Dirichlet(alpha, ..., alpha).

    The draw is repeated until every site has ``min_samples`` training samples. The test split follows the
    training split, see :func:`~gfpl_flwr.data.sites.deal_test`. Source: Hsu, Qi and Brown, arXiv 1909.06335,
    in the per-class form of Yurochkin et al., ICML 2019, without its rule that full sites are passed over.

    Args:
        train_labels: (N,).
        test_labels: (M,).
        num_sites: S.
        num_classes: C.
        alpha: concentration, > 0; small values give each class to few sites.
        min_samples: smallest training split a site may have, at least 1.
        generator: draws the shares and shuffles within classes.
        max_tries: draws before giving up.

    Returns:
        S pairs of row arrays; the training split is handed out completely.

    Raises:
        ValueError: when alpha is not positive or no draw gave every site its minimum.
    """
    if not alpha > 0:
        raise ValueError(f"alpha must be > 0, got {alpha}")
    rows = [generator.permutation(of_class) for of_class in rows_by_class(train_labels, num_classes)]
    sizes = np.array([len(of_class) for of_class in rows], dtype=np.int64)
    if min_samples * num_sites > sizes.sum():
        raise ValueError(
            f"{num_sites} sites with at least {min_samples} samples each need "
            f"{min_samples * num_sites}, there are {sizes.sum()}"
        )
    smallest = 0
    for _ in range(max_tries):
        shares = generator.dirichlet(np.full(num_sites, alpha), size=num_classes).T
        counts = apportion(shares, sizes)
        smallest = max(smallest, int(counts.sum(axis=1).min()))
        if counts.sum(axis=1).min() >= min_samples:
            test = deal_test(counts, test_labels, generator)
            return [SiteIndices(*site) for site in zip(deal(counts, rows), test, strict=True)]
    raise ValueError(
        f"none of {max_tries} draws of Dirichlet shares with alpha {alpha} gave every one of {num_sites} sites "
        f"{min_samples} samples; the best left a site with {smallest}. A small alpha gives each class to few "
        "sites: raise alpha or lower the number of sites"
    )


def shards(
    train_labels: Indices,
    test_labels: Indices,
    num_sites: int,
    *,
    num_classes: int,
    shards_per_site: int,
    generator: np.random.Generator,
) -> list[SiteIndices]:
    """Sort by label, cut into equal shards, give every site the same number of them at random.

    Source: McMahan et al., arXiv 1602.05629, section 3 (two shards a site). The test split follows the
    training split, see :func:`~gfpl_flwr.data.sites.deal_test`.

    Args:
        train_labels: (N,).
        test_labels: (M,).
        num_sites: S.
        num_classes: C.
        shards_per_site: at least 1.
        generator: shuffles within classes and draws the shards.

    Raises:
        ValueError: when there are fewer samples than shards.
    """
    total = num_sites * shards_per_site
    if shards_per_site < 1 or total > len(train_labels):
        raise ValueError(
            f"shards: {num_sites} sites with {shards_per_site} shards each need {total} shards, between "
            f"1 and the number of training samples, {len(train_labels)}"
        )
    rows = [generator.permutation(of_class) for of_class in rows_by_class(train_labels, num_classes)]
    cut = np.array_split(np.concatenate(rows), total)
    drawn = generator.permutation(total).reshape(num_sites, shards_per_site)
    train = [np.concatenate([cut[shard] for shard in own]) for own in drawn]
    counts = np.stack([label_counts(train_labels, own, num_classes) for own in train])
    test = deal_test(counts, test_labels, generator)
    return [SiteIndices(*site) for site in zip(train, test, strict=True)]


def tail_counts(class_sizes: Indices, tail_ratio: float) -> Indices:
    r"""Return the samples a class keeps on an exponential profile, :math:`n_c = n_{max} \rho^{-c/(C-1)}`.

    n_max is the largest number for which no class needs more samples than it has: the class size where all
    are equal. Rounded down, at least 1.

    Args:
        class_sizes: (C,) samples there are, each at least 1.
        tail_ratio: rho, samples of the first class over those of the last, >= 1.

    Returns:
        (C,) int64.

    Raises:
        ValueError: when rho is below 1 or a class has no sample.
    """
    if not 1 <= tail_ratio < np.inf:
        raise ValueError(f"tail_ratio must be >= 1 and finite, got {tail_ratio}")
    if len(empty := np.flatnonzero(class_sizes == 0)):
        raise ValueError(f"long-tail: class {empty[0]} has no training sample")
    profile = tail_ratio ** (-np.arange(len(class_sizes)) / max(len(class_sizes) - 1, 1))
    largest = float((class_sizes / profile).min())
    # 50 must not become 49 because a power of the ratio is not exact.
    kept: Indices = np.maximum(np.floor(largest * profile + 1e-6), 1).astype(np.int64)
    return kept


def long_tail(
    train_labels: Indices,
    test_labels: Indices,
    num_sites: int,
    *,
    num_classes: int,
    tail_ratio: float,
    alpha: float,
    min_samples: int,
    generator: np.random.Generator,
) -> list[SiteIndices]:
    """Thin the training split to an exponential profile over the classes, then divide it among the sites.

    The test split keeps its class frequencies; each site gets, of every class it holds, the share it holds of
    the training samples.

    Args:
        train_labels: (N,).
        test_labels: (M,).
        num_sites: S.
        num_classes: C.
        tail_ratio: see :func:`tail_counts`.
        alpha: as in :func:`dirichlet`; infinity divides evenly at random, as :func:`iid`.
        min_samples: as in :func:`dirichlet`.
        generator: chooses the samples that stay and divides them.

    Raises:
        ValueError: see :func:`tail_counts` and :func:`dirichlet`.
    """
    rows = rows_by_class(train_labels, num_classes)
    sizes = tail_counts(np.array([len(of_class) for of_class in rows], dtype=np.int64), tail_ratio)
    kept = np.sort(np.concatenate([generator.permutation(own)[:n] for own, n in zip(rows, sizes, strict=True)]))
    labels, no_labels = train_labels[kept], test_labels[:0]
    if np.isinf(alpha):
        parts = iid(labels, no_labels, num_sites, generator=generator)
    else:
        parts = dirichlet(
            labels,
            no_labels,
            num_sites,
            num_classes=num_classes,
            alpha=alpha,
            min_samples=min_samples,
            generator=generator,
        )
    counts = np.stack([label_counts(labels, part.train, num_classes) for part in parts])
    test = deal_test(counts, test_labels, generator)
    return [SiteIndices(kept[part.train], own) for part, own in zip(parts, test, strict=True)]


def by_writer(
    train_writers: Indices,
    test_writers: Indices,
    num_sites: int,
    *,
    writers_per_site: int,
    generator: np.random.Generator,
) -> list[SiteIndices]:
    """Give every site all samples of one or more people, drawn without replacement.

    Args:
        train_writers: (N,) who produced each training sample.
        test_writers: (M,) the same for the test split.
        num_sites: S.
        writers_per_site: people a site; 0 deals all of them out evenly.
        generator: draws the people.

    Raises:
        ValueError: when there are too few people with training samples.
    """
    people = np.unique(train_writers)
    needed = num_sites * max(writers_per_site, 1)
    if writers_per_site < 0 or needed > len(people):
        raise ValueError(
            f"writers: {num_sites} sites with {writers_per_site} writers each need {needed} writers, "
            f"there are {len(people)} with training samples"
        )
    drawn = generator.permutation(people)
    groups = np.array_split(drawn[:needed] if writers_per_site else drawn, num_sites)
    return [
        SiteIndices(np.flatnonzero(np.isin(train_writers, own)), np.flatnonzero(np.isin(test_writers, own)))
        for own in groups
    ]
