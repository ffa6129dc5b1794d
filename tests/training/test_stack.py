"""Sites that train as one network get what each gets by itself."""

import copy
import traceback
import weakref
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from gfpl_flwr.algorithms import ALGORITHMS, parse_run
from gfpl_flwr.models import CannotStackError, Dropout, SplitModel, Stack
from gfpl_flwr.training import Descent, Samples, Site, Work, alone, classifier_loss, evaluate, together


def descents(sites, loss=classifier_loss, round=3):
    return [Descent(site, "train", site.train, loss, round, site.config.local_epochs) for site in sites]


def features_of(model, site):
    """What torch's own layers make of a site's training images."""
    with torch.no_grad():
        return model.eval().extractor(site.train.pixels(slice(None)))


def gfpl_loss():
    config, algorithm = parse_run({})
    return algorithm.resolve(config, 5).loss


def assert_near(model: SplitModel, other: SplitModel, tolerance: float) -> None:
    for (name, ours), theirs in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.allclose(ours.double(), theirs.double(), rtol=0, atol=tolerance), name


@pytest.mark.parametrize(
    ("architecture", "samples", "size", "epochs"),
    [
        ("cnn", (200, 130, 41, 4, 3), 4, 1),  # 50 steps; whole batches only, a last one of 2, of 5, one batch, less
        ("cnn", (9, 8, 13, 12, 5), 4, 2),  # more samples but fewer whole batches: 9 is 4 + 5
        ("cnn", (40, 22), 8, 5),
    ],
)
def test_a_stack_equals_torchs_own_layers_and_optimizer_site_by_site(
    site_of, plain_round, architecture, samples, size, epochs
):
    sites = [
        site_of(key, count, architecture, batch_size=size, local_epochs=epochs) for key, count in enumerate(samples)
    ]
    loss = gfpl_loss()
    expected = [plain_round(site, loss, 3) for site in sites]
    starts = [copy.deepcopy(site.model) for site in sites]
    means = Descent.do(descents(sites, loss))
    for site, start, mean, (model, its_mean) in zip(sites, starts, means, expected, strict=True):
        assert not torch.allclose(site.model.classifier.weight, start.classifier.weight, atol=1e-4)  # it trained
        assert_near(site.model, model, 1e-5)
        assert mean == pytest.approx(its_mean, abs=1e-5)
        ours, theirs = (alone(evaluate(replace(site, model=m), round=3, phase="train")) for m in (site.model, model))
        assert all(torch.equal(ours.correct[head], theirs.correct[head]) for head in ours.correct)
        predicted = [m.scores(features_of(m, site))["sum"].argmax(1) for m in (site.model, model)]
        assert torch.equal(*predicted)


def test_a_site_gets_the_same_bits_alone_and_beside_others(site_of):
    samples = (60, 33, 41, 8, 22, 60)

    def trained(*groups):
        sites = [site_of(key, count) for key, count in enumerate(samples)]
        for group in groups:
            Descent.do(descents([sites[key] for key in group], gfpl_loss()))
        return [site.model.state_dict() for site in sites]

    one_by_one = trained(*[[key] for key in range(6)])
    for other in (trained(range(6)), trained((5, 3, 1), (0, 2, 4)), trained((0, 1), (2, 3, 4, 5))):
        for mine, theirs in zip(one_by_one, other, strict=True):
            for name, value in mine.items():
                assert torch.equal(value, theirs[name]), name


def double(site):
    site.model.double()
    images = replace(site.train, mean=site.train.mean.double(), std=site.train.std.double())
    return replace(site, train=images, test=images)


@pytest.mark.slow
def test_a_stack_of_resnet18_equals_torchs_own_layers_and_optimizer_site_by_site(site_of, plain_round):
    """In double precision: BatchNorm over the few values of the last stage triples a difference with every step and
    more, so that after 20 steps in single precision nothing could be told from rounding."""

    sites = [
        double(site_of(key, count, "resnet18", batch_size=8, learning_rate=0.01))
        for key, count in enumerate((46, 25, 46))
    ]
    expected = [plain_round(site, gfpl_loss(), 3)[0] for site in sites]
    Descent.do(descents(sites, gfpl_loss()))
    for site, model in zip(sites, expected, strict=True):
        assert_near(site.model, model, 1e-8)
        predicted = [m.scores(features_of(m, site))["sum"].argmax(1) for m in (site.model, model)]
        assert torch.equal(*predicted)


@pytest.mark.slow
def test_batch_statistics_are_each_sites_own(site_of):
    sites = [site_of(key, 9, "resnet18", gfpl__classifier_on="features") for key in range(2)]
    Descent.do(descents(sites))
    norms = [[m for m in site.model.modules() if isinstance(m, nn.BatchNorm2d)] for site in sites]
    assert [norm.num_batches_tracked.item() for norm in norms[0]] == [2] * len(norms[0])
    assert not any(torch.equal(a.running_mean, b.running_mean) for a, b in zip(*norms, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("architecture", ["cnn", "resnet18"])
def test_on_a_gpu_a_stack_agrees_with_the_processor(site_of, architecture):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, torch sees none")

    def moved(site, device):
        for layer in site.model.modules():
            if isinstance(layer, Dropout):
                layer.p = 0.0  # masks are drawn on the device, so they differ
        its = site.train
        images = replace(its, **{name: getattr(its, name).to(device) for name in ("images", "labels", "mean", "std")})
        site.model.to(device)
        return replace(site, train=images, test=images)

    trained = []
    for device in ("cpu", "cuda"):
        sites = [
            moved(site_of(key, count, architecture, learning_rate=0.01), device)
            for key, count in enumerate((9, 8, 9))
        ]
        if architecture == "resnet18":
            # In single precision a card's convolutions use TensorFloat-32, with three digits, of which BatchNorm over
            # few values can make far more.
            sites = [double(site) for site in sites]
        Descent.do(descents(sites, gfpl_loss()))
        trained.append([site.model.cpu() for site in sites])
    for on_cpu, on_gpu in zip(*trained, strict=True):
        assert_near(on_cpu, on_gpu, 1e-3)


def test_retraining_in_a_stack_moves_the_heads_alone(site_of):
    def sites():
        return [site_of(key, 6) for key in range(3)]

    generator = torch.Generator().manual_seed(0)
    samples = [Samples(torch.rand(count, 50, generator=generator), torch.arange(count) % 5) for count in (40, 40, 21)]
    stacked, single, before = sites(), sites(), sites()
    works = [
        [Descent(site, "retrain", its, gfpl_loss(), 4, 2) for site, its in zip(group, samples, strict=True)]
        for group in (stacked, single)
    ]
    assert Descent.do(works[0]) == [Descent.do([work])[0] for work in works[1]]
    for one, other, start in zip(stacked, single, before, strict=True):
        assert_near(one.model, other.model, 0)
        changed = {
            name
            for name, value in one.model.state_dict().items()
            if not torch.equal(value, start.model.state_dict()[name])
        }
        assert changed == {"projection.weight", "projection.bias", "classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_a_whole_visit_is_the_same_alone_and_beside_others(site_of, name):
    options = {"algorithm": name, "rounds": 4, "gfpl__first_exchange": 2, "gfpl__exchange_every": 1}
    config, algorithm = parse_run({key.replace("__", ".").replace("_", "-"): value for key, value in options.items()})
    algorithm = algorithm.resolve(config, 5)
    ours, theirs = ([site_of(key, 20 + 7 * key, **options) for key in range(4)] for _ in range(2))
    state = algorithm.initial(copy.deepcopy(ours[0].model))
    for visit in algorithm.visits(config):
        downs = [algorithm.downlink(state, site.key) if visit.download else {} for site in ours]
        halves = [algorithm.steps(site, down, visit) for site, down in zip(ours, downs, strict=True)]
        replies = [replace(reply, site=site.key) for reply, site in zip(together(halves), ours, strict=True)]
        for reply, site, down in zip(replies, theirs, downs, strict=True):
            expected = algorithm.visit(site, down, visit)
            assert reply.diagnostics == expected.diagnostics
            for counts, others in zip(reply.accuracy, expected.accuracy, strict=True):
                assert all(torch.equal(right, others.correct[head]) for head, right in counts.correct.items())
            assert all(torch.equal(reply.tensors[key], expected.tensors[key]) for key in expected.tensors)
        if visit.upload:
            state = algorithm.aggregate(state, replies)
    for one, other in zip(ours, theirs, strict=True):
        assert_near(one.model, other.model, 0)


# ---- which sites work as one --------------------------------------------------------------------------------


def test_only_equal_work_is_done_at_once(site_of):
    work = descents([site_of(0, 8)])[0]
    alike = descents([site_of(1, 30)])[0]
    assert work.kind() == alike.kind()
    others = [
        descents([site_of(0, 8, batch_size=5)])[0],
        descents([site_of(0, 8, local_epochs=2)])[0],
        descents([site_of(0, 8, learning_rate=0.5)])[0],
        descents([site_of(0, 8, gfpl__dual_classifier=False)])[0],
        descents([site_of(0, 8, gfpl__projection_dim=20)])[0],
        descents([site_of(0, 1)])[0],  # BatchNorm keeps its statistics
        replace(work, loss=gfpl_loss()),
        replace(work, site=replace(work.site, augment=True)),
        replace(work, data=Samples(torch.rand(8, 50), torch.zeros(8, dtype=torch.int64))),
    ]
    assert all(other.kind() != work.kind() for other in others)


def test_a_processor_trains_large_models_one_by_one(site_of):
    small = descents([site_of(key, 4) for key in range(2)])
    large = descents([site_of(key, 4, "resnet18") for key in range(2)])
    assert small[0].kind() == small[1].kind()
    assert large[0].kind() != large[1].kind()


def test_sites_without_data_have_no_loss_and_keep_their_model(site_of):
    site = site_of(0, 0)
    before = copy.deepcopy(site.model)
    assert [str(mean) for mean in Descent.do(descents([site, site_of(1, 0)]))] == ["nan", "nan"]
    assert_near(site.model, before, 0)


def test_a_site_that_diverges_fails_alone_and_keeps_its_model(site_of):
    sites = [site_of(key, 12) for key in range(3)]
    with torch.no_grad():
        sites[1].model.classifier.weight.fill_(1e38)
    before = copy.deepcopy(sites[1].model)
    first, second, third = Descent.do(descents(sites))
    assert isinstance(second, FloatingPointError)
    assert "lower learning-rate = 0.05" in str(second)
    assert_near(sites[1].model, before, 0)
    for key, mean in ((0, first), (2, third)):
        other = site_of(key, 12)
        assert Descent.do(descents([other])) == [mean]
        assert_near(sites[key].model, other.model, 0)


def test_models_that_cannot_stack_are_trained_one_by_one_and_it_is_said(site_of, plain_round, caplog):
    sites = [site_of(key, 9) for key in range(2)]
    for site in sites:
        site.model.extractor.append(Scale(torch.full((), 1.0 + site.key)))  # a buffer of its own in each
    with pytest.raises(CannotStackError, match=r"extractor.10.factor of a Scale is no weight of a layer that stacks"):
        Stack([site.model for site in sites])
    expected = [plain_round(site, gfpl_loss(), 3)[0] for site in sites]

    def half(work):
        return (yield work)

    means = together([half(work) for work in descents(sites, gfpl_loss())])
    assert all(isinstance(mean, float) for mean in means)
    assert "2 sites could not work as one, they go one by one" in caplog.text
    for site, model in zip(sites, expected, strict=True):
        assert_near(site.model, model, 1e-5)


@dataclass(frozen=True)
class Greedy(Work):
    """Work that takes memory and fails."""

    site: Site
    taken: list[weakref.ref[torch.Tensor]]
    alive: list[int]
    phase: str = "train"

    def kind(self):
        return None

    @classmethod
    def do(cls, works):
        first = works[0]
        first.alive.append(sum(ref() is not None for ref in first.taken))
        memory = torch.zeros(10)
        first.taken.append(weakref.ref(memory))
        raise MemoryError("no room")


def test_the_memory_of_what_failed_is_free_before_the_next_try(site_of):
    taken, alive = [], []

    def half(work):
        return (yield work)

    outcomes = together([half(Greedy(site_of(key, 5), taken, alive)) for key in range(3)])
    assert [str(outcome) for outcome in outcomes] == ["no room"] * 3
    assert alive == [0, 0, 0, 0]  # at once, then one by one
    assert all("raise MemoryError" in traceback.format_tb(its.__traceback__)[-1] for its in outcomes)


class Scale(nn.Module):
    """Multiplies by a number that is no parameter."""

    factor: torch.Tensor

    def __init__(self, factor: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("factor", factor)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs * self.factor


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 4, 3, padding="same"),
        nn.Conv2d(2, 4, 3, padding_mode="reflect"),
        nn.BatchNorm2d(4, affine=False),
        nn.BatchNorm2d(4, momentum=None),
        nn.PReLU(),
    ],
    ids=repr,
)
def test_layers_that_do_not_stack_are_refused_and_can_be_trained_alone(layer):
    models = [SplitModel(nn.Sequential(layer, nn.Flatten()), 4 * 9, 2) for layer in (layer, copy.deepcopy(layer))]
    with pytest.raises(CannotStackError, match=r"does not stack|no weight of a layer that stacks"):
        Stack(models)
    stack = Stack(models[:1])
    stack.network.eval()
    channels = getattr(layer, "in_channels", 4)
    pixels = torch.randn(2, channels, 5, 5)
    with torch.no_grad():
        for value in stack.active.values():
            value += 1.0
        before = models[0].extractor.eval()(pixels).clone()
        stack.write_back([0])
        after = models[0].extractor(pixels)
        if stack.active.keys() - stack.head_weights.keys():
            assert not torch.allclose(before, after)
        folded = stack.network.extractor(pixels)
    torch.testing.assert_close(folded, after)


@pytest.mark.parametrize(
    "extractor",
    [
        nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False), nn.Flatten(), nn.Linear(64, 6, bias=False)
        ),
        nn.Sequential(nn.Conv2d(2, 4, (3, 1), dilation=2, groups=2), nn.Flatten(), nn.Linear(128, 6)),
    ],
)
def test_convolutions_of_every_kind_map_as_in_the_models(extractor):
    models = []
    for seed in range(3):
        torch.manual_seed(seed)
        model = SplitModel(copy.deepcopy(extractor), 6, 2).eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter)
        models.append(model)
    stack = Stack(models)
    pixels = torch.rand(5, 3, 2, 8, 8)
    features = stack.features(pixels.flatten(1, 2))
    for site, model in enumerate(models):
        torch.testing.assert_close(features[site], model.extractor(pixels[:, site]))
        torch.testing.assert_close(stack.network.eval().logits(features)[site], model.logits(features[site]))


def test_a_stack_drops_in_each_site_what_its_masks_say():
    models = [SplitModel(nn.Sequential(Dropout(2, 0.5), nn.Flatten()), 8, 3, dropout=0.5) for _ in range(2)]
    stack = Stack(models)
    stack.network.train()
    channels, features = torch.rand(2, 3, 2), torch.rand(2, 3, 8)
    stack.set_masks(stack.arrange([channels, features]))
    pixels = torch.rand(3, 2, 2, 2, 2)
    out = stack.features(pixels.flatten(1, 2))
    expected = (pixels.transpose(0, 1) * channels[..., None, None]).flatten(2)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(stack.network.dropout(out), out * features)


# ---- halves of sites, side by side --------------------------------------------------------------------------


def test_halves_run_side_by_side_and_fail_alone(site_of):
    def half(key):
        if key == 1:
            raise ValueError("no data")
        site = site_of(key, 8)
        first = yield Descent(site, "train", site.train, classifier_loss, 1, 1)
        if key == 2:
            raise RuntimeError("power cut")
        second = yield Descent(site, "train", site.train, classifier_loss, 2, 1)
        return key, first, second, sorted(site.watch.seconds)

    outcomes = together([half(key) for key in range(4)], at_once=2)
    assert [type(outcome) for outcome in outcomes] == [tuple, ValueError, RuntimeError, tuple]
    assert outcomes[0] == alone(half(0))
    assert outcomes[3] == alone(half(3))
    with pytest.raises(ValueError, match="no data"):
        alone(half(1))


def test_a_half_may_go_on_after_work_that_failed(site_of):
    def half(site):
        with torch.no_grad():
            site.model.classifier.weight.fill_(1e38)
        try:
            yield Descent(site, "train", site.train, classifier_loss, 1, 1)
        except FloatingPointError:
            return "went on"

    assert together([half(site_of(key, 8)) for key in range(2)]) == ["went on", "went on"]
