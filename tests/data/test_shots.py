import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gfpl_flwr.data.shots import default_test_shots, n_way_k_shot, shot_range


@pytest.mark.parametrize(
    ("dataset", "spread", "expected"),
    [
        # numpy's randint(100-2+1, 100+2-1) excludes its upper bound: 99, 100
        ("mnist", 2, (99, 100)),
        ("mnist", 3, (98, 101)),
        # randint(100, 100) fails in the released code; one value is what is left of the range
        ("mnist", 1, (100, 100)),
        ("mnist", 0, (100, 100)),
        # randint(100-2+1, 100+2+1): 99..102
        ("femnist", 2, (99, 102)),
        ("cifar10", 2, (99, 102)),
        ("cifar10", 1, (100, 101)),
        ("digits", 0, (100, 100)),
        ("cifar100", 2, (100, 100)),
        ("folder:/some/where", 2, (99, 102)),
    ],
)
def test_ranges_of_the_released_code(dataset, spread, expected):
    assert shot_range(dataset, 100, spread) == expected


@pytest.mark.parametrize(("shots", "spread"), [(0, 0), (5, -1), (3, 4)])
def test_impossible_shots(shots, spread):
    with pytest.raises(
        ValueError, match=rf"shots = {shots} must be at least {spread}|shots must be .*{shots}.*{spread}"
    ):
        shot_range("mnist", shots, spread)


def test_default_test_shots():
    assert [default_test_shots(name) for name in ("mnist", "cifar10", "digits")] == [40, 15, 4]


def labels_of(num_classes, per_class, seed=0):
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(num_classes), per_class))


def draw(num_sites=20, *, train=None, test=None, seed=0, **changes):
    options = {"num_classes": 10, "ways": 3, "ways_spread": 2, "shots": (9, 12), "test_shots": 4} | changes
    classes = options["num_classes"]
    train = labels_of(classes, 12 * num_sites, 1) if train is None else train
    test = labels_of(classes, 4 * num_sites, 2) if test is None else test
    sites = n_way_k_shot(train, test, num_sites, generator=np.random.default_rng(seed), **options)
    return sites, train, test


@settings(deadline=None, max_examples=40)
@given(
    num_sites=st.integers(1, 30),
    num_classes=st.integers(3, 20),
    ways=st.integers(2, 8),
    spread=st.integers(0, 3),
    seed=st.integers(0, 10**9),
)
def test_every_site_gets_what_the_protocol_says_and_no_two_share(num_sites, num_classes, ways, spread, seed):
    fewest, most = max(2, ways - spread), min(num_classes - 1, ways + spread)
    if fewest > most:
        return
    sites, train, test = draw(num_sites, num_classes=num_classes, ways=ways, ways_spread=spread, seed=seed)
    assert len(sites) == num_sites
    for site in sites:
        held, counts = np.unique(train[site.train], return_counts=True)
        assert fewest <= len(held) <= most
        assert len(set(counts)) == 1  # one k_i for all classes of a site
        assert 9 <= counts[0] <= 12
        tested, test_counts = np.unique(test[site.test], return_counts=True)
        assert tested.tolist() == held.tolist()
        assert set(test_counts) == {4}
        assert (np.diff(site.train) > 0).all()
    for split in ("train", "test"):
        rows = np.concatenate([getattr(site, split) for site in sites])
        assert len(np.unique(rows)) == len(rows)


def test_both_ends_of_the_ranges_are_drawn():
    # (3, 2) on 10 classes: 2..5 ways, (9, 12): 9..12 shots
    sites, train, _ = draw(200)
    ways = {len(np.unique(train[site.train])) for site in sites}
    shots = {len(site.train) // len(np.unique(train[site.train])) for site in sites}
    assert ways == {2, 3, 4, 5}
    assert shots == {9, 10, 11, 12}


def test_no_site_holds_all_classes():
    # ways 5 +- 2 on 4 classes: at most C-1 = 3
    sites, train, _ = draw(40, num_classes=4, ways=5)
    assert {len(np.unique(train[site.train])) for site in sites} == {3}


def test_rows_are_drawn_from_all_of_a_class_and_differ_between_seeds():
    # 2,000 rows a class, of which some 70 are taken: in published order none would lie in the second half
    train = np.repeat(np.arange(10), 2000)
    taken = [
        np.concatenate([site.train for site in draw(20, train=train, shots=(10, 10), seed=s)[0]]) for s in (0, 1)
    ]
    for rows in taken:
        assert 0.4 < np.mean(rows % 2000 >= 1000) < 0.6  # 700 fair draws: standard deviation 0.02
    assert len(np.intersect1d(*taken)) < 0.1 * len(taken[0])


def test_exactly_enough_samples_suffice_and_one_fewer_is_an_error():
    # Of three classes every site holds two, the most it can, 10 samples each: 3 sites take 60 of 60.
    options = {"num_classes": 3, "ways": 2, "ways_spread": 0, "shots": (10, 10), "test_shots": 1}
    complete = 0
    for seed in range(20):
        try:
            draw(3, train=labels_of(3, 20), seed=seed, **options)
            complete += 1
        except ValueError:  # two sites with the same pair leave one class only for the third
            pass
        with pytest.raises(ValueError, match=r"site \d of 3 needs 2 classes with 10 training and 1 test"):
            draw(3, train=labels_of(3, 20)[1:], seed=seed, **options)
    assert complete > 0


def test_an_exhausted_class_is_passed_over():
    # Class 0 has training samples for two sites, class 1 test samples for one, the others for all.
    train = np.repeat(np.arange(10), [20] + [200] * 9)
    test = np.repeat(np.arange(10), [80, 4] + [80] * 8)
    sites, train, test = draw(20, train=train, test=test, shots=(10, 10))
    assert sum(0 in train[site.train] for site in sites) == 2
    assert sum(1 in train[site.train] for site in sites) == 1


def test_the_error_says_which_class_ran_out_and_what_to_lower():
    # Three classes of 25 serve two sites each and a site takes two: the fourth site at the latest fails.
    options = {"num_classes": 3, "ways": 2, "ways_spread": 0, "shots": (10, 10), "test_shots": 1}
    message = (
        r"site [23] of 4 needs 2 classes with 10 training and 1 test samples left, [01] of 3 have them: "
        r"class [012] has 25 training samples, earlier sites \(2\) took 20; lower shots, ways or"
    )
    with pytest.raises(ValueError, match=message):
        draw(4, train=labels_of(3, 25), **options)
    with pytest.raises(ValueError, match=r"has 5 test samples, earlier sites \(1\) took 4; lower test-shots"):
        draw(20, test=labels_of(10, 5))


def test_no_test_split_when_none_is_asked_for():
    sites, _, _ = draw(5, test=np.empty(0, np.int64), test_shots=0)
    assert [len(site.test) for site in sites] == [0] * 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 2}, "between 2 and C-1 = 1 classes; ways = 3 with ways-spread = 2"),
        ({"ways": 14}, "between 2 and C-1 = 9 classes; ways = 14 with ways-spread = 2"),
        ({"ways": 1, "ways_spread": 0}, "ways = 1 with ways-spread = 0 leaves no number"),
        ({"ways": 0}, "ways must be >= 1.*got 0"),
        ({"shots": (5, 4)}, "got 5 to 4"),
        ({"shots": (0, 4)}, "got 0 to 4"),
        ({"test_shots": -1}, "test_shots >= 0.*-1"),
    ],
)
def test_impossible_options(changes, message):
    with pytest.raises(ValueError, match=message):
        draw(4, **changes)
