"""FedFA by hand."""

import copy
import math

import pytest
import torch
from torch import nn

from gfpl_flwr.algorithms.base import Visit
from gfpl_flwr.algorithms.fedfa import ANCHORS, FedFA, first_anchors


class Linear(nn.Module):
    """A model whose classifier gives all of four classes the same score, but class 0 one more."""

    def classifier(self, features):
        return torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(*features.shape[:-1], 4)

    def logits(self, features):
        return torch.zeros(*features.shape[:-1], 4)


def test_the_loss_divides_each_distance_by_the_samples_of_its_class_by_hand():
    features = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 3.0]])
    labels = torch.tensor([2, 2, 1])
    anchors = torch.zeros(4, 2)
    # class 2: (1 + 0) / 2; class 1: 9 / 1; divided by four classes, times lambda
    loss = FedFA(weight=0.1).loss(Linear(), features, labels, anchors=anchors)
    assert loss.item() == pytest.approx(math.log(4) + 0.1 * (0.5 + 9) / 4)


def test_the_classifier_is_calibrated_on_the_anchors_of_all_classes_by_hand():
    whole = math.e + 3
    expected = (3 * math.log(whole) + math.log(whole) - 1) / 4
    assert FedFA().calibrate(Linear(), anchors=torch.zeros(4, 2)).item() == pytest.approx(expected)


def test_the_first_anchors_are_different_unit_vectors():
    assert torch.equal(first_anchors(2, 3), torch.tensor([[1.0, 0, 0], [0, 1, 0]]))
    many = first_anchors(62, 50)
    assert torch.allclose(many.norm(dim=1), torch.ones(62))
    assert (many @ many.T - torch.eye(62)).abs().max() < 0.9
    assert torch.equal(many, first_anchors(62, 50))


def test_anchors_of_own_classes_move_towards_the_means_of_the_trained_model(make_site):
    site, algorithm, _ = make_site("fedfa", 0, [0] * 9 + [3] * 7, fedfa__anchor_momentum=0.25)
    down = algorithm.initial(copy.deepcopy(site.model)) | {ANCHORS: torch.full((5, 50), 8.0)}
    sent = algorithm.visit(site, down, Visit(2, 2, 2, download=True, upload=True)).tensors[ANCHORS]
    with torch.no_grad():
        features = site.model.eval().extractor(site.train.pixels(slice(None)))
    assert torch.equal(sent[[1, 2, 4]], torch.full((3, 50), 8.0))
    assert torch.allclose(sent[3], 0.25 * 8 + 0.75 * features[9:].mean(0), atol=1e-5)


def test_the_server_averages_anchors_like_weights_by_the_samples_of_two_sites(make_site):
    few, algorithm, _ = make_site("fedfa", 0, [0, 1] * 2)
    many, _, _ = make_site("fedfa", 1, [1, 4] * 6)
    state = algorithm.initial(copy.deepcopy(few.model))
    assert torch.equal(state[ANCHORS], torch.eye(5, 50))
    replies = [algorithm.visit(site, {}, Visit(1, 1, 1, upload=True)) for site in (few, many)]
    for reply in replies:
        algorithm.check_reply(reply, state=state, feature_dim=50, num_classes=5)
    found = algorithm.aggregate(state, replies)
    # 4 and 12 samples: an anchor is weighted by all samples of a site, not by those of its class
    first, second = (reply.tensors for reply in replies)
    assert not torch.equal(first[ANCHORS], second[ANCHORS])
    for name in (ANCHORS, "classifier.weight"):
        assert torch.allclose(found[name], 0.25 * first[name] + 0.75 * second[name], rtol=0, atol=1e-7), name
