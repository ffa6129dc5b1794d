"""Methods in which weights travel: what is averaged, how, and what never leaves a site."""

import copy
from dataclasses import replace

import pytest
import torch

from gfpl_flwr.algorithms.averaging import weighted_mean
from gfpl_flwr.algorithms.base import Reply, Visit, every_round
from gfpl_flwr.algorithms.checks import check_like
from gfpl_flwr.algorithms.fedavg import FedAvg
from gfpl_flwr.models import SplitModel, build_extractor, seeded_init
from gfpl_flwr.training import Descent

AVERAGING = ("fedavg", "fedprox", "fesem", "fedper", "fedrep", "fedfa", "fedpa")
CONVOLUTIONS = ["extractor.0.weight", "extractor.0.bias", "extractor.3.weight", "extractor.3.bias"]
LINEAR = ["extractor.8.weight", "extractor.8.bias"]
CLASSIFIER = ["classifier.weight", "classifier.bias"]


def one_visit(site, algorithm, down=None, *, index=1):
    visit = Visit(index, index, index, download=index > 1, upload=True)
    return algorithm.visit(site, down or {}, visit)


# ---- the mean --------------------------------------------------------------------------------------------------


def test_the_mean_is_weighted_by_samples_by_hand():
    replies = [Reply({"w": torch.tensor([1.0, 5.0])}, 1), Reply({"w": torch.tensor([5.0, 1.0])}, 3)]
    assert weighted_mean(replies, ["w"])["w"].tolist() == [4.0, 2.0]  # (1 + 15) / 4 and (5 + 3) / 4


@pytest.mark.parametrize(
    ("name", "travels"),
    [
        ("fedavg", CONVOLUTIONS + LINEAR + CLASSIFIER),
        ("fedprox", CONVOLUTIONS + LINEAR + CLASSIFIER),
        ("fedper", CONVOLUTIONS),
        ("fedrep", CONVOLUTIONS),
        ("fedfa", [*CONVOLUTIONS, *LINEAR, *CLASSIFIER, "anchors"]),
    ],
)
def test_the_server_weighs_two_sites_by_their_samples_by_hand(make_site, name, travels):
    site, algorithm, _ = make_site(name, 0, [0, 1])
    state = algorithm.initial(copy.deepcopy(site.model))
    low = {entry: torch.arange(float(value.numel())).view(value.shape) for entry, value in state.items()}
    high = {entry: value + 4 for entry, value in low.items()}
    found = algorithm.aggregate(state, [Reply(low, 3), Reply(high, 1)])
    # (3 w + (w + 4)) / 4 = w + 1, whatever the server had before
    assert sorted(found) == sorted(travels)
    for entry, value in found.items():
        assert torch.equal(value, low[entry] + 1), entry


def test_without_a_sample_there_is_no_mean():
    assert weighted_mean([Reply({"w": torch.ones(1)}, 0)], ["w"]) == {}


def test_statistics_of_batchnorm_are_averaged_and_its_count_stays_at_home():
    model = seeded_init(lambda: SplitModel(build_extractor("resnet18", (3, 32, 32)), 512, 5), 0)
    names = FedAvg().shared(model)
    assert "extractor.bn1.running_mean" in names
    assert "extractor.bn1.running_var" in names
    assert set(model.state_dict()) - set(names) == {
        name for name in model.state_dict() if name.endswith("num_batches_tracked")
    }
    state = FedAvg().initial(model)
    low, high = ({name: torch.full_like(value, number) for name, value in state.items()} for number in (0.0, 4.0))
    mean = FedAvg().aggregate(state, [Reply(low, 3), Reply(high, 1)])
    assert mean["extractor.bn1.running_var"].unique().tolist() == [1.0]


# ---- a site ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AVERAGING)
def test_a_site_takes_over_what_is_handed_down_and_tests_that(make_site, name):
    site, algorithm, _ = make_site(name, 0, [0, 1] * 8)
    other, _, _ = make_site(name, 1, [1, 2] * 8)
    state = algorithm.initial(copy.deepcopy(site.model))
    state = algorithm.aggregate(state, [replace(one_visit(other, algorithm), site=1)])
    down = algorithm.downlink(state, 1)
    last = Visit(2, 2, 1, download=True)
    reply = algorithm.visit(site, down, last)
    assert reply.tensors == {}
    (counts,) = reply.accuracy
    assert (counts.round, counts.phase) == (1, "received")
    values = site.model.state_dict()
    for entry in algorithm.shared(site.model):
        assert torch.equal(values[entry], down[entry]), entry


@pytest.mark.parametrize("name", AVERAGING)
def test_what_a_site_sends_is_what_the_server_accepts(make_site, name):
    site, algorithm, _ = make_site(name, 0, [0, 1] * 8)
    state = algorithm.initial(copy.deepcopy(site.model))
    reply = one_visit(site, algorithm)
    algorithm.check_reply(reply, state=state, feature_dim=50, num_classes=5)
    for change in (float("nan"), float("inf"), 1e30):
        entry = "extractor.0.weight"
        bad = dict(reply.tensors) | {entry: torch.full_like(reply.tensors[entry], change)}
        with pytest.raises(ValueError, match=r"extractor.0.weight must be finite and at most 1e\+09"):
            algorithm.check_reply(replace(reply, tensors=bad), state=state, feature_dim=50, num_classes=5)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({}, r"missing \['a', 'b'\]"),
        ({"a": torch.ones(2), "b": torch.ones(1), "c": torch.ones(1)}, r"unknown \['c'\]"),
        ({"a": torch.ones(3), "b": torch.ones(1)}, r"a must be torch.float32 \(2,\), it is torch.float32 \(3,\)"),
        ({"a": torch.ones(2).double(), "b": torch.ones(1)}, "a must be torch.float32"),
        ({"a": torch.ones(2), "b": torch.tensor([-1e10])}, "b must be finite and at most"),
    ],
)
def test_other_tensors_than_the_models_are_refused(tensors, words):
    with pytest.raises(ValueError, match=words):
        check_like(tensors, {"a": torch.ones(2), "b": torch.ones(1)})


def test_a_site_that_missed_the_first_visit_begins_with_what_is_handed_down(make_site):
    site, algorithm, _ = make_site("fedavg", 0, [0, 1] * 8)
    late, _, _ = make_site("fedavg", 1, [1, 2] * 8)
    state = algorithm.initial(copy.deepcopy(site.model))
    state = algorithm.aggregate(state, [one_visit(site, algorithm)])
    reply = one_visit(late, algorithm, state, index=2)
    assert [(counts.round, counts.phase) for counts in reply.accuracy] == [(1, "received"), (2, "train")]


def test_a_method_of_every_round_has_a_visit_for_each_and_one_for_the_last_mean():
    assert every_round(2) == [
        Visit(1, 1, 1, download=False, upload=True),
        Visit(2, 2, 2, download=True, upload=True),
        Visit(3, 3, 2, download=True, upload=False),
    ]


# ---- FedProx ---------------------------------------------------------------------------------------------------


def test_fedprox_without_its_term_is_fedavg_to_the_bit(make_site):
    plain, fedavg, _ = make_site("fedavg", 0, [0, 1] * 8)
    site, fedprox, _ = make_site("fedprox", 0, [0, 1] * 8, fedprox__mu=0.0)
    pulled, pulling, _ = make_site("fedprox", 0, [0, 1] * 8, fedprox__mu=1.0)
    expected, found, other = (
        one_visit(site, algorithm).tensors
        for site, algorithm in ((plain, fedavg), (site, fedprox), (pulled, pulling))
    )
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert not all(torch.equal(expected[name], other[name]) for name in expected)


# ---- personal layers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fedper", "fedrep"])
@pytest.mark.parametrize(("personal", "travels"), [("linear", CONVOLUTIONS), ("classifier", CONVOLUTIONS + LINEAR)])
def test_personal_layers_never_leave_a_site(make_site, name, personal, travels):
    site, algorithm, _ = make_site(name, 0, [0, 1] * 8, **{f"{name}__personal": personal})
    assert sorted(one_visit(site, algorithm).tensors) == sorted(travels)


def test_fedper_trains_base_and_personal_layers_together(make_site):
    site, algorithm, _ = make_site("fedper", 0, [0, 1] * 8)
    before = copy.deepcopy(site.model.state_dict())
    one_visit(site, algorithm)
    after = site.model.state_dict()
    assert not any(torch.equal(before[name], after[name]) for name in CONVOLUTIONS + LINEAR + CLASSIFIER)


def test_fedrep_trains_head_and_representation_in_turn_for_the_epochs_asked_for(make_site, monkeypatch):
    done = []
    real = Descent.do.__func__

    def recorded(cls, works):
        done.extend((work.round, work.epochs, sorted(work.trained)) for work in works)
        return real(cls, works)

    monkeypatch.setattr(Descent, "do", classmethod(recorded))
    site, algorithm, _ = make_site("fedrep", 0, [0, 1] * 8, fedrep__head_epochs=4, fedrep__body_epochs=2)
    state = algorithm.initial(copy.deepcopy(site.model))
    for index in (1, 2):
        down = state if index > 1 else {}
        state = algorithm.aggregate(state, [one_visit(site, algorithm, down, index=index)])
    algorithm.visit(site, state, Visit(3, 3, 2, download=True))
    head, body = sorted(LINEAR + CLASSIFIER), sorted(CONVOLUTIONS)
    # the head before the representation in each round, and once more after the last
    assert done == [(0, 4, head), (1, 2, body), (1, 4, head), (2, 2, body), (2, 4, head)]


@pytest.mark.parametrize(
    ("head", "moves", "stays"),
    [(True, LINEAR + CLASSIFIER, CONVOLUTIONS), (False, CONVOLUTIONS, LINEAR + CLASSIFIER)],
)
def test_what_fedrep_does_not_train_stays_as_it_is(make_site, head, moves, stays):
    from gfpl_flwr.training import alone

    site, algorithm, _ = make_site("fedrep", 0, [0, 1] * 8)
    before = copy.deepcopy(site.model.state_dict())
    alone(algorithm._descend(site, 1, 1, head=head))
    after = site.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in stays)
    assert not any(torch.equal(before[name], after[name]) for name in moves)
