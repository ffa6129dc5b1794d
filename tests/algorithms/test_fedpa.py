"""FedPA by hand."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from gfpl_flwr import seeding
from gfpl_flwr.algorithms import parse_run
from gfpl_flwr.algorithms.base import Reply, Visit
from gfpl_flwr.algorithms.fedpa import ADAM, GENERATOR, FedPA, diversity_loss, recognition_loss
from gfpl_flwr.config import ConfigError
from gfpl_flwr.models import SplitModel


class Even(nn.Module):
    """A model that gives all of four classes the same score."""

    def classifier(self, features):
        return torch.zeros(*features.shape[:-1], 4)

    logits = classifier


def test_a_sites_loss_by_hand():
    features, labels = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 1])
    prototypes, known = torch.zeros(4, 2), torch.tensor([1.0, 0.0, 0.0, 0.0])
    beside = torch.ones(2, 2), torch.tensor([2, 3])
    loss = FedPA().loss(
        Even(), features, labels, prototypes=prototypes, known=known, weights=torch.tensor([3.0, 8.0]), beside=beside
    )
    # ln 4 for the images, three times that for the generated features; the gap (1 + 0) / 2 of the sample whose class
    # has a prototype, over two samples, eight times
    assert loss.item() == pytest.approx(math.log(4) + 3 * math.log(4) + 8 * 0.25)


def test_the_weights_of_the_terms_decay_to_their_floors(make_site, monkeypatch):
    site, algorithm, _ = make_site("fedpa", 0, [0, 1] * 6)
    seen = []

    def recorded(self, model, features, labels, *, weights, **more):
        seen.append(weights.flatten()[:2].tolist())
        return features.sum((-1, -2)) * 0

    state = algorithm.initial(copy.deepcopy(site.model))
    state = algorithm.aggregate(state, [algorithm.visit(site, {}, Visit(1, 1, 1, upload=True))])
    monkeypatch.setattr(FedPA, "loss", recorded)
    for round in (2, 300, 2000):
        algorithm.visit(site, algorithm.downlink(state), Visit(round, round, round, download=True, upload=True))
    found = [seen[0], seen[len(seen) // 2], seen[-1]]
    assert found[0] == pytest.approx([25 * 0.98, 5 * 0.98])
    assert found[1] == pytest.approx([25 * 0.98**299, 0.15])
    assert found[2] == pytest.approx([1e-4, 0.15])


def test_recognition_weighs_each_sites_surprise_by_its_share_of_the_class_by_hand():
    features, labels = torch.tensor([[1.0], [2.0]]), torch.tensor([0, 1])
    weight = torch.tensor([[[1.0], [0.0]], [[0.0], [0.0]]])  # site 0 scores (g, 0), site 1 (0, 0)
    shares = torch.tensor([[0.75, 0.5], [0.25, 0.5]])
    first = [math.log(math.e + 1) - 1, math.log(math.e**2 + 1)]
    expected = (0.75 * first[0] + 0.5 * first[1]) / 2 + (0.25 + 0.5) * math.log(2) / 2
    found = recognition_loss(features, labels, weight, torch.zeros(2, 2), shares)
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_diversity_counts_pairs_of_different_classes_by_hand():
    noise, features = torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([[1.0], [4.0]])
    # |e - e'|^2 is 4 over two widths, |g - g'| 3: two of the four pairs have 2 * 3
    assert diversity_loss(noise, features, torch.tensor([0, 1])).item() == pytest.approx(math.exp(-2 * 6 / 4))
    assert diversity_loss(noise, features, torch.tensor([1, 1])).item() == 1.0


def sent(prototypes, counts, samples):
    return Reply(
        {
            "classifier.weight": torch.zeros(2, 1),
            "classifier.bias": torch.zeros(2),
            "prototypes": torch.tensor(prototypes),
            "label_counts": torch.tensor(counts),
        },
        samples,
    )


def state_of(algorithm: FedPA) -> dict[str, torch.Tensor]:
    return algorithm.initial(SplitModel(nn.Flatten(), 1, 2))


def test_prototypes_are_weighted_by_samples_of_the_class_by_hand():
    algorithm = FedPA(generator_steps=0)
    state = state_of(algorithm) | {"prototypes": torch.tensor([[7.0], [8.0]])}
    found = algorithm.aggregate(state, [sent([[1.0], [0.0]], [1.0, 0.0], 1), sent([[5.0], [0.0]], [3.0, 0.0], 3)])
    assert found["prototypes"].tolist() == [[4.0], [8.0]]  # a class that nobody has keeps its prototype
    assert found["label_counts"].tolist() == [4.0, 0.0]
    assert int(found["round"]) == 1


def test_the_models_are_weighted_by_all_samples_of_two_sites_by_hand():
    algorithm = FedPA(generator_steps=0)
    replies = [sent([[1.0], [0.0]], [1.0, 0.0], 3), sent([[5.0], [0.0]], [1.0, 0.0], 1)]
    for reply, bias in zip(replies, ([0.0, 2.0], [4.0, 6.0]), strict=True):
        reply.tensors["classifier.bias"].copy_(torch.tensor(bias))
    # (3 * 0 + 4) / 4 and (3 * 2 + 6) / 4, though each has one sample of class 0
    found = algorithm.aggregate(state_of(algorithm), replies)
    assert found["classifier.bias"].tolist() == [1.0, 3.0]
    assert found["prototypes"][0].tolist() == [3.0]


def test_the_generator_learns_what_the_sites_classifiers_recognise():
    torch.manual_seed(0)
    algorithm = FedPA(generator_steps=300, generator_rate=1e-2)
    replies = [sent([[1.0], [-1.0]], [5.0, 5.0], 10)]
    replies[0].tensors["classifier.weight"].copy_(torch.tensor([[1.0], [-1.0]]))
    state = algorithm.aggregate(state_of(algorithm), replies)
    labels = torch.tensor([0, 1] * 50)
    noise = torch.rand(100, algorithm.noise_dim)
    with torch.no_grad():
        features = algorithm._generator(state).eval()(noise, labels)[:, 0]
    assert features[labels == 0].mean() > 1
    assert features[labels == 1].mean() < -1


def test_the_generators_training_goes_on_where_it_was():
    """Two rounds, each from the tensors of a checkpoint, equal two rounds of an optimizer that lives on."""
    algorithm = FedPA(generator_steps=4, seed=3)
    replies = [sent([[1.0], [-1.0]], [5.0, 5.0], 10)]
    once = algorithm.aggregate(state_of(algorithm), replies)
    assert {name for name in once if name.startswith(ADAM)}
    twice = algorithm.aggregate(once, replies)
    forgetful = algorithm.aggregate({k: v for k, v in once.items() if not k.startswith(ADAM)}, replies)
    name = GENERATOR + "layers.0.weight"
    assert not torch.equal(twice[name], forgetful[name])
    steps = [value for key, value in twice.items() if key.endswith(".step")]
    assert {float(step) for step in steps} == {8.0}


def test_two_rounds_of_the_generator_are_a_plain_loop_of_torchs_adam():
    """The second round is the first that has prototypes to be far from."""
    classes, dim, width, seed = 3, 2, 5, 11
    options = {"noise_dim": 4, "hidden_dim": width, "generator_steps": 3, "generator_rate": 0.02}
    algorithm = FedPA(**options, generated_weight=2.0, seed=seed)
    random = torch.Generator().manual_seed(5)
    # class 1 is nowhere, class 2 at both sites in other numbers
    counts = torch.tensor([[3.0, 0.0, 1.0], [0.0, 0.0, 4.0]])
    replies = [
        Reply(
            {
                "classifier.weight": torch.randn(classes, dim, generator=random),
                "classifier.bias": torch.randn(classes, generator=random),
                "prototypes": torch.randn(classes, dim, generator=random),
                "label_counts": its,
            },
            int(its.sum()),
        )
        for its in counts
    ]
    state = algorithm.initial(SplitModel(nn.Flatten(), dim, classes))

    plain = nn.Sequential(nn.Linear(4 + classes, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, dim))
    layers = GENERATOR + "layers."
    # BatchNorm takes this bias out again, so all of its gradient is rounding, which Adam would blow up to whole
    # steps; from one on the gradient of weight decay outweighs that.
    state[layers + "0.bias"] = torch.ones(width)
    plain.load_state_dict({name: state[layers + name] for name in plain.state_dict()})
    adam = torch.optim.Adam(plain.parameters(), weight_decay=0.01)
    for round in range(2):
        decay = 0.98**round
        adam.param_groups[0]["lr"] = 0.02 * decay
        draw = seeding.generator(seed, "fedpa", "round", round)
        for _ in range(3):
            labels = torch.tensor([0, 2])[torch.randint(2, (32,), generator=draw)]
            noise = torch.rand(32, 4, generator=draw)
            made = plain(torch.cat([noise, torch.eye(classes)[labels]], 1))
            recognised = torch.zeros(())
            for reply, its in zip(replies, counts, strict=True):
                scores = made @ reply.tensors["classifier.weight"].T + reply.tensors["classifier.bias"]
                surprise = -scores.log_softmax(1)[torch.arange(32), labels]
                recognised = recognised + ((its / torch.tensor([3.0, 1, 5]))[labels] * surprise).mean()
            # the 32 x 32 pairs: squared distance of the noise times distance of the features, both over widths
            pairs = torch.cdist(noise, noise) ** 2 / 4 * torch.cdist(made, made, p=1) / dim
            loss = 2 * decay * recognised + torch.exp(-(pairs * (labels[:, None] != labels)).sum() / 32**2)
            if round == 1:  # those of the round before
                loss = loss - 0.15 * (made - state["prototypes"][labels]).square().sum() / made.numel()
            adam.zero_grad()
            loss.backward()
            adam.step()
        state = algorithm.aggregate(state, replies)
        for name, value in plain.state_dict().items():
            assert torch.allclose(state[layers + name], value, rtol=0, atol=1e-6), (round, name)


def test_the_generator_is_trained_on_every_class_that_sites_will_draw():
    algorithm = FedPA(generator_steps=4)
    state = state_of(algorithm)
    name = GENERATOR + "layers.0.weight"
    none = algorithm.aggregate(state, [sent([[1.0], [0.0]], [0.0, 0.0], 1)])
    assert torch.equal(none[name], state[name])
    one = algorithm.aggregate(state, [sent([[1.0], [0.0]], [1.0, 0.0], 1)])
    assert one["label_counts"].tolist() == [1.0, 0.0]
    assert not torch.equal(one[name], state[name])


def test_a_site_is_handed_no_state_of_an_optimizer(make_site):
    site, algorithm, _ = make_site("fedpa", 0, [0, 1] * 6)
    state = algorithm.initial(copy.deepcopy(site.model))
    state = algorithm.aggregate(state, [algorithm.visit(site, {}, Visit(1, 1, 1, upload=True))])
    down = algorithm.downlink(state)
    assert not any(name.startswith(ADAM) for name in down)
    assert {"prototypes", "label_counts", GENERATOR + "layers.3.bias", "classifier.weight"} <= down.keys()


def test_counts_that_are_none_are_refused(make_site):
    site, algorithm, _ = make_site("fedpa", 0, [0, 1] * 6)
    state = algorithm.initial(copy.deepcopy(site.model))
    reply = algorithm.visit(site, {}, Visit(1, 1, 1, upload=True))
    for counts in ([-1.0, 13, 0, 0, 0], [9.0, 9, 0, 0, 0]):
        tensors = dict(reply.tensors) | {"label_counts": torch.tensor(counts)}
        with pytest.raises(ValueError, match="label_counts must be >= 0 and add up to 12"):
            algorithm.check_reply(replace(reply, tensors=tensors), state=state, feature_dim=50, num_classes=5)


def test_label_counts_cannot_be_withheld():
    config, algorithm = parse_run({"algorithm": "fedpa", "share-label-counts": False})
    with pytest.raises(ConfigError, match="share-label-counts = false: must be true with fedpa"):
        algorithm.resolve(config, 10)
