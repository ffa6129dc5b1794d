"""Orders and replies come back as they were, and are checked before they are believed."""

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from gfpl_flwr.algorithms.base import Reply, Visit
from gfpl_flwr.flower.wire import Order, SiteReply, decode_order, decode_reply, encode_order, encode_reply
from gfpl_flwr.training import CommonCounts, Counts


@pytest.fixture(autouse=True)
def _inside_a_run():
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


def order() -> Order:
    return Order("run@1", Visit(2, 31, 35, download=True, upload=True), {"means": torch.randn(3, 5)})


def test_an_order_comes_back_as_it_was():
    sent = order()
    got = decode_order(encode_order(sent))
    assert (got.run, got.visit) == (sent.run, sent.visit)
    assert torch.equal(got.tensors["means"], sent.tensors["means"])


def test_the_sites_of_a_node_can_be_told_different_things():
    each = [{"centre": torch.randn(3)} for _ in range(3)]
    content = encode_order(order(), each)
    for place, its in enumerate(each):
        assert torch.equal(decode_order(content, place).tensors["centre"], its["centre"])
    with pytest.raises(ValueError, match="an array record 'arrays' for each site"):
        decode_order(content, 3)
    everyone = encode_order(order())
    assert all(decode_order(everyone, place).tensors.keys() == {"means"} for place in range(3))


def answer(site: int | str = 3) -> SiteReply:
    total = torch.tensor([0, 4, 0, 6])
    accuracy = [
        Counts(
            30,
            "retrain",
            total,
            {"classifier": torch.tensor([0, 3, 0, 5]), "etf": torch.tensor([0, 1, 0, 2])},
        ),
        Counts(
            31,
            "train",
            total,
            {"classifier": torch.tensor([0, 4, 0, 6]), "etf": torch.tensor([0, 2, 0, 2])},
            CommonCounts((20, 30), {"classifier": (18, 7), "etf": (20, 0)}),
        ),
    ]
    tensors = {"means": torch.randn(2, 3), "labels": torch.tensor([1, 3])}
    reply = Reply(tensors, 17, accuracy, {"train_loss": 0.5}, {"train": 1.5})
    return SiteReply(site, "run@1", 2, reply, {1: 10, 3: 7})


@pytest.mark.parametrize("site", [0, 3, "camera-7"])
def test_a_reply_comes_back_as_it_was(site):
    sent = answer(site)
    got = decode_reply(encode_reply(sent))
    assert (got.site, got.run, got.visit, got.label_counts) == (site, "run@1", 2, {1: 10, 3: 7})
    assert got.reply.samples == 17
    assert got.reply.diagnostics == {"train_loss": 0.5}
    assert got.reply.seconds == {"train": 1.5}
    for was, now in zip(sent.reply.accuracy, got.reply.accuracy, strict=True):
        assert (was.round, was.phase) == (now.round, now.phase)
        assert was.total.tolist() == now.total.tolist()
        assert was.common == now.common
        for head in was.correct:
            assert was.correct[head].tolist() == now.correct[head].tolist()
    for name, tensor in sent.reply.tensors.items():
        assert torch.equal(got.reply.tensors[name], tensor)


def test_a_site_without_test_samples_or_tensors_can_answer():
    sent = SiteReply(0, "run@1", 1, Reply({}, 5, [Counts(1, "train", torch.zeros(3, dtype=torch.int64), {})]), {})
    got = decode_reply(encode_reply(sent))
    assert got.reply.accuracy == []
    assert got.reply.tensors == {}


def broken(change) -> RecordDict:
    content = encode_reply(answer())
    change(content)
    return content


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.pop("site"), "one config record 'site'"),
        (lambda c: c.pop("arrays"), "one array record 'arrays'"),
        (lambda c: c.pop("measures"), "one metric record 'measures'"),
        (lambda c: c["site"].pop("run"), "run must be of type str"),
        (lambda c: c["site"].update({"site": "9" * 5000}), "a name of at most 64 characters"),
        (lambda c: c["site"].update({"site": "a\nb"}), "a name of at most 64 characters"),
        (lambda c: c["site"].update({"site": -1}), "site must be an integer >= 0"),
        (lambda c: c["site"].update({"started-from": 1.0}), "started-from must be of type int"),
        (lambda c: c["measures"].update({"diagnostics.x": float("nan")}), "diagnostics.x must be a finite number"),
        (lambda c: c["measures"].update({"seconds.x": float("inf")}), "seconds.x must be a finite number"),
        (lambda c: c["measures"].update({"test-counts": [0, 6]}), "test-counts must be >= 1"),
        (lambda c: c["measures"].pop("correct.classifier"), "correct.classifier is missing"),
        (lambda c: c["measures"].update({"test-classes": [0, 10**9]}), "too many to be true"),
        (lambda c: c["site"].update({"site": 1.5}), "site must be an integer >= 0 or a name"),
        (lambda c: c["site"].update({"site": True}), "site must be an integer >= 0 or a name"),
        (lambda c: c["measures"].update({"samples": -1}), "samples must be an integer from 0"),
        (lambda c: c["measures"].update({"samples": 1.0}), "samples must be an integer from 0"),
        (lambda c: c["measures"].update({"rounds": [1]}), "do not fit each other"),
        (lambda c: c["measures"].update({"phases": [0, 9]}), "do not fit each other"),
        (lambda c: c["measures"].update({"test-classes": [1, 10**12]}), "must be a list of integers from 0"),
        (lambda c: c["measures"].update({"correct.etf": [1]}), "correct.etf has 1 values, expected 2 x 2"),
        (
            lambda c: c["measures"].update({"correct.etf": [9, 9, 9, 9]}),
            "more correct samples than there are",
        ),
        (lambda c: c["measures"].update({"correct.etf": [-1, 0, 0, 0]}), "must be a list of integers from 0"),
        (lambda c: c["measures"].update({"label-counts": [1]}), "shorter"),
        (lambda c: c["measures"].update({"common-at": [2]}), "common-at and common-counts do not fit"),
        (lambda c: c["measures"].update({"common-at": [1, 1]}), "common-at and common-counts do not fit"),
        (lambda c: c["measures"].update({"common-counts": [20]}), "common-at and common-counts do not fit"),
        (lambda c: c["measures"].update({"common-correct.etf": [21, 0]}), "common-correct.etf counts more correct"),
        (lambda c: c["measures"].pop("common-correct.etf"), "common-correct.etf has 0 values, expected 1 x 2"),
        (lambda c: c.update({"more": ArrayRecord()}), "one array record 'arrays'"),
        (lambda c: c.update({"more": MetricRecord()}), "one metric record"),
        (lambda c: c.update({"more": ConfigRecord()}), "one config record"),
    ],
)
def test_a_hostile_reply_is_refused_with_the_reason(change, words):
    with pytest.raises(ValueError, match=words):
        decode_reply(broken(change))
