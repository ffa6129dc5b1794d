"""A node whose line to the server has broken for good ends, and so can be started again."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import certifi
import pytest
from flwr.proto import fleet_pb2, heartbeat_pb2

from benchmarks.deployment import SUPERNODE, Deployment, Service, free_port

from .conftest import GFPL, add_node, wait_for

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


def node(port: int, home: Path, isolation: str, *words: str) -> Service:
    """Start a SuperNode of the server at this port."""
    command = [*SUPERNODE, *(words or ["--insecure"]), "--superlink", f"127.0.0.1:{port}"]
    command += ["--isolation", isolation, "--host", "127.0.0.1", "--port", str(free_port())]
    return Service(home, {"supernode": command}).start()


def has_ended(node: Service) -> bool:
    """Return whether nothing of it lives any more."""
    return node.children[0].poll() is not None and not node.processes()


@pytest.mark.parametrize("fleet", ["pull-messages", "send-node-heartbeat"], indirect=True)
def test_a_node_ends_when_its_line_has_broken_for_good(fleet: Fleet, tmp_path: Path):
    broken = node(fleet.server_port, tmp_path, "process")
    try:
        wait_for(lambda: has_ended(broken))
        assert "500" in broken.log()
        assert "deactivate-node" in fleet.asked  # so that its next start is not refused because its key is in use
    finally:
        broken.kill()


@pytest.mark.parametrize("fleet", [""], indirect=True)
@pytest.mark.parametrize("together", [False, True])
def test_a_node_ends_with_its_superexec_and_signs_off(fleet: Fleet, tmp_path: Path, together: bool):
    device = node(fleet.server_port, tmp_path, "subprocess")
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


@pytest.mark.parametrize("fleet", [""], indirect=True)
def test_a_node_with_a_damaged_certificate_of_the_authority_says_so_and_ends(fleet: Fleet, tmp_path: Path):
    (tmp_path / "ca.crt").write_text("-----BEGIN CERTIFICATE-----\nMIIB")
    wrong = node(fleet.server_port, tmp_path / "node", "subprocess", "--root-certificates", str(tmp_path / "ca.crt"))
    try:
        wait_for(lambda: has_ended(wrong))
        assert wrong.children[0].returncode == 1
        assert "SSLError" in wrong.log()
    finally:
        wrong.kill()


def test_a_tls_handshake_that_takes_too_long_is_tried_again(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it connects and says nothing
        port = silent.getsockname()[1]
        patient = node(port, tmp_path / "node", "process", "--root-certificates", certifi.where())
        try:
            wait_for(lambda: "Connection attempt failed, retrying" in patient.log() or has_ended(patient))
            assert not has_ended(patient), patient.log()
        finally:
            patient.kill()


def test_a_node_whose_clientapp_was_stopped_ends_and_joins_again_at_once(deployment: Deployment, digits: Path):
    stopped = add_node(deployment, 0, digits, sites=1)
    deployment.connected(1)
    run = deployment.run("stopped", GFPL | {"num-sites": 1, "local-epochs": 40})
    app = stopped.wait_for_process("flwr-clientapp")
    # Before that it would not yet take the signal as one to stop, and be started again.
    wait_for(lambda: "Successfully installed gfpl-flwr" in stopped.log())
    os.kill(app, signal.SIGTERM)
    wait_for(lambda: stopped.children[0].poll() is not None)
    assert stopped.children[0].returncode == 1
    assert "the ClientApp has ended without a reply" in stopped.log()
    stopped.kill()
    stopped.start()
    wait_for(lambda: stopped.log().count("SuperNode ID") == 2)  # refused, it would have ended
    run.kill()
    run.communicate()
