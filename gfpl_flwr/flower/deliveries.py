"""Replies pulled from Flower's server one by one, so that none of them can spoil or hold up the others.

Flower's grid (1.41) claims every reply that has come and then unpacks one after the other. One that cannot be
unpacked raises, and the rest are lost with it; one whose upload stops half-way is waited for until its push session
expires, 180 s after the last piece that came.
"""

import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import httpx
from flwr.app import Error, Message, Metadata, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from gfpl_flwr.flower.polled_grid import PolledGrid

THREADS = 16
"""Most replies that are pulled at once; only as many stalled uploads hold up the others."""
PULLS_A_SECOND = 50
"""Most requests for replies: the server shares its machine."""
_SERVER = 1  # Flower's number of its server's node


class Deliveries(PolledGrid):
    """A grid of Flower's of which each reply is pulled by itself, in a thread of its own.

    A reply is told by the id it was asked for under, and is an error where it cannot be unpacked or says that it
    answers another message: what it says is its node's word.

    Args:
        grid: Flower's; its methods may be called from several threads.
    """

    can_lose = True
    pause = 0.1

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="deliveries")
        self._pulls: dict[str, Future[Message | None]] = {}
        self._next = 0.0  # when replies may be asked for again

    def __enter__(self) -> "Deliveries":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for no reply any more; Flower closes its grid, which ends what is under way."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def set_run(self, run: Run) -> None:
        """Take over the run's description."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """The run's description."""
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message, as Flower's deprecated method of this name does."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of the connected nodes."""
        return self._grid.get_node_ids()

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return a description of the connected nodes."""
        return self._grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages; return their ids."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have come by now, and have the others asked for; wait for none.

        Raises:
            httpx.HTTPError: the server refuses to be asked.
        """
        wanted = dict.fromkeys(message_ids)  # those that are named first are asked for first
        idle = [message_id for message_id in wanted if message_id not in self._pulls]
        asked = [message_id for message_id in wanted if message_id in self._pulls]
        done = [self._pulls.pop(message_id) for message_id in asked if self._pulls[message_id].done()]
        replies = [reply for reply in (pull.result() for pull in done) if reply is not None]
        if idle and time.monotonic() >= self._next:
            self._next = time.monotonic() + len(idle) / PULLS_A_SECOND
            self._pulls |= {message_id: self._threads.submit(self._pull, message_id) for message_id in idle}
        return replies

    def _pull(self, message_id: str) -> Message | None:
        try:
            reply = next(iter(self._grid.pull_messages([message_id])), None)
        except httpx.HTTPError:
            raise  # of the server, not of the reply, which has not been claimed
        except Exception as error:  # whatever a node pushes, Flower unpacks
            return _refused(message_id, f"the reply cannot be unpacked: {type(error).__name__}: {error}")
        if reply is not None and reply.metadata.reply_to_message_id != message_id:
            return _refused(message_id, "the reply says that it answers another message")
        return reply


def _refused(message_id: str, reason: str) -> Message:
    metadata = Metadata(
        run_id=0,
        message_id="",
        src_node_id=_SERVER,
        dst_node_id=_SERVER,
        reply_to_message_id=message_id,
        group_id="",
        created_at=time.time(),
        ttl=0.0,
        message_type="train",
    )
    return Message(metadata=metadata, error=Error(0, reason))  # type: ignore[call-overload, no-any-return]
