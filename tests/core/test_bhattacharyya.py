"""Bhattacharyya distance against integration, the plain formula and its own laws."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from gfpl_flwr.core import bhattacharyya, distance

means = st.floats(-5.0, 5.0)
deviations = st.floats(0.2, 5.0)


def draw(rows, dim, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(rows, dim, generator=generator, dtype=dtype)
    return mean, torch.rand(rows, dim, generator=generator, dtype=dtype) + 0.05


@settings(max_examples=40, deadline=None)
@given(means, deviations, means, deviations)
def test_one_dimension_equals_the_integral(m, s, n, t):
    # Coefficient: the integral of sqrt(p q), the root of the product of both densities.
    def root(x):
        exponent = -0.25 * (((x - m) / s) ** 2 + ((x - n) / t) ** 2)
        return math.exp(exponent) / math.sqrt(2.0 * math.pi * s * t)

    # sqrt(p q) is itself a Gaussian of this centre and width, which places the limits of integration.
    width = math.sqrt(2.0 / (s**-2 + t**-2))
    centre = (m / s**2 + n / t**2) / (s**-2 + t**-2)
    coefficient, _ = quad(root, centre - 12 * width, centre + 12 * width, epsabs=0.0, epsrel=1e-12)
    column = lambda value: torch.tensor([[value]], dtype=torch.float64)
    computed = distance(column(m), column(s * s), column(n), column(t * t)).item()
    assert computed == pytest.approx(-math.log(coefficient), abs=1e-9)


@pytest.mark.parametrize("dim", [1, 2, 7, 8, 50, 511, 512])
def test_distance_adds_over_the_coordinates(dim):
    (ma, va), (mb, vb) = draw(4, dim, 0), draw(6, dim, 1)
    parts = sum(distance(ma[:, [q]], va[:, [q]], mb[:, [q]], vb[:, [q]]) for q in range(dim))
    torch.testing.assert_close(distance(ma, va, mb, vb), parts, rtol=1e-12, atol=0.0)


def test_plain_formula_in_high_dimension():
    (ma, va), (mb, vb) = draw(5, 512, 2), draw(9, 512, 3)
    mean = (va[:, None] + vb) / 2
    plain = ((ma[:, None] - mb) ** 2 / (8 * mean) + 0.5 * mean.log()).sum(-1)
    plain = plain - 0.25 * (va.log().sum(-1)[:, None] + vb.log().sum(-1))
    torch.testing.assert_close(distance(ma, va, mb, vb), plain, rtol=1e-12, atol=1e-11)


def test_known_values():
    # Equal variances v: (m - n)^2 / (8 v) = 16 / 16. Equal means: 1/2 ln((1 + 4) / (2 * 1 * 2)).
    one, four = torch.tensor([[1.0]]), torch.tensor([[4.0]])
    assert distance(0 * one, 2 * one, four, 2 * one).item() == pytest.approx(1.0)
    assert distance(one, one, one, four).item() == pytest.approx(0.5 * math.log(1.25))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [1, 3, 50, 512])
def test_zero_on_itself_symmetric_to_the_bit_and_in_the_dtype_given(dim, dtype):
    mean, variance = draw(70, dim, 4, dtype)
    square = distance(mean, variance, mean, variance)
    assert square.dtype == dtype
    assert square.diagonal().eq(0).all()
    assert torch.equal(square, square.T)
    assert square.fill_diagonal_(1.0).gt(0).all()


def test_small_distances_keep_their_relative_precision():
    # For v = 1 and w = (1 + e)^2 the distance is 1/2 log1p(e^2 / (2 (1 + e))), about e^2 / 4 a coordinate.
    e = 2.0**-20
    ones = torch.ones(1, 512, dtype=torch.float64)
    expected = 512 * 0.5 * math.log1p(e * e / (2 * (1 + e)))
    assert distance(ones, ones, ones, ones * (1 + e) ** 2).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("exponent", [6, 12, 30, 40, 150])
def test_extreme_variances_stay_exact(exponent):
    # Variances 10^-x and 10^x: 1/2 ln((10^x + 10^-x) / 2) a coordinate, and the second summand is lost in rounding.
    dim = 512
    mean = torch.zeros(1, dim, dtype=torch.float64)
    low = torch.full((1, dim), 10.0**-exponent, dtype=torch.float64)
    high = torch.full((1, dim), 10.0**exponent, dtype=torch.float64)
    expected = dim * 0.5 * (exponent * math.log(10.0) - math.log(2.0))
    assert distance(mean, low, mean, high).item() == pytest.approx(expected, rel=1e-12)
    assert distance(mean, high, mean, low).item() == pytest.approx(expected, rel=1e-12)
    assert distance(mean, low, mean, low).item() == 0.0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-12, 12), st.floats(-1e6, 1e6)), min_size=2, max_size=12))
def test_never_nan_never_negative(rows):
    mean = torch.tensor([[value] for _, value in rows], dtype=torch.float64)
    variance = torch.tensor([[10.0**power] for power, _ in rows], dtype=torch.float64)
    square = distance(mean, variance, mean, variance)
    assert not square.isnan().any()
    assert square.ge(0).all()


@pytest.mark.parametrize("budget", [1, 37, 400, 5000])
def test_blocks_do_not_change_the_result(monkeypatch, budget):
    (ma, va), (mb, vb) = draw(13, 20, 5), draw(31, 20, 6)
    whole = distance(ma, va, mb, vb)
    monkeypatch.setattr(bhattacharyya, "_BLOCK_ELEMENTS", budget)
    assert torch.equal(distance(ma, va, mb, vb), whole)


def test_no_rows_give_no_distances():
    mean, variance = draw(3, 4, 7)
    assert distance(mean[:0], variance[:0], mean, variance).shape == (0, 3)
    assert distance(mean, variance, mean[:0], variance[:0]).shape == (3, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(2, 3), torch.ones(2, 4), torch.ones(1, 3), torch.ones(1, 3)), r"\(2, 3\) and \(2, 4\)"),
        ((torch.ones(2, 3), torch.ones(2, 3), torch.ones(1, 4), torch.ones(1, 4)), "one D, got 3 and 4"),
        (
            (torch.ones(1, 2), torch.tensor([[1.0, 0.0]]), torch.ones(1, 2), torch.ones(1, 2)),
            "variances_a must be finite and > 0, row 0 has 0 at feature 1",
        ),
        (
            (torch.ones(1, 2), torch.ones(1, 2), torch.tensor([[1.0, torch.nan]]), torch.ones(1, 2)),
            "means_b must be finite, row 0 has nan at feature 1",
        ),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        distance(*arguments)
