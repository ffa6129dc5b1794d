"""What a descent can have beside loss and data, each against torch's own layers and optimizers, site by site."""

import copy

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from gfpl_flwr.algorithms.gfpl import GFPL
from gfpl_flwr.core.losses import cross_entropy
from gfpl_flwr.training import Calibration, Descent, Samples, classifier_loss

COUNTS = (60, 33, 41, 8)


def sites(site_of):
    return [site_of(key, count, algorithm="local") for key, count in enumerate(COUNTS)]


def assert_near(model, other, tolerance=1e-5):
    for (name, ours), theirs in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=tolerance), name


def done(group, **options):
    return Descent.do([Descent(site, "train", site.train, classifier_loss, 3, 1, **options) for site in group])


def test_a_pull_is_half_mu_times_the_squared_distance_to_the_start(site_of, plain_round):
    group, mu = sites(site_of), 0.7
    for site, mean in zip(sites(site_of), done(group, pull=mu), strict=True):
        start = [weight.detach().clone() for weight in site.model.parameters()]

        def loss(model, features, labels, start=start):
            gap = sum((weight - was).square().sum() for weight, was in zip(model.parameters(), start, strict=True))
            return classifier_loss(model, features, labels) + mu / 2 * gap

        expected, whole = plain_round(site, loss, 3)
        assert_near(group[site.key].model, expected)
        assert mean <= whole  # the term is no part of the mean loss that is told


def constant_loss(model, features, labels, *, anchors):
    own = anchors.take_along_dim(labels[..., None], dim=-2)
    # Row by row, as losses of the package: over both at once the order follows how the features lie in memory.
    return classifier_loss(model, features, labels) + (features - own).square().mean(-1).mean(-1)


def test_each_site_has_its_own_constants(site_of, plain_round):
    group = sites(site_of)
    anchors = [torch.rand(5, 50, generator=torch.Generator().manual_seed(site.key)) for site in group]
    Descent.do(
        [
            Descent(site, "train", site.train, constant_loss, 3, 1, constants={"anchors": its})
            for site, its in zip(group, anchors, strict=True)
        ]
    )
    for site, its in zip(sites(site_of), anchors, strict=True):
        expected, _ = plain_round(site, lambda m, f, y, its=its: constant_loss(m, f, y, anchors=its), 3)
        assert_near(group[site.key].model, expected)


def beside_loss(model, features, labels, *, beside):
    return classifier_loss(model, features, labels) + cross_entropy(model.classifier(beside[0]), beside[1])


def test_each_step_takes_as_many_of_what_goes_beside_as_samples_in_order(site_of, plain_round):
    group = sites(site_of)
    extra = []
    for site in group:
        generator = torch.Generator().manual_seed(site.key)
        count = len(site.train)
        extra.append(Samples(torch.rand(count, 50, generator=generator), torch.arange(count) % 5))
    Descent.do(
        [
            Descent(site, "train", site.train, beside_loss, 3, 1, beside=its)
            for site, its in zip(group, extra, strict=True)
        ]
    )
    for site, its in zip(sites(site_of), extra, strict=True):
        place = 0

        def loss(model, features, labels, its=its):
            nonlocal place
            rows = slice(place, place + len(labels))
            place += len(labels)
            return beside_loss(model, features, labels, beside=(its.features[rows], its.labels[rows]))

        expected, _ = plain_round(site, loss, 3)
        assert place == len(site.train)
        assert_near(group[site.key].model, expected)


def calibrate(model, *, anchors):
    labels = torch.arange(5).expand(anchors.shape[:-1])
    return cross_entropy(model.classifier(anchors), labels)


def plain_loss(model, features, labels, *, anchors):
    return classifier_loss(model, features, labels)


def test_a_calibration_is_a_step_of_torchs_adam_on_the_heads_after_every_step(site_of, plain_round):
    group = sites(site_of)
    anchors = torch.rand(5, 50, generator=torch.Generator().manual_seed(0))
    Descent.do(
        [
            Descent(
                site, "train", site.train, plain_loss, 3, 1,
                constants={"anchors": anchors}, calibration=Calibration(calibrate, 0.01),
            )
            for site in group
        ]
    )  # fmt: skip
    for site in sites(site_of):
        adam: list[torch.optim.Adam] = []

        def calibrated(model, adam=adam):
            if not adam:
                adam.append(torch.optim.Adam(model.classifier.parameters(), lr=0.01))
                return
            adam[0].zero_grad()
            calibrate(model, anchors=anchors).backward()
            adam[0].step()

        def loss(model, features, labels, adam=adam):
            # the plain loop has no place after a step: what belongs there is done before the next
            calibrated(model)
            return classifier_loss(model, features, labels)

        # dropout and features of a step are computed before its loss is asked for, so features must not be trained
        expected, _ = plain_round(site, loss, 3)
        calibrated(expected)
        assert_near(group[site.key].model, expected)


def test_only_what_is_named_moves(site_of, plain_round):
    names = ("extractor.0.weight", "classifier.bias")
    group, before = sites(site_of), sites(site_of)
    done(group, trained=names)
    for site, start in zip(group, before, strict=True):
        for name, value in site.model.state_dict().items():
            assert torch.equal(value, start.model.state_dict()[name]) == (name not in names)


def test_another_turn_of_a_round_has_other_random_numbers(site_of):
    one, same, other = (sites(site_of)[:1] for _ in range(3))
    for group, turn in ((one, ""), (same, ""), (other, "head ")):
        done(group, turn=turn)
    weights = [group[0].model.classifier.weight for group in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    "options",
    [{"pull": 0.1}, {"calibration": Calibration(calibrate, 0.1)}, {"trained": ("classifier.bias",)}, {"turn": "x"},
     {"constants": {"anchors": torch.ones(5, 50)}}, {"beside": Samples(torch.ones(60, 50), torch.zeros(60).long())}],
    ids=lambda options: next(iter(options)),
)  # fmt: skip
def test_sites_that_differ_in_it_are_not_trained_as_one(site_of, options):
    site = site_of(0, 60)
    plain = Descent(site, "train", site.train, classifier_loss, 3, 1)
    assert plain.kind() != Descent(site, "train", site.train, classifier_loss, 3, 1, **options).kind()


def test_a_stack_with_everything_equals_each_site_alone_to_the_bit(site_of):
    anchors = torch.rand(5, 50, generator=torch.Generator().manual_seed(3))

    def all_of(group):
        return [
            Descent(
                site, "train", site.train, _everything, 3, 1,
                constants={"anchors": anchors * site.key},
                beside=Samples(torch.ones(len(site.train), 50) * site.key, torch.arange(len(site.train)) % 5),
                pull=0.1, calibration=Calibration(calibrate, 0.01),
            )
            for site in group
        ]  # fmt: skip

    together, single = sites(site_of), sites(site_of)
    assert Descent.do(all_of(together)) == [Descent.do([work])[0] for work in all_of(single)]
    for one, other in zip(together, single, strict=True):
        for name, value in one.model.state_dict().items():
            assert torch.equal(value, other.model.state_dict()[name]), name
    assert not torch.equal(together[0].model.classifier.weight, copy.deepcopy(together[1].model.classifier.weight))


def _everything(model, features, labels, *, anchors, beside):
    return constant_loss(model, features, labels, anchors=anchors) + beside_loss(
        model, features, labels, beside=beside
    )


class Reads(TorchDispatchMode):
    """Counts what makes a program wait for its device: values that it reads, and shapes that depend on values."""

    reading = frozenset({
        "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "bincount", "repeat_interleave",
        "_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive",
    })  # fmt: skip

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        chosen = args[1] if function.overloadpacket.__name__ in ("index", "index_put_") else ()
        by_mask = any(values is not None and values.dtype == torch.bool for values in chosen)
        self.count += by_mask or function.overloadpacket.__name__ in self.reading
        return function(*args, **(kwargs or {}))


class Copies(TorchFunctionMode):
    """Counts copies between the host and a device, which dispatch nothing where both are one."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        to_host = name == "to" and any(str(word) == "cpu" for word in (*args[1:], *kwargs.values()))
        self.count += to_host or name in ("cpu", "tolist", "numpy", "__array__")
        return function(*args, **kwargs)


def test_reads_are_counted():
    with Reads() as reads, Copies() as copies:
        values = torch.arange(4.0)
        values[values > 1], values.sum().item(), torch.equal(values, values), values[torch.tensor([1])]
        values.cpu(), values.to("cpu"), values.to(device=torch.device("cpu")), values.tolist(), values.numpy()
        values.to(torch.float64)
    assert (reads.count, copies.count) == (3, 5)


def test_an_epoch_reads_nothing_back_from_the_device(site_of):
    counts = {}
    for epochs in (1, 3):
        group = [site_of(key, count, algorithm="gfpl") for key, count in enumerate(COUNTS)]
        with Reads() as reads, Copies() as copies:
            Descent.do([Descent(site, "train", site.train, GFPL().loss, 3, epochs) for site in group])
        counts[epochs] = reads.count, copies.count
    (reads, copies), further = counts[1], 2
    assert counts[3] == (reads, copies + further)  # each epoch's order goes to the device, in one piece
