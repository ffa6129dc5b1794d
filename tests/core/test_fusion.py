"""Algorithm 1 against a naive implementation and the laws it keeps."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gfpl_flwr.core import GaussianPrototypes, fuse

MERGES = ["moment", "average"]
RULES = ["closest_pair", "first_fit"]


def draw(rows, dim, seed, classes=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return GaussianPrototypes(
        torch.randint(classes, (rows,), generator=generator),
        torch.randint(1, 60, (rows,), generator=generator),
        torch.randn(rows, dim, generator=generator, dtype=dtype),
        torch.rand(rows, dim, generator=generator, dtype=dtype) + 0.2,
    )


def shuffled(bank, seed):
    order = torch.randperm(len(bank), generator=torch.Generator().manual_seed(seed))
    return GaussianPrototypes(*(value[order] for value in bank.to_tensors().values()))


def assert_same(one, other, **tolerance):
    for key, value in one.to_tensors().items():
        torch.testing.assert_close(value, other.to_tensors()[key], **(tolerance or {"rtol": 0.0, "atol": 0.0}))


def moments(bank, label):
    """Mass, mean and second moment of one class."""
    rows = bank.of_class(label)
    weights = rows.weights[:, None]
    return rows.counts.sum(), (weights * rows.means).sum(0), (weights * (rows.variances + rows.means**2)).sum(0)


# A component of the naive implementation: (count, list of means, list of variances).


def naive_distance(one, other):
    (_, m, v), (_, n, w) = one, other
    return sum(
        (a - b) ** 2 / (4 * (p + q)) + 0.5 * math.log((p + q) / (2 * math.sqrt(p * q)))
        for a, b, p, q in zip(m, n, v, w, strict=True)
    )


def naive_merge(one, other, merge):
    (a, m, v), (b, n, w) = one, other
    mean = [(a * x + b * y) / (a + b) for x, y in zip(m, n, strict=True)]
    if merge == "average":
        return a + b, mean, [(a * p + b * q) / (a + b) for p, q in zip(v, w, strict=True)]
    square = [(a * (p + x * x) + b * (q + y * y)) / (a + b) for x, y, p, q in zip(m, n, v, w, strict=True)]
    return a + b, mean, [s - x * x for s, x in zip(square, mean, strict=True)]


def naive_fuse(bank, threshold, rule, merge):
    fused = []
    for label in bank.classes:
        rows = bank.of_class(label)
        pool = list(zip(rows.counts.tolist(), rows.means.tolist(), rows.variances.tolist(), strict=True))
        if rule == "first_fit":
            kept = []
            for row in pool:
                gaps = [naive_distance(row, other) for other in kept]
                if gaps and min(gaps) < threshold:
                    near = gaps.index(min(gaps))
                    kept[near] = naive_merge(kept[near], row, merge)
                else:
                    kept.append(row)
            pool = kept
        else:
            while len(pool) > 1:
                pairs = [(i, j) for i in range(len(pool)) for j in range(i + 1, len(pool))]
                i, j = min(pairs, key=lambda pair: naive_distance(pool[pair[0]], pool[pair[1]]))
                if not naive_distance(pool[i], pool[j]) < threshold:
                    break
                pool[i] = naive_merge(pool[i], pool[j], merge)
                del pool[j]
        fused += [(label, *row) for row in pool]
    labels, counts, means, variances = (list(column) for column in zip(*fused, strict=True))
    as_double = lambda values: torch.tensor(values, dtype=torch.float64)
    return GaussianPrototypes(torch.tensor(labels), as_double(counts), as_double(means), as_double(variances))


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.6, 1.5, math.inf])
def test_naive_implementation_agrees(threshold, rule, merge):
    for seed in range(6):
        bank = draw(12 + seed, 1 + seed, seed, classes=2)
        fused = fuse(bank, threshold=threshold, scale="sum", rule=rule, merge=merge)
        expected = naive_fuse(bank, threshold, rule, merge)
        assert_same(fused.canonical(), expected.canonical(), rtol=1e-9, atol=1e-9)


def test_two_components_by_hand():
    # Counts 1 and 3, means 0 and 4, variances 1 and 2: mean 3, moment variance (1 + 3 (2 + 16)) / 4 - 9 = 4.75,
    # average variance (1 + 6) / 4 = 1.75. Distance 16 / (4 * 3) + 1/2 ln(3 / (2 sqrt 2)) = 1.36278.
    bank = GaussianPrototypes(
        torch.tensor([5, 5]), torch.tensor([1, 3]), torch.tensor([[0.0], [4.0]]), torch.tensor([[1.0], [2.0]])
    )
    for merge, variance in (("moment", 4.75), ("average", 1.75)):
        fused = fuse(bank, threshold=1.3628, merge=merge)
        assert [value.flatten().tolist() for value in fused.to_tensors().values()] == [[5], [4], [3], [variance]]
        assert len(fuse(bank, threshold=1.3627, merge=merge)) == 2


@pytest.mark.parametrize("rule", RULES)
def test_threshold_zero_is_the_union(rule):
    bank = GaussianPrototypes.concat([draw(9, 4, 1, classes=3)] * 2)
    fused = fuse(bank, threshold=0.0, rule=rule)
    assert_same(fused.canonical(), bank.canonical())


@pytest.mark.parametrize("rule", RULES)
def test_equal_components_merge_under_any_threshold_above_zero(rule):
    bank = draw(5, 4, 1)
    fused = fuse(GaussianPrototypes.concat([bank, bank]), threshold=1e-12, rule=rule)
    doubled = GaussianPrototypes(bank.labels, 2 * bank.counts, bank.means, bank.variances)
    assert_same(fused.canonical(), doubled.canonical(), rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("rule", RULES)
def test_threshold_infinity_pools_each_class(rule):
    bank = draw(60, 6, 2, classes=4)
    fused = fuse(bank, threshold=math.inf, rule=rule)
    assert fused.labels.tolist() == [0, 1, 2, 3]
    for label in bank.classes:
        mass, mean, second = moments(bank, label)
        pooled = fused.of_class(label)
        torch.testing.assert_close(pooled.counts[0], mass, rtol=1e-12, atol=0.0)
        torch.testing.assert_close(pooled.means[0], mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(pooled.variances[0], second - mean**2, rtol=1e-11, atol=1e-12)


def test_threshold_infinity_merges_even_infinite_distances():
    # (1e160)^2 overflows: the distance is infinite, and infinity is not below infinity.
    bank = GaussianPrototypes(
        torch.tensor([0, 0]),
        torch.tensor([1, 1]),
        torch.tensor([[0.0], [1e150]], dtype=torch.float64),
        torch.tensor([[1e-20], [1e-20]], dtype=torch.float64),
    )
    for rule in RULES:
        assert len(fuse(bank, threshold=math.inf, rule=rule)) == 1


components = st.tuples(
    st.integers(0, 2), st.floats(0.1, 1e3), st.floats(-1e2, 1e2), st.floats(-1e2, 1e2), st.floats(1e-6, 1e3)
)


@settings(max_examples=60, deadline=None)
@given(st.lists(components, min_size=1, max_size=14), st.floats(0.0, 50.0), st.sampled_from(RULES))
def test_moment_merge_conserves_mass_mean_and_second_moment(rows, threshold, rule):
    table = torch.tensor(rows, dtype=torch.float64)
    bank = GaussianPrototypes(table[:, 0].long(), table[:, 1], table[:, 2:4], table[:, [4, 4]])
    fused = fuse(bank, threshold=threshold, rule=rule)
    assert fused.classes == bank.classes
    assert len(fused) <= len(bank)
    for label in bank.classes:
        for before, after in zip(moments(bank, label), moments(fused, label), strict=True):
            # Relative to the largest value that enters the sums: 1e2 for the mean, its square for the moment.
            torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(
    # A small lattice: equal rows and equal distances are the rule, not the exception.
    st.lists(st.tuples(*[st.integers(1, 3)] * 4), min_size=2, max_size=12),
    st.sampled_from([0.0, 0.05, 0.2, 0.5, 1.0, math.inf]),
    st.sampled_from(MERGES),
    st.integers(0, 1000),
)
def test_closest_pair_does_not_depend_on_the_order_of_rows(rows, threshold, merge, seed):
    table = torch.tensor(rows, dtype=torch.float64)
    bank = GaussianPrototypes(torch.zeros(len(rows), dtype=torch.int64), table[:, 0], table[:, 1:3], table[:, [3, 3]])
    options = {"threshold": threshold, "merge": merge}
    assert_same(fuse(bank, **options), fuse(shuffled(bank, seed), **options))


def test_closest_pair_on_many_rows_does_not_depend_on_their_order():
    bank = draw(150, 8, 3, classes=2, dtype=torch.float32)
    for threshold in (0.1, 0.15, 0.25):
        fused = fuse(bank, threshold=threshold)
        assert 2 < len(fused) < 150
        assert_same(fused, fuse(shuffled(bank, 1), threshold=threshold))


def test_first_fit_walks_the_rows_in_order():
    # Means 0, 2, 4 of variance 1: neighbours are 4/8 = 0.5 apart, the ends 2. From the left 0 and 2 merge to mean 1,
    # variance 2, which is 9 / (4 * 3) + 1/2 ln(3 / (2 sqrt 2)) = 0.78 from 4; from the middle all three would merge
    # one after the other only if 0.78 were under the threshold.
    def bank(*means):
        column = torch.tensor(means)[:, None]
        return GaussianPrototypes(torch.zeros(3, dtype=torch.int64), torch.ones(3), column, torch.ones(3, 1))

    fused = fuse(bank(0.0, 2.0, 4.0), threshold=0.7, rule="first_fit")
    assert fused.means.flatten().tolist() == [1.0, 4.0]
    fused = fuse(bank(4.0, 2.0, 0.0), threshold=0.7, rule="first_fit")
    assert fused.means.flatten().tolist() == [3.0, 0.0]


def test_mean_scale_divides_the_threshold_question_by_the_dimension():
    bank = draw(30, 25, 4)
    for threshold in (0.05, 0.1, 0.2):
        assert_same(fuse(bank, threshold=threshold), fuse(bank, threshold=25 * threshold, scale="sum"))


def test_classes_never_mix_and_dtype_is_kept():
    one = draw(4, 3, 5, dtype=torch.float32)
    other = GaussianPrototypes(one.labels + 1, one.counts, one.means, one.variances)
    fused = fuse(GaussianPrototypes.concat([one, other]), threshold=math.inf)
    assert fused.labels.tolist() == [0, 1]
    assert fused.means.dtype == torch.float32
    assert torch.equal(fused.means[0], fused.means[1])


@pytest.mark.parametrize("rule", RULES)
def test_input_is_left_as_it_was(rule):
    bank = draw(10, 3, 6)
    before = {key: value.clone() for key, value in bank.to_tensors().items()}
    fuse(bank, threshold=math.inf, rule=rule)
    assert all(torch.equal(value, bank.to_tensors()[key]) for key, value in before.items())


def test_empty_bank_stays_empty():
    fused = fuse(GaussianPrototypes.empty(7), threshold=1.0)
    assert (len(fused), fused.dim) == (0, 7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": -0.1}, "threshold must be a number >= 0, got -0.1"),
        ({"threshold": math.nan}, "threshold must be a number >= 0, got nan"),
        ({"threshold": 1.0, "scale": "max"}, r"scale must be one of \['mean', 'sum'\], got 'max'"),
        ({"threshold": 1.0, "rule": "x"}, r"rule must be one of \['closest_pair', 'first_fit'\], got 'x'"),
        ({"threshold": 1.0, "merge": "x"}, r"merge must be one of \['moment', 'average'\], got 'x'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        fuse(draw(3, 2, 0), **options)
