"""A Grid that calls the ClientApp in this process: the same two apps as on devices, without Ray and without waiting.

Tests and sweeps use it. A message is handled when its reply is pulled, so replies come one by one, in the order
of the nodes.
"""

import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from gfpl_flwr.flower.client import build_client_app
from gfpl_flwr.flower.progress import Progress
from gfpl_flwr.flower.run_folder import RunFolder
from gfpl_flwr.flower.server import run

RUN_ID = 1
DEFAULT_SITES = 20
"""Sites where the configuration names no number, as in pyproject-federation.toml and in the paper."""
CLIENT_RAISED = 2
"""Flower's code of a reply to a message on which the ClientApp raised."""


class InProcessGrid(Grid):
    """Nodes that live in this process.

    Args:
        client_app: handles every message.
        node_configs: one mapping a node, as a SuperNode's ``--node-config``.
        run_config: the run's flat configuration.
    """

    def __init__(
        self, client_app: ClientApp, node_configs: Iterable[Mapping[str, Any]], run_config: Mapping[str, Any]
    ) -> None:
        # Flower's Message looks these up when it is made; its engines set them for the process of an app.
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN_ID, 1, 1
        self._client_app = client_app
        self._contexts = {
            node: Context(RUN_ID, node, dict(config), RecordDict(), dict(run_config), RUN_ID)
            for node, config in enumerate(node_configs, start=2)  # 1 is the server itself
        }
        self._pending: dict[str, Message] = {}
        self._run = Run.create_empty(RUN_ID)

    def set_run(self, run: Run) -> None:
        """Take over the run's description."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run's description."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message, as Flower's deprecated method of this name does."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all nodes."""
        return list(self._contexts)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return a description of all nodes."""
        return [NodeInfo(node_id=node) for node in self._contexts]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Accept messages; each is handled when its reply is pulled."""
        ids = []
        for message in messages:
            message_id = str(uuid.uuid4())
            message.metadata.__dict__["_message_id"] = message_id
            self._pending[message_id] = message
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Handle the oldest of these messages and return its reply."""
        wanted = set(message_ids)
        for message_id, message in list(self._pending.items()):
            if message_id in wanted:
                del self._pending[message_id]
                return [self._handle(message)]
        return []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Handle all messages and return their replies; what is not begun before the timeout is not answered."""
        end = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        for message_id in self.push_messages(messages):
            if end is None or time.monotonic() < end:
                replies.extend(self.pull_messages([message_id]))
        return replies

    def _handle(self, message: Message) -> Message:
        context = self._contexts[message.metadata.dst_node_id]
        try:
            reply: Message = self._client_app(message, context)
        except Exception as error:
            return Message(Error(CLIENT_RAISED, f"{type(error)}:<{error}>"), reply_to=message)
        return reply


def run_in_process(flat: Mapping[str, Any], *, on_progress: Callable[[Progress], None] | None = None) -> RunFolder:
    """Run a whole federation in this process.

    Args:
        flat: the run's flat configuration; ``num-sites = 0`` means :data:`DEFAULT_SITES`.
        on_progress: called after every reply and every visit; they are logged by default.

    Returns:
        The run's folder.
    """
    sites = int(flat.get("num-sites", 0)) or DEFAULT_SITES
    nodes = [{"partition-id": site, "num-partitions": sites} for site in range(sites)]
    flat = {**flat, "num-sites": sites}
    grid = InProcessGrid(build_client_app(), nodes, flat)
    return run(grid, flat, engine="inprocess", on_progress=on_progress)
