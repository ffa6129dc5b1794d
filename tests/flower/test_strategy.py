"""A site's failure never ends a run, and nothing already computed is lost."""

import copy
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, Error, Message
from safetensors.torch import load_file

from gfpl_flwr.config import ConfigError
from gfpl_flwr.flower.attendance import QuorumError
from gfpl_flwr.flower.inprocess import InProcessGrid
from gfpl_flwr.flower.provenance import provenance
from gfpl_flwr.flower.server import run as serve


class Faulty(InProcessGrid):
    """A grid whose replies pass through ``spoil(visit, site, reply)``; None loses the reply."""

    def __init__(self, flat, spoil, *, reverse: bool = False) -> None:
        sites = range(int(flat["num-sites"]))
        nodes = [{"partition-id": site, "num-partitions": len(sites)} for site in sites]
        super().__init__(nodes[::-1] if reverse else nodes, flat)
        self.spoil = spoil

    def pull_messages(self, message_ids):
        replies = []
        for reply in super().pull_messages(message_ids):
            visit = int(reply.metadata.group_id)
            site = reply.content["site"]["site"] if reply.has_content() else None
            spoiled = self.spoil(visit, site, reply)
            if spoiled is not None:
                replies.append(spoiled)
        return replies


@pytest.fixture
def flat(small) -> dict:
    return small


def lines(flat: dict) -> list[dict]:
    path = Path(flat["output-dir"]) / flat["name"] / "rounds.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def prototypes(flat: dict) -> dict[str, torch.Tensor]:
    return load_file(Path(flat["output-dir"]) / flat["name"] / "prototypes.safetensors")


def failures(line: dict) -> dict:
    return {site["site"]: site["reason"] for site in line["sites"] if site["status"] == "error"}


def in_visit_two(spoiled_site: int, change):
    return lambda visit, site, reply: change(reply) if site == spoiled_site and visit == 2 else reply


def error_reply(reply: Message) -> Message:
    reply.__dict__["_content"] = None
    broken = Message(Error(2, "boom"), reply_to=reply)
    broken.metadata.__dict__["_reply_to_message_id"] = reply.metadata.reply_to_message_id
    broken.metadata.__dict__["_group_id"] = reply.metadata.group_id
    return broken


def negative_variance(reply: Message) -> Message:
    record = reply.content["arrays"]
    variances = record["variances"]
    record["variances"] = Array(
        dtype="float32",
        shape=variances.shape,
        stype=variances.stype,
        data=b"\x00\x00\x80\xbf" * (len(variances.data) // 4),
    )
    return reply


def other_dimension(reply: Message) -> Message:
    record = reply.content["arrays"]
    for name in ("means", "variances"):
        rows = record[name].shape[0]
        data = b"\x00\x00\x80\x3f" * (rows * 3)
        record[name] = Array(dtype="float32", shape=(rows, 3), stype=record[name].stype, data=data)
    return reply


def other_run(reply: Message) -> Message:
    reply.content["site"]["run"] = "another"
    return reply


def extra_array(reply: Message) -> Message:
    reply.content["arrays"]["weights"] = Array(dtype="float32", shape=(1,), stype="gfpl.raw", data=b"1234")
    return reply


def float64_means(reply: Message) -> Message:
    record = reply.content["arrays"]
    for name in ("counts", "means", "variances"):
        array = record[name]
        values = np.frombuffer(array.data, "<f4").astype("<f8")
        record[name] = Array(dtype="float64", shape=array.shape, stype=array.stype, data=values.tobytes())
    return reply


def astronomic_shape(reply: Message) -> Message:
    record = reply.content["arrays"]
    means = record["means"]
    record["means"] = Array(dtype="float32", shape=(2**31,) * 500, stype=means.stype, data=means.data)
    return reply


def negative_shape(reply: Message) -> Message:
    record = reply.content["arrays"]
    means = record["means"]
    record["means"] = Array(dtype="float32", shape=(-(10**6), 50), stype=means.stype, data=means.data)
    return reply


def without_classifier(reply: Message) -> Message:
    reply.content["measures"].pop("correct.classifier")
    return reply


def other_rounds(reply: Message) -> Message:
    reply.content["measures"]["rounds"] = [998, 999][: len(reply.content["measures"]["rounds"])]
    return reply


def other_classes(reply: Message) -> Message:
    measures = reply.content["measures"]
    measures["test-classes"] = [label + 10 for label in measures["test-classes"]]
    return reply


def not_a_number(reply: Message) -> Message:
    reply.content["measures"]["diagnostics.suppressed_classes"] = float("nan")
    return reply


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (error_reply, "boom"),
        (negative_variance, "variances"),
        (other_dimension, "50 dimensions, these have 3"),
        (other_run, "run 'another'"),
        (extra_array, "weights"),
        (float64_means, "must be float32"),
        (astronomic_shape, "'means' has 500 dimensions"),
        (negative_shape, "sides must be integers >= 0"),
        (without_classifier, "correct.classifier is missing"),
        (other_rounds, "the visit covers"),
        (other_classes, "not among the 10"),
        (not_a_number, "must be a finite number"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_bad_reply_costs_that_sites_contribution_and_is_recorded(flat, change, reason):
    serve(Faulty(flat, in_visit_two(1, change)), flat, engine="inprocess")
    record = lines(flat)
    assert len(record) == 4
    assert list(failures(record[1])) == [1]
    assert reason in failures(record[1])[1]
    assert not failures(record[0])
    assert not failures(record[2])  # it takes part again
    assert 0 <= record[1]["scalars_up"] < 2 * record[2]["scalars_up"]


def test_a_silent_site_is_waited_for_until_the_deadline_and_no_longer(flat):
    flat = flat | {"visit-deadline": 5.0}
    serve(Faulty(flat, in_visit_two(1, lambda reply: None)), flat, engine="inprocess")
    record = lines(flat)
    assert failures(record[1]) == {1: "no reply within visit-deadline = 5 s"}
    assert 5 <= record[1]["seconds"]["sites"] < 7
    assert not failures(record[2])


def test_the_fused_prototypes_are_those_of_the_sites_that_answered(flat):
    def failing(visit, site, reply):
        return error_reply(reply) if site == 1 else reply

    serve(Faulty(flat, failing), flat, engine="inprocess")
    counts = sum(
        site["labels"]["counts"][index]
        for site in lines(flat)[-1]["sites"]
        if site["status"] == "ok"
        for index in range(len(site["labels"]["counts"]))
    )
    assert prototypes(flat)["counts"].sum().item() == pytest.approx(counts)


def test_two_nodes_with_the_same_identity_are_told_apart(flat):
    def same(visit, site, reply):
        if site == 1:
            reply.content["site"]["site"] = 0
        return reply

    serve(Faulty(flat, same), flat, engine="inprocess")
    (reason,) = failures(lines(flat)[0]).values()
    assert "two nodes have the same partition-id or site" in reason


def test_a_node_cannot_speak_for_another_site(flat):
    def impersonate(visit, site, reply):
        if (visit, site) == (2, 1):
            reply.content["site"]["site"] = 3
        return reply

    serve(Faulty(flat, impersonate), flat, engine="inprocess")
    told = lines(flat)[1]
    assert [site["reason"] for site in told["sites"] if site["status"] == "error"] == [
        "ValueError: says it is site 3, but it was site 1"
    ]
    assert {site["site"] for site in told["sites"] if site["status"] == "ok"} == {0, 2, 3}


class Thief(Faulty):
    """A grid whose fifth node, from visit 2 on, says that it is site 0 and answers first; site 0 can be away."""

    def __init__(self, flat, away: int = 0) -> None:
        super().__init__(flat, lambda visit, site, reply: reply)
        self._node_configs[6] = {"partition-id": 0}
        self.away, self.visit = away, 1

    def get_node_ids(self):
        return [
            node
            for node in self._node_configs
            if node != (6 if self.visit == 1 else 2 if self.visit == self.away else 0)
        ]

    def push_messages(self, messages):
        self.visit += 1
        return list(super().push_messages(list(messages)[::-1]))[::-1]


def test_a_node_cannot_take_the_place_of_one_that_is_connected(flat):
    serve(Thief(flat), flat, engine="inprocess")
    record = lines(flat)
    assert not failures(record[0])
    for line in record[1:]:
        ((name, reason),) = failures(line).items()
        assert name == "node 6"
        assert "says it is site 0, which is another node's that is connected" in reason
        assert {site["site"] for site in line["sites"] if site["status"] == "ok"} == {0, 1, 2, 3}


def test_a_node_that_came_back_under_a_new_id_is_its_site_again_once_the_old_one_is_gone(flat):
    serve(Thief(flat, away=3), flat, engine="inprocess")
    told = [failures(line) for line in lines(flat)]
    # In visit 4 the old one is back: it was site 0 before.
    assert [list(names) for names in told] == [[], ["node 6"], [], ["node 6"]]
    for line in lines(flat):
        assert [site["site"] for site in line["sites"] if site["status"] == "ok"] == [0, 1, 2, 3]


def test_a_site_that_has_had_two_nodes_is_missing_once(flat):
    """In visit 4 neither the one that went away nor the one that came instead is heard of."""
    grid = Thief(flat | {"visit-deadline": 2.0}, away=3)
    grid.spoil = lambda visit, site, reply: None if (visit, site) == (4, 0) else reply
    serve(grid, flat | {"visit-deadline": 2.0}, engine="inprocess")
    assert [(site["site"], site["status"]) for site in lines(flat)[3]["sites"]] == [
        (1, "ok"), (2, "ok"), (3, "ok"), (0, "error")
    ]  # fmt: skip


@pytest.mark.parametrize("first", [True, False])
def test_a_reply_to_no_message_is_ignored_whoever_it_says_it_is_from(flat, caplog, first):
    class Forged(Faulty):
        def pull_messages(self, message_ids):
            replies = super().pull_messages(message_ids)
            forged = [error_reply(reply) for reply in copy.deepcopy(replies)]
            for reply in forged:
                reply.metadata.__dict__["_reply_to_message_id"] = "no such message"
            return forged + replies if first else replies + forged

    with caplog.at_level("WARNING", logger="flwr.gfpl"):
        serve(Forged(flat, lambda visit, site, reply: reply), flat, engine="inprocess")
    assert [len(line["sites"]) for line in lines(flat)] == [4] * 4
    assert not any(failures(line) for line in lines(flat))
    assert "a reply to 'no such message' ignored: visit 1 sent no such message" in caplog.text


def test_a_reply_that_is_delivered_twice_counts_once(flat):
    class Twice(Faulty):
        def pull_messages(self, message_ids):
            replies = super().pull_messages(message_ids)
            return [*replies, *replies]

    serve(Twice(flat, lambda visit, site, reply: reply), flat, engine="inprocess")
    assert [len(line["sites"]) for line in lines(flat)] == [4] * 4
    assert not any(failures(line) for line in lines(flat))


def test_a_reason_stays_on_one_line_and_short(flat):
    def babble(reply: Message) -> Message:
        broken = error_reply(reply)
        broken.error.__dict__["_reason"] = "\x1b[91mboom\nvisit 9/9: 4/4 sites, done\n" + 5000 * "x"
        return broken

    serve(Faulty(flat, in_visit_two(1, babble)), flat, engine="inprocess")
    (reason,) = failures(lines(flat)[1]).values()
    assert reason.startswith("boom visit 9/9")
    assert len(reason) < 320


def test_a_site_that_is_away_when_a_visit_begins_is_recorded(flat):
    class Away(Faulty):
        def get_node_ids(self):
            nodes = list(super().get_node_ids())
            return nodes[:-1] if self.down else nodes

        def push_messages(self, messages):
            self.down = True
            return super().push_messages(messages)

        down = False

    serve(Away(flat, lambda visit, site, reply: reply), flat, engine="inprocess")
    assert failures(lines(flat)[1]) == {3: "not connected when the visit began"}


def test_a_site_that_lost_its_model_is_seen_in_the_record(flat, caplog):
    def lose(visit, site, reply):
        if (visit, site) == (1, 3):
            for folder in (Path(flat["output-dir"]) / "site-models").glob("*/site-0"):
                shutil.rmtree(folder)
        return reply

    with caplog.at_level("WARNING", logger="flwr.gfpl"):
        serve(Faulty(flat, lose), flat, engine="inprocess")
    started = [site["started_from"] for site in lines(flat)[1]["sites"]]
    assert started == [0, 1, 1, 1]
    assert "site 0: its model of visit 1 is lost: it went on from the initial model" in caplog.text
    assert [line["notes"] for line in lines(flat)[1:]] == [
        [{"site": 0, "note": "its model of visit 1 is lost: it went on from the initial model"}], [], []
    ]  # fmt: skip


class Slow(Faulty):
    """A grid on which sites 1 and 3 answer visit 1 late: in visit 2, and in visit 3."""

    def __init__(self, flat) -> None:
        super().__init__(flat, self.hold)
        self.held: dict[int, Message] = {}

    def hold(self, visit, site, reply):
        if visit == 1 and site in (1, 3):
            self.held[site] = reply
            return None
        return reply

    def pull_messages(self, message_ids):
        wanted = set(message_ids)
        came = super().pull_messages(wanted)
        visit = max((int(reply.metadata.group_id) for reply in came if reply.metadata.group_id), default=0)
        for site, reply in list(self.held.items()):
            answered = reply.metadata.reply_to_message_id
            if answered in wanted and visit == (3 if site == 3 else 2):
                came.append(reply)
                del self.held[site]
        return came


def test_a_late_reply_is_noted_and_used_in_no_visit(flat):
    flat = flat | {"visit-deadline": 10.0, "quorum": 0.25}
    serve(Slow(flat), flat, engine="inprocess")
    record = lines(flat)
    silent = "no reply within visit-deadline = 10 s"
    assert failures(record[0]) == {"node 3": silent, "node 5": silent}
    notes = [(line["visit"], entry["site"], entry["note"]) for line in record for entry in line["notes"]]
    # Which site a node is, it has told by the time that visit 3 has begun.
    assert [(visit, site, note.split(" came ")[0]) for visit, site, note in notes] == [
        (2, "node 3", "a reply to visit 1"),
        (3, 3, "a reply to visit 1"),
    ]
    # Their own replies to visit 2 count, and go on from what they did in visit 1, whenever it came.
    assert [(site["site"], site["started_from"]) for site in record[1]["sites"]] == [(0, 1), (1, 1), (2, 1), (3, 1)]
    assert all(site["status"] == "ok" for line in record[1:] for site in line["sites"])


def test_a_site_of_which_nothing_was_ever_heard_is_listed_as_well(flat):
    alone = Faulty(flat | {"num-sites": 3}, lambda visit, site, reply: reply)
    serve(alone, flat | {"node-deadline": 0.1}, engine="inprocess")
    for line in lines(flat):
        assert failures(line) == {3: "no node of this site has ever connected"}


def test_where_nobody_says_how_many_sites_there_are_all_take_part(flat):
    free = flat | {"num-sites": 0}
    serve(Faulty(flat, lambda visit, site, reply: reply), free, engine="inprocess")
    assert [line["messages"] for line in lines(flat)] == [4] * 4


def test_below_the_quorum_the_run_stops_with_the_reason_and_can_be_resumed(flat, monkeypatch):
    def blackout(visit, site, reply):
        return error_reply(reply) if visit == 3 else reply

    with pytest.raises(QuorumError, match=r"visit 3: 0 of 4 sites answered, quorum = 0.5; site 0: boom"):
        serve(Faulty(flat, blackout), flat, engine="inprocess")
    folder = Path(flat["output-dir"]) / "run"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert "visit 3" in summary["reason"]
    assert len(lines(flat)) == 2
    before = prototypes(flat)

    facts = (folder / "config.json").read_text()
    first = json.loads(facts)["versions"]
    assert first == provenance()
    monkeypatch.setattr("gfpl_flwr.flower.run_folder.provenance", lambda device: provenance() | {"sources": "other"})
    with pytest.raises(QuorumError):
        serve(Faulty(flat, blackout), flat | {"resume": True}, engine="inprocess")
    assert (folder / "config.json").read_text() == facts  # nothing in the run is of the other sources
    serve(Faulty(flat, lambda visit, site, reply: reply), flat | {"resume": True}, engine="inprocess")
    resumed = prototypes(flat)
    assert json.loads((folder / "summary.json").read_text())["status"] == "completed"
    told = json.loads((folder / "config.json").read_text())["versions"]
    assert told == first | {"sources": f"{first['sources']}, then other"}
    assert any(not torch.equal(before[name], resumed[name]) for name in before)  # of another shape is not equal

    undisturbed = flat | {"name": "undisturbed"}
    serve(Faulty(undisturbed, lambda visit, site, reply: reply), undisturbed, engine="inprocess")
    assert [line["sites"] for line in map(untimed, lines(undisturbed))] == [
        line["sites"] for line in map(untimed, lines(flat))
    ]
    for name, tensor in prototypes(undisturbed).items():
        assert torch.equal(tensor, resumed[name])


def stopped_in_visit_three(flat: dict) -> None:
    def blackout(visit, site, reply):
        return error_reply(reply) if visit == 3 else reply

    with pytest.raises(QuorumError):
        serve(Faulty(flat | {"num-sites": 4}, blackout), flat, engine="inprocess")


class Few(Faulty):
    """A grid of four nodes of which all but some are away, for a time in seconds or for ever."""

    def __init__(self, flat, nodes, seconds=float("inf")) -> None:
        super().__init__(flat | {"num-sites": 4}, lambda visit, site, reply: reply)
        self.nodes, self.until = nodes, time.monotonic() + seconds

    def get_node_ids(self):
        return self.nodes if time.monotonic() < self.until else super().get_node_ids()


def test_a_resumed_run_waits_for_as_many_sites_as_there_were(flat, monkeypatch):
    """Where nobody said how many there are, whoever comes back first is not all of them."""
    monkeypatch.setattr("gfpl_flwr.flower.attendance.SETTLED_AFTER", 0.3)
    free = flat | {"num-sites": 0}
    stopped_in_visit_three(free)
    again = free | {"resume": True}
    with pytest.raises(QuorumError, match="1 of 4 nodes connected"):
        serve(Few(flat, [2]), again | {"node-deadline": 1.0}, engine="inprocess")
    serve(Few(flat, [2], 2.0), again, engine="inprocess")
    assert [line["messages"] for line in lines(flat)] == [4] * 4


@pytest.mark.parametrize("sites", [0, 4])
@pytest.mark.parametrize("algorithm", ["gfpl", "fedavg"])
def test_a_resumed_run_knows_the_sites_that_are_away(flat, sites, algorithm):
    flat = flat | {"num-sites": sites, "algorithm": algorithm}
    stopped_in_visit_three(flat)
    serve(Few(flat, [2, 3, 5]), flat | {"resume": True, "node-deadline": 0.1}, engine="inprocess")
    for line in lines(flat)[2:]:
        assert failures(line) == {2: "not connected when the visit began"}


def test_a_resumed_run_knows_how_far_its_sites_were(flat):
    stopped_in_visit_three(flat)
    for folder in (Path(flat["output-dir"]) / "site-models").glob("*/site-1"):
        shutil.rmtree(folder)
    serve(Few(flat, [2, 3, 4, 5]), flat | {"resume": True}, engine="inprocess")
    assert lines(flat)[2]["notes"] == [
        {"site": 1, "note": "its model of visit 2 is lost: it went on from the initial model"}
    ]


def untimed(line: dict) -> dict:
    for site in line["sites"]:
        site.pop("seconds", None)
        site.pop("bytes_up", None)  # the run's name is part of the bookkeeping
        site.pop("bytes_down", None)
    return line


def test_a_server_killed_between_two_visits_resumes_to_the_same_result(flat):
    class Killed(BaseException):
        pass

    def kill(visit, site, reply):
        if (visit, site) == (3, 2):
            raise Killed
        return reply

    with pytest.raises(Killed):
        serve(Faulty(flat, kill), flat, engine="inprocess")
    path = Path(flat["output-dir"]) / "run" / "rounds.jsonl"
    path.write_text(path.read_text() + '{"visit": 3, "si')  # torn while it was written
    serve(Faulty(flat, lambda visit, site, reply: reply), flat | {"resume": True}, engine="inprocess")
    undisturbed = flat | {"name": "undisturbed"}
    serve(Faulty(undisturbed, lambda visit, site, reply: reply), undisturbed, engine="inprocess")
    for name, tensor in prototypes(undisturbed).items():
        assert torch.equal(tensor, prototypes(flat)[name])


def test_the_order_in_which_sites_answer_does_not_matter(flat):
    flat = flat | {"gfpl.rule": "first_fit"}  # closest_pair would not notice replies that nobody sorted
    other = flat | {"name": "reversed"}
    serve(Faulty(flat, lambda visit, site, reply: reply), flat, engine="inprocess")
    serve(Faulty(other, lambda visit, site, reply: reply, reverse=True), other, engine="inprocess")
    for name, tensor in prototypes(flat).items():
        assert torch.equal(tensor, prototypes(other)[name])


def test_a_name_that_is_taken_and_a_run_that_was_different_are_refused(federate):
    federate("mine")
    with pytest.raises(ConfigError, match=r"name = 'mine'.*already holds a run"):
        federate("mine")
    with pytest.raises(ConfigError, match=r"another configuration: seed = 8 \(was 7\)"):
        federate("mine", resume=True, seed=8)
    with pytest.raises(ConfigError, match="holds no run to resume"):
        federate("nobody", resume=True)
    assert federate("mine", resume=True, fedfa__weight=0.3)  # of another method


def test_too_few_nodes_are_reported(flat):
    more = flat | {"num-sites": 4, "node-deadline": 0.1}
    grid = Faulty(flat | {"num-sites": 1}, lambda visit, site, reply: reply)
    with pytest.raises(QuorumError, match=r"1 of 4 nodes connected within node-deadline = 0.1 s"):
        serve(grid, more, engine="inprocess")


def test_when_every_site_fails_the_cause_is_told(flat):
    broken = flat | {"dataset": "nonesuch"}
    with pytest.raises(QuorumError, match=r"0 of 4 sites answered.*nonesuch"):
        serve(Faulty(broken, lambda visit, site, reply: reply), broken, engine="inprocess")
