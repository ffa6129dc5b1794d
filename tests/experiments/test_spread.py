"""Intervals over seeds."""

import math

import pytest
import scipy.stats

from gfpl_flwr.experiments.spread import interval, paired


def test_the_interval_is_students():
    values = [97.0, 98.0, 98.5, 97.2]
    low, high = scipy.stats.t.interval(0.95, 3, scipy.stats.tmean(values), scipy.stats.tsem(values))
    found = interval(values)
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high))
    assert found.count == 4


def test_two_values_by_hand():
    # t with one degree of freedom is 12.706; s / sqrt(2) is half of the difference
    found = interval([1.0, 3.0])
    assert (found.mean, found.half) == pytest.approx((2.0, 12.7062), rel=1e-5)
    assert found.sign == 0


def test_one_value_has_no_interval_and_tells_nothing():
    found = interval([5.0])
    assert (found.mean, found.half, found.sign) == (5.0, None, 0)
    assert math.isnan(interval([]).mean)


@pytest.mark.parametrize(("values", "sign"), [([1.0, 1.1, 0.9], 1), ([-1.0, -1.1, -0.9], -1), ([0.1, -0.1, 0.05], 0)])
def test_an_interval_on_one_side_of_zero_has_a_sign(values, sign):
    assert interval(values).sign == sign


def test_differences_are_taken_seed_by_seed():
    found = paired({1: 5.0, 2: 7.0, 9: 100.0}, {2: 6.0, 1: 4.0, 3: 0.0})
    assert (found.mean, found.half, found.count) == (1.0, 0.0, 2)
    assert found.sign == 1
