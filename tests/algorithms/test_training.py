"""Every option of local training, retraining and fusion reaches what it names."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from gfpl_flwr.algorithms import parse_run
from gfpl_flwr.algorithms.base import Reply
from gfpl_flwr.algorithms.gfpl import GFPL
from gfpl_flwr.config import RunConfig
from gfpl_flwr.core.prototypes import GaussianPrototypes
from gfpl_flwr.models import DualClassifier, SplitModel, build_extractor, seeded_init
from gfpl_flwr.training import Images, Loss, Site, alone, classifier_loss, local_rounds

CLASSES, DIM = 4, 50
SHAPES = {"cnn": (1, 8, 8), "resnet18": (3, 32, 32)}


def gfpl(**options) -> tuple[RunConfig, GFPL]:
    flat = {key.replace("__", ".").replace("_", "-"): value for key, value in options.items()}
    config, algorithm = parse_run(flat)
    resolved = algorithm.resolve(config, CLASSES)
    assert isinstance(resolved, GFPL)
    return config, resolved


def site_of(architecture: str = "cnn", *, samples: int = 12, key: int | str = 0, **options) -> tuple[Site, GFPL]:
    """A site with random images, each of them another; the same ones for every key."""
    config, algorithm = gfpl(**options)
    shape = SHAPES[architecture]
    extractor = seeded_init(lambda: build_extractor(architecture, shape), 0)
    dim, dropout = (DIM, 0.5) if architecture == "cnn" else (512, 0.0)
    model = algorithm.build_model(extractor, dim, CLASSES, dropout=dropout, seed=1)
    pixels = torch.randint(0, 256, (samples, *shape), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    half = torch.full((shape[0], 1, 1), 0.5)
    images = Images(pixels, torch.arange(samples) % CLASSES, half, half)
    return Site(key, model, images, images, config, batch_size=4), algorithm


def seen_by(site: Site, round: int = 1) -> list[Tensor]:
    """The pixels of every step of one local round."""
    seen: list[Tensor] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if torch.is_grad_enabled():  # not in the test after the round
            seen.append(inputs[0].clone())

    hook = site.model.extractor.register_forward_pre_hook(note)
    train_round(site, round)
    hook.remove()
    return seen


def train_round(site: Site, round: int, loss: Loss = classifier_loss) -> float:
    """Train for one local round and return the mean loss."""
    return alone(local_rounds(site, [round], loss))[1]


def rows_of(batches: list[Tensor]) -> list[tuple[float, ...]]:
    return [tuple(row.flatten().tolist()) for batch in batches for row in batch]


# ---- local training -----------------------------------------------------------------------------------------


def test_a_round_passes_over_the_data_as_often_as_local_epochs_says():
    site, _ = site_of(local_epochs=3)
    seen = seen_by(site)
    assert [len(batch) for batch in seen] == [4] * 9
    epochs = [rows_of(seen[start : start + 3]) for start in (0, 3, 6)]
    stored = sorted(rows_of([site.train.pixels(slice(None))]))
    assert [sorted(epoch) for epoch in epochs] == [stored] * 3
    assert epochs[0] != epochs[1] != epochs[2]  # shuffled anew


@pytest.mark.parametrize(("size", "steps"), [(5, [5, 5, 2]), (6, [6, 6]), (12, [12]), (100, [12])])
def test_a_step_sees_a_batch(size, steps):
    site, _ = site_of()
    assert [len(batch) for batch in seen_by(replace(site, batch_size=size))] == steps


def test_images_are_cropped_and_flipped_in_training_only_and_only_if_asked():
    site, algorithm = site_of()
    stored = set(rows_of([site.train.pixels(slice(None))]))
    assert set(rows_of(seen_by(site))) == stored
    # An image comes through whole with probability 1 / (9 * 9 * 2), so 12 of them never all do.
    augmented = replace(site, augment=True)
    first, again, second = (rows_of(seen_by(augmented, round)) for round in (1, 1, 2))
    assert len(set(first) - stored) >= 10
    assert first == again
    assert set(first) != set(second)
    plain, _ = alone(algorithm.prototypes(site))
    bank, _ = alone(algorithm.prototypes(augmented))
    assert torch.equal(bank.means, plain.means)


def test_a_site_with_one_sample_trains_resnet18_and_keeps_its_batch_statistics():
    """BatchNorm after the last stage of a 32 x 32 image sees one value a channel: no variance to learn from."""
    site, algorithm = site_of("resnet18", samples=1)
    before = {name: tensor.clone() for name, tensor in site.model.state_dict().items()}
    loss = train_round(site, 1, algorithm.loss)
    assert torch.tensor(loss).isfinite()
    buffers = {name for name, _ in site.model.named_buffers()}
    changed = {name for name, tensor in site.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert not changed & buffers
    assert "extractor.conv1.weight" in changed


def test_two_samples_are_enough_for_batch_statistics():
    site, algorithm = site_of("resnet18", samples=2)
    train_round(site, 1, algorithm.loss)
    norms = [module for module in site.model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.num_batches_tracked == 1 for norm in norms)
    assert not site.model.training


# ---- what a site draws --------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", [Site.generator, Site.device_generator], ids=["generator", "device_generator"])
def test_site_round_purpose_and_seed_each_change_what_is_drawn(draw: Callable[[Site, int, str], torch.Generator]):
    site, _ = site_of(key=2, seed=5)
    other_seed, _ = site_of(key=2, seed=6)
    cases = [
        (site, 1, "shuffle"),
        (replace(site, key=3), 1, "shuffle"),
        (replace(site, key="camera-2"), 1, "shuffle"),
        (site, 2, "shuffle"),
        (site, 1, "dropout"),
        (other_seed, 1, "shuffle"),
    ]
    first, again = ([tuple(torch.rand(4, generator=draw(*case)).tolist()) for case in cases] for _ in range(2))
    assert first == again
    assert len(set(first)) == len(cases)


def test_sites_with_the_same_data_shuffle_it_each_in_its_own_order_every_round():
    orders = {(key, round): tuple(rows_of(seen_by(site_of(key=key)[0], round))) for key in (0, 1) for round in (1, 2)}
    assert len(set(orders.values())) == 4


def test_dropout_differs_by_site_and_by_round():
    def masks(key: int, round: int) -> tuple[float, ...]:
        site, _ = site_of(key=key)
        drawn = []

        def loss(model: SplitModel, features: Tensor, labels: Tensor) -> Tensor:
            drawn.append(model.dropout(torch.ones_like(features)))
            return classifier_loss(model, features, labels)

        train_round(site, round, loss)
        return tuple(drawn[0].flatten().tolist())

    assert masks(0, 1) == masks(0, 1)
    assert len({masks(key, round) for key in (0, 1) for round in (1, 2)}) == 4


# ---- retraining: equation 14 --------------------------------------------------------------------------------


def mixture(means: Tensor, variance: float = 0.01) -> GaussianPrototypes:
    """One component a class, of the same count."""
    rows = len(means)
    return GaussianPrototypes(torch.arange(rows), torch.full((rows,), 9.0), means, torch.full_like(means, variance))


def steps_of(site: Site, algorithm: GFPL, bank: GaussianPrototypes) -> dict[str, Tensor]:
    """What retraining adds to every parameter of the heads."""
    assert isinstance(site.model, DualClassifier)
    heads = {"classifier": site.model.classifier, "projection": site.model.projection}
    before = {
        f"{head}.{name}": tensor.detach().clone()
        for head, layer in heads.items()
        for name, tensor in layer.named_parameters()
    }
    alone(algorithm.retrain(site, bank, round=3))
    return {
        f"{head}.{name}": tensor.detach() - before[f"{head}.{name}"]
        for head, layer in heads.items()
        for name, tensor in layer.named_parameters()
    }


def test_clamped_pseudo_features_have_no_negative_coordinate():
    """A weight moves by the gradient of its output times its input, so from an input of 0 it stays to the bit.

    Even coordinates have mean -3 and standard deviation 0.1, hence are 0 when clamped; odd ones have mean 3.
    """
    means = torch.full((CLASSES, DIM), 3.0)
    means[:, ::2] = -3.0
    for clamp in (True, False):
        site, algorithm = site_of(gfpl__clamp_pseudo=clamp, gfpl__pseudo_per_class=10, gfpl__classifier_on="features")
        for name, step in steps_of(site, algorithm, mixture(means)).items():
            if name.endswith("weight"):
                assert bool((step[:, ::2] == 0).all()) is clamp, (name, clamp)
                assert (step[:, 1::2] != 0).any()


def test_lambda_weights_dot_regression_in_retraining():
    """In one SGD step from zero momentum the classifier moves by -lr dCE, the projection by -lr lambda dDR."""
    means = 3 * torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(2))
    moved = {}
    for weight in (0.0, 0.5, 1.0, 3.0):
        site, algorithm = site_of(gfpl__dr_weight=weight, gfpl__pseudo_per_class=10, gfpl__classifier_on="features")
        whole = replace(site, batch_size=10 * CLASSES)  # one batch, one step
        moved[weight] = steps_of(whole, algorithm, mixture(means))
    assert moved[1.0]["projection.weight"].abs().max() > 1e-5
    for weight, steps in moved.items():
        for name in ("projection.weight", "projection.bias"):
            torch.testing.assert_close(steps[name], weight * moved[1.0][name], rtol=1e-3, atol=1e-7)
        for name in ("classifier.weight", "classifier.bias"):
            assert torch.equal(steps[name], moved[1.0][name])


@pytest.mark.parametrize(("per_class", "epochs", "size"), [(5, 1, 4), (5, 3, 4), (8, 2, 16), (1, 1, 100)])
def test_retraining_takes_as_many_steps_as_its_options_say(monkeypatch, per_class, epochs, size):
    """5 a class are 20 pseudo-features: 5 batches of 4 an epoch; 8 a class are 32: 2 batches of 16."""
    site, algorithm = site_of(gfpl__pseudo_per_class=per_class, gfpl__retrain_epochs=epochs)
    seen: list[Tensor] = []
    loss = GFPL.loss

    def spy(self: GFPL, model: SplitModel, features: Tensor, labels: Tensor) -> Tensor:
        seen.append(features[0])
        return loss(self, model, features, labels)

    monkeypatch.setattr(GFPL, "loss", spy)
    alone(algorithm.retrain(replace(site, batch_size=size), mixture(torch.ones(CLASSES, DIM)), round=3))
    a_batch = min(size, per_class * CLASSES)
    assert [len(batch) for batch in seen] == [a_batch] * (epochs * per_class * CLASSES // a_batch)
    assert len({tuple(row.tolist()) for batch in seen for row in batch}) == per_class * CLASSES


# ---- fusion on the server -----------------------------------------------------------------------------------


def fused_by(means: list[list[float]], **options) -> GaussianPrototypes:
    """What the server makes of sites with one component of class 0 each, of count 10 and variance 1."""
    _, algorithm = gfpl(**options)
    replies = []
    for mean in means:
        row = torch.tensor([mean])
        bank = GaussianPrototypes(torch.tensor([0]), torch.tensor([10.0]), row, torch.ones_like(row))
        replies.append(Reply(dict(bank.to_tensors()), 10))
    return GaussianPrototypes.from_tensors(algorithm.aggregate({}, replies))


@pytest.mark.parametrize(("merge", "variance"), [("moment", 1.25), ("average", 1.0)])
def test_the_server_merges_as_merge_says(merge, variance):
    """Means 0 and 1, equal counts: mean 0.5; the pooled variance has 0.5 * 0.5 * 1^2 more than the average."""
    bank = fused_by([[0.0], [1.0]], gfpl__merge=merge)
    assert (bank.counts.tolist(), bank.means.tolist(), bank.variances.tolist()) == ([20], [[0.5]], [[variance]])


@pytest.mark.parametrize(
    ("options", "components"),
    [
        ({"gfpl__scale": "mean"}, 1),
        ({"gfpl__scale": "sum"}, 2),
        ({}, 1),
        ({"preset": "paper"}, 2),
        ({"preset": "paper", "gfpl__scale": "mean"}, 1),
    ],
)
def test_the_server_measures_as_scale_says(options, components):
    """Gap 2 in each of 4 coordinates, variances 1: 2^2 / 8 = 0.5 nats a coordinate, 2 in all; threshold 1."""
    assert len(fused_by([[0.0] * 4, [2.0] * 4], **options)) == components


@pytest.mark.parametrize(("rule", "means"), [("closest_pair", [0.0, 2.1]), ("first_fit", [1.4])])
def test_the_server_merges_in_the_order_that_rule_says(rule, means):
    """Means 0, 1.6 and 2.6, variances 1 that stay 1: gap^2 / 8 < 0.5 where the gap is below 2.

    First fit: 1.6 joins 0 at 0.8, and 2.6, which is 1.8 away, joins both: 4.2 / 3 = 1.4. Closest pair: 1.6 and 2.6
    become 2.1, which is too far from 0.
    """
    options = {"gfpl__rule": rule, "gfpl__merge": "average", "gfpl__threshold": 0.5}
    bank = fused_by([[0.0], [1.6], [2.6]], **options)
    assert sorted(bank.means.flatten().tolist()) == pytest.approx(means)


@pytest.mark.parametrize(("threshold", "components"), [(0.0, 3), (0.2, 2), (float("inf"), 1)])
def test_the_server_merges_below_the_threshold(threshold, components):
    """Gaps 1 and 30: 1 / 8 and 112.5 nats."""
    assert len(fused_by([[0.0], [1.0], [31.0]], gfpl__threshold=threshold)) == components
