"""The orders of one visit: sent, and sent again to a node that says nothing."""

import math
import time
from collections.abc import Iterable, Iterator, Sequence, Set

from flwr.app import Message
from flwr.serverapp import Grid

from gfpl_flwr.flower.ledger import Ledger
from gfpl_flwr.flower.polled_grid import PolledGrid
from gfpl_flwr.flower.tensors import Size, size_of


class Orders:
    """Sends the messages of a visit, and knows which replies are still to come.

    Flower (1.41) hands a message out once: what a node was receiving when it was restarted, or when its SuperLink
    was, is lost. And a SuperNode that was receiving when its run was stopped sends each later reply only when it has
    received another message. So a node that has said nothing for a while is sent its order again, then after twice as
    long, and so on: one that has done the visit answers from its disk. Its first reply counts, whichever message it
    answers.

    Args:
        grid: that carries them; only one that can lose a message is asked to carry it again.
        ledger: of the visit; takes down every message that is sent.
        again_after: seconds until a node is asked for the second time.
    """

    def __init__(self, grid: Grid, ledger: Ledger, *, again_after: float) -> None:
        self._grid, self._ledger = grid, ledger
        self._pause = again_after if isinstance(grid, PolledGrid) and grid.can_lose else math.inf
        self._next = time.monotonic() + self._pause
        self._open: dict[str, Message] = {}

    @property
    def open(self) -> Set[str]:
        """Ids of the messages whose reply is still awaited."""
        return self._open.keys()

    def send(self, messages: Sequence[Message]) -> None:
        """Send messages, each to one node; most often all carry the same content."""
        sizes: dict[int, Size] = {}
        for message in messages:
            if id(message.content) not in sizes:
                sizes[id(message.content)] = size_of(message)
        for message_id, message in zip(self._grid.push_messages(messages), messages, strict=True):
            if message_id:  # without one the node was unregistered meanwhile
                self._ledger.sent[message_id] = message.metadata.dst_node_id, sizes[id(message.content)]
                self._open[message_id] = message

    def send_again(self) -> Iterable[int]:
        """Send those without a reply again, if it is time to; return the ids of their nodes."""
        if time.monotonic() < self._next:
            return []
        self._pause *= 2
        self._next += self._pause
        silent = {message.metadata.dst_node_id: message for message in self._open.values()}
        self.send([_copy(message) for message in silent.values()])
        return silent.keys()

    def close(self, message_id: str) -> Iterator[str]:
        """Wait no more for the reply to a message; yield the ids of others whose node has answered by that."""
        if self._open.pop(message_id, None) is None:
            return
        node = self._ledger.sent[message_id][0]
        for other in [name for name in self._open if self._ledger.sent[name][0] == node]:
            del self._open[other]
            yield other


def _copy(message: Message) -> Message:
    its = message.metadata
    return Message(message.content, its.dst_node_id, its.message_type, ttl=its.ttl, group_id=its.group_id)
