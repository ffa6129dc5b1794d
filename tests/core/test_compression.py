"""Compressed prototypes are what they were, but for an error with a bound, and cost what their form says."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gfpl_flwr.core.bhattacharyya import distance
from gfpl_flwr.core.compression import LOG_VARIANCE_RANGE, PRECISIONS, compress, decompress
from gfpl_flwr.core.prototypes import GaussianPrototypes

SMALL = ("float16", "int8")


def bank_of(means, variances=None, labels=None) -> GaussianPrototypes:
    means = torch.as_tensor(means, dtype=torch.float32)
    variances = torch.ones_like(means) if variances is None else torch.as_tensor(variances, dtype=torch.float32)
    labels = torch.arange(len(means)) if labels is None else torch.tensor(labels)
    return GaussianPrototypes(labels, torch.full((len(means),), 7.25), means, variances)


def there_and_back(bank: GaussianPrototypes, precision: str) -> GaussianPrototypes:
    return decompress(compress(bank, precision), precision)


@st.composite
def banks(draw) -> GaussianPrototypes:
    """Rows of every kind: shifted, one-sided as after ReLU, with dead units, constant, and of any magnitude."""
    rows, dim = draw(st.integers(0, 5)), draw(st.integers(1, 9))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    magnitude, spread = draw(st.floats(-6, 4)), draw(st.floats(0, 12))
    means = torch.randn(rows, dim, generator=generator, dtype=torch.float64) * 10**magnitude
    kind = draw(st.sampled_from(["any sign", "relu", "shifted", "negative", "constant", "zero"]))
    if kind == "relu":
        means = means.clamp(min=0)
    elif kind == "shifted":
        means = means / 1000 + 10**magnitude
    elif kind == "negative":
        means = -means.abs() - 10**magnitude
    elif kind in ("constant", "zero"):
        means = torch.full_like(means, 10**magnitude if kind == "constant" else 0.0)
    logs = spread * (torch.rand(rows, dim, generator=generator, dtype=torch.float64) - 0.5) + draw(st.floats(-20, 10))
    labels = torch.randint(0, draw(st.sampled_from([10, 300, 70_000, 2**40])), (rows,), generator=generator)
    counts = torch.rand(rows, generator=generator) + 0.5
    return GaussianPrototypes(labels, counts, means.float(), logs.exp().float())


def logs_of(bank: GaussianPrototypes) -> Tensor:
    return bank.variances.double().log()


# ---- the error ----------------------------------------------------------------------------------------------


@given(bank=banks(), precision=st.sampled_from(sorted(PRECISIONS)))
def test_labels_and_counts_come_back_as_they_were(bank, precision):
    back = there_and_back(bank, precision)
    assert torch.equal(back.labels, bank.labels)
    assert torch.equal(back.counts, bank.counts)
    assert (len(back), back.dim) == (len(bank), bank.dim)


@given(bank=banks())
def test_float32_is_the_bank_itself(bank):
    back = there_and_back(bank, "float32")
    assert torch.equal(back.means, bank.means)
    assert torch.equal(back.variances, bank.variances)
    assert compress(bank, "float32").keys() == bank.to_tensors().keys()


def rounding(values: Tensor) -> Tensor:
    """A few roundings to float32 when the value is put together again, as an absolute error."""
    return 4 * 2.0**-24 * values.abs()


@given(bank=banks())
def test_float16_keeps_eleven_bits(bank):
    """A float16 has 11 significant bits, so half a unit is 2^-11 of the value; below 2^-14 the unit is 2^-24."""
    back = there_and_back(bank, "float16")
    means = bank.means.double()
    assert ((back.means - means).abs() <= torch.maximum(2.0**-11 * means.abs(), torch.tensor(2.0**-25))).all()
    logs = logs_of(bank)
    assert ((logs_of(back) - logs).abs() <= 2.0**-11 * logs.abs() + 2.0**-25 + rounding(logs) + 1e-6).all()


@given(bank=banks())
def test_int8_is_off_by_at_most_half_a_step(bank):
    """A row from low to high has 254 steps; a row that hardly varies has steps of 2^-14 of its magnitude."""
    back = there_and_back(bank, "int8")
    for was, now, slack in ((bank.means.double(), back.means, 0.0), (logs_of(bank), logs_of(back), 1e-6)):
        low, high = was.amin(1, keepdim=True), was.amax(1, keepdim=True)
        step = torch.maximum((high - low) / 254, 2.0**-14 * torch.maximum(high, -low))
        assert ((now - was).abs() <= step * (0.5 + 1e-6) + rounding(was) + 1e-37 + slack).all()


@given(bank=banks(), precision=st.sampled_from(SMALL))
def test_the_distance_to_itself_has_the_bound_of_its_two_errors(bank, precision):
    """Between N(m, v) and N(m + a, v exp(e)) lie ``a^2 / (4 (v + v exp(e))) + log(cosh(e / 2)) / 2`` nats."""
    bank = bank.to(dtype=torch.float64)
    back = there_and_back(bank.to(dtype=torch.float32), precision).to(dtype=torch.float64)
    a, e = back.means - bank.means, back.variances.log() - bank.variances.log()
    expected = (a**2 / (4 * (bank.variances + back.variances)) + torch.log(torch.cosh(e / 2)) / 2).sum(1)
    measured = distance(bank.means, bank.variances, back.means, back.variances).diagonal()
    assert torch.allclose(measured, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("precision", SMALL)
def test_dead_units_come_back_as_exact_zeros(precision):
    means = torch.randn(40, 50, generator=torch.Generator().manual_seed(1))
    for rows in (means.clamp(min=0), torch.where(means.abs() < 0.5, 0.0, means), torch.zeros(3, 5), -means.abs() * 0):
        back = there_and_back(bank_of(rows), precision).means
        assert (back[rows == 0] == 0).all()
    assert (there_and_back(bank_of(means.clamp(min=0)), precision).means >= 0).all()


def test_int8_by_hand():
    """Means 0, 1, 254: the step is 254 / 254 = 1, the lowest code -128 stands for 0, so zero is -128.

    Log-variances 0 and 12.7: the step is 12.7 / 254 = 0.05. The third, 3.16, is 63.2 steps: 63 steps are 3.15.
    """
    bank = bank_of([[0.0, 1.0, 254.0]], [[1.0, math.exp(12.7), math.exp(3.16)]])
    tensors = compress(bank, "int8")
    assert tensors["means"].tolist() == [[-128, -127, 126]]
    assert tensors["log_variances"].tolist() == [[-128, 126, -65]]
    assert tensors["scales"].tolist() == [pytest.approx([1, -128, 0.05, -128], rel=1e-6)]
    back = decompress(tensors, "int8")
    assert back.means.tolist() == [pytest.approx([0, 1, 254], rel=1e-6)]
    assert back.variances.tolist() == [pytest.approx([1, math.exp(12.7), math.exp(3.15)], rel=1e-5)]


def test_each_row_has_its_own_scale():
    """A row a thousand times as large must not cost the other its digits."""
    back = there_and_back(bank_of([[0.0, 0.5, 1.0], [0.0, 500.0, 1000.0]]), "int8")
    assert back.means[0].tolist() == pytest.approx([0, 0.5, 1], abs=0.5 / 254 + 1e-6)


@pytest.mark.parametrize("precision", SMALL)
def test_the_smallest_and_largest_variances_stay_finite_and_positive(precision):
    variances = [[1e-45, 1e-30, 1.0, 3.4e38]]
    back = there_and_back(bank_of([[1.0] * 4], variances), precision)
    lowest, highest = LOG_VARIANCE_RANGE
    step = (highest - lowest) / 254 if precision == "int8" else 88 * 2**-10
    logs = back.variances.log()[0]
    assert logs.tolist() == pytest.approx([lowest, math.log(1e-30), 0, highest], abs=step / 2 + 1e-4)


def test_a_mean_that_float16_cannot_hold_is_named():
    with pytest.raises(ValueError, match=r"within ±65504.*float16, row 1 has 65520"):
        compress(bank_of([[0.0, 1.0], [65519.0, 65520.0]]), "float16")
    assert there_and_back(bank_of([[65519.0, -65519.0]]), "float16").means.tolist() == [[65504, -65504]]
    back = there_and_back(bank_of([[0.0, 1e6]]), "int8")
    assert back.means.tolist() == [pytest.approx([0, 1e6])]


def test_float64_banks_travel_as_float32():
    bank = bank_of([[1.0, 2.0]]).to(dtype=torch.float64)
    for precision in SMALL:
        back = there_and_back(bank, precision)
        assert back.means.dtype == back.counts.dtype == back.variances.dtype == torch.float32


# ---- the price ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "dim"), [(0, 50), (1, 1), (7, 50), (70, 512)])
@pytest.mark.parametrize(
    ("precision", "bytes_a_row"),
    [("float32", lambda d: 8 * d + 12), ("float16", lambda d: 4 * d + 5), ("int8", lambda d: 2 * d + 21)],
)
def test_a_row_costs_what_its_form_says(precision, bytes_a_row, rows, dim):
    bank = GaussianPrototypes(torch.arange(rows), torch.ones(rows), torch.rand(rows, dim), torch.rand(rows, dim) + 1)
    tensors = compress(bank, precision)
    assert sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) == rows * bytes_a_row(dim)
    assert tuple(tensors) == PRECISIONS[precision]


@pytest.mark.parametrize(
    ("largest", "dtype"),
    [(0, torch.uint8), (255, torch.uint8), (256, torch.int32), (2**31 - 1, torch.int32), (2**31, torch.int64)],
)
@pytest.mark.parametrize("precision", SMALL)
def test_labels_take_the_smallest_integer_that_holds_them(precision, largest, dtype):
    bank = bank_of([[1.0], [2.0]], labels=[0, largest])
    tensors = compress(bank, precision)
    assert tensors["labels"].dtype == dtype
    assert decompress(tensors, precision).labels.tolist() == [0, largest]


# ---- what a stranger sends ----------------------------------------------------------------------------------


def changed(precision: str, **arrays: Tensor | None) -> dict[str, Tensor]:
    tensors = compress(bank_of([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]), precision) | arrays
    return {key: value for key, value in tensors.items() if value is not None}


def scales(row: int, column: int, value: float) -> Tensor:
    sound = compress(bank_of([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]), "int8")["scales"]
    sound[row, column] = value
    return sound


@pytest.mark.parametrize(
    ("precision", "arrays", "words"),
    [
        ("float16", {"scales": torch.ones(2, 4)}, r"unknown \['scales'\]"),
        ("float16", {"log_variances": None}, r"missing \['log_variances'\]"),
        ("float16", {"log_variances": None, "variances": torch.ones(2, 3)}, r"unknown \['variances'\]"),
        ("int8", {"scales": None}, r"missing \['scales'\]"),
        ("float32", {"scales": torch.ones(2, 4)}, r"unknown \['scales'\]"),
        ("float16", {"means": torch.zeros(2, 3)}, r"means must be torch.float16, they are torch.float32"),
        ("float16", {"log_variances": torch.zeros(2, 3, dtype=torch.int8)}, r"log_variances must be torch.float16"),
        ("float16", {"counts": torch.ones(2).half()}, r"counts must be torch.float32, they are torch.float16"),
        ("float16", {"labels": torch.ones(2)}, r"labels must be torch.uint8 or .*, they are torch.float32"),
        ("float16", {"labels": torch.ones(2, dtype=torch.bool)}, r"labels must be"),
        ("int8", {"means": torch.zeros(2, 3, dtype=torch.uint8)}, r"means must be torch.int8"),
        ("int8", {"scales": torch.ones(2, 4).half()}, r"scales must be torch.float32"),
        ("float16", {"means": torch.zeros(3).half()}, r"means must have shape \(N, D\)"),
        ("float16", {"means": torch.zeros(2, 0).half()}, r"means must have shape \(N, D\)"),
        ("float16", {"log_variances": torch.zeros(2, 4).half()}, r"log_variances must have shape \(2, 3\)"),
        ("float16", {"labels": torch.zeros(1, dtype=torch.uint8)}, r"labels must have shape \(2,\)"),
        ("float16", {"labels": torch.zeros(2, 1, dtype=torch.uint8)}, r"labels must have shape \(2,\)"),
        ("int8", {"scales": torch.ones(2, 2)}, r"scales must have shape \(2, 4\)"),
        ("int8", {"scales": torch.ones(1, 4)}, r"scales must have shape \(2, 4\)"),
        ("float16", {"means": torch.full((2, 3), math.nan).half()}, r"means must be finite, row 0"),
        ("float16", {"means": torch.full((2, 3), math.inf).half()}, r"means must be finite, row 0"),
        ("float16", {"log_variances": torch.full((2, 3), math.nan).half()}, r"variances must be finite"),
        ("float16", {"log_variances": torch.full((2, 3), 89.0).half()}, r"variances must be finite"),
        ("float16", {"log_variances": torch.full((2, 3), -110.0).half()}, r"variances must be > 0"),
        ("float16", {"log_variances": torch.full((2, 3), -math.inf).half()}, r"variances must be > 0"),
        ("float16", {"counts": torch.tensor([1.0, 0.0])}, r"counts must be > 0, row 1"),
        ("float16", {"counts": torch.tensor([1.0, math.inf])}, r"counts must be finite, row 1"),
        ("float16", {"labels": torch.tensor([1, -1], dtype=torch.int32)}, r"labels must be >= 0"),
        ("int8", {"scales": scales(1, 0, 0.0)}, r"steps in scales must be > 0, row 1 has 0"),
        ("int8", {"scales": scales(0, 2, -1.0)}, r"steps in scales must be > 0, row 0 has -1"),
        ("int8", {"scales": scales(1, 0, math.inf)}, r"scales must be finite, row 1"),
        ("int8", {"scales": scales(1, 3, math.nan)}, r"scales must be finite, row 1"),
        (
            "int8",
            {"scales": scales(1, 1, 0.5)},
            r"zero points in scales must be integers .* row 1 has 0.5",
        ),
        ("int8", {"scales": scales(1, 3, 1e30)}, r"zero points in scales must be integers"),
        ("int8", {"scales": scales(0, 0, 3e38)}, r"means must be finite, row 0"),
        ("int8", {"scales": torch.tensor([[1.0, 0, 1, -128], [1, 0, 1, -300]])}, r"variances must be finite, row 1"),
    ],
)
def test_what_is_not_of_the_form_is_refused(precision, arrays, words):
    decompress(changed(precision), precision)
    with pytest.raises(ValueError, match=words):
        decompress(changed(precision, **arrays), precision)


@pytest.mark.parametrize("agreed", sorted(PRECISIONS))
@pytest.mark.parametrize("sent", sorted(PRECISIONS))
def test_only_the_form_that_was_agreed_upon_is_accepted(agreed, sent):
    tensors = changed(sent)
    if sent == agreed:
        assert len(decompress(tensors, agreed)) == 2
    else:
        with pytest.raises(ValueError, match=r"must be torch|need exactly"):
            decompress(tensors, agreed)


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match=r"float32, float16, int8, got 'bfloat16'"):
        compress(bank_of([[1.0]]), "bfloat16")
    with pytest.raises(ValueError, match=r"got 'int4'"):
        decompress({}, "int4")
