"""Whole runs in one process: what a node's own configuration says, what is reported, and who has to answer."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from gfpl_flwr.algorithms import parse_run
from gfpl_flwr.algorithms.base import Reply
from gfpl_flwr.data.datasets import load
from gfpl_flwr.flower.attendance import QuorumError
from gfpl_flwr.flower.inprocess import InProcessGrid
from gfpl_flwr.flower.ledger import latest_accuracy
from gfpl_flwr.flower.run_folder import RunFolder
from gfpl_flwr.flower.server import run as serve
from gfpl_flwr.flower.strategy import GFPLStrategy
from gfpl_flwr.models import FEATURE_DIMS
from gfpl_flwr.training import Counts

AT_ONCE = {"num-sites": 0, "node-deadline": 0.05}
"""Whoever is connected takes part; nodes of this process are there from the start."""

NOBODY: dict[str, Any] = {}
"""A node that has no identity, so that it answers every visit with an error."""


def run(flat: dict[str, Any], nodes: list[dict[str, Any]], **options) -> tuple[Path, list[dict[str, Any]]]:
    """Run on nodes of these configurations: the run's folder, and its record a visit."""
    folder = serve(InProcessGrid(nodes, flat), flat, engine="inprocess", **options).path
    return folder, [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def partitions(sites: int) -> list[dict[str, Any]]:
    return [{"partition-id": site, "num-partitions": sites} for site in range(sites)]


# ---- a node's own configuration -----------------------------------------------------------------------------


def photograph(folder: Path, each: int) -> Path:
    """Write ``each`` noisy pictures of three colours, a folder a colour."""
    noise = np.random.default_rng(each)
    for channel, colour in enumerate(("blue", "green", "red")):
        (folder / colour).mkdir(parents=True)
        for number in range(each):
            pixels = noise.integers(0, 120, (8, 8, 3), dtype=np.uint8)
            pixels[:, :, 2 - channel] += 130
            Image.fromarray(pixels).save(folder / colour / f"{number:02}.png")
    return folder


@pytest.fixture
def own(small, tmp_path) -> dict[str, Any]:
    """A run of sites with data of their own."""
    common = {"data-dir": str(tmp_path / "common-data"), "state-dir": str(tmp_path / "common-state")}
    return small | common | AT_ONCE | {"partition": "own", "image-size": 8, "rounds": 3}


def node(tmp_path: Path, site: str) -> dict[str, Any]:
    return {"site": site, "data-dir": str(tmp_path / site / "data"), "state-dir": str(tmp_path / site / "state")}


def test_a_named_site_keeps_its_data_and_its_model_in_its_own_folders(own, tmp_path):
    pictures = photograph(tmp_path / "pictures", 10)
    names = ["camera-10", "camera-3"]
    _, record = run(own | {"dataset": f"folder:{pictures}"}, [node(tmp_path, name) for name in names])
    # Names are in the order of people, and of every class the last fifth is for testing: 8 of 10 are left.
    assert [[site["site"] for site in line["sites"]] for line in record] == [["camera-3", "camera-10"]] * 3
    for site in record[0]["sites"]:
        assert site["status"] == "ok"
        assert site["samples"] == 24
        assert site["labels"] == {"classes": [0, 1, 2], "counts": [8, 8, 8]}
        assert site["accuracy"][-1]["total"] == [2, 2, 2]
    for name in names:
        assert len(list((tmp_path / name / "data").glob("folder-*.safetensors"))) == 1
        models = sorted((tmp_path / name / "state").rglob("*.safetensors"))
        assert [path.parent.name for path in models] == [f"site-{name}"] * 2
        assert [path.name for path in models] == ["visit-2.safetensors", "visit-3.safetensors"]
    assert not list((tmp_path / "common-data").rglob("*"))
    assert not list((tmp_path / "common-state").rglob("*"))
    assert not (tmp_path / "site-models").exists()


def test_every_node_trains_on_what_lies_in_its_own_data_dir(own, tmp_path):
    """The same data set by name, of 10 pictures a class on one node and of 20 on the other: 24 and 48 to train on."""
    nodes = [node(tmp_path, site) for site in ("few", "many")]
    for config, each in zip(nodes, (10, 20), strict=True):
        load(f"folder:{photograph(tmp_path / str(each), each)}", config["data-dir"], image_size=8)
        (prepared,) = Path(config["data-dir"]).glob("*.safetensors")
        shutil.move(prepared, prepared.with_name("colours.safetensors"))
    _, record = run(own | {"dataset": "colours"}, nodes)
    for line in record:
        assert {site["site"]: site["samples"] for site in line["sites"]} == {"few": 24, "many": 48}


def test_without_a_word_of_the_node_the_runs_folders_are_used(own, tmp_path):
    pictures = photograph(tmp_path / "pictures", 10)
    run(own | {"dataset": f"folder:{pictures}"}, [{"site": "a"}, {"site": "b"}])
    assert len(list((tmp_path / "common-data").glob("folder-*.safetensors"))) == 1
    assert {path.parent.name for path in (tmp_path / "common-state").rglob("*.safetensors")} == {"site-a", "site-b"}
    run(own | {"dataset": f"folder:{pictures}", "name": "plain", "state-dir": ""}, [{"site": "a"}])
    assert {path.parent.name for path in (tmp_path / "site-models").rglob("*.safetensors")} == {"site-a"}


# ---- the order of nodes and of replies ----------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["closest_pair", "first_fit"])
def test_the_order_in_which_nodes_are_listed_does_not_matter(small, rule):
    """Also with a rule of fusion that depends on the order of its rows: they are sorted by site."""
    flat = small | AT_ONCE | {"rounds": 3, "gfpl.rule": rule, "gfpl.threshold": 3.0}
    nodes = partitions(3)
    outcomes = []
    for number, order in enumerate(([0, 1, 2], [2, 0, 1])):
        folder, record = run(flat | {"name": f"order-{number}"}, [nodes[site] for site in order])
        measured = [[(site["site"], site["accuracy"], site["labels"]) for site in line["sites"]] for line in record]
        outcomes.append((load_file(folder / "prototypes.safetensors"), measured))
    (bank, measured), *others = outcomes
    assert 0 < record[-2]["fusion"]["merge_rate"] < 1
    for other, also in others:
        assert also == measured
        assert other.keys() == bank.keys()
        for name, tensor in bank.items():
            assert torch.equal(tensor, other[name]), name


# ---- what is reported ---------------------------------------------------------------------------------------


def accuracies(line: dict[str, Any], head: str, entry: int) -> tuple[float, float]:
    """Mean and population standard deviation over sites of one evaluation, by hand from the record."""
    values = [
        sum(site["accuracy"][entry]["correct"][head]) / sum(site["accuracy"][entry]["total"])
        for site in line["sites"]
    ]
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))


@pytest.mark.parametrize("head", ["classifier", "etf"])
def test_progress_tells_the_latest_accuracy_of_the_head_that_was_asked_for(small, head):
    told = []
    _, record = run(
        # on the projection the heads agree on images as few as these
        small | {"head": head, "num-sites": 2, "rounds": 3, "gfpl.dr-weight": 0.3, "gfpl.classifier-on": "features"},
        partitions(2),
        on_progress=told.append,
    )
    done = [progress for progress in told if progress.done]
    assert [progress.visit for progress in done] == [1, 2, 3]
    for progress, line in zip(done, record, strict=True):
        assert (progress.accuracy, progress.std) == pytest.approx(accuracies(line, head, -1))
    # The check can fail: other heads and earlier evaluations have other accuracies.
    for other in {"classifier", "etf", "sum"} - {head}:
        assert any(accuracies(line, other, -1) != accuracies(line, head, -1) for line in record)
    assert any(accuracies(line, head, 0) != accuracies(line, head, -1) for line in record)


def test_the_strategys_metrics_are_those_of_the_head_that_was_asked_for(small):
    flat = small | {"head": "etf", "num-sites": 2, "rounds": 3, "gfpl.dr-weight": 0.3}
    config, algorithm = parse_run(flat)
    algorithm = algorithm.resolve(config, 10)
    folder = RunFolder.open(config, flat, engine="inprocess", command="", state_name=algorithm.state_name)
    strategy = GFPLStrategy(algorithm, config, folder, feature_dim=FEATURE_DIMS["cnn"], num_classes=10)
    metrics = strategy.start(InProcessGrid(partitions(2), flat)).train_metrics_clientapp
    record = [json.loads(line) for line in (folder.path / "rounds.jsonl").read_text().splitlines()]
    assert list(metrics) == [1, 2, 3]
    for line in record:
        told = metrics[line["visit"]]
        assert (told["accuracy-mean"], told["accuracy-std"]) == pytest.approx(accuracies(line, "etf", -1))
    assert any(accuracies(line, "etf", -1) != accuracies(line, "classifier", -1) for line in record)


def test_the_latest_accuracy_is_that_of_the_last_evaluation():
    def counts(round: int, classifier: list[int], etf: list[int]) -> Counts:
        heads = {"classifier": torch.tensor(classifier), "etf": torch.tensor(etf)}
        return Counts(round, "train", torch.tensor([3, 5]), heads)

    reply = Reply({}, 8, [counts(1, [3, 5], [0, 0]), counts(2, [1, 1], [2, 3]), counts(3, [0, 2], [1, 5])])
    assert latest_accuracy(reply, "classifier") == 2 / 8
    assert latest_accuracy(reply, "etf") == 6 / 8
    assert latest_accuracy(reply, "sum") == 2 / 8  # a model without this head is judged by its classifier
    assert latest_accuracy(Reply({}, 8), "classifier") is None


@pytest.mark.parametrize("share", [True, False])
def test_label_counts_are_in_the_record_only_where_sites_share_them(small, share):
    _, record = run(small | {"algorithm": "local", "rounds": 1, "share-label-counts": share}, partitions(4))
    for site in record[0]["sites"]:
        assert sum(site["labels"]["counts"]) == (site["samples"] if share else 0)
        assert bool(site["labels"]["classes"]) is share


# ---- who has to answer --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quorum", "sites", "enough"), [(0.5, 4, 2), (0.75, 4, 3), (0.6, 4, 3), (1.0, 3, 3), (0.01, 4, 1), (0.28, 25, 7)]
)
def test_exactly_the_quorum_suffices_and_one_site_fewer_does_not(small, quorum, sites, enough):
    flat = small | {"algorithm": "local", "num-sites": sites, "rounds": 1, "shots": 2, "quorum": quorum}
    nodes = partitions(sites)
    _, record = run(flat | {"name": "enough"}, nodes[:enough] + [NOBODY] * (sites - enough))
    assert [site["status"] for site in record[0]["sites"]] == ["ok"] * enough + ["error"] * (sites - enough)
    with pytest.raises(QuorumError, match=rf"visit 1: {enough - 1} of {sites} sites answered, quorum = {quorum:g}"):
        run(flat | {"name": "fewer"}, nodes[: enough - 1] + [NOBODY] * (sites - enough + 1))


def test_a_run_begins_with_as_many_nodes_as_the_quorum_asks_for(small):
    flat = small | {"algorithm": "local", "rounds": 1, "shots": 2, "quorum": 0.5, "node-deadline": 0.1}
    _, record = run(flat | {"name": "enough"}, partitions(4)[:2])
    assert [site["site"] for site in record[0]["sites"] if site["status"] == "ok"] == [0, 1]
    with pytest.raises(QuorumError, match=r"1 of 4 nodes connected within node-deadline = 0.1 s"):
        run(flat | {"name": "fewer"}, partitions(4)[:1])
