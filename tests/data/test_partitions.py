from dataclasses import replace

import numpy as np
import pytest
import torch

from gfpl_flwr.data.partitions import SCHEMES, partition
from gfpl_flwr.data.sites import label_counts

OPTIONS = {"shots": 10, "tail_ratio": 4.0}


@pytest.fixture(scope="module")
def written(digits):
    """The digits as if 30 people had written them."""
    return replace(
        digits,
        train_writers=torch.arange(len(digits.train_labels)) % 30,
        test_writers=torch.arange(len(digits.test_labels)) % 30,
    )


def rows_of(sites, split):
    return [getattr(site, split).tolist() for site in sites]


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_every_scheme_gives_disjoint_sites_with_samples_and_depends_on_the_seed_alone(written, scheme):
    sites = partition(written, 8, scheme=scheme, seed=3, **OPTIONS)
    assert len(sites) == 8
    for split, size in (("train", len(written.train_labels)), ("test", len(written.test_labels))):
        rows = np.concatenate([getattr(site, split) for site in sites])
        assert rows.dtype == np.int64
        assert len(np.unique(rows)) == len(rows)
        assert rows.max() < size
        again = partition(written, 8, scheme=scheme, seed=3, **OPTIONS)
        assert rows_of(again, split) == rows_of(sites, split)
    assert min(len(site.train) for site in sites) >= 1
    assert rows_of(partition(written, 8, scheme=scheme, seed=4, **OPTIONS), "train") != rows_of(sites, "train")


@pytest.mark.parametrize("scheme", ["n-way-k-shot", "dirichlet", "shards"])
def test_sites_are_tested_on_their_own_classes_only(digits, scheme):
    for site in partition(digits, 8, scheme=scheme, seed=0, **OPTIONS):
        held = label_counts(digits.train_labels.numpy(), site.train, 10) > 0
        tested = label_counts(digits.test_labels.numpy(), site.test, 10) > 0
        assert not (tested & ~held).any()


def test_the_global_generators_stay_untouched(digits):
    np.random.seed(5)  # noqa: NPY002 - the global state is what must not move
    expected = np.random.RandomState(5).random()
    partition(digits, 4, scheme="dirichlet", seed=0)
    assert np.random.random() == expected  # noqa: NPY002


@pytest.mark.parametrize(("test_shots", "expected"), [(0, 4), (3, 3)])
def test_zero_test_shots_mean_the_data_sets(digits, test_shots, expected):
    for site in partition(digits, 5, scheme="n-way-k-shot", seed=0, shots=10, test_shots=test_shots):
        assert set(np.unique(digits.test_labels.numpy()[site.test], return_counts=True)[1]) == {expected}


@pytest.mark.parametrize(
    ("shots", "expected"),
    [
        ({"shots": 10}, {9, 10, 11, 12}),  # the spread of the ways, 2, holds for the shots too
        ({"shots": 10, "shots_spread": 1}, {10, 11}),
        ({"shots": (4, 5)}, {4, 5}),
    ],
)
def test_ways_of_giving_the_shots(digits, shots, expected):
    labels, seen = digits.train_labels.numpy(), set()
    for seed in range(15):
        for site in partition(digits, 5, scheme="n-way-k-shot", seed=seed, **shots):
            seen |= set(np.unique(labels[site.train], return_counts=True)[1].tolist())
    assert seen == expected


def test_a_data_set_without_test_images_gives_sites_without_a_test_split(digits):
    bare = replace(digits, test_images=digits.test_images[:0], test_labels=digits.test_labels[:0])
    for scheme in sorted(set(SCHEMES) - {"writers"}):
        assert {len(site.test) for site in partition(bare, 3, scheme=scheme, seed=0, **OPTIONS)} == {0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scheme": "dirchlet"}, "unknown partition 'dirchlet': known are dirichlet, iid, long-tail"),
        ({"scheme": "iid", "alhpa": 1.0}, "unknown partition option 'alhpa': known are ways, ways_spread"),
        ({"scheme": "iid", "num_sites": 0}, "num_sites must be >= 1.*got 0"),
        ({"scheme": "iid", "seed": -1}, "seed >= 0.*-1"),
        ({"scheme": "iid", "test_shots": -1}, "test_shots must be >= 0, got -1"),
        ({"scheme": "writers"}, "data set 'digits' does not say who produced its samples"),
        ({"scheme": "iid", "num_sites": 1400}, r"site 1352 has no training sample \(48 of 1400 sites"),
    ],
)
def test_wrong_arguments_are_named(digits, arguments, message):
    arguments = {"num_sites": 4, "seed": 0} | arguments
    with pytest.raises(ValueError, match=message):
        partition(digits, arguments.pop("num_sites"), **arguments)


@pytest.mark.parametrize(
    ("name", "ways", "spread", "shots"),
    [("mnist", 3, 2, 100), ("femnist", 4, 1, 92), ("cifar10", 5, 1, 100), ("cifar100", 5, 2, 100)],
)
def test_the_papers_settings_fit_the_published_data_sets(real_data, name, ways, spread, shots):
    dataset = real_data(name)
    labels = dataset.train_labels.numpy()
    for seed in range(3):
        sites = partition(dataset, 20, scheme="n-way-k-shot", seed=seed, ways=ways, ways_spread=spread, shots=shots)
        held = [len(np.unique(labels[site.train])) for site in sites]
        assert max(2, ways - spread) <= min(held)
        assert max(held) <= ways + spread


def test_femnists_writers(real_data):
    dataset = real_data("femnist")
    sites = partition(dataset, 20, scheme="writers", seed=0)
    assert all(len(np.unique(dataset.train_writers.numpy()[site.train])) == 1 for site in sites)
    everyone = partition(dataset, 20, scheme="writers", seed=0, writers_per_site=0)
    assert sum(len(site.train) for site in everyone) == len(dataset.train_labels)
