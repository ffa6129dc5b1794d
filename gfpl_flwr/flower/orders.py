"""The orders of one visit: sent, and sent once more to a node that says nothing."""

import math
import time
from collections.abc import Iterator, Sequence, Set

from flwr.app import Message
from flwr.serverapp import Grid

from gfpl_flwr.flower.ledger import Ledger
from gfpl_flwr.flower.polled_grid import PolledGrid
from gfpl_flwr.flower.tensors import Size, size_of

PROMPT = 15.0
"""Seconds: a node that answers so soon after it was asked again had an answer, and was not at work."""


class Patience:
    """How long the nodes of a run are waited for before they are asked again.

    Args:
        least: seconds.
    """

    def __init__(self, least: float) -> None:
        self._least = least
        self._longest: dict[int, float] = {}

    def of(self, node: int) -> float:
        """Return the seconds: twice what the node has needed for a visit, but not less than for any other."""
        return max(self._least, 2 * self._longest.get(node, 0.0))

    def learn(self, node: int, seconds: float) -> None:
        """Take in what a node has needed for a visit."""
        self._longest[node] = max(seconds, self._longest.get(node, 0.0))


class Orders:
    """Sends the messages of a visit, and knows which replies are still to come.

    Flower (1.41) hands a message out once: what a node was receiving when it was restarted, or when its SuperLink
    was, is lost. And a SuperNode that was receiving when its run ended sends each later reply only when it has
    received another message. So a node that says nothing for longer than it should is sent its order once more: one
    that has done the visit answers from its disk. Its first reply counts, whichever message it answers. A node that
    is at work gets the second order when it is done with the first, which is why there is no third.

    Args:
        grid: that carries them; only one that can lose a message is asked to carry it again.
        ledger: of the visit; takes down every message that is sent.
        patience: with the nodes; learns.
    """

    def __init__(self, grid: Grid, ledger: Ledger, patience: Patience) -> None:
        self._grid, self._ledger, self._patience = grid, ledger, patience
        self._can_lose = isinstance(grid, PolledGrid) and grid.can_lose
        self._open: dict[str, Message] = {}
        self._sent: dict[int, float] = {}  # when a node was asked first
        self._again: dict[int, float] = {}  # and when for the second time

    @property
    def open(self) -> Set[str]:
        """Ids of the messages whose reply is still awaited."""
        return self._open.keys()

    def send(self, messages: Sequence[Message]) -> list[int]:
        """Send messages, each to one node; most often all carry the same content.

        Returns:
            The ids of the nodes, but of those that were unregistered meanwhile.
        """
        sizes: dict[int, Size] = {}
        for message in messages:
            if id(message.content) not in sizes:
                sizes[id(message.content)] = size_of(message)
        sent = []
        for message_id, message in zip(self._grid.push_messages(messages), messages, strict=True):
            if message_id:
                node = message.metadata.dst_node_id
                self._ledger.sent[message_id] = node, sizes[id(message.content)]
                self._open[message_id] = message
                self._sent.setdefault(node, time.monotonic())
                sent.append(node)
        return sent

    def send_again(self) -> list[int]:
        """Send the order once more to nodes that should have answered; return their ids."""
        if not self._can_lose:
            return []
        now = time.monotonic()
        silent = {message.metadata.dst_node_id: message for message in self._open.values()}
        late = [
            _copy(message)
            for node, message in silent.items()
            if node not in self._again and now - self._sent[node] >= self._patience.of(node)
        ]
        nodes = self.send(late) if late else []
        self._again |= dict.fromkeys((message.metadata.dst_node_id for message in late), time.monotonic())
        return nodes

    def waited(self, node: int) -> float:
        """Return the seconds since a node was asked first."""
        return time.monotonic() - self._sent[node]

    def drop(self, message_id: str) -> bool:
        """Wait no more for the reply to a message, if its node has another one to answer; return whether it has."""
        if message_id not in self._open or not self._others(message_id):
            return False
        del self._open[message_id]
        return True

    def close(self, message_id: str) -> Iterator[str]:
        """Take down that a message was answered; yield the ids of others to its node, which needs to answer none."""
        if message_id not in self._open:
            return
        others, node = self._others(message_id), self._ledger.sent[message_id][0]
        if time.monotonic() - self._again.get(node, -math.inf) > PROMPT:
            self._patience.learn(node, self.waited(node))
        for name in (message_id, *others):
            del self._open[name]
        yield from others

    def _others(self, message_id: str) -> list[str]:
        node = self._ledger.sent[message_id][0]
        return [name for name in self._open if name != message_id and self._ledger.sent[name][0] == node]


def _copy(message: Message) -> Message:
    its = message.metadata
    return Message(message.content, its.dst_node_id, its.message_type, ttl=its.ttl, group_id=its.group_id)
