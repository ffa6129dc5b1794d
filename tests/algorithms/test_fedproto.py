"""FedProto by hand."""

import math
from dataclasses import replace

import pytest
import torch

from gfpl_flwr.algorithms.base import Reply, Visit
from gfpl_flwr.algorithms.checks import check_means
from gfpl_flwr.algorithms.fedproto import FedProto, class_means


class Identity(torch.nn.Module):
    """Stands for a model whose classifier gives every class the same score."""

    def logits(self, features):
        return torch.zeros(*features.shape[:-1], 4)


def test_the_loss_adds_the_mean_squared_distance_to_the_own_prototype_by_hand():
    features = torch.tensor([[1.0, 0.0], [2.0, 2.0]])
    labels = torch.tensor([0, 3])
    prototypes = torch.tensor([[0.0, 0.0], [9.0, 9.0], [9.0, 9.0], [0.0, 1.0]])
    # (1 + 0) / 2 and (4 + 1) / 2, their mean is 1.5; four equal scores cost ln 4
    every = FedProto(weight=2.0).loss(Identity(), features, labels, prototypes=prototypes, known=torch.ones(4))
    assert every.item() == pytest.approx(math.log(4) + 2 * 1.5)
    # class 3 has no prototype: its sample adds nothing, but still counts in the mean
    some = torch.tensor([1.0, 1.0, 1.0, 0.0])
    partly = FedProto(weight=2.0).loss(Identity(), features, labels, prototypes=prototypes, known=some)
    assert partly.item() == pytest.approx(math.log(4) + 2 * 0.25)


def test_class_means_by_hand():
    found = class_means(torch.tensor([[1.0], [2.0], [6.0]]), torch.tensor([4, 1, 4]))
    assert found["labels"].tolist() == [1, 4]
    assert found["means"].tolist() == [[2.0], [3.5]]


def reply(labels, means, samples=10):
    return Reply({"labels": torch.tensor(labels), "means": torch.tensor(means)}, samples)


def test_the_server_takes_the_plain_mean_over_the_sites_that_hold_a_class():
    state = {"labels": torch.tensor([7]), "means": torch.tensor([[5.0]])}
    found = FedProto().aggregate(state, [reply([0, 1], [[1.0], [2.0]], 1), reply([1], [[4.0]], 99)])
    assert found["labels"].tolist() == [0, 1, 7]  # a class that nobody sent keeps its last one
    assert found["means"].tolist() == [[1.0], [3.0], [5.0]]  # however many samples a site has


def test_a_site_sends_the_means_of_its_own_classes_and_nothing_else(make_site):
    site, algorithm, _ = make_site("fedproto", 0, [0] * 9 + [3] * 7)
    tensors = algorithm.visit(site, {}, Visit(1, 1, 1, upload=True)).tensors
    assert tensors["labels"].tolist() == [0, 3]
    with torch.no_grad():
        features = site.model.eval().extractor(site.train.pixels(slice(None)))
    assert torch.allclose(tensors["means"][1], features[9:].mean(0), atol=1e-5)
    check_means(tensors, feature_dim=50, num_classes=5)


def test_the_nearest_prototype_answers_among_all_or_the_own_classes(make_site):
    site, algorithm, _ = make_site("fedproto", 0, [0, 3] * 6)
    with torch.no_grad():
        features = site.model.eval().extractor(site.test.pixels(slice(None)))
    # the prototype of class 2, which the site does not hold, lies on its first test image; class 3's on all others
    down = {"labels": torch.tensor([2, 3]), "means": torch.stack([features[0], features[1:].mean(0)])}
    down["means"][1] += 1e-3
    (counts,) = algorithm.visit(site, down, Visit(2, 2, 1, download=True)).accuracy
    assert counts.correct["prototype"][2] == 0
    near = torch.cdist(features, down["means"]).argmin(1)
    expected = ((near == 1) & (site.test.labels == 3)).sum()
    assert counts.correct["prototype"].sum() == expected
    assert counts.correct["own-prototype"].sum() == (site.test.labels == 3).sum()  # 3 is all it can answer
    assert set(counts.correct) == {"classifier", "prototype", "own-prototype"}


def test_before_any_prototype_there_is_the_classifier_alone(make_site):
    site, algorithm, _ = make_site("fedproto", 0, [0, 3] * 6)
    (counts,) = algorithm.visit(site, {}, Visit(1, 1, 1, upload=True)).accuracy
    assert set(counts.correct) == {"classifier"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"means": None}, "expected the tensors labels and means"),
        ({"labels": torch.tensor([0, 0])}, "each come once"),
        ({"labels": torch.tensor([0, -1])}, "must be >= 0"),
        ({"labels": torch.tensor([0, 5])}, "labels must be below 5, the largest is 5"),
        ({"labels": torch.tensor([0, 1]).float()}, "labels must be int64"),
        ({"means": torch.ones(2, 2)}, r"means must be \(2, 3\), they are \(2, 2\)"),
        ({"means": torch.ones(2, 3).double()}, "means float32"),
        ({"means": torch.full((2, 3), float("nan"))}, "means must be finite"),
        ({"means": torch.full((2, 3), 1e30)}, "means must be finite and at most"),
    ],
)
def test_anything_else_than_one_finite_mean_a_class_is_refused(change, words):
    tensors = {"labels": torch.tensor([0, 1]), "means": torch.ones(2, 3)} | change
    tensors = {name: value for name, value in tensors.items() if value is not None}
    with pytest.raises(ValueError, match=words):
        FedProto().check_reply(replace(reply([0], [[1.0]]), tensors=tensors), state={}, feature_dim=3, num_classes=5)
