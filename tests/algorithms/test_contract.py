"""The laws that every algorithm keeps, and the exchange seen from outside."""

import copy
import json
from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from flwr.app import Message
from safetensors.torch import load_file

from gfpl_flwr import seeding
from gfpl_flwr.algorithms import ALGORITHMS, parse_run
from gfpl_flwr.algorithms.base import Algorithm, Reply
from gfpl_flwr.config import RunConfig
from gfpl_flwr.flower.inprocess import InProcessGrid
from gfpl_flwr.flower.server import run as serve
from gfpl_flwr.training import Site


def run_visits(
    sites: list[tuple[Site, Algorithm, RunConfig]],
) -> tuple[list[list[Reply]], dict[str, torch.Tensor]]:
    """Run a whole schedule on sites, without a network: the replies of each visit, and the last state."""
    _, algorithm, config = sites[0]
    state, history = algorithm.initial(copy.deepcopy(sites[0][0].model)), []
    for visit in algorithm.visits(config):
        replies = []
        for site, _, _ in sites:
            down = algorithm.downlink(state, site.key if algorithm.by_site else None) if visit.download else {}
            replies.append(replace(algorithm.visit(site, down, visit), site=site.key))
        if visit.upload:
            state = algorithm.aggregate(state, replies)
        history.append(replies)
    return history, state


@pytest.fixture(params=sorted(ALGORITHMS))
def name(request) -> str:
    return request.param


def test_visits_cover_every_round_once_and_in_order(name):
    for rounds in (1, 2, 7, 80):
        config, algorithm = parse_run({"algorithm": name, "rounds": rounds, "gfpl.first-exchange": 1})
        visits = algorithm.visits(config)
        assert [visit.index for visit in visits] == list(range(1, len(visits) + 1))
        assert [round for visit in visits for round in visit.rounds] == list(range(1, rounds + 1))


def test_reply_keys_do_not_depend_on_the_classes_of_a_site(name, make_site):
    many = [0, 1, 2, 3, 4] * 8
    histories = [run_visits([make_site(name, 0, labels)])[0] for labels in (many, [2] * 9, [0, 1])]
    for replies in zip(*histories, strict=True):
        assert len({frozenset(reply.tensors) for (reply,) in replies}) == 1


@pytest.mark.parametrize(
    ("labels", "tests"),
    [([3] * 10, 6), ([0] * 10 + [1], 6), ([0, 1] * 8, 0), ([4], 1), ([0] * 5, 6)],
    ids=["one class", "a class with one sample", "no test split", "one sample", "a short last batch of one"],
)
def test_a_poor_site_survives(name, labels, tests, make_site):
    history, _ = run_visits([make_site(name, 0, labels, tests=tests), make_site(name, 1, [0, 1, 2] * 6)])
    for replies in history:
        for reply in replies:
            for tensor in reply.tensors.values():
                assert tensor.isfinite().all()
            for counts in reply.accuracy:
                assert counts.total.sum() == min(tests, len(labels)) or reply is not replies[0]


def test_the_same_seed_gives_the_same_result_whatever_the_order_of_sites(name, make_site):
    def outcome(order: Iterable[int]):
        sites = [make_site(name, key, [key % 5, (key + 1) % 5] * 8) for key in order]
        _history, state = run_visits(sites)
        weights = {site.key: site.model.state_dict() for site, _, _ in sites}
        return weights, state

    (weights, state), (other_weights, other_state) = outcome([0, 1, 2]), outcome([2, 0, 1])
    assert state.keys() == other_state.keys()
    for key, model in weights.items():
        if name == "local":  # no exchange: the order of sites cannot reach a site
            for entry, tensor in model.items():
                assert torch.equal(tensor, other_weights[key][entry])
    again, state_again = outcome([0, 1, 2])
    for key, model in weights.items():
        for entry, tensor in model.items():
            assert torch.equal(tensor, again[key][entry])
    for entry, tensor in state.items():
        assert torch.equal(tensor, state_again[entry])


def test_evaluations_are_counts(name, make_site):
    history, _ = run_visits([make_site(name, 0, [0, 1, 2] * 6)])
    for (reply,) in history:
        for counts in reply.accuracy:
            assert counts.total.dtype == torch.int64
            assert counts.total.sum() == 6
            for correct in counts.correct.values():
                assert (correct <= counts.total).all()


def test_without_a_reply_the_state_stays(name, make_site):
    _, algorithm, _ = make_site(name, 0, [0, 1])
    state = {"labels": torch.tensor([1])}
    assert algorithm.aggregate(state, []) == state


# ---- the exchange, seen from outside ------------------------------------------------------------------------


class Tap(InProcessGrid):
    """A grid that keeps every message and reply."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.down: list[Message] = []
        self.up: list[Message] = []

    def push_messages(self, messages):
        messages = list(messages)
        self.down += messages
        return super().push_messages(messages)

    def pull_messages(self, message_ids):
        replies = list(super().pull_messages(message_ids))
        self.up += replies
        return replies


def tapped(tmp_path, data_dir, **changes) -> Tap:
    flat = {
        "dataset": "digits",
        "num-sites": 3,
        "rounds": 4,
        "gfpl.first-exchange": 2,
        "gfpl.exchange-every": 2,
    }
    flat |= {"output-dir": str(tmp_path), "data-dir": str(data_dir), "name": "run", **changes}
    nodes = [{"partition-id": site, "num-partitions": 3} for site in range(3)]
    grid = Tap(nodes, flat)
    serve(grid, flat, engine="inprocess")
    return grid


def arrays_of(messages: list[Message]) -> list[set[str]]:
    return [{name for record in message.content.array_records.values() for name in record} for message in messages]


@pytest.mark.parametrize(
    ("precision", "declared"),
    [
        ("float32", {"labels", "counts", "means", "variances"}),
        ("float16", {"labels", "counts", "means", "log_variances"}),
        ("int8", {"labels", "counts", "means", "log_variances", "scales"}),
    ],
)
def test_gfpl_sends_its_declared_arrays_and_no_weight_gradient_feature_or_sample(
    tmp_path, data_dir, precision, declared
):
    grid = tapped(tmp_path, data_dir, **{"gfpl.precision": precision})
    assert {frozenset(names) for names in arrays_of(grid.down + grid.up)} == {frozenset(), frozenset(declared)}
    site_files = (tmp_path / "site-models").rglob("*.safetensors")
    # beside the model a site keeps the answer that it gave, which is what may travel
    kept = [pair for path in site_files for pair in load_file(path).items() if not pair[0].startswith("reply.")]
    sizes = {tensor.numel() for _, tensor in kept if tensor.dim() > 1}
    seen = set()
    for message in grid.down + grid.up:
        record = message.content.array_records["arrays"]
        rows = {next(iter(array.shape)) for array in record.values()}
        assert len(rows) <= 1  # every array has one row a component
        seen |= {tuple(array.shape) for array in record.values()}
        for array in record.values():
            assert array.shape[0] * (array.shape[1] if len(array.shape) > 1 else 1) not in sizes
        # everything that is no array is bookkeeping: short lists of counts, no list as long as a layer
        for metrics in message.content.metric_records.values():
            for key, value in metrics.items():
                assert key.split(".")[0] in {
                    "samples", "label-classes", "label-counts", "rounds", "phases", "test-classes", "test-counts",
                    "correct", "seconds", "diagnostics",
                }  # fmt: skip
                assert not isinstance(value, list) or (len(value) <= 60 and all(type(item) is int for item in value))
    assert any(len(shape) == 2 and shape[1] == 50 for shape in seen)


def test_gfpl_sends_nothing_before_its_first_exchange(tmp_path, data_dir):
    grid = tapped(tmp_path, data_dir)
    # visits: rounds 1-2, rounds 3-4, and one that brings the last fused prototypes
    assert [bool(names) for names in arrays_of(grid.down)] == [False] * 3 + [True] * 6
    assert [bool(names) for names in arrays_of(grid.up)] == [True] * 6 + [False] * 3
    assert all(reply.content["measures"]["rounds"] == [1, 2] for reply in grid.up[:3])


def test_local_sends_nothing(tmp_path, data_dir):
    grid = tapped(tmp_path, data_dir, algorithm="local")
    assert len(grid.down) == len(grid.up) == 3
    assert not any(arrays_of(grid.down + grid.up))


def test_gfpl_without_both_of_its_parts_is_local(tmp_path, data_dir):
    results = []
    for number, changes in enumerate(
        [{"algorithm": "local"}, {"gfpl.dual-classifier": False, "gfpl.retraining": False}]
    ):
        folder = tmp_path / str(number)
        tapped(folder, data_dir, **changes)
        lines = [json.loads(line) for line in (folder / "run" / "rounds.jsonl").read_text().splitlines()]
        results.append([[site["accuracy"], site["diagnostics"]] for line in lines for site in line["sites"]])
    assert results[0] == results[1]


def test_a_site_draws_the_same_numbers_wherever_it_runs():
    numbers = [
        torch.rand(3, generator=seeding.generator(1, "site", 2, "round", round, "shuffle")) for round in (1, 1, 2)
    ]
    assert torch.equal(numbers[0], numbers[1])
    assert not torch.equal(numbers[0], numbers[2])
    assert seeding.derive(1, "a", "b") != seeding.derive(1, "ab")
