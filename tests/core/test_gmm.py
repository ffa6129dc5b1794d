"""Mixture fits against scikit-learn, torch.distributions, exact cases and the laws of the likelihood."""

import math

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from gfpl_flwr.core import GaussianPrototypes, fit_class_mixtures, log_likelihood, relative_floor


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def blobs(sizes, dim, seed=0, spread=1.0, dtype=torch.float64):
    """One class of two blobs for each size; the centres of a class are about 12 sqrt(D) apart."""
    generator = seeded(seed)
    features, labels = [], []
    for label, size in enumerate(sizes):
        centre = 6 * torch.randn(1, dim, generator=generator, dtype=torch.float64).sign()
        side = 1 - 2 * (torch.arange(size, dtype=torch.float64)[:, None] % 2)
        noise = spread * torch.randn(size, dim, generator=generator, dtype=torch.float64)
        features.append(side * centre + noise)
        labels.append(torch.full((size,), label))
    return torch.cat(features).to(dtype), torch.cat(labels)


def assert_same(one, other, **tolerance):
    for key, value in one.to_tensors().items():
        torch.testing.assert_close(value, other.to_tensors()[key], **tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_component_is_the_sample_mean_and_biased_variance(dtype):
    features, labels = blobs([5, 40, 200], 7, dtype=dtype)
    bank = fit_class_mixtures(features, labels, num_components=1, generator=seeded())
    assert bank.labels.tolist() == [0, 1, 2]
    assert bank.counts.tolist() == [5, 40, 200]
    tolerance = {"rtol": 1e-6, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    for row, label in enumerate(bank.classes):
        rows = features[labels == label].double()
        torch.testing.assert_close(bank.means[row].double(), rows.mean(0), **tolerance)
        torch.testing.assert_close(bank.variances[row].double(), rows.var(0, correction=0), **tolerance)


def test_points_with_exact_moments_give_exact_components():
    # Two pairs, -100 -/+ 1 and 100 -/+ 2 in the first coordinate: means -100 and 100, variances 1 and 4. In the
    # second the pairs are 3 -/+ 0.5 and -5 -/+ 0.25: variances 1/4 and 1/16. The posterior of the wrong pair is under
    # exp(-200^2 / 8), which is zero in float64. Two samples a component bar components around single points.
    features = torch.tensor([[-101.0, 2.5], [-99.0, 3.5], [98.0, -4.75], [102.0, -5.25]], dtype=torch.float64)
    bank = fit_class_mixtures(features, torch.tensor([6] * 4), min_component_samples=2, generator=seeded())
    expected = GaussianPrototypes(
        torch.tensor([6, 6]),
        torch.tensor([2.0, 2.0]),
        torch.tensor([[-100.0, 3.0], [100.0, -5.0]], dtype=torch.float64),
        torch.tensor([[1.0, 0.25], [4.0, 0.0625]], dtype=torch.float64),
    )
    assert_same(bank, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("value", [0.0, -3.25, 1e4])
def test_one_sample_is_one_component_on_the_floor(value):
    features = torch.full((1, 5), value, dtype=torch.float64)
    bank = fit_class_mixtures(features, torch.tensor([3]), num_components=4, variance_floor=1e-3, generator=seeded())
    assert_same(bank, GaussianPrototypes(torch.tensor([3]), torch.tensor([1.0]), features, 0 * features + 1e-3))


def test_equal_samples_give_one_component():
    features = torch.full((30, 4), 1.7)
    bank = fit_class_mixtures(features, torch.zeros(30, dtype=torch.int64), num_components=3, generator=seeded())
    assert_same(
        bank,
        GaussianPrototypes(torch.tensor([0]), torch.tensor([30.0]), features[:1], 0 * features[:1] + 1e-6),
    )


def test_no_more_components_than_distinct_samples():
    features = torch.tensor([[0.0, 0.0]] * 9 + [[1.0, 5.0]] * 3 + [[-4.0, 2.0]])
    bank = fit_class_mixtures(features, torch.zeros(13, dtype=torch.int64), num_components=6, generator=seeded())
    assert bank.counts.tolist() == pytest.approx([9, 3, 1])
    expected = torch.tensor([[0.0, 0.0], [1.0, 5.0], [-4.0, 2.0]])
    torch.testing.assert_close(bank.means, expected, rtol=1e-6, atol=1e-12)


def test_dead_units_lie_on_the_floor():
    features, labels = blobs([50, 60], 8)
    features[:, [1, 6]] = 0.0
    bank = fit_class_mixtures(features, labels, variance_floor=1e-4, generator=seeded())
    assert bank.variances[:, [1, 6]].eq(1e-4).all()
    assert bank.means[:, [1, 6]].eq(0).all()
    assert bank.variances.min() >= 1e-4


def test_counts_add_up_and_rows_are_in_canonical_order():
    features, labels = blobs([3, 17, 1, 90], 6, spread=8.0)
    bank = fit_class_mixtures(features, labels, num_components=3, generator=seeded())
    assert_same(bank, bank.canonical(), rtol=0.0, atol=0.0)
    for label, size in enumerate([3, 17, 1, 90]):
        assert bank.of_class(label).counts.sum().item() == pytest.approx(size, abs=1e-9)


def test_small_classes_are_suppressed():
    features, labels = blobs([4, 5, 6, 30], 3)
    by_class = fit_class_mixtures(features, labels, min_samples=6, generator=seeded())
    assert by_class.classes == (2, 3)
    by_component = fit_class_mixtures(features, labels, min_component_samples=5, generator=seeded())
    assert by_component.classes == (1, 2, 3)
    assert len(by_component.of_class(1)) == len(by_component.of_class(2)) == 1
    assert len(by_component.of_class(3)) == 2


@pytest.mark.parametrize("seed", range(4))
def test_no_component_stands_for_fewer_samples_than_asked(seed):
    # Blobs of 90 samples and outliers far away: likelihood alone would give each outlier a component.
    features, labels = blobs([90, 24, 11], 6, seed, spread=8.0)
    features[::30] *= 40.0
    for least in (2.0, 5.0, 10.5):
        bank = fit_class_mixtures(
            features, labels, num_components=4, min_component_samples=least, generator=seeded(seed)
        )
        assert bank.classes == (0, 1, 2)
        assert bank.counts.min() >= least - 1e-6
    free = fit_class_mixtures(features, labels, num_components=4, generator=seeded(seed))
    assert free.counts.min() < 2


def test_translation_by_ten_thousand_moves_the_means_alone():
    features, labels = blobs([40, 70], 20, spread=0.1)
    near = fit_class_mixtures(features, labels, num_components=3, generator=seeded())
    far = fit_class_mixtures(features + 1e4, labels, num_components=3, generator=seeded())
    moved = GaussianPrototypes(near.labels, near.counts, near.means + 1e4, near.variances)
    assert_same(far, moved, rtol=1e-7, atol=1e-9)


def test_translation_in_single_precision():
    # Multiples of 1/256 below 64, shifted by 8192: 22 bits, so that the shift is exact in float32.
    features, labels = blobs([60], 10, dtype=torch.float32)
    features = (features * 256).round() / 256
    near = fit_class_mixtures(features, labels, generator=seeded())
    far = fit_class_mixtures(features + 8192, labels, generator=seeded())
    torch.testing.assert_close(far.variances, near.variances)
    torch.testing.assert_close(far.means, near.means + 8192, rtol=0.0, atol=2.0**-10)


@pytest.mark.parametrize("spread", [1.0, 8.0])
def test_order_of_the_rows_has_no_influence(spread):
    features, labels = blobs([40, 2, 70, 9], 20, spread=spread)
    order = torch.randperm(len(labels), generator=seeded(1))
    one = fit_class_mixtures(features, labels, num_components=3, generator=seeded())
    other = fit_class_mixtures(features[order], labels[order], num_components=3, generator=seeded())
    assert_same(one, other, rtol=1e-9, atol=1e-9)


def test_nothing_is_random():
    features, labels = blobs([40, 70, 120], 20, spread=8.0)
    before = torch.random.get_rng_state()
    generator = seeded(2)
    banks = [fit_class_mixtures(features, labels, generator=choice) for choice in (generator, seeded(7), None)]
    for bank in banks[1:]:
        assert_same(banks[0], bank, rtol=0.0, atol=0.0)
    assert torch.equal(generator.get_state(), seeded(2).get_state())
    assert torch.equal(before, torch.random.get_rng_state())


def test_each_label_has_its_own_floor():
    features, labels = blobs([30, 120, 60], 4, spread=0.0)
    floors = torch.tensor([1e-3, 2e-2, 9.0, 0.5])
    bank = fit_class_mixtures(features, labels + 1, variance_floor=floors)
    for label in (1, 2, 3):
        # Two points a class, each many times: the variance within is zero, so the floor is what is left.
        torch.testing.assert_close(bank.of_class(label).variances, torch.full((2, 4), floors[label].item()).double())
        same = fit_class_mixtures(features, labels + 1, variance_floor=floors[label].item()).of_class(label)
        torch.testing.assert_close(bank.of_class(label).means, same.means)


@pytest.mark.parametrize("sizes", [[40, 15], [150, 64]])
def test_a_longer_search_is_at_least_as_likely(sizes):
    generator = seeded(3)
    size = sum(sizes)
    labels = torch.arange(2).repeat_interleave(torch.tensor(sizes))
    features = torch.randn(size, 30, generator=generator, dtype=torch.float64).clamp_min(0.0)
    fast, auto, thorough = (
        log_likelihood(fit_class_mixtures(features, labels, num_components=3, search=search), features, labels)
        for search in ("fast", "auto", "thorough")
    )
    assert fast < auto <= thorough + 1e-9


def test_search_goes_on_before_a_component_is_given_up():
    # The cut across the axis of one far outlier leaves it alone; two blobs of fifty lie across that axis.
    generator = seeded(4)
    noise = torch.randn(101, 3, generator=generator, dtype=torch.float64)
    features = noise + torch.tensor([0.0, 6.0, 0.0]) * (1 - 2.0 * (torch.arange(101)[:, None] % 2))
    features[100] = torch.tensor([300.0, 0.0, 0.0])
    labels = torch.zeros(101, dtype=torch.int64)
    options = {"min_component_samples": 10, "variance_floor": 1e-3}
    assert len(fit_class_mixtures(features, labels, search="fast", **options)) == 1
    bank = fit_class_mixtures(features, labels, search="auto", **options)
    assert sorted(bank.counts.round().tolist()) == [50, 51]


def test_a_class_that_is_searched_again_beside_others_is_fitted_once():
    # 100 samples are searched fast, 99 with more starts. Three outliers are too few for a component: class 0 is
    # searched again as class 1 is from the first.
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(199, 4, generator=generator)
    features[:3] += 50
    labels = torch.tensor([0] * 100 + [1] * 99)
    both = fit_class_mixtures(features, labels, num_components=2, min_component_samples=5)
    for label, size in ((0, 100), (1, 99)):
        alone = fit_class_mixtures(
            features[labels == label], labels[labels == label], num_components=2, min_component_samples=5
        )
        assert torch.equal(both.of_class(label).means, alone.means)
        assert both.of_class(label).counts.sum().item() == pytest.approx(size)


def test_found_components_are_those_that_made_the_data():
    features, labels = blobs([4000], 5)
    bank = fit_class_mixtures(features, labels, generator=seeded())
    # 2000 samples a blob: the mean is within 5 / sqrt(2000) of the centre, the variance within 5 sqrt(2 / 2000) of 1.
    assert bank.means.abs().sub(6).abs().max() < 5 / 2000**0.5
    assert bank.variances.sub(1).abs().max() < 5 * (2 / 2000) ** 0.5


def test_no_samples_give_an_empty_bank():
    bank = fit_class_mixtures(torch.empty(0, 3), torch.empty(0, dtype=torch.int64), generator=seeded())
    assert (len(bank), bank.dim) == (0, 3)


@pytest.mark.parametrize(
    ("features", "labels", "options", "message"),
    [
        (torch.ones(3), torch.zeros(3).long(), {}, r"shape \(N, D\) with D >= 1, got torch.float32 \(3,\)"),
        (torch.ones(3, 2).long(), torch.zeros(3).long(), {}, "floating point .* got torch.int64"),
        (
            torch.ones(3, 2),
            torch.zeros(2).long(),
            {},
            r"labels must be int64 of shape \(3,\), got torch.int64 \(2,\)",
        ),
        (torch.ones(3, 2), torch.zeros(3), {}, "labels must be int64 .* got torch.float32"),
        (torch.ones(3, 2), torch.tensor([0, -4, 1]), {}, "labels must be >= 0, row 1 has -4"),
        (
            torch.tensor([[0.0, 1.0], [2.0, math.nan]]),
            torch.tensor([0, 9]),
            {},
            r"features must be finite, row 1 \(class 9\) has nan at feature 1",
        ),
        (torch.ones(3, 2), torch.zeros(3).long(), {"num_components": 0}, "num_components must be at least 1, got 0"),
        (torch.ones(3, 2), torch.zeros(3).long(), {"variance_floor": 0.0}, "variance_floor must be .* > 0, got 0.0"),
        (torch.ones(3, 2), torch.zeros(3).long(), {"tol": math.nan}, "tol must be at least 0, got nan"),
        (torch.ones(3, 2), torch.zeros(3).long(), {"min_component_samples": 0.5}, "at least 1, got 0.5"),
        (
            torch.ones(3, 2),
            torch.zeros(3).long(),
            {"search": "best"},
            "search must be one of auto, fast, thorough",
        ),
        (
            torch.ones(3, 2),
            torch.zeros(3).long(),
            {"kernel": "c"},
            "auto, torch, numba, got 'c'",
        ),
        (
            torch.ones(3, 2),
            torch.full((3,), 2),
            {"variance_floor": torch.ones(2)},
            r"one floor for each label up to 2, shape \(3,\), got \(2,\)",
        ),
        (
            torch.ones(3, 2),
            torch.full((3,), 1),
            {"variance_floor": torch.tensor([1.0, -2.0])},
            "finite and > 0, label 1 has -2.0",
        ),
    ],
)
def test_bad_arguments_are_named(features, labels, options, message):
    with pytest.raises(ValueError, match=message):
        fit_class_mixtures(features, labels, generator=seeded(), **options)


def test_relative_floor_follows_the_scale_of_the_layer():
    # Variances 4, 0 and 0: mean 4/3.
    features = torch.tensor([[2.0, 7.0, 0.0], [-2.0, 7.0, 0.0]])
    assert relative_floor(features) == pytest.approx(1e-4 * 4 / 3)
    assert relative_floor(features, 0.5, 1.0) == 1.0
    assert relative_floor(torch.empty(0, 3)) == 1e-6
    with pytest.raises(ValueError, match="minimum > 0"):
        relative_floor(features, minimum=0.0)


def random_bank(components, dim, seed=0):
    generator = seeded(seed)
    labels = torch.arange(2).repeat_interleave(components)
    draw = lambda: torch.rand(2 * components, dim, generator=generator, dtype=torch.float64)
    return GaussianPrototypes(labels, torch.arange(1.0, 2 * components + 1), 4 * draw(), draw() + 0.1)


@pytest.mark.parametrize("dim", [1, 50, 512])
def test_log_likelihood_equals_torch_distributions(dim):
    bank = random_bank(3, dim)
    generator = seeded(1)
    features = 4 * torch.rand(80, dim, generator=generator, dtype=torch.float64)
    labels = torch.randint(2, (80,), generator=generator)
    expected = torch.zeros(80, dtype=torch.float64)
    for label in (0, 1):
        rows = bank.of_class(label)
        mixture = MixtureSameFamily(
            Categorical(rows.counts), Independent(Normal(rows.means, rows.variances.sqrt()), 1)
        )
        expected[labels == label] = mixture.log_prob(features[labels == label])
    assert log_likelihood(bank, features, labels) == pytest.approx(expected.mean().item(), rel=1e-12)


def test_log_likelihood_equals_the_score_of_scikit_learn():
    bank = random_bank(4, 10).of_class(1)
    peer = GaussianMixture(4, covariance_type="diag")
    peer.weights_, peer.means_ = bank.weights.numpy(), bank.means.numpy()
    peer.covariances_, peer.precisions_cholesky_ = bank.variances.numpy(), bank.variances.rsqrt().numpy()
    features = np.random.default_rng(0).normal(size=(60, 10))
    ours = log_likelihood(bank, torch.tensor(features), torch.ones(60, dtype=torch.int64))
    assert ours == pytest.approx(peer.score(features), rel=1e-12)


def test_log_likelihood_names_a_missing_class():
    with pytest.raises(ValueError, match=r"no component of class 5, its classes are \(0, 1\)"):
        log_likelihood(random_bank(1, 2), torch.ones(1, 2), torch.tensor([5]))
    with pytest.raises(ValueError, match=r"shape \(N >= 1, 2\), got \(1, 3\)"):
        log_likelihood(random_bank(1, 2), torch.ones(1, 3), torch.tensor([0]))
