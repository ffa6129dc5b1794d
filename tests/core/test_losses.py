"""Dot regression and the hybrid loss against hand computation and numerical gradients."""

import math

import pytest
import torch

from gfpl_flwr.core import directions_of, dot_regression, hybrid_loss, simplex_etf
from gfpl_flwr.core.losses import cross_entropy


def double(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def batch(seed=0, size=6, dim=5, classes=4):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, classes, generator=generator, dtype=torch.float64)
    projected = torch.randn(size, dim, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (size,), generator=generator)
    return logits, projected, labels, simplex_etf(classes, dim, generator=generator).double()


def test_dot_regression_by_hand():
    # Cosines with the targets: 1, 0 and -1, whatever the lengths. 1/(2*3) (0 + 1 + 4) = 5/6.
    projected = double([3.0, 0.0], [0.0, 0.5], [-7.0, 0.0])
    targets = double([1.0, 0.0], [1.0, 0.0], [1.0, 0.0])
    assert dot_regression(directions_of(projected), targets).item() == pytest.approx(5 / 6, abs=1e-15)


def test_hybrid_loss_by_hand():
    # Logits (ln 3, 0) for class 0: cross-entropy -ln(3/4). Cosine of (3, 4) with (1, 0) is 0.6: 0.5 * 0.16 = 0.08.
    logits, labels = double([math.log(3.0), 0.0]), torch.tensor([0])
    etf = double([1.0, -1.0], [0.0, 0.0])
    loss = hybrid_loss(logits, directions_of(double([3.0, 4.0])), labels, etf, dr_weight=2.5)
    assert loss.item() == pytest.approx(math.log(4 / 3) + 2.5 * 0.08, abs=1e-14)


def test_zero_weight_is_cross_entropy():
    logits, projected, labels, etf = batch()
    expected = torch.nn.functional.cross_entropy(logits, labels)
    assert hybrid_loss(logits, projected, labels, etf, dr_weight=0.0).item() == expected.item()


def test_the_hybrid_loss_is_the_sum_of_its_terms_with_the_gradients_that_torch_finds():
    logits, projected, labels, etf = (torch.stack([one, two]) for one, two in zip(batch(1), batch(2), strict=True))
    results = []
    for loss_of in (
        lambda h, z: hybrid_loss(h, directions_of(z), labels, etf[0], dr_weight=0.7),
        lambda h, z: cross_entropy(h, labels) + 0.7 * dot_regression(directions_of(z), etf[0].T[labels]),
    ):
        leaves = logits.clone().requires_grad_(), projected.clone().requires_grad_()
        losses = loss_of(*leaves)
        results.append((losses, *torch.autograd.grad(losses @ double(1.0, -3.0), leaves)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)


def test_a_logit_of_minus_infinity_is_a_class_without_probability():
    logits = double([0.0, -math.inf, 1.0]).requires_grad_()
    etf = simplex_etf(3, 4, generator=torch.Generator().manual_seed(0)).double()
    loss = hybrid_loss(logits, etf.T[:1], torch.tensor([0]), etf, dr_weight=1.0)
    loss.backward()
    assert loss.item() == pytest.approx(math.log1p(math.e), abs=1e-14)
    torch.testing.assert_close(logits.grad, torch.softmax(logits.detach(), -1) - double([1.0, 0.0, 0.0]))


def test_scale_of_the_projection_has_no_influence():
    _, projected, labels, etf = batch()
    loss = dot_regression(directions_of(projected), etf.T[labels])
    torch.testing.assert_close(dot_regression(directions_of(1e-6 * projected), etf.T[labels]), loss)


def test_gradients_are_numerically_right():
    logits, projected, labels, etf = batch()
    logits.requires_grad_()
    projected.requires_grad_()
    assert torch.autograd.gradcheck(directions_of, projected)

    def loss(h, z):
        return hybrid_loss(h, directions_of(z), labels, etf, dr_weight=0.7)

    assert torch.autograd.gradcheck(loss, (logits, projected))


def test_directions_are_those_of_torch_with_the_same_gradient():
    _, projected, _, etf = batch()
    by_hand, by_torch = (projected.clone().requires_grad_() for _ in range(2))
    ours, theirs = directions_of(by_hand), torch.nn.functional.normalize(by_torch, dim=-1)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-15)
    (ours @ etf).sin().sum().backward()
    (theirs @ etf).sin().sum().backward()
    torch.testing.assert_close(by_hand.grad, by_torch.grad, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_projection_without_direction_has_the_value_of_the_formula_and_no_gradient(dtype):
    # Row 0 is zero: cosine 0, squared error 1. Row 1 is its target: error 0. 1/(2*2) (1 + 0) = 1/4.
    projected = torch.tensor([[0.0, 0.0], [2.0, 0.0]], dtype=dtype, requires_grad=True)
    loss = dot_regression(directions_of(projected), torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=dtype))
    loss.backward()
    assert loss.item() == 0.25
    assert torch.equal(projected.grad, torch.zeros(2, 2, dtype=dtype))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(3, 2), torch.ones(3, 3)), r"\(3, 2\) and \(3, 3\)"),
        ((torch.ones(0, 2), torch.ones(0, 2)), "B >= 1"),
    ],
)
def test_dot_regression_names_bad_shapes(arguments, message):
    with pytest.raises(ValueError, match=message):
        dot_regression(*arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"etf": torch.ones(9, 4)}, r"directions \(\.\.\., B, P\) must fit etf \(P, C\), got \(6, 5\) and \(9, 4\)"),
        ({"logits": torch.ones(6, 3)}, r"shapes \(6, 4\) and \(6,\) .* got \(6, 3\) and \(6,\)"),
        ({"labels": torch.zeros(5, dtype=torch.int64)}, r"got \(6, 4\) and \(5,\)"),
        ({"dr_weight": -1.0}, "dr_weight must be at least 0, got -1.0"),
        ({"dr_weight": math.nan}, "dr_weight must be at least 0, got nan"),
    ],
)
def test_hybrid_loss_names_bad_arguments(changes, message):
    values = dict(zip(("logits", "directions", "labels", "etf"), batch(), strict=True)) | {"dr_weight": 1.0}
    with pytest.raises(ValueError, match=message):
        hybrid_loss(**(values | changes))


def test_hybrid_loss_of_no_row_is_an_error():
    logits, directions, labels, etf = batch()
    with pytest.raises(ValueError, match="a batch must have a row at least"):
        hybrid_loss(logits[:0], directions[:0], labels[:0], etf, dr_weight=1.0)
