"""A node whose line to the server has broken for good ends, and so can be started again."""

import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from flwr.proto import fleet_pb2, heartbeat_pb2

from benchmarks.deployment import SUPERNODE, free_port

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


@pytest.mark.parametrize("fleet", ["pull-messages", "send-node-heartbeat"], indirect=True)
def test_a_node_ends_when_its_line_has_broken_for_good(fleet: Fleet, tmp_path: Path):
    command = [*SUPERNODE, "--insecure", "--superlink", f"127.0.0.1:{fleet.server_port}", "--isolation", "process"]
    command += ["--host", "127.0.0.1", "--port", str(free_port())]
    quiet = {"FLWR_HOME": str(tmp_path), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    done = subprocess.run(command, env=os.environ | quiet, capture_output=True, text=True, timeout=120, check=False)
    said = done.stdout + done.stderr
    (broken,) = fleet.broken
    assert broken in fleet.asked
    assert "500" in said
    # The server is told, so that the node's next start is not refused because its key is in use.
    assert fleet.asked[-2:] == ["deactivate-node", "unregister-node"]
    assert done.returncode == (1 if broken == "pull-messages" else 0), said
