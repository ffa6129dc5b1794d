import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gfpl_flwr.data.sites import SiteIndices, apportion, deal_test, label_counts, rows_by_class
from gfpl_flwr.data.skew import by_writer, dirichlet, iid, long_tail, shards, tail_counts

CLASSES = 6


def labels_of(sizes, seed=0):
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))


def counts_of(labels, sites, split="train"):
    return np.stack([label_counts(labels, getattr(site, split), CLASSES) for site in sites])


def assert_handed_out(sites, split, size):
    """Every row belongs to exactly one site."""
    rows = np.concatenate([getattr(site, split) for site in sites])
    assert np.array_equal(np.sort(rows), np.arange(size))


TRAIN, TEST = labels_of([60, 40, 80, 50, 30, 100]), labels_of([30, 20, 40, 25, 15, 50], 1)


@pytest.mark.parametrize("num_sites", [1, 7, 20])
def test_iid_cuts_evenly(num_sites):
    sites = iid(TRAIN, TEST, num_sites, generator=np.random.default_rng(0))
    for split, labels in (("train", TRAIN), ("test", TEST)):
        assert_handed_out(sites, split, len(labels))
        sizes = [len(getattr(site, split)) for site in sites]
        assert max(sizes) - min(sizes) <= 1


def split_dirichlet(num_sites, alpha, *, train=TRAIN, test=TEST, min_samples=1, seed=0, **changes):
    generator = np.random.default_rng(seed)
    return dirichlet(
        train, test, num_sites, num_classes=CLASSES, alpha=alpha, min_samples=min_samples,
        generator=generator, **changes
    )  # fmt: skip


@settings(deadline=None, max_examples=30)
@given(num_sites=st.integers(1, 12), alpha=st.floats(0.3, 100), seed=st.integers(0, 10**6))
def test_dirichlet_hands_out_everything_once(num_sites, alpha, seed):
    sites = split_dirichlet(num_sites, alpha, seed=seed)
    assert_handed_out(sites, "train", len(TRAIN))
    assert_handed_out(sites, "test", len(TEST))
    train, test = counts_of(TRAIN, sites), counts_of(TEST, sites, "test")
    # The test split has half the samples of every class, so a site has half its training counts, rounded.
    assert (np.abs(test - train / 2) < 1 + 1e-9).all()
    assert (test[train == 0] == 0).all()


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0])
def test_dirichlet_shares_have_the_distributions_moments(alpha):
    # A share of a symmetric Dirichlet over S has mean 1/S and variance (1/S)(1-1/S)/(S alpha+1).
    num_sites, per_class = 5, 2000
    train = np.repeat(np.arange(CLASSES), per_class)
    shares = (
        np.concatenate(
            [
                counts_of(train, split_dirichlet(num_sites, alpha, train=train, min_samples=0, seed=seed)).ravel()
                for seed in range(100)
            ]
        )
        / per_class
    )
    variance = 0.2 * 0.8 / (num_sites * alpha + 1)
    assert shares.mean() == pytest.approx(0.2, abs=1e-12)
    # 3,000 shares: the standard error of a variance is some 3 to 4 % of it
    assert shares.var() == pytest.approx(variance, rel=0.15)


def test_dirichlet_keeps_the_minimum():
    sites = split_dirichlet(8, 0.5, min_samples=20)
    assert min(len(site.train) for site in sites) >= 20


def test_dirichlet_gives_up_and_explains():
    message = "none of 25 draws .* with alpha 0.01 gave every one of 12 sites 20 samples; the best .* with 0"
    with pytest.raises(ValueError, match=message):
        split_dirichlet(12, 0.01, min_samples=20, max_tries=25)
    with pytest.raises(ValueError, match="12 sites with at least 40 samples each need 480, there are 360"):
        split_dirichlet(12, 1.0, min_samples=40)
    with pytest.raises(ValueError, match="alpha must be > 0, got 0"):
        split_dirichlet(3, 0)
    with pytest.raises(ValueError, match="alpha must be > 0, got nan"):
        split_dirichlet(3, float("nan"))


def test_shards_limit_the_classes_of_a_site():
    labels = np.repeat(np.arange(CLASSES), 40)
    sites = shards(labels, labels, 6, num_classes=CLASSES, shards_per_site=2, generator=np.random.default_rng(0))
    assert_handed_out(sites, "train", len(labels))
    assert_handed_out(sites, "test", len(labels))
    counts = counts_of(labels, sites)
    # 12 shards of 20: each lies within one class of 40
    assert (counts.sum(axis=1) == 40).all()
    assert ((counts > 0).sum(axis=1) <= 2).all()
    assert set(np.unique(counts)) <= {0, 20, 40}
    with pytest.raises(ValueError, match="6 sites with 50 shards each need 300 shards"):
        shards(labels, labels, 6, num_classes=CLASSES, shards_per_site=50, generator=np.random.default_rng(0))


def test_the_published_long_tail_of_cifar10():
    # 5000 * 100^(-c/9), rounded down, as listed in the literature for CIFAR-10-LT with ratio 100
    kept = tail_counts(np.full(10, 5000), 100)
    assert kept.tolist() == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert kept.sum() == 12_406


def test_a_long_tail_never_takes_more_than_there_is():
    sizes = np.array([100, 20, 90, 1])
    kept = tail_counts(sizes, 8)
    # the profile 1, 1/2, 1/4, 1/8 fits n_max = min(100, 40, 360, 8) = 8
    assert kept.tolist() == [8, 4, 2, 1]
    assert tail_counts(sizes, 1).tolist() == [1, 1, 1, 1]
    with pytest.raises(ValueError, match="class 1 has no training sample"):
        tail_counts(np.array([3, 0]), 2)
    with pytest.raises(ValueError, match=r"tail_ratio must be >= 1 and finite, got 0\.5"):
        tail_counts(sizes, 0.5)


@pytest.mark.parametrize("alpha", [0.5, float("inf")])
def test_long_tail_keeps_the_profile_and_the_whole_test_split(alpha):
    train, test = labels_of([90] * CLASSES), labels_of([30] * CLASSES, 1)
    sites = long_tail(
        train, test, 4, num_classes=CLASSES, tail_ratio=9, alpha=alpha, min_samples=1,
        generator=np.random.default_rng(0),
    )  # fmt: skip
    counts = counts_of(train, sites)
    # 90 * 9^(-c/5) = 90, 57.99, 37.37, 24.08, 15.52, 10
    assert counts.sum(axis=0).tolist() == [90, 57, 37, 24, 15, 10]
    rows = np.concatenate([site.train for site in sites])
    assert len(np.unique(rows)) == len(rows)
    assert_handed_out(sites, "test", len(test))
    if np.isinf(alpha):
        assert counts.sum(axis=1).max() - counts.sum(axis=1).min() <= 1


def test_every_site_gets_whole_writers():
    rng = np.random.default_rng(0)
    train, test = rng.integers(0, 9, 200) * 11, rng.integers(0, 9, 60) * 11
    for per_site, held in ((1, 4), (2, 8), (0, 9)):
        sites = by_writer(train, test, 4, writers_per_site=per_site, generator=np.random.default_rng(1))
        people = [set(train[site.train]) for site in sites]
        assert len(set.union(*people)) == sum(map(len, people)) == held
        for site, own in zip(sites, people, strict=True):
            assert np.array_equal(site.train, np.flatnonzero(np.isin(train, list(own))))
            assert np.array_equal(site.test, np.flatnonzero(np.isin(test, list(own))))
    with pytest.raises(ValueError, match="4 sites with 3 writers each need 12 writers, there are 9"):
        by_writer(train, test, 4, writers_per_site=3, generator=np.random.default_rng(1))


@settings(deadline=None, max_examples=100)
@given(
    weights=st.lists(st.lists(st.sampled_from([0.0, 1.0, 2.0, 5.5]), min_size=4, max_size=4), min_size=1, max_size=8),
    sizes=st.lists(st.integers(0, 40), min_size=4, max_size=4),
)
def test_apportioning_is_exact_and_close_to_the_quota(weights, sizes):
    weights, sizes = np.array(weights), np.array(sizes)
    held = weights.sum(axis=0) > 0
    shares = weights / np.where(held, weights.sum(axis=0), 1)
    counts = apportion(shares, sizes)
    assert np.array_equal(counts.sum(axis=0), np.where(held, sizes, 0))
    assert (np.abs(counts - shares * sizes) < 1 + 1e-6).all()
    assert (counts[shares == 0] == 0).all()


def test_rounding_does_not_always_favour_the_same_sites():
    # 30 classes of 15 samples over 20 sites that hold all alike: 22.5 each. Plain largest
    # remainders would give the first 15 sites 30 samples and the last 5 none.
    counts = apportion(np.full((20, 30), 1 / 20), np.full(30, 15))
    assert set(counts.sum(axis=1)) <= {22, 23}


def test_a_site_is_tested_on_the_frequencies_it_was_trained_on():
    train_counts = np.array([[30, 0, 10], [10, 20, 10], [0, 0, 0]])
    test_labels = labels_of([20, 10, 10])
    test = deal_test(train_counts, test_labels, np.random.default_rng(0))
    # class 0: 20 rows by 30:10, class 1: all to site 1, class 2: 10 rows by 10:10
    assert [label_counts(test_labels, rows, 3).tolist() for rows in test] == [
        [15, 0, 5],
        [5, 10, 5],
        [0, 0, 0],
    ]


def test_rows_by_class_are_in_published_order():
    rows = rows_by_class(np.array([2, 0, 2, 0]), 4)
    assert [own.tolist() for own in rows] == [[1, 3], [], [0, 2], []]


def test_site_indices_are_sorted_and_checked():
    site = SiteIndices(np.array([5, 1, 3]), np.array([], dtype=np.int64))
    assert site.train.tolist() == [1, 3, 5]
    assert site.test.dtype == np.int64
    with pytest.raises(ValueError, match="train holds row 4 twice"):
        SiteIndices(np.array([4, 1, 4]), np.array([0]))
    with pytest.raises(ValueError, match="test must hold rows >= 0, got -1"):
        SiteIndices(np.array([4]), np.array([0, -1]))
    with pytest.raises(ValueError, match="one-dimensional"):
        SiteIndices(np.zeros((2, 2)), np.array([0]))
