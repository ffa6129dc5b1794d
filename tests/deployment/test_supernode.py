"""A node whose line to the server has broken for good ends, and so can be started again."""

import os
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from flwr.proto import fleet_pb2, heartbeat_pb2

from benchmarks.deployment import SUPERNODE, Service, free_port

from .conftest import wait_for

pytestmark = pytest.mark.deployment
ANSWERS = {
    "register-node": fleet_pb2.RegisterNodeFleetResponse(node_id=7),
    "activate-node": fleet_pb2.ActivateNodeResponse(node_id=7),
    "pull-messages": fleet_pb2.PullMessagesResponse(),
    "send-node-heartbeat": heartbeat_pb2.SendNodeHeartbeatResponse(success=True),
    "deactivate-node": fleet_pb2.DeactivateNodeResponse(),
    "unregister-node": fleet_pb2.UnregisterNodeFleetResponse(),
}


class Fleet(ThreadingHTTPServer):
    """A server that has nothing for its nodes, and answers some requests with 500.

    Attributes:
        broken: last words of the routes that it does so with.
        asked: last words of all routes that it was asked.
    """

    def __init__(self, broken: set[str]) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.broken = broken
        self.asked: list[str] = []


class Answer(BaseHTTPRequestHandler):
    """An answer of it."""

    server: Fleet

    def do_POST(self) -> None:
        """Answer what a node asks."""
        route = self.path.rpartition("/")[2]
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append(route)
        body = ANSWERS[route].SerializeToString()
        self.send_response(500 if route in self.server.broken else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        """Say nothing."""


@pytest.fixture
def fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """Such a server, whose broken routes the test names."""
    with Fleet({request.param}) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def node(fleet: Fleet, home: Path, isolation: str) -> Service:
    """Start a SuperNode of this server."""
    command = [*SUPERNODE, "--insecure", "--superlink", f"127.0.0.1:{fleet.server_port}"]
    command += ["--isolation", isolation, "--host", "127.0.0.1", "--port", str(free_port())]
    return Service(home, {"supernode": command}).start()


def has_ended(node: Service) -> bool:
    """Return whether nothing of it lives any more."""
    return node.children[0].poll() is not None and not node.processes()


@pytest.mark.parametrize("fleet", ["pull-messages", "send-node-heartbeat"], indirect=True)
def test_a_node_ends_when_its_line_has_broken_for_good(fleet: Fleet, tmp_path: Path):
    broken = node(fleet, tmp_path, "process")
    try:
        wait_for(lambda: has_ended(broken))
        assert "500" in broken.log()
        assert "deactivate-node" in fleet.asked  # so that its next start is not refused because its key is in use
    finally:
        broken.kill()


@pytest.mark.parametrize("fleet", [""], indirect=True)
@pytest.mark.parametrize("together", [False, True])
def test_a_node_ends_with_its_superexec_and_signs_off(fleet: Fleet, tmp_path: Path, together: bool):
    device = node(fleet, tmp_path, "subprocess")
    try:
        ends = [device.wait_for_process("flower-superexec")]
        wait_for(lambda: "pull-messages" in fleet.asked)
        # Who stops a service has systemd tell all of its processes at once.
        ends += [device.children[0].pid] if together else []
        for pid in ends:
            os.kill(pid, signal.SIGTERM)
        wait_for(lambda: has_ended(device))
        assert "SuperNode terminated gracefully" in device.log()
        assert "deactivate-node" in fleet.asked
    finally:
        device.kill()
