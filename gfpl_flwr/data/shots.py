"""FedProto's n-way k-shot partition (arXiv 2105.00243), shared by GFPL and its baselines, corrected."""

import numpy as np

from gfpl_flwr.data.sites import Indices, SiteIndices, deal, rows_by_class

_TEST_SHOTS = {"mnist": 40, "digits": 4}


def shot_range(dataset: str, shots: int, spread: int) -> tuple[int, int]:
    """Return the smallest and the largest number of training samples a class of a site can have.

    FedProto's released code draws uniform integers, with other bounds for each data set:

    =================  ================================  ===========
    data set           range                             (100, 2)
    =================  ================================  ===========
    mnist              shots-spread+1 .. shots+spread-2  99 .. 100
    cifar100           shots .. shots                    100 .. 100
    femnist, cifar10   shots-spread+1 .. shots+spread    99 .. 102
    =================  ================================  ===========

    Every data set it does not have follows the last row. DEPARTURE: MNIST's range is empty for spread 1,
    where the released code fails, and so is every range for spread 0; both mean exactly ``shots`` here.

    Args:
        dataset: name of the data set.
        shots: average number of samples.
        spread: half-width, the released code's ``stdev``.

    Raises:
        ValueError: when ``shots`` is below 1, ``spread`` negative, or a site could draw 0 samples.
    """
    if shots < 1 or spread < 0:
        raise ValueError(f"shots must be >= 1 and the spread >= 0, got {shots} and {spread}")
    if dataset == "cifar100" or spread == 0:
        return shots, shots
    low = shots - spread + 1
    high = max(low, shots + spread - 2) if dataset == "mnist" else shots + spread
    if low < 1:
        raise ValueError(
            f"shots = {shots} must be at least {spread}: the spread of the classes (ways-spread) is that of shots too"
        )
    return low, high


def default_test_shots(dataset: str) -> int:
    """Return the test samples a class of a site: FedProto's 40 for MNIST, else 15; 4 for the small digits."""
    return _TEST_SHOTS.get(dataset, 15)


def n_way_k_shot(
    train_labels: Indices,
    test_labels: Indices,
    num_sites: int,
    *,
    num_classes: int,
    ways: int,
    ways_spread: int,
    shots: tuple[int, int],
    test_shots: int,
    generator: np.random.Generator,
) -> list[SiteIndices]:
    """Give every site a few classes and a few samples of each.

    Site i holds n_i classes, drawn without replacement, n_i uniform on the integers max(2, ways-spread) ..
    min(C-1, ways+spread): no site holds all classes. Of each it gets k_i training samples, k_i uniform on the
    integers ``shots``, and ``test_shots`` test samples. The rows of a class are
    shuffled, and the sites that hold it take consecutive slices, so no two sites share a sample, in either split.

    DEPARTURE: FedProto's site i starts at the fixed offset 110 i of every class in published order, whether or not
    the sites before it hold the class; that needs 110 S samples of every class, and every seed sees the same
    images. Slices of the sites that do hold it need a few times fewer and are as disjoint. They are not taken in
    published order because that is not random: MNIST's first test images are harder than its last.

    DEPARTURE: a class that has too few samples left for a site is not among those the site draws from;
    FedProto would run on into the next class. With MNIST and CIFAR-10 and the paper's settings that never
    happens.

    Args:
        train_labels: (N,).
        test_labels: (M,).
        num_sites: S.
        num_classes: C.
        ways: centre of the range of n_i.
        ways_spread: its half-width.
        shots: smallest and largest k_i, see :func:`shot_range`.
        test_shots: test samples a class of a site; 0 for none.
        generator: shuffles the rows of each class, draws n_i, k_i and the classes.

    Returns:
        S pairs of row arrays.

    Raises:
        ValueError: when no number of ways is possible, or too few classes have enough samples left for a
            site.
    """
    if not 1 <= shots[0] <= shots[1] or test_shots < 0:
        raise ValueError(
            f"shots must be a range of numbers >= 1 and test_shots >= 0, "
            f"got {shots[0]} to {shots[1]} and {test_shots}"
        )
    if ways < 1 or ways_spread < 0:
        raise ValueError(f"ways must be >= 1 and ways_spread >= 0, got {ways} and {ways_spread}")
    fewest, most = max(2, ways - ways_spread), min(num_classes - 1, ways + ways_spread)
    if fewest > most:
        raise ValueError(
            f"n-way-k-shot gives a site between 2 and C-1 = {num_classes - 1} classes; "
            f"ways = {ways} with ways-spread = {ways_spread} leaves no number in that range"
        )
    train_rows, test_rows = (
        [generator.permutation(rows) for rows in rows_by_class(labels, num_classes)]
        for labels in (train_labels, test_labels)
    )
    stock = np.array([[len(rows) for rows in split] for split in (train_rows, test_rows)])
    taken = np.zeros((num_sites, 2, num_classes), np.int64)
    for site in range(num_sites):
        n = int(generator.integers(fewest, most, endpoint=True))
        wanted = np.array([[generator.integers(*shots, endpoint=True)], [test_shots]])
        enough = stock - taken.sum(axis=0) >= wanted
        if enough.all(axis=0).sum() < n:
            raise ValueError(_shortage(site, n, wanted[:, 0], stock, taken))
        held = generator.choice(np.flatnonzero(enough.all(axis=0)), size=n, replace=False)
        taken[site][:, held] = wanted
    return [
        SiteIndices(train, test)
        for train, test in zip(deal(taken[:, 0], train_rows), deal(taken[:, 1], test_rows), strict=True)
    ]


def _shortage(site: int, n: int, wanted: Indices, stock: Indices, taken: Indices) -> str:
    left = stock - taken.sum(axis=0)
    enough = left >= wanted[:, None]
    split = int(enough[1].sum() < enough[0].sum())
    label = int(np.argmin(left[split] - wanted[split]))
    holders, gone = int((taken[:, split, label] > 0).sum()), stock[split, label] - left[split, label]
    what, option = (("training", "shots"), ("test", "test-shots"))[split]
    return (
        f"n-way-k-shot: site {site} of {len(taken)} needs {n} classes with {wanted[0]} training and "
        f"{wanted[1]} test samples left, {enough.all(axis=0).sum()} of {stock.shape[1]} have them: "
        f"class {label} has {stock[split, label]} {what} samples, earlier sites ({holders}) took {gone}; "
        f"lower {option}, ways or the number of sites"
    )
