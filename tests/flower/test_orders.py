"""An order that is lost, or a reply that is held back, delays a visit and costs no contribution."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import torch
from flwr.app import Error, Message, RecordDict
from safetensors.torch import load_file

from gfpl_flwr.flower.inprocess import InProcessGrid
from gfpl_flwr.flower.ledger import Ledger
from gfpl_flwr.flower.orders import Orders, Patience
from gfpl_flwr.flower.server import run as serve

NODE = 2
"""Its site's messages have trouble."""


class Trouble(InProcessGrid):
    """A grid that can lose messages; ``node`` is the one with the trouble.

    Time, ``now``, passes where there is nothing to do but to wait.
    """

    can_lose = True
    now = 0.0

    def __init__(self, flat) -> None:
        super().__init__([{"partition-id": site} for site in range(int(flat["num-sites"]))], flat)
        self.node = sorted(self.get_node_ids())[NODE]

    def pull_messages(self, message_ids):
        came = self.come(message_ids)
        self.now += 0.0 if came else 100.0
        return came

    def come(self, message_ids):
        return list(super().pull_messages(message_ids))

    def is_its(self, message) -> bool:
        return self.node in (message.metadata.dst_node_id, message.metadata.src_node_id)


class Losing(Trouble):
    """Loses every first order to the node from visit 2 on, as a SuperNode does that is restarted."""

    def __init__(self, flat) -> None:
        super().__init__(flat)
        self.seen: set[str] = set()

    def push_messages(self, messages):
        messages = list(messages)
        kept = [message for message in messages if not self._lost(message)]
        ids = iter(super().push_messages(kept))
        return [next(ids) if message in kept else f"lost {message.metadata.created_at}" for message in messages]

    def _lost(self, message) -> bool:
        visit = message.metadata.group_id
        lost = self.is_its(message) and visit != "1" and visit not in self.seen
        if self.is_its(message):
            self.seen.add(visit)
        return lost


class Lagging(Trouble):
    """From visit 2 on the node sends a reply only when it has got another order: Flower 1.41 after a stopped run."""

    def __init__(self, flat) -> None:
        super().__init__(flat)
        self.held, self.free = [], []

    def push_messages(self, messages):
        messages = list(messages)
        if any(map(self.is_its, messages)):
            self.free += self.held
            self.held = []
        return super().push_messages(messages)

    def come(self, message_ids):
        came = super().come(message_ids)
        behind = [reply for reply in came if self.is_its(reply) and reply.metadata.group_id != "1"]
        self.held += behind
        let_go = [reply for reply in self.free if reply.metadata.reply_to_message_id in set(message_ids)]
        self.free = [reply for reply in self.free if reply not in let_go]
        return [reply for reply in came if reply not in behind] + let_go


def rounds(flat) -> list[dict]:
    path = Path(flat["output-dir"]) / flat["name"] / "rounds.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("kind", [Losing, Lagging])
def test_a_node_that_says_nothing_is_asked_again_and_nothing_is_different(small, federate, monkeypatch, kind):
    flat = small | {"quorum": 1.0}
    grid = kind(flat)
    monkeypatch.setattr("gfpl_flwr.flower.orders.time", SimpleNamespace(monotonic=lambda: grid.now))
    monkeypatch.setattr("gfpl_flwr.flower.strategy.SETTLE", 0.0)
    serve(grid, flat, engine="inprocess")
    folder, lines = Path(flat["output-dir"]) / flat["name"], rounds(flat)
    assert all(site["status"] == "ok" for line in lines for site in line["sites"])
    assert [[entry["site"] for entry in line["notes"]] for line in lines] == [[]] + [[NODE]] * 3
    assert all(" s: asked again" in entry["note"] for line in lines for entry in line["notes"])
    other = federate("undisturbed")
    undisturbed = [json.loads(line) for line in (other / "rounds.jsonl").read_text().splitlines()]
    # What is sent again is counted as well.
    assert [line["messages"] for line in lines] == [4, 5, 5, 5]
    for line, plain in zip(lines[1:], undisturbed[1:], strict=True):
        assert line["bytes_down"] > plain["bytes_down"]
        assert line["scalars_down"] == plain["scalars_down"] * 5 // 4
    ours, theirs = (load_file(path / "prototypes.safetensors") for path in (folder, other))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_only_a_grid_that_can_lose_messages_is_asked_to_carry_them_again(small):
    grid = InProcessGrid([{"partition-id": 0}], small)
    orders = Orders(grid, Ledger(), Patience(1e-9))
    orders.send([grid.create_message(RecordDict(), "train", node, "1") for node in grid.get_node_ids()])
    assert orders.send_again() == []


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """The time in seconds, ``clock.now``."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("gfpl_flwr.flower.orders.time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def visit(clock, grid, patience, *, needed: float) -> list[float]:
    """Ask a node that needs some seconds for its reply to the first order; return when it was asked again."""
    orders, began, asked = Orders(grid, Ledger(), patience), clock.now, []
    orders.send([grid.create_message(RecordDict(), "train", grid.node, "1")])
    (first,) = orders.open
    while clock.now - began < needed:
        clock.now += 1
        asked += [orders.waited(node) for node in orders.send_again()]
    others = list(orders.open - {first})
    assert list(orders.close(first)) == others
    assert len(others) == len(asked)
    assert not orders.open
    return asked


def test_a_slow_node_is_asked_again_in_its_first_visit_alone(small, clock):
    grid, patience = Trouble(small), Patience(300.0)
    assert [visit(clock, grid, patience, needed=seconds) for seconds in (1000, 1000, 1900, 2100, 200)] == [
        [300], [], [], [], [],
    ]  # fmt: skip


@pytest.mark.parametrize(("after", "asked"), [(5, [300] * 5), (20, [300] * 5), (200, [300] + [400] * 4)])
def test_the_wait_for_a_node_that_answers_only_when_asked_again_does_not_grow(small, clock, after, asked):
    grid, patience, found = Trouble(small), Patience(300.0), []
    for _ in asked:
        found += visit(clock, grid, patience, needed=patience.of(grid.node) + after)
    assert found == asked


def test_time_counts_from_when_an_order_was_sent(small, clock):
    class Narrow(Trouble):
        def push_messages(self, messages):
            clock.now += 350
            return super().push_messages(messages)

    grid = Narrow(small)
    orders = Orders(grid, Ledger(), Patience(300.0))
    orders.send([grid.create_message(RecordDict(), "train", grid.node, "1")])
    assert orders.send_again() == []


class Unavailable(Trouble):
    """In visit 2 Flower says of the node's first order that its reply cannot be had; the second one's comes later."""

    def __init__(self, flat, *, orders: int, pulls_later: int) -> None:
        super().__init__(flat)
        self.orders, self.pulls_later = orders, pulls_later
        self.kept: list[Message] = []

    def come(self, message_ids):
        passed = []
        for reply in super().come(message_ids):
            its = self.is_its(reply) and reply.metadata.group_id == "2"
            (self.kept if its else passed).append(reply)
        if self.orders and len(self.kept) == self.orders:
            first, self.orders = self.kept.pop(0), 0
            passed.append(unavailable(first))
        elif not self.orders:
            self.pulls_later -= 1
        if not self.orders and self.pulls_later <= 0:
            passed, self.kept = passed + self.kept, []
        return passed


def unavailable(reply: Message) -> Message:
    """Return what Flower says where the content of a reply is missing."""
    metadata = copy.copy(reply.metadata)
    metadata.__dict__["_src_node_id"] = 1
    return Message(metadata=metadata, error=Error(3, "unavailable"))


@pytest.mark.parametrize(("orders", "pulls_later", "status"), [(2, 0, "ok"), (2, 3, "ok"), (1, 0, "error")])
def test_flowers_own_error_about_one_order_is_no_answer_to_the_other(small, monkeypatch, orders, pulls_later, status):
    grid = Unavailable(small, orders=orders, pulls_later=pulls_later)
    monkeypatch.setattr("gfpl_flwr.flower.orders.time", SimpleNamespace(monotonic=lambda: grid.now))
    monkeypatch.setattr("gfpl_flwr.flower.strategy.SETTLE", 0.0)
    serve(grid, small, engine="inprocess")
    lines = rounds(small)
    assert {site["site"]: site["status"] for site in lines[1]["sites"]}[NODE] == status
    assert all(site["status"] == "ok" for line in (lines[0], *lines[2:]) for site in line["sites"])


class Slow(Trouble):
    """The node answers visits 2 and 4 when it has been asked twice, and the second order three pulls later."""

    def __init__(self, flat, error: Exception | None = None) -> None:
        super().__init__(flat)
        self.error = error
        self.kept: list[Message] = []
        self.pulls: int | None = None  # until the second reply may go

    def come(self, message_ids):
        passed = []
        for reply in super().come(message_ids):
            late = self.is_its(reply) and reply.metadata.group_id in ("2", "4")
            (self.kept if late else passed).append(reply)
        if len(self.kept) == 2:
            passed.append(self.kept.pop(0))
            self.pulls = 3
        elif self.pulls is not None:
            if self.error is not None and self.kept[0].metadata.group_id == "4":
                raise self.error
            self.pulls -= 1
            if self.pulls == 0:
                passed.append(self.kept.pop())
                self.pulls = None
        return passed


def test_a_completed_run_waits_for_the_reply_to_an_order_that_was_sent_twice(small, federate, monkeypatch):
    grid = Slow(small)
    monkeypatch.setattr("gfpl_flwr.flower.orders.time", SimpleNamespace(monotonic=lambda: grid.now))
    serve(grid, small, engine="inprocess")
    assert not grid.kept  # also of the last visit
    lines = rounds(small)
    assert all(site["status"] == "ok" for line in lines for site in line["sites"])
    plain = rounds(small | {"name": federate("undisturbed").name})
    more = [line["scalars_up"] - undisturbed["scalars_up"] for line, undisturbed in zip(lines, plain, strict=True)]
    # The second reply to visit 2 comes in visit 2 or 3, and is counted.
    assert more[1] + more[2] > plain[1]["scalars_up"] / 8
    assert more[0] == more[3] == 0


def test_replies_that_nobody_needs_cannot_fail_a_completed_run(small, monkeypatch, caplog):
    grid = Slow(small, httpx.ConnectError("the SuperLink restarts"))
    monkeypatch.setattr("gfpl_flwr.flower.orders.time", SimpleNamespace(monotonic=lambda: grid.now))
    with caplog.at_level("WARNING", logger="flwr.gfpl"):
        serve(grid, small, engine="inprocess")
    summary = json.loads((Path(small["output-dir"]) / small["name"] / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert "not waited for: the SuperLink restarts" in caplog.text


def test_a_node_that_was_unregistered_meanwhile_is_not_waited_for(small):
    class Refusing(Trouble):
        def push_messages(self, messages):
            return ["" if self.is_its(message) else "an id" for message in messages]

    grid, ledger = Refusing(small), Ledger()
    orders = Orders(grid, ledger, Patience(10.0))
    assert orders.send([grid.create_message(RecordDict(), "train", node, "1") for node in (grid.node, 7)]) == [7]
    assert list(orders.open) == ["an id"]
    assert ledger.asked == {7}
