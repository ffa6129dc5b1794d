"""A site's half of a method against a plain loop: torch's optimizers and autograd, and the formula of the paper.

Only the order of the samples and what FedPA generates are drawn as the package draws them. Dropout is off, so that
nothing else is random.
"""

import copy

import torch
from torch.nn import functional as F

from gfpl_flwr.algorithms.base import Visit
from gfpl_flwr.models import Dropout

LABELS = [0, 2, 2, 1, 0, 2]  # a batch of four and one of two: their means are over different numbers
ROUND, RATE, MOMENTUM, BATCH = 3, 0.1, 0.5, 4
VISIT = Visit(ROUND, ROUND, ROUND, download=True, upload=True)
LINEAR = {"extractor.8.weight", "extractor.8.bias", "classifier.weight", "classifier.bias"}


def prepared(make_site, name, **options):
    """A site, its method, what a server hands down, and the model that the site begins with: its own with that.

    What is handed down differs from the site's own model everywhere, so it matters which of the two is used.
    """
    site, algorithm, _ = make_site(name, 0, LABELS, learning_rate=RATE, momentum=MOMENTUM, **options)
    for layer in site.model.modules():
        if isinstance(layer, Dropout):
            layer.p = 0.0
    state = algorithm.initial(copy.deepcopy(site.model))
    noise = torch.Generator().manual_seed(9)
    moved = {entry: value + 0.1 * torch.randn(value.shape, generator=noise) for entry, value in state.items()}
    down = {entry: moved[entry] for entry in algorithm.downlink(state)}
    model = copy.deepcopy(site.model)
    own = model.state_dict()
    model.load_state_dict(own | {entry: value for entry, value in down.items() if entry in own})
    return site, algorithm, down, model


def batches(site, round, *, epochs=1, turn=""):
    """Pixels in [-1, 1] and labels of each step."""
    shuffle = site.generator(round, f"{turn}shuffle")
    pixels = (site.train.images.float() / 255 - 0.5) / 0.5
    for _ in range(epochs):
        for rows in torch.randperm(len(LABELS), generator=shuffle).split(BATCH):
            yield pixels[rows], site.train.labels[rows]


def descend(model, steps, loss, *, weights=None, then=lambda: None):
    """Take a step of torch's SGD on each batch, for all weights or some, and do something after each."""
    sgd = torch.optim.SGD(list(weights or model.parameters()), RATE, MOMENTUM)
    for pixels, labels in steps:
        sgd.zero_grad()
        loss(model.extractor(pixels), labels).backward()
        sgd.step()
        then()


def means_by_class(model, site):
    """The mean feature of each class that the site has, from the model as it is."""
    with torch.no_grad():
        features = model.extractor((site.train.images.float() / 255 - 0.5) / 0.5)
    return {label: features[site.train.labels == label].mean(0) for label in sorted(set(LABELS))}


def assert_alike(found, expected):
    """The same names, and values that differ by the rounding of float32 alone: sums are taken in another order."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=0, atol=1e-6), name


def test_fedprox_adds_half_mu_times_the_squared_distance_to_what_came(make_site):
    site, algorithm, down, model = prepared(make_site, "fedprox", fedprox__mu=0.7)

    def loss(features, labels):
        distance = sum((weight - down[name]).square().sum() for name, weight in model.named_parameters())
        return F.cross_entropy(model.classifier(features), labels) + 0.7 / 2 * distance

    descend(model, batches(site, ROUND), loss)
    reply = algorithm.visit(site, down, VISIT)
    assert_alike(site.model.state_dict(), model.state_dict())
    assert_alike(reply.tensors, model.state_dict())
    assert reply.samples == len(LABELS)


def test_fedper_trains_the_base_that_came_and_its_own_head_at_once(make_site):
    site, algorithm, down, model = prepared(make_site, "fedper")
    assert down.keys() == model.state_dict().keys() - LINEAR

    descend(model, batches(site, ROUND), lambda z, y: F.cross_entropy(model.classifier(z), y))
    reply = algorithm.visit(site, down, VISIT)
    assert_alike(site.model.state_dict(), model.state_dict())
    assert_alike(reply.tensors, {name: model.state_dict()[name] for name in down})
    assert reply.samples == len(LABELS)


def test_fedrep_fits_its_head_to_the_base_that_came_and_then_the_base_to_that_head(make_site):
    site, algorithm, down, model = prepared(make_site, "fedrep", fedrep__head_epochs=2, fedrep__body_epochs=1)
    assert down.keys() == model.state_dict().keys() - LINEAR

    def loss(features, labels):
        return F.cross_entropy(model.classifier(features), labels)

    head = [weight for name, weight in model.named_parameters() if name in LINEAR]
    base = [weight for name, weight in model.named_parameters() if name not in LINEAR]
    # the head is fitted before what came is tested, as the end of the round before; each part has its own momentum
    descend(model, batches(site, ROUND - 1, epochs=2, turn="head "), loss, weights=head)
    descend(model, batches(site, ROUND), loss, weights=base)
    reply = algorithm.visit(site, down, VISIT)
    assert_alike(site.model.state_dict(), model.state_dict())
    assert_alike(reply.tensors, {name: model.state_dict()[name] for name in down})
    assert reply.samples == len(LABELS)


def test_fedproto_adds_the_mean_squared_distance_to_the_prototypes_that_came(make_site):
    site, algorithm, _, model = prepared(make_site, "fedproto", fedproto__weight=3.0)
    # class 1 of the site has no prototype, the site has no sample of class 4, and it does not know class 7
    means = torch.rand(4, 50, generator=torch.Generator().manual_seed(2))
    prototypes = dict(zip((0, 2, 4, 7), means, strict=True))

    def loss(features, labels):
        gap = torch.zeros(())
        for feature, label in zip(features, labels.tolist(), strict=True):
            if label in prototypes:
                gap = gap + (feature - prototypes[label]).square().sum()
        return F.cross_entropy(model.classifier(features), labels) + 3 * gap / features.numel()

    descend(model, batches(site, ROUND), loss)
    reply = algorithm.visit(site, {"labels": torch.tensor([0, 2, 4, 7]), "means": means}, VISIT)
    assert_alike(site.model.state_dict(), model.state_dict())
    own = means_by_class(model, site)
    assert reply.tensors["labels"].tolist() == list(own) == [0, 1, 2]
    assert_alike({"means": reply.tensors["means"]}, {"means": torch.stack(list(own.values()))})


def test_fedfa_is_drawn_to_the_anchors_that_came_and_calibrates_on_them_after_every_step(make_site):
    options = {"fedfa__weight": 2.0, "fedfa__anchor_momentum": 0.25, "fedfa__calibration_rate": 0.01}
    site, algorithm, down, model = prepared(make_site, "fedfa", **options)
    anchors = down["anchors"]
    adam = torch.optim.Adam(model.classifier.parameters(), 0.01)

    def loss(features, labels):
        # lambda / C sum_b |z_b - a_{y_b}|^2 / n_{y_b}
        pull = torch.zeros(())
        for feature, label in zip(features, labels, strict=True):
            pull = pull + (feature - anchors[label]).square().sum() / (labels == label).sum()
        return F.cross_entropy(model.classifier(features), labels) + 2 / 5 * pull

    def calibrate():
        adam.zero_grad()
        F.cross_entropy(model.classifier(anchors), torch.arange(5)).backward()
        adam.step()

    descend(model, batches(site, ROUND), loss, then=calibrate)
    expected = anchors.clone()
    for label, mean in means_by_class(model, site).items():
        expected[label] = 0.25 * anchors[label] + 0.75 * mean
    reply = algorithm.visit(site, down, VISIT)
    assert_alike(site.model.state_dict(), model.state_dict())
    assert_alike(reply.tensors, model.state_dict() | {"anchors": expected})
    assert reply.samples == len(LABELS)


def test_fedpa_learns_from_generated_features_and_is_drawn_to_the_prototypes_that_came(make_site):
    options = {"fedpa__generated_weight": 2.0, "fedpa__prototype_weight": 4.0, "fedpa__noise_dim": 4}
    site, algorithm, down, model = prepared(make_site, "fedpa", **options)
    # class 1, which the site has, has no prototype, though the server holds numbers for it; class 3 has one
    counts = torch.tensor([4.0, 0, 9, 7, 0])
    down["label_counts"] = counts

    draw = site.generator(ROUND, "generated")
    wanted = torch.tensor([0, 2, 3])[torch.randint(3, (len(LABELS),), generator=draw)]
    noise = torch.rand(len(LABELS), 4, generator=draw)
    layers = {name.removeprefix("generator/layers."): value for name, value in down.items()}
    hidden = torch.cat([noise, torch.eye(5)[wanted]], 1) @ layers["0.weight"].T + layers["0.bias"]
    hidden = (hidden - layers["1.running_mean"]) / (layers["1.running_var"] + 1e-5).sqrt()
    hidden = (hidden * layers["1.weight"] + layers["1.bias"]).relu()
    generated = hidden @ layers["3.weight"].T + layers["3.bias"]
    assert len(set(wanted.tolist())) > 1  # so that it matters which feature goes with which class

    # the first round is t = 0: alpha is 2 * 0.98^t, beta 4 * 0.98^t
    alpha, beta = 2 * 0.98**2, 4 * 0.98**2
    place = 0

    def loss(features, labels):
        nonlocal place
        rows = slice(place, place + len(labels))  # as many generated features as samples, in their order
        place = rows.stop
        recognised = F.cross_entropy(model.classifier(generated[rows]), wanted[rows])
        gap = torch.zeros(())
        for feature, label in zip(features, labels, strict=True):
            if counts[label] > 0:
                gap = gap + (feature - down["prototypes"][label]).square().sum()
        distance = gap / features.numel()
        return F.cross_entropy(model.classifier(features), labels) + alpha * recognised + beta * distance

    descend(model, batches(site, ROUND), loss)
    means = torch.zeros(5, 50)
    for label, mean in means_by_class(model, site).items():
        means[label] = mean
    reply = algorithm.visit(site, down, VISIT)
    assert_alike(site.model.state_dict(), model.state_dict())
    told = {"prototypes": means, "label_counts": torch.tensor([2.0, 1, 3, 0, 0])}
    assert_alike(reply.tensors, model.state_dict() | told)
    assert reply.samples == len(LABELS)
