"""A site as its ClientApp builds it: identity, folders, model, data; and that a restart changes nothing."""

import copy
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message, RecordDict

from gfpl_flwr.algorithms import ALGORITHMS, parse_run
from gfpl_flwr.algorithms.base import Algorithm, Reply, Visit
from gfpl_flwr.data.datasets import ImageDataset
from gfpl_flwr.flower.client import SITE_FAILED, build_client_app
from gfpl_flwr.flower.files import read_tensors
from gfpl_flwr.flower.inprocess import InProcessGrid
from gfpl_flwr.flower.site_setup import build_site, initial_model, open_dataset
from gfpl_flwr.flower.wire import Order, decode_reply, encode_order
from gfpl_flwr.training import Counts, Site

CPU = torch.device("cpu")
SHAPES = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "cifar10": (3, 32, 32), "folder:/cats": (3, 32, 32)}


def noise(name: str) -> ImageDataset:
    """Random images of the shape of a data set, under its name."""
    pixels = torch.randint(0, 256, (20, *SHAPES[name]), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    labels = torch.arange(20) % 10
    return ImageDataset(
        name=name, train_images=pixels, train_labels=labels, test_images=pixels, test_labels=labels, num_classes=10
    )


def site_of(name: str, **options: Any) -> Site:
    flat = {"dataset": name, "partition": "own"} | {key.replace("_", "-"): value for key, value in options.items()}
    config, algorithm = parse_run(flat)
    dataset = noise(name)
    model = initial_model(config, algorithm.resolve(config, 10), dataset.image_shape, dataset.num_classes)
    return build_site(config, dataset, model, "here", None, 1, CPU)


# ---- what auto and 0 mean -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "batch_size"),
    [
        ("digits", {}, 4),
        ("mnist", {}, 4),
        ("cifar10", {}, 32),
        ("cifar10", {"model": "resnet18"}, 32),
        ("mnist", {"model": "resnet18"}, 32),
        ("folder:/cats", {"model": "resnet18"}, 32),
        ("folder:/cats", {}, 4),
        ("digits", {"batch_size": 7}, 7),
        ("cifar10", {"batch_size": 7}, 7),
    ],
)
def test_the_batch_size_is_the_options_else_the_architectures(name, options, batch_size):
    assert site_of(name, **options).batch_size == batch_size


@pytest.mark.parametrize(
    ("name", "option", "augment"),
    [
        ("digits", "auto", False),
        ("cifar10", "auto", True),
        ("digits", "crop-flip", True),
        ("cifar10", "none", False),
        ("cifar10", "crop-flip", True),
    ],
)
def test_images_are_augmented_where_the_option_or_the_data_set_says(name, option, augment):
    assert site_of(name, model="cnn", augment=option).augment is augment


@pytest.mark.parametrize(("architecture", "dropped"), [("cnn", 0.5), ("resnet18", 0.0)])
@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_the_classifier_drops_as_many_features_as_its_architecture_says(algorithm, architecture, dropped):
    """With weights that pick the first ten of 4000 x D ones, what is dropped shows as zeros among the scores."""
    model = site_of("mnist", algorithm=algorithm, model=architecture).model.train()
    model.dropout.mask = model.dropout.draw(4000, torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.classifier.weight.zero_()[:, :10].fill_diagonal_(1)
        model.classifier.bias.zero_()
        scores = model.logits(torch.ones(4000, model.classifier.in_features))
    # 40,000 draws: standard deviation of the share at most 0.0025
    assert (scores == 0).double().mean().item() == pytest.approx(dropped, abs=0.0125)
    assert scores.max().item() == pytest.approx(1 / (1 - dropped))


# ---- the initial model --------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_no_two_layers_begin_with_the_same_numbers(algorithm):
    """Uniform numbers from one seed differ only in scale, so two layers from one seed correlate with 1.

    Independent ones correlate with at most 0.5 among 90 numbers, at 5 standard deviations of 1 / sqrt(90).
    """
    model = site_of("digits", algorithm=algorithm).model
    starts = {name: weight.flatten()[:90] for name, weight in model.named_parameters() if weight.numel() >= 90}
    assert {"extractor.0.weight", "classifier.weight"} <= starts.keys()
    correlations = torch.corrcoef(torch.stack(list(starts.values())).detach())
    assert correlations.fill_diagonal_(0).abs().max() < 0.5


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_the_initial_model_depends_on_the_seed_and_on_nothing_else_of_a_site(algorithm):
    one, two, other = (site_of("digits", algorithm=algorithm, seed=seed).model.state_dict() for seed in (1, 1, 2))
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name])
        assert not torch.equal(tensor, other[name]), name


# ---- killing and restoring a site between visits changes nothing ---------------------------------------------


def schedule(algorithm: Algorithm, flat: dict[str, Any]) -> list[Visit]:
    """The visits of a run; one visit of many rounds is cut into one a round, so that there is an in-between."""
    config, _ = parse_run(flat)
    visits = algorithm.visits(config)
    return visits if len(visits) > 1 else [Visit(round, round, round) for round in visits[0].rounds]


def ask(flat: dict[str, Any], node: dict[str, Any], visit: Visit, tensors: Any, run: str = "run") -> Message:
    """Send one visit to a process that has just started and knows nothing."""
    grid = InProcessGrid([node], flat)
    message = Message(encode_order(Order(run, visit, tensors)), next(iter(grid.get_node_ids())), "train")
    (reply,) = grid.send_and_receive([message])
    return reply


def answered(reply: Message) -> Reply:
    assert not reply.has_error(), reply.error.reason
    return decode_reply(reply.content).reply


def tally(accuracy: list[Counts]) -> list[tuple]:
    """Accuracies as plain numbers; classes without test samples do not travel."""
    tallies = []
    for counts in accuracy:
        tested = counts.total.nonzero().flatten()
        heads = {head: right[tested].tolist() for head, right in counts.correct.items()}
        tallies.append((counts.round, counts.phase, tested.tolist(), counts.total[tested].tolist(), heads))
    return tallies


def assert_same(reply: Reply, other: Reply) -> None:
    assert tally(reply.accuracy) == tally(other.accuracy)
    assert reply.samples == other.samples
    assert reply.tensors.keys() == other.tensors.keys()
    for name, tensor in reply.tensors.items():
        assert torch.equal(tensor, other.tensors[name]), name


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        *((name, {}) for name in sorted(ALGORITHMS)),
        ("gfpl", {"model": "resnet18", "num-sites": 1, "rounds": 2, "shots": 5}),
    ],
    ids=[*sorted(ALGORITHMS), "gfpl with BatchNorm"],
)
def test_killing_and_restoring_a_site_between_visits_changes_nothing(small, tmp_path, name, changes):
    """Each visit in a new process whose model comes from the disk, against one process that keeps it in memory."""
    flat = small | {"algorithm": name, "num-sites": 2} | changes
    config, algorithm = parse_run(flat)
    dataset = open_dataset(config, Path(flat["data-dir"]))
    algorithm = algorithm.resolve(config, dataset.num_classes)
    keys = range(config.num_sites)
    models = {key: initial_model(config, algorithm, dataset.image_shape, dataset.num_classes) for key in keys}
    sites = {key: build_site(config, dataset, models[key], key, key, len(keys), CPU) for key in keys}
    state = algorithm.initial(copy.deepcopy(models[0]))
    visits = schedule(algorithm, flat)
    assert len(visits) > 1
    for visit in visits:
        replies = []
        for key in keys:
            down = algorithm.downlink(state, key) if visit.download else {}
            kept = algorithm.visit(sites[key], down, visit)
            assert_same(answered(ask(flat, {"partition-id": key}, visit, down)), kept)
            replies.append(replace(kept, site=key))
        if visit.upload:
            state = algorithm.aggregate(state, replies)
    for key in keys:
        (path,) = tmp_path.rglob(f"site-{key}/visit-{visits[-1].index}.safetensors")
        saved, _ = read_tensors(path)
        for entry, tensor in models[key].state_dict().items():
            assert torch.equal(saved[entry], tensor), entry


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_a_visit_that_is_asked_for_again_is_answered_the_same(small, name):
    flat = small | {"algorithm": name, "num-sites": 2}
    config, algorithm = parse_run(flat)
    algorithm, node = algorithm.resolve(config, 10), {"partition-id": 1}
    state = algorithm.initial(initial_model(config, algorithm, (1, 8, 8), 10))
    for visit in schedule(algorithm, flat):
        down = algorithm.downlink(state) if visit.download else {}
        reply = answered(ask(flat, node, visit, down))
        assert_same(answered(ask(flat, node, visit, down)), reply)
        if visit.upload:
            state = algorithm.aggregate(state, [reply])


def test_runs_do_not_share_the_models_of_their_sites(small):
    visits, node = schedule(parse_run(small)[1], small), {"partition-id": 0}
    first = answered(ask(small, node, visits[0], {}, run="one"))
    second = answered(ask(small, node, visits[1], first.tensors, run="one"))
    answered(ask(small | {"seed": 8}, node, visits[0], {}, run="two"))
    assert_same(answered(ask(small, node, visits[1], first.tensors, run="one")), second)


# ---- identity -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("node", "changes", "words"),
    [
        ({}, {}, "site = 'NAME' or partition-id = NUMBER"),
        ({"site": True, "partition-id": 0}, {}, "no identity"),
        ({"site": 1.5}, {"partition": "own"}, "no identity"),
        ({"site": "camera-3"}, {}, "partition-id = None"),
        ({"partition-id": 4}, {}, "partition-id = 4: must be an integer below num-sites = 4"),
        ({"partition-id": -1}, {}, "partition-id = -1"),
        ({"partition-id": 2, "num-partitions": 2}, {"num-sites": 0}, "below num-sites = 2"),
    ],
)
def test_a_node_without_a_usable_identity_says_what_to_write(small, node, changes, words):
    flat = small | changes
    reply = ask(flat, node, Visit(1, 1, 1), {})
    assert reply.has_error()
    assert reply.error.code == SITE_FAILED
    assert words in reply.error.reason
    assert "\n" not in reply.error.reason


def test_label_counts_are_told_only_by_a_site_that_shares_them(small):
    visit = Visit(1, 1, 1)
    shared, kept = (
        decode_reply(ask(small | {"share-label-counts": share}, {"partition-id": 0}, visit, {}, str(share)).content)
        for share in (True, False)
    )
    config, algorithm = parse_run(small)
    dataset = open_dataset(config, Path(small["data-dir"]))
    model = initial_model(config, algorithm.resolve(config, 10), dataset.image_shape, dataset.num_classes)
    site = build_site(config, dataset, model, 0, 0, 4, CPU)
    labels, counts = site.train.labels.unique(return_counts=True)
    assert dict(shared.label_counts) == dict(zip(labels.tolist(), counts.tolist(), strict=True))
    assert not kept.label_counts
    assert shared.reply.samples == kept.reply.samples == len(site.train)


def test_sites_of_one_seed_hold_different_rows_of_the_common_data(small):
    config, algorithm = parse_run(small)
    dataset = open_dataset(config, Path(small["data-dir"]))
    model = initial_model(config, algorithm.resolve(config, 10), dataset.image_shape, dataset.num_classes)
    sites = [build_site(config, dataset, model, key, key, 4, CPU) for key in range(4)]
    rows = [{tuple(image.flatten().tolist()) for image in site.train.images} for site in sites]
    for key, held in enumerate(rows):
        assert not held & set.union(*rows[:key], *rows[key + 1 :])


def test_a_nodes_own_number_of_partitions_counts_where_the_run_names_none(small):
    """A tenth of the data is four times a fortieth; of two numbers the run's goes first."""

    def first_visit(run: str, num_sites: int, node: dict[str, Any]) -> Reply:
        flat = small | {"partition": "iid", "num-sites": num_sites}
        return answered(ask(flat, {"partition-id": 1} | node, Visit(1, 1, 1), {}, run))

    tenth = first_visit("a", 10, {})
    assert_same(first_visit("b", 0, {"num-partitions": 10}), tenth)
    assert_same(first_visit("c", 10, {"num-partitions": 40}), tenth)
    fortieth = first_visit("d", 0, {"num-partitions": 40})
    assert tenth.samples == pytest.approx(4 * fortieth.samples, abs=4)


# ---- a device that is asked twice at once -------------------------------------------------------------------


@pytest.mark.parametrize(("own", "most"), [({"state-dir": "states"}, 1), ({}, 3)])
def test_a_device_does_one_visit_of_its_site_at_a_time(monkeypatch, tmp_path, own, most):
    inside, seen = [], []
    together = threading.Barrier(3)

    def busy(asks):
        inside.append(asks)
        seen.append(len(inside))
        if most > 1:
            together.wait(30)
            seen.append(len(inside))
            together.wait(30)
        time.sleep(0.1)
        inside.remove(asks)
        return ["done"]

    monkeypatch.setattr("gfpl_flwr.flower.client.answer", busy)
    monkeypatch.setattr("gfpl_flwr.flower.client.reply_to", lambda message, outcome: message)
    node = {"partition-id": 0} | {key: str(tmp_path / value) for key, value in own.items()}
    app, message = build_client_app(), InProcessGrid([node], {}).create_message(RecordDict(), "train", 1, "1")

    def visit():
        context = Context(run_id=1, node_id=1, node_config=node, state=RecordDict(), run_config={})
        app(message, context)

    threads = [threading.Thread(target=visit) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert max(seen) == most


def test_a_state_dir_that_cannot_be_locked_is_left_to_the_visit_to_tell(monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("gfpl_flwr.flower.client.answer", lambda asks: ["the visit's own words"])
    monkeypatch.setattr("gfpl_flwr.flower.client.reply_to", lambda message, outcome: outcome)
    for folder in (tmp_path / "file", "~nobody-here/states"):
        node = {"partition-id": 0, "state-dir": str(folder)}
        message = InProcessGrid([node], {}).create_message(RecordDict(), "train", 1, "1")
        context = Context(run_id=1, node_id=1, node_config=node, state=RecordDict(), run_config={})
        with caplog.at_level("WARNING", logger="flwr.gfpl"):
            assert build_client_app()(message, context) == "the visit's own words"
        assert f"no lock in state-dir = {str(folder)!r}" in caplog.text
