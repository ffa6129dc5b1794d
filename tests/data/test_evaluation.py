import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gfpl_flwr.data.evaluation import accuracy, count_correct, mean_and_std


def test_counts_of_a_case_by_hand():
    labels = torch.tensor([0, 0, 2, 2, 2, 3])
    predictions = torch.tensor([0, 1, 2, 2, 0, 2])
    correct, total = count_correct(predictions, labels, 5)
    assert correct.tolist() == [1, 0, 2, 0, 0]
    assert total.tolist() == [2, 0, 3, 1, 0]
    assert correct.dtype == total.dtype == torch.int64
    assert accuracy(correct, total) == 3 / 6


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=30), st.integers(0, 30))
def test_counts_add_up_over_parts(pairs, cut):
    predictions = torch.tensor([p for p, _ in pairs], dtype=torch.int64)
    labels = torch.tensor([y for _, y in pairs], dtype=torch.int64)
    whole = count_correct(predictions, labels, 4)
    parts = [count_correct(predictions[s], labels[s], 4) for s in (slice(cut), slice(cut, None))]
    for n, expected in enumerate(whole):
        assert torch.equal(parts[0][n] + parts[1][n], expected)
    for label in range(4):
        assert whole[0][label] == sum(p == y == label for p, y in pairs)
        assert whole[1][label] == sum(y == label for _, y in pairs)


def test_an_empty_test_split_has_no_accuracy():
    correct, total = count_correct(torch.zeros(0).long(), torch.zeros(0).long(), 3)
    assert correct.tolist() == total.tolist() == [0, 0, 0]
    assert accuracy(correct, total) is None


def test_wrong_counts_are_refused():
    with pytest.raises(ValueError, match="labels must lie in 0 to 2, row 1 has 3"):
        count_correct(torch.tensor([0, 0]), torch.tensor([0, 3]), 3)
    with pytest.raises(ValueError, match=r"both be \(N,\), got \(2,\) and \(3,\)"):
        count_correct(torch.tensor([0, 0]), torch.tensor([0, 1, 2]), 3)
    with pytest.raises(ValueError, match="class 1 has 4 correct of 3"):
        accuracy(torch.tensor([0, 4]), torch.tensor([2, 3]))
    with pytest.raises(ValueError, match="one shape"):
        accuracy(torch.tensor([0]), torch.tensor([2, 3]))


def test_mean_and_deviation_by_hand():
    # mean (0.5 + 0.7 + 0.9) / 3 = 0.7, variance (0.04 + 0 + 0.04) / 3
    mean, std = mean_and_std([0.5, None, 0.7, 0.9])
    assert mean == pytest.approx(0.7)
    assert std == pytest.approx(math.sqrt(0.08 / 3))


def test_a_running_mean_would_hide_the_spread():
    # FedProto's counters run on: with ten samples each, accuracies 1, 0, 1, 0 read 1, 1/2, 2/3, 1/2
    true, published = [1.0, 0.0, 1.0, 0.0], [1.0, 1 / 2, 2 / 3, 1 / 2]
    assert mean_and_std(true) == (0.5, 0.5)
    assert mean_and_std(published)[1] < 0.25


@given(st.lists(st.floats(0, 1) | st.none(), min_size=1))
def test_mean_and_deviation_equal_the_statistics_module(values):
    known = [value for value in values if value is not None]
    mean, std = mean_and_std(values)
    if not known:
        assert mean is std is None
    else:
        assert mean == pytest.approx(statistics.fmean(known), abs=1e-12)
        assert std == pytest.approx(statistics.pstdev(known), abs=1e-9)


def test_no_sites():
    assert mean_and_std([]) == (None, None)
