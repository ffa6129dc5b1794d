"""What one node pushes to Flower's server costs that node's contribution, and no visit its deadline."""

import json
import threading
import time
from pathlib import Path

import pytest
from flwr.app import Array, Context, Message, RecordDict
from flwr.supercore.run import RunNotRunningException
from flwr.superlink.grid import HttpGrid

from gfpl_flwr.flower.deliveries import Deliveries
from gfpl_flwr.flower.inprocess import InProcessGrid
from gfpl_flwr.flower.server import build_server_app


class Flower(HttpGrid):
    """Flower's grid as far as replies go: it claims all that have come, then ``unpack(visit, site, reply)`` each."""

    def __init__(self, flat, unpack) -> None:
        sites = range(int(flat["num-sites"]))
        self.nodes = InProcessGrid([{"partition-id": site} for site in sites], flat)
        self.unpack = unpack
        self.stored: dict[str, Message] = {}
        self.lock = threading.Lock()
        self.ids: list[str] = []

    def get_nodes(self):
        return self.nodes.get_nodes()

    def push_messages(self, messages):
        self.ids = list(self.nodes.push_messages(messages))
        waiting = set(self.ids)
        while waiting:
            came = {reply.metadata.reply_to_message_id: reply for reply in self.nodes.pull_messages(waiting)}
            waiting -= came.keys()
            self.stored |= came
        return self.ids

    def pull_messages(self, message_ids):
        with self.lock:
            claimed = [self.stored.pop(message_id) for message_id in set(message_ids) if message_id in self.stored]
        return [self.unpack(int(reply.metadata.group_id), reply.content["site"]["site"], reply) for reply in claimed]

    def close(self):
        pass


def run(flat, grid) -> list[dict]:
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=flat)
    build_server_app()(grid, context)
    path = Path(flat["output-dir"]) / flat["name"] / "rounds.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def failures(line: dict) -> dict:
    return {site["site"]: site["reason"] for site in line["sites"] if site["status"] == "error"}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"dtype": "float32", "shape": ["a"], "stype": "gfpl.raw", "arraychunk_ids": []}, "TypeError: "),
        ({}, "KeyError: 'arraychunk_ids'"),
        ([], "TypeError: "),
    ],
)
def test_a_reply_that_cannot_be_unpacked_costs_that_sites_contribution(small, body, reason):
    def unpack(visit, site, reply):
        if (visit, site) == (2, 1):
            pushed = json.dumps(body).encode()
            Array.inflate(b"Array  %d\0" % len(pushed) + pushed)
        return reply

    record = run(small, Flower(small, unpack))
    told = failures(record[1])
    assert list(told) == [1]
    assert told[1].startswith(f"the reply cannot be unpacked: {reason}")
    assert [failures(line) for line in record[:1] + record[2:]] == [{}] * 3


def test_a_reply_is_of_the_node_that_was_asked_whatever_it_says(small):
    def unpack(visit, site, reply):
        if (visit, site) == (2, 1):
            reply.metadata.__dict__["_reply_to_message_id"] = grid.ids[0]  # of the message to site 0
        return reply

    flat = small | {"visit-deadline": 20.0}
    grid = Flower(flat, unpack)
    record = run(flat, grid)
    assert failures(record[1]) == {1: "the reply says that it answers another message (code 0)"}
    assert [failures(line) for line in record[:1] + record[2:]] == [{}] * 3


def test_an_upload_that_stops_half_way_holds_up_neither_the_others_nor_the_deadline(small):
    expires = threading.Event()

    def unpack(visit, site, reply):
        if (visit, site) == (2, 1):
            assert expires.wait(60)
        if visit == 4:
            expires.set()
        return reply

    flat = small | {"visit-deadline": 4.0}
    began = time.monotonic()
    record = run(flat, Flower(flat, unpack))
    assert time.monotonic() - began < 50
    assert failures(record[1]) == {1: "no reply within visit-deadline = 4 s"}
    assert 4 <= record[1]["seconds"]["sites"] < 10
    assert [failures(line) for line in record[:1] + record[2:]] == [{}] * 3


def test_a_run_that_was_stopped_is_no_fault_of_a_reply(small):
    def unpack(visit, site, reply):
        raise RunNotRunningException

    with pytest.raises(RunNotRunningException):
        run(small, Flower(small, unpack))


def test_replies_are_asked_for_one_by_one_and_not_without_end(small):
    asked = []

    class Silent(Flower):
        def pull_messages(self, message_ids):
            asked.append(list(message_ids))
            return []

    ids = {str(number) for number in range(20)}
    with Deliveries(Silent(small, None)) as deliveries:
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            assert list(deliveries.pull_messages(ids)) == []
            time.sleep(0.01)
    assert {len(one) for one in asked} == {1}
    assert {one[0] for one in asked} == ids
    assert len(asked) <= 60  # 50 a second
