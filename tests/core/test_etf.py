"""The simplex frame: equation 3 for every size that admits one."""

import pytest
import torch

from gfpl_flwr.core import simplex_etf


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("classes", "dim"),
    [(2, 1), (2, 2), (2, 50), (3, 2), (10, 9), (10, 10), (10, 50), (62, 128), (100, 99), (100, 100), (100, 128)],
)
def test_gram_matrix_is_equation_3(classes, dim):
    frame = simplex_etf(classes, dim, generator=seeded())
    assert frame.shape == (dim, classes)
    assert frame.dtype == torch.get_default_dtype()
    # v_i . v_j = C / (C - 1) [i = j] - 1 / (C - 1): 1 on the diagonal, -1 / (C - 1) off it.
    expected = torch.full((classes, classes), -1.0 / (classes - 1), dtype=torch.float64)
    expected.fill_diagonal_(1.0)
    gram = frame.double().T @ frame.double()
    assert (gram - expected).abs().max() < 1e-6
    assert frame.double().sum(dim=1).abs().max() < 1e-5


@pytest.mark.parametrize("dim", [9, 10, 64])
def test_the_seed_decides_the_orientation(dim):
    first = simplex_etf(10, dim, generator=seeded(1))
    assert torch.equal(first, simplex_etf(10, dim, generator=seeded(1)))
    assert not torch.allclose(first, simplex_etf(10, dim, generator=seeded(2)), atol=1e-3)


def test_global_randomness_is_untouched():
    before = torch.random.get_rng_state()
    simplex_etf(10, 16, generator=seeded())
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("dim", [9, 32])
def test_orientation_is_uniform(dim):
    # A uniform unit vector of R^P has mean 0 and E[x_q^2] = 1 / P in each coordinate, and |x_q| <= 1, so the mean
    # of n of them is within 5 / sqrt(n P) of 0 and their mean square within 5 sqrt(2) / (P sqrt(n)) of 1 / P
    # (variance of x_q^2 under 2 / P^2), each with a probability above 1 - 1e-6.
    draws = 4000
    generator = seeded(3)
    first = torch.stack([simplex_etf(10, dim, generator=generator)[:, 0] for _ in range(draws)])
    assert first.mean(0).abs().max() < 5 / (draws * dim) ** 0.5
    assert (first.square().mean(0) - 1 / dim).abs().max() < 5 * 2**0.5 / (dim * draws**0.5)


def test_too_few_dimensions_name_both_numbers():
    with pytest.raises(ValueError, match="100 classes needs dim >= 99, got dim = 80"):
        simplex_etf(100, 80, generator=seeded())
    with pytest.raises(ValueError, match="num_classes must be at least 2, got 1"):
        simplex_etf(1, 8, generator=seeded())
