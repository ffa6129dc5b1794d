"""The orders of one visit: sent, and sent once more to a node that says nothing."""

import time
from collections.abc import Sequence, Set

from flwr.app import Message
from flwr.serverapp import Grid

from gfpl_flwr.flower.ledger import Ledger
from gfpl_flwr.flower.polled_grid import PolledGrid
from gfpl_flwr.flower.tensors import Size, size_of


class Patience:
    """How long the nodes of a run are waited for before they are asked again.

    Args:
        least: seconds.
    """

    def __init__(self, least: float) -> None:
        self._least = least
        self._longest: dict[int, float] = {}

    def of(self, node: int) -> float:
        """Return the seconds: twice the longest that the node took to answer, and not less than ``least``."""
        return max(self._least, 2 * self._longest.get(node, 0.0))

    def learn(self, node: int, seconds: float) -> None:
        """Take in how long a node took to answer since it was last asked.

        Since it was asked first would count the waiting itself, and a node whose orders are lost would be waited for
        twice as long in every visit.
        """
        self._longest[node] = max(seconds, self._longest.get(node, 0.0))


class Orders:
    """Sends the messages of a visit, and knows which replies are still to come.

    Flower (1.41) hands a message out once: what a node was receiving when it was restarted, or when its SuperLink
    was, is lost. And a SuperNode that was receiving when its run ended sends each later reply only when it has
    received another message. So a node that says nothing for longer than it should is sent its order once more: one
    that has done the visit answers from its disk. Its first reply counts, whichever message it answers. A sound node
    that is at work gets the second order when it is done with the first, which is why there is no third.

    Args:
        grid: that carries them; only one that can lose a message is asked to carry it again.
        ledger: of the visit; takes down every message that is sent.
        patience: with the nodes; learns.
    """

    def __init__(self, grid: Grid, ledger: Ledger, patience: Patience) -> None:
        self._grid, self._ledger, self._patience = grid, ledger, patience
        self._can_lose = isinstance(grid, PolledGrid) and grid.can_lose
        self._open: dict[str, int] = {}  # message id to node
        self._messages: dict[int, Message] = {}  # the order of each node that has not answered
        self._ids: dict[int, list[str]] = {}  # under which it was sent
        self._first: dict[int, float] = {}  # when a node was asked first
        self._last: dict[int, float] = {}  # and last

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
            node = message.metadata.dst_node_id
            self._last[node] = time.monotonic()
            if message_id:
                self._ledger.sent[message_id] = node, sizes[id(message.content)]
                self._open[message_id], self._messages[node] = node, message
                self._ids.setdefault(node, []).append(message_id)
                self._first.setdefault(node, self._last[node])
                sent.append(node)
        return sent

    def send_again(self) -> list[int]:
        """Send the order once more to nodes that should have answered; return their ids."""
        if not self._can_lose:
            return []
        now = time.monotonic()
        late = [
            _copy(message)
            for node, message in self._messages.items()
            if self._last[node] == self._first[node] and now - self._first[node] >= self._patience.of(node)
        ]
        return self.send(late) if late else []

    def waited(self, node: int) -> float:
        """Return the seconds since a node was asked first."""
        return time.monotonic() - self._first[node]

    def drop(self, message_id: str) -> bool:
        """Wait no more for the reply to a message, if its node has another one to answer; return whether it has."""
        node = self._open[message_id]
        if len(self._ids[node]) == 1:
            return False
        self._ids[node].remove(message_id)
        del self._open[message_id]
        return True

    def close(self, message_id: str) -> list[str]:
        """Wait no more for the node that answered a message; return the ids of its others, now without use."""
        node = self._open[message_id]
        self._patience.learn(node, time.monotonic() - self._last[node])
        del self._messages[node]
        ids = self._ids.pop(node)
        for name in ids:
            del self._open[name]
        ids.remove(message_id)
        return ids


def _copy(message: Message) -> Message:
    its = message.metadata
    return Message(message.content, its.dst_node_id, its.message_type, ttl=its.ttl, group_id=its.group_id)
