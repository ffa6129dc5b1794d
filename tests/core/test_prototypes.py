"""The bank of components: what it accepts, what it refuses and how it is taken apart."""

import dataclasses

import pytest
import torch

from gfpl_flwr.core import GaussianPrototypes


def fields(**changes):
    values = {
        "labels": torch.tensor([7, 2, 7]),
        "counts": torch.tensor([3.0, 10.0, 1.0]),
        "means": torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]),
        "variances": torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]),
    }
    return values | changes


def test_fields_survive_unchanged_and_describe_themselves():
    values = fields()
    bank = GaussianPrototypes(**values)
    assert len(bank) == 3
    assert bank.dim == 2
    assert bank.classes == (2, 7)
    assert bank.to_tensors().keys() == values.keys()
    assert all(torch.equal(bank.to_tensors()[key], value) for key, value in values.items())
    assert repr(bank) == "GaussianPrototypes(rows=3, dim=2, classes=(2, 7))"


def test_bank_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        GaussianPrototypes(**fields()).means = torch.zeros(3, 2)


def test_weights_are_shares_of_the_class():
    # Class 7 has counts 3 and 1, class 2 only one row.
    assert GaussianPrototypes(**fields()).weights.tolist() == [0.75, 1.0, 0.25]


def test_of_class_keeps_the_order_and_may_be_empty():
    bank = GaussianPrototypes(**fields())
    assert bank.of_class(7).counts.tolist() == [3.0, 1.0]
    absent = bank.of_class(5)
    assert (len(absent), absent.dim, absent.classes) == (0, 2, ())


def test_integer_counts_take_the_dtype_of_the_means():
    bank = GaussianPrototypes(**fields(counts=torch.tensor([3, 10, 1])))
    assert bank.counts.dtype == torch.float32
    assert bank.counts.tolist() == [3.0, 10.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_round_trip_is_bit_exact(dtype):
    bank = GaussianPrototypes(**fields()).to(dtype=dtype)
    back = GaussianPrototypes.from_tensors(bank.to_tensors())
    for key, value in bank.to_tensors().items():
        assert torch.equal(value, getattr(back, key))
        assert getattr(back, key).dtype == (torch.int64 if key == "labels" else dtype)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": [7, 2, 7]}, "labels must be a torch.Tensor, got list"),
        ({"labels": torch.tensor([7, 2, 7], dtype=torch.int32)}, "labels must be int64, got torch.int32"),
        ({"labels": torch.tensor([7, 2])}, r"labels must have shape \(3,\) to match means, got \(2,\)"),
        ({"labels": torch.tensor([7, -2, 7])}, "labels must be >= 0, row 1 has -2"),
        ({"counts": torch.ones(3, 1)}, r"counts must have shape \(3,\) to match means, got \(3, 1\)"),
        ({"counts": torch.tensor([True, True, True])}, "counts must be real numbers, got torch.bool"),
        ({"counts": torch.tensor([1.0, 0.0, 1.0])}, r"counts must be > 0, row 1 \(class 2\) has 0"),
        ({"counts": torch.tensor([1.0, 1.0, torch.inf])}, r"counts must be finite, row 2 \(class 7\) has inf"),
        ({"means": torch.ones(3)}, r"means must have shape \(N, D\) with D >= 1, got \(3,\)"),
        ({"means": torch.ones(3, 0)}, r"means must have shape \(N, D\) with D >= 1, got \(3, 0\)"),
        ({"means": torch.ones(3, 2, dtype=torch.int64)}, "means must be floating point, got torch.int64"),
        (
            {"means": torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, torch.nan]])},
            r"means must be finite, row 2 \(class 7\) has nan at feature 1",
        ),
        (
            {"variances": torch.ones(3, 3)},
            r"variances must have shape \(3, 2\) to match means, got \(3, 3\)",
        ),
        (
            {"variances": torch.ones(3, 2, dtype=torch.float64)},
            "variances must have the dtype of means, torch.float32, got torch.float64",
        ),
        (
            {"variances": torch.tensor([[1.0, 2.0], [3.0, -1.2e-5], [5.0, 6.0]])},
            r"variances must be > 0, row 1 \(class 2\) has -1.2e-05 at feature 1",
        ),
        (
            {"variances": torch.tensor([[torch.inf, 2.0], [3.0, 4.0], [5.0, 6.0]])},
            r"variances must be finite, row 0 \(class 7\) has inf at feature 0",
        ),
    ],
)
def test_bad_fields_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        GaussianPrototypes(**fields(**changes))


def test_from_tensors_wants_exactly_four_keys():
    values = fields()
    del values["counts"]
    with pytest.raises(ValueError, match=r"missing \['counts'\], unknown \['weights'\]"):
        GaussianPrototypes.from_tensors(values | {"weights": torch.ones(3)})


def test_empty_bank_keeps_its_dimension():
    bank = GaussianPrototypes.empty(5, dtype=torch.float64)
    assert (len(bank), bank.dim, bank.classes, len(bank.weights)) == (0, 5, (), 0)
    assert bank.means.dtype == torch.float64
    assert len(bank.canonical()) == 0
    with pytest.raises(ValueError, match="dim must be at least 1, got 0"):
        GaussianPrototypes.empty(0)


def test_concat_keeps_rows_in_order_and_promotes_dtypes():
    one = GaussianPrototypes(**fields())
    joined = GaussianPrototypes.concat([one, GaussianPrototypes.empty(2, dtype=torch.float64), one])
    assert joined.labels.tolist() == [7, 2, 7, 7, 2, 7]
    assert joined.means.dtype == torch.float64
    assert torch.equal(joined.means[3:], one.means.double())
    with pytest.raises(ValueError, match=r"banks must share one dimension, got \[2, 3\]"):
        GaussianPrototypes.concat([one, GaussianPrototypes.empty(3)])
    with pytest.raises(ValueError, match="at least one bank"):
        GaussianPrototypes.concat([])


def test_canonical_order_is_class_then_count_then_values():
    # Rows 0 and 3 tie in class and count: their means decide, in the second coordinate. Row 4 beats both by count.
    bank = GaussianPrototypes(
        torch.tensor([1, 0, 1, 1, 1]),
        torch.tensor([2.0, 1.0, 1.0, 2.0, 9.0]),
        torch.tensor([[0.0, 5.0], [9.0, 9.0], [0.0, 0.0], [0.0, 4.0], [7.0, 7.0]]),
        torch.ones(5, 2),
    )
    assert bank.canonical().means.tolist() == [[9.0, 9.0], [7.0, 7.0], [0.0, 4.0], [0.0, 5.0], [0.0, 0.0]]


def test_canonical_form_does_not_depend_on_the_order_of_rows():
    generator = torch.Generator().manual_seed(0)
    # Few different values, so that ties are common down to whole rows.
    draw = lambda *shape: torch.randint(1, 3, shape, generator=generator)
    bank = GaussianPrototypes(draw(40), draw(40), draw(40, 3).double(), draw(40, 3).double())
    order = torch.randperm(40, generator=generator)
    shuffled = GaussianPrototypes(*(value[order] for value in bank.to_tensors().values()))
    for key, value in bank.canonical().to_tensors().items():
        assert torch.equal(value, shuffled.canonical().to_tensors()[key])
