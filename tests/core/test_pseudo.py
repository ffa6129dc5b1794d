"""Pseudo-features: how many, of which class, and with which moments."""

import pytest
import torch

from gfpl_flwr.core import GaussianPrototypes, sample


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def bank(dtype=torch.float64):
    # Class 4 mixes three components, class 1 has one; the rows are in no order.
    return GaussianPrototypes(
        torch.tensor([4, 1, 4, 4]),
        torch.tensor([10.0, 99.0, 30.0, 60.0], dtype=dtype),
        torch.tensor([[0.0, -50.0], [3.0, 4.0], [1.0, 0.0], [2.0, 50.0]], dtype=dtype),
        torch.tensor([[1.0, 4.0], [0.25, 9.0], [2.0, 1.0], [0.5, 1.0]], dtype=dtype),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_class_gets_the_same_number_in_order(dtype):
    features, labels = sample(bank(dtype), per_class=7, generator=seeded())
    assert labels.tolist() == [1] * 7 + [4] * 7
    assert labels.dtype == torch.int64
    assert features.shape == (14, 2)
    assert features.dtype == dtype


def test_moments_are_those_of_the_mixture():
    draws = 40_000
    features, labels = sample(bank(), per_class=draws, generator=seeded(1))
    for label in (1, 4):
        rows = bank().of_class(label)
        weights = rows.weights[:, None]
        mean = (weights * rows.means).sum(0)
        gap = rows.means - mean
        variance = (weights * (rows.variances + gap**2)).sum(0)
        # Fourth central moment of a Gaussian about a point at distance g: g^4 + 6 g^2 v + 3 v^2.
        fourth = (weights * (gap**4 + 6 * gap**2 * rows.variances + 3 * rows.variances**2)).sum(0)
        drawn = features[labels == label]
        # Standard errors: sqrt(v / n) of the mean, sqrt((m4 - v^2) / n) of the mean square about the true mean. A
        # deviation of 5 of them has a probability under 1e-6.
        assert ((drawn.mean(0) - mean).abs() < 5 * (variance / draws).sqrt()).all()
        error = ((fourth - variance**2) / draws).sqrt()
        assert (((drawn - mean).square().mean(0) - variance).abs() < 5 * error).all()


def test_components_are_drawn_by_weight():
    # The second coordinate tells the components of class 4 apart: -50, 0 and 50, at most 2 wide.
    draws = 40_000
    features, labels = sample(bank(), per_class=draws, generator=seeded(2))
    component = (features[labels == 4, 1] / 50).round().long() + 1
    shares = torch.bincount(component, minlength=3) / draws
    expected = torch.tensor([0.1, 0.3, 0.6])
    assert ((shares - expected).abs() < 5 * (expected * (1 - expected) / draws).sqrt()).all()


def test_generator_decides_and_global_randomness_is_untouched():
    before = torch.random.get_rng_state()
    first, _ = sample(bank(), per_class=5, generator=seeded(3))
    again, _ = sample(bank(), per_class=5, generator=seeded(3))
    other, _ = sample(bank(), per_class=5, generator=seeded(4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.random.get_rng_state())


def test_empty_bank_and_no_draws_give_no_rows():
    for source, per_class in ((GaussianPrototypes.empty(3), 5), (bank(), 0)):
        features, labels = sample(source, per_class=per_class, generator=seeded())
        assert features.shape == (0, source.dim)
        assert labels.shape == (0,)
        assert labels.dtype == torch.int64


def test_negative_number_is_refused():
    with pytest.raises(ValueError, match="per_class must be at least 0, got -1"):
        sample(bank(), per_class=-1, generator=seeded())
