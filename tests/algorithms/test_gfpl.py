"""GFPL's parts against the paper: schedule, loss, prototypes, retraining, fusion on the server."""

import copy
import dataclasses
import math

import pytest
import torch

from gfpl_flwr.algorithms import parse_run
from gfpl_flwr.algorithms.base import Reply
from gfpl_flwr.algorithms.gfpl import GFPL
from gfpl_flwr.config import RunConfig
from gfpl_flwr.core.prototypes import GaussianPrototypes
from gfpl_flwr.models import DualClassifier, build_extractor, seeded_init
from gfpl_flwr.training import Descent, Images, Samples, Site, Steps, alone, classifier_loss
from gfpl_flwr.training.cohort import batches


def gfpl(**options) -> tuple[RunConfig, GFPL]:
    flat = {key.replace("__", ".").replace("_", "-"): value for key, value in options.items()}
    config, algorithm = parse_run(flat)
    resolved = algorithm.resolve(config, 10)
    assert isinstance(resolved, GFPL)
    return config, resolved


def site_with(
    architecture: str = "cnn", *, classes: tuple[int, ...] = (0, 1, 2), each: int = 12, **options
) -> tuple[Site, GFPL]:
    config, algorithm = gfpl(**options)
    shape, dim = ((1, 8, 8), 50) if architecture == "cnn" else ((3, 32, 32), 512)
    extractor = seeded_init(lambda: build_extractor(architecture, shape), 0)
    model = algorithm.build_model(extractor, dim, 10, dropout=0.5, seed=1)
    labels = torch.tensor([label for label in classes for _ in range(each)])
    pixels = torch.randint(0, 256, (len(labels), *shape), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    half = torch.full((shape[0], 1, 1), 0.5)
    images = Images(pixels, labels, half, half)
    return Site(0, model, images, images, config, batch_size=4), algorithm


def rounds_of(visits) -> list[tuple[int, int, bool, bool]]:
    return [(visit.first_round, visit.last_round, visit.download, visit.upload) for visit in visits]


# ---- the schedule of Algorithm 2 ----------------------------------------------------------------------------


def test_the_papers_schedule_takes_twelve_messages_a_site():
    config, algorithm = gfpl()  # T = 80, T0 = 30, P = 5: exchanges after rounds 30, 35, ..., 80
    visits = algorithm.visits(config)
    assert len(visits) == 12
    assert rounds_of(visits)[:2] == [(1, 30, False, True), (31, 35, True, True)]
    assert rounds_of(visits)[-2:] == [(76, 80, True, True), (81, 80, True, False)]
    assert [visit.last_round for visit in visits if visit.upload] == list(range(30, 81, 5))


def test_rounds_after_the_last_exchange_belong_to_the_last_visit():
    config, algorithm = gfpl(rounds=83)
    assert rounds_of(algorithm.visits(config))[-1] == (81, 83, True, False)


def test_without_retraining_there_is_one_visit_and_nothing_travels():
    config, algorithm = gfpl(gfpl__retraining=False)
    assert rounds_of(algorithm.visits(config)) == [(1, 80, False, False)]


# ---- local training -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("classifier_on", ["features", "projection"])
def test_the_loss_is_equation_13(classifier_on):
    site, algorithm = site_with(gfpl__dr_weight=0.7, gfpl__classifier_on=classifier_on)
    model = site.model.eval()
    assert isinstance(model, DualClassifier)
    pixels, labels = site.train.pixels(slice(0, 5)), site.train.labels[:5]
    z = model.extractor(pixels)
    projected = z @ model.projection.weight.T + model.projection.bias
    seen = z if classifier_on == "features" else projected / projected.square().sum(1, keepdim=True).sqrt()
    logits = seen @ model.classifier.weight.T + model.classifier.bias
    ce = -torch.log_softmax(logits, 1)[torch.arange(5), labels].mean()
    cosine = torch.stack([projected[b] @ model.etf[:, labels[b]] / projected[b].norm() for b in range(5)])
    assert algorithm.loss(model, z, labels).item() == pytest.approx(
        (ce + 0.7 * ((cosine - 1) ** 2).sum() / 10).item(), rel=1e-5
    )


def test_without_the_dual_classifier_the_loss_is_cross_entropy_and_there_is_no_projection():
    site, algorithm = site_with(gfpl__dual_classifier=False)
    assert not isinstance(site.model, DualClassifier)
    features, labels = torch.rand(5, 50, generator=torch.Generator().manual_seed(1)), site.train.labels[:5]
    site.model.eval()
    expected = torch.nn.functional.cross_entropy(site.model.classifier(features), labels)
    torch.testing.assert_close(algorithm.loss(site.model, features, labels), expected)
    assert torch.equal(classifier_loss(site.model, features, labels), algorithm.loss(site.model, features, labels))


def test_sgd_is_torchs():
    """Two epochs of retraining, with momentum and weight decay, against torch.optim.SGD on the same batches."""
    site, algorithm = site_with(learning_rate=0.1, momentum=0.5, weight_decay=0.01)
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.rand(11, 50, generator=generator), torch.randint(0, 10, (11,), generator=generator)
    theirs = copy.deepcopy(site.model).eval()
    loss = alone(retraining(site, algorithm, Samples(features, labels), epochs=2))
    optimizer = torch.optim.SGD(theirs.head_parameters(), lr=0.1, momentum=0.5, weight_decay=0.01)
    shuffle, losses = site.generator(7, "retrain"), []
    for _ in range(2):
        for rows in batches(11, 4, shuffle):
            optimizer.zero_grad()
            losses.append(algorithm.loss(theirs, features[rows], labels[rows]))
            losses[-1].backward()
            optimizer.step()
    for a, b in zip(site.model.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-7)
    assert loss == pytest.approx(sum(losses).item() / 6)


def retraining(site: Site, algorithm: GFPL, samples: Samples, *, epochs: int) -> Steps[float]:
    return (yield Descent(site, "retrain", samples, algorithm.loss, 7, epochs))


@pytest.mark.parametrize(
    ("samples", "sizes"), [(8, [4, 4]), (9, [4, 5]), (10, [4, 4, 2]), (1, [1]), (0, []), (5, [5]), (3, [3])]
)
def test_batches_cover_every_row_once_and_never_leave_one_alone(samples, sizes):
    parts = list(batches(samples, 4, torch.Generator().manual_seed(0)))
    assert [len(part) for part in parts] == sizes
    assert sorted(row for part in parts for row in part.tolist()) == list(range(samples))


def test_a_diverging_site_says_what_to_lower():
    site, algorithm = site_with(learning_rate=1e30, rounds=30)
    with pytest.raises(FloatingPointError, match="lower learning-rate = 1e\\+30"):
        algorithm.visit(site, {}, algorithm.visits(site.config)[0])


# ---- prototypes ---------------------------------------------------------------------------------------------


def test_prototypes_have_the_moments_of_the_features():
    site, algorithm = site_with(gfpl__num_components=1, gfpl__variance_floor=1e-12)
    bank, found = alone(algorithm.prototypes(site))
    site.model.eval()
    with torch.no_grad():
        features = site.model.extractor(site.train.pixels(slice(None))).double()
    assert bank.labels.tolist() == [0, 1, 2]
    assert bank.counts.tolist() == [12, 12, 12]
    for row, label in enumerate(bank.labels.tolist()):
        own = features[site.train.labels == label]
        assert torch.allclose(bank.means[row].double(), own.mean(0), atol=1e-6)
        alive = own.var(0, correction=0) > 1e-5
        assert torch.allclose(bank.variances[row].double()[alive], own.var(0, correction=0)[alive], rtol=1e-4)
    assert found["suppressed_classes"] == 0
    assert -1 <= found["etf_cosine"] <= 1


def test_a_class_that_is_too_small_is_suppressed_and_counted():
    site, algorithm = site_with(classes=(0, 0, 1), each=4, gfpl__min_samples=5)
    bank, found = alone(algorithm.prototypes(site))
    assert bank.classes == (0,)
    assert found["suppressed_classes"] == 1


def test_no_component_stands_for_fewer_samples_than_allowed():
    site, algorithm = site_with(each=12, gfpl__num_components=4, gfpl__min_component_samples=5)
    bank, _ = alone(algorithm.prototypes(site))
    assert bank.counts.min() >= 5 - 1e-3
    assert all(len(bank.of_class(label)) <= 2 for label in bank.classes)


def test_counts_can_be_withheld():
    site, algorithm = site_with(gfpl__share_counts=False)
    bank, _ = alone(algorithm.prototypes(site))
    for label in bank.classes:
        assert bank.of_class(label).counts.sum().item() == pytest.approx(1)


# ---- retraining ---------------------------------------------------------------------------------------------


def fused(dim: int = 50, classes: int = 10) -> GaussianPrototypes:
    generator = torch.Generator().manual_seed(1)
    means = 3 * torch.randn(classes, dim, generator=generator)
    return GaussianPrototypes(
        torch.arange(classes), torch.full((classes,), 9.0), means, torch.full((classes, dim), 0.1)
    )


@pytest.mark.parametrize("architecture", ["cnn", "resnet18"])
def test_retraining_leaves_the_extractor_and_its_batch_statistics_alone(architecture):
    site, algorithm = site_with(architecture, gfpl__pseudo_per_class=5)
    before = {name: tensor.clone() for name, tensor in site.model.state_dict().items()}
    alone(algorithm.retrain(site, fused(site.model.feature_dim), round=30))
    changed = {name for name, tensor in site.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"projection.weight", "projection.bias", "classifier.weight", "classifier.bias"}


def test_retraining_teaches_classes_the_site_never_saw():
    site, algorithm = site_with(gfpl__retrain_epochs=10)
    bank = fused()
    alone(algorithm.retrain(site, bank, round=30))
    scores = site.model.scores(bank.means)
    for head in ("classifier", "etf", "sum"):
        assert scores[head].argmax(1).tolist() == list(range(10)), head


def test_retraining_may_be_limited_to_the_sites_own_classes():
    site, algorithm = site_with(gfpl__retrain_classes="own", gfpl__dr_weight=0.0)
    before = site.model.classifier.bias.clone()
    alone(algorithm.retrain(site, fused(), round=30))
    moved = site.model.classifier.bias - before
    # cross-entropy on classes 0 to 2 alone raises their scores in turn and can only lower all others
    assert (moved[3:] < 0).all()


def test_pseudo_features_may_be_clamped_and_their_negative_share_is_told():
    site, algorithm = site_with(gfpl__clamp_pseudo=True)
    bank = fused()
    found = alone(algorithm.retrain(site, bank, round=30))
    # P(N(m, 0.1) < 0), averaged over the means
    expected = torch.special.ndtr(-bank.means / math.sqrt(0.1)).mean().item()
    assert found["negative_fraction"] == pytest.approx(expected, abs=0.01)


def test_a_visit_retrains_evaluates_trains_and_sends_in_this_order():
    site, algorithm = site_with(rounds=4, gfpl__first_exchange=2, gfpl__exchange_every=1, gfpl__pseudo_per_class=5)
    visits = algorithm.visits(site.config)
    first = algorithm.visit(site, {}, visits[0])
    assert [(counts.round, counts.phase) for counts in first.accuracy] == [(1, "train"), (2, "train")]
    second = algorithm.visit(site, first.tensors, visits[1])
    assert [(counts.round, counts.phase) for counts in second.accuracy] == [(2, "retrain"), (3, "train")]
    assert {"retrain_loss", "negative_fraction", "train_loss", "suppressed_classes"} <= second.diagnostics.keys()
    last = algorithm.visit(site, second.tensors, visits[-1])
    assert [(counts.round, counts.phase) for counts in last.accuracy] == [(4, "retrain")]
    assert last.tensors == {}


def test_nothing_is_retrained_before_any_site_sent_a_prototype():
    site, algorithm = site_with(rounds=4, gfpl__first_exchange=2)
    before = site.model.classifier.weight.clone()
    reply = algorithm.visit(site, {}, algorithm.visits(site.config)[-1])
    assert "retrain_loss" not in reply.diagnostics
    assert reply.accuracy[0].phase == "train"
    assert not torch.equal(before, site.model.classifier.weight)


# ---- the server ---------------------------------------------------------------------------------------------


def reply_of(labels, counts, means) -> Reply:
    means = torch.tensor(means, dtype=torch.float32)
    bank = GaussianPrototypes(torch.tensor(labels), torch.tensor(counts), means, torch.ones_like(means))
    return Reply(dict(bank.to_tensors()), 40)


def test_two_sites_fused_by_hand():
    """Class 0: means 0 and 1, variances 1, counts 30 and 10. Distance 1^2 / (4 (1 + 1)) = 0.125 nats: merged.

    Count 40, mean (30 * 0 + 10 * 1) / 40 = 0.25, variance 1 + 0.75 * 0.25 * 1^2 = 1.1875. Class 1 is 10 apart:
    100 / 8 = 12.5 nats, not merged at a threshold of 1.
    """
    _, algorithm = gfpl()
    replies = [reply_of([0, 1], [30.0, 30.0], [[0.0], [0.0]]), reply_of([0, 1], [10.0, 10.0], [[1.0], [10.0]])]
    state = algorithm.aggregate({}, replies)
    bank = GaussianPrototypes.from_tensors(state)
    zero = bank.of_class(0)
    assert zero.counts.tolist() == [40]
    assert zero.means.tolist() == [[0.25]]
    assert zero.variances.tolist() == [[1.1875]]
    assert sorted(bank.of_class(1).means.flatten().tolist()) == [0, 10]
    assert algorithm.describe(state, replies) == {
        "components_in": 4,
        "components_out": 3,
        "merge_rate": 0.25,
        "by_class": {"0": [2, 1], "1": [2, 2]},
        "suppressed_classes": 0,
    }


def test_an_exchange_in_which_no_site_has_a_prototype_keeps_the_old_ones():
    _, algorithm = gfpl()
    state = algorithm.aggregate({}, [reply_of([0], [30.0], [[0.0]])])
    empty = Reply(dict(GaussianPrototypes.empty(1).to_tensors()), 1)
    assert algorithm.aggregate(state, [empty]).keys() == state.keys()
    assert torch.equal(algorithm.aggregate(state, [empty])["means"], state["means"])


def test_a_class_of_which_no_site_sent_anything_keeps_its_prototypes():
    _, algorithm = gfpl()
    first, second = reply_of([0, 1], [30.0, 10.0], [[0.0], [5.0]]), reply_of([0, 2], [30.0, 10.0], [[0.1], [9.0]])
    state = algorithm.aggregate({}, [first, second])
    moved = reply_of([0, 1], [30.0, 10.0], [[1.0], [6.0]])
    after = algorithm.aggregate(state, [moved])  # the second site, the only one with class 2, is silent
    assert after["labels"].tolist() == [0, 1, 2]
    assert after["means"].flatten().tolist() == [1.0, 6.0, 9.0]
    told = algorithm.describe(after, [moved])
    assert (told["components_in"], told["components_out"], told["by_class"]) == (2, 2, {"0": [1, 1], "1": [1, 1]})


def changed(**arrays: torch.Tensor) -> Reply:
    sound = reply_of([0], [3.0], [[0.0, 0.0, 0.0]])
    return dataclasses.replace(sound, tensors={**sound.tensors, **arrays})


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (changed(weights=torch.ones(1)), "weights"),
        (changed(means=torch.full((1, 3), math.nan)), "means"),
        (changed(variances=torch.zeros(1, 3)), "variances"),
        (changed(counts=torch.tensor([-1.0])), "counts"),
        (changed(labels=torch.tensor([10])), "labels must be below 10"),
        (changed(labels=torch.tensor([-1])), "labels"),
        (changed(labels=torch.tensor([0, 1])), "labels"),
        (changed(means=torch.ones(1, 4), variances=torch.ones(1, 4)), "3 dimensions, these have 4"),
        (changed(means=torch.full((1, 3), 1e30)), "means must be finite and at most 1e\\+06"),
        (changed(variances=torch.full((1, 3), 3e38)), "variances must be finite and at most 1e\\+09"),
        (changed(counts=torch.tensor([3e38])), "counts must be finite and at most 1e\\+09"),
        (changed(counts=torch.tensor([41.0])), "components count 41 samples, the site has 40"),
        (reply_of([0] * 3, [1.0] * 3, [[0.0] * 3] * 3), "class 0 has 3 components, at most 2"),
        (
            changed(
                counts=torch.ones(1, dtype=torch.float64),
                means=torch.ones(1, 3, dtype=torch.float64),
                variances=torch.ones(1, 3, dtype=torch.float64),
            ),
            "counts must be float32",
        ),
    ],
)
def test_a_reply_that_is_no_bank_of_this_run_is_refused(reply, words):
    _, algorithm = gfpl()
    algorithm.check_reply(changed(), state={}, feature_dim=3, num_classes=10)
    with pytest.raises(ValueError, match=words):
        algorithm.check_reply(reply, state={}, feature_dim=3, num_classes=10)


def test_all_classes_together_stand_for_no_more_samples_than_the_site_has():
    _, algorithm = gfpl()
    algorithm.check_reply(reply_of([0, 1], [20.0, 20.0], [[0.0], [1.0]]), state={}, feature_dim=1, num_classes=2)
    with pytest.raises(ValueError, match="components count 50 samples, the site has 40"):
        algorithm.check_reply(reply_of([0, 1], [20.0, 30.0], [[0.0], [1.0]]), state={}, feature_dim=1, num_classes=2)


def test_a_class_whose_count_is_withheld_counts_as_one_sample():
    _, algorithm = gfpl(gfpl__share_counts=False)
    algorithm.check_reply(reply_of([0, 1], [1.0, 1.0], [[0.0], [1.0]]), state={}, feature_dim=1, num_classes=2)
    with pytest.raises(ValueError, match="class 1 counts 2 samples, without counts it is one"):
        algorithm.check_reply(reply_of([0, 1], [1.0, 2.0], [[0.0], [1.0]]), state={}, feature_dim=1, num_classes=2)


def test_prototypes_that_make_retraining_diverge_cost_a_site_nothing():
    site, algorithm = site_with(gfpl__classifier_on="features")  # on the projection they are of length one
    before = {name: tensor.clone() for name, tensor in site.model.state_dict().items()}
    bank = fused()
    wild = GaussianPrototypes(bank.labels, bank.counts, 1e20 * bank.means, bank.variances)
    found = alone(algorithm.retrain(site, wild, round=30))
    assert found["retrain_diverged"] == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in site.model.state_dict().items())


def test_prototypes_of_a_class_the_site_does_not_know_are_passed_over():
    site, algorithm = site_with()
    bank = fused(classes=12)
    other, _ = site_with()
    assert alone(algorithm.retrain(site, bank, round=30)) == alone(
        algorithm.retrain(other, fused(classes=12), round=30)
    )
    assert "retrain_loss" in alone(algorithm.retrain(site, bank, round=30))


@pytest.mark.gpu
def test_on_a_gpu_training_agrees_with_the_cpu():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, torch sees none")
    results = []
    for device in ("cpu", "cuda"):
        site, algorithm = site_with(gfpl__pseudo_per_class=10)
        site.model.to(device).dropout.p = 0.0  # masks are drawn on the device, so they differ
        bank = fused()
        alone(algorithm.retrain(site, bank, round=30))
        results.append(site.model.classifier.weight.detach().cpu())
    assert torch.allclose(*results, atol=1e-4)
