"""From the devices' network the SuperLink is its Fleet API, for nodes whose key is known, and nothing else."""

import datetime
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from .conftest import PROJECT, Stack, docker, inspected, node_ids, running, wait_for

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def stack(project: Path) -> Iterator[Stack]:
    yield from running(Stack(project, True))


def from_devices(stack: Stack, code: str, *words: str, check: bool = True) -> str:
    """Run Python in a container that hangs on the devices' network and has what a device has."""
    command = [
        "run",
        "--rm",
        "--network",
        f"{PROJECT}_devices",
        "--volume",
        f"{stack.folder}/docker/certificates:/tls:ro",
    ]
    return docker(*command, "--entrypoint", "python", f"{PROJECT}/app", "-c", code, *words, check=check)


ROUTES = """
import json, ssl, urllib.request
trust = ssl.create_default_context(cafile="/app/certificates/ca.crt")
print(urllib.request.urlopen("https://localhost:8000/openapi.json", context=trust).read().decode())
"""

TRY = """
import http.client, json, ssl, sys
trust = ssl.create_default_context(cafile="/tls/ca.crt")
link = http.client.HTTPSConnection("gateway", 8443, context=trust, timeout=20)
answers = {}
for path, method in json.loads(sys.argv[1]):
    link.request(method, path, body=b"" if method == "POST" else None)
    response = link.getresponse()
    response.read()
    answers[f"{method} {path}"] = response.status
    if response.will_close:
        link.close()
print(json.dumps(answers))
"""


def test_of_all_routes_only_those_of_the_fleet_answer(stack: Stack):
    described = json.loads(docker("exec", stack.container("superlink"), "python", "-c", ROUTES))
    routes = sorted(described["paths"])
    assert len(routes) > 60
    fleet = [route for route in routes if route.startswith("/v1/fleet/")]
    assert len(fleet) == 12
    others = sorted({*routes, "/", "/docs", "/openapi.json", "/redoc", "/health"} - set(fleet))
    # Ways around: what means another route to one of two programs, or to none.
    tricks = [
        "/v1/fleet/../control/list-runs",
        "/v1/fleet/%2e%2e/control/list-runs",
        "/v1/fleet/..%2fcontrol/list-runs",
        "/v1/fleet/%252e%252e/control/list-runs",
        "//v1/control/list-runs",
        "/v1//control/list-runs",
        "/v1/control/../fleet/pull-messages",
        "/v1/fleet/pull-messages/../../control/list-runs",
        "/v1/fleet/",
        "/V1/CONTROL/list-runs",
    ]
    asked = [(path, "POST") for path in fleet + others + tricks] + [(path, "GET") for path in others + tricks]
    answers = json.loads(from_devices(stack, TRY, json.dumps(asked)))
    # Without a body of the right type the SuperLink says 415, which is the SuperLink's answer all the same.
    assert {path: status for path in fleet if (status := answers[f"POST {path}"]) != 415} == {}
    closed = {key: status for key, status in answers.items() if key.partition(" ")[2] not in fleet}
    assert set(closed.values()) <= {403, 404}, closed
    assert len(closed) == 2 * (len(others) + len(tricks))


def test_the_superlink_itself_cannot_be_reached_from_the_devices(stack: Stack):
    (facts,) = json.loads(docker("inspect", stack.container("superlink")))
    networks = facts["NetworkSettings"]["Networks"]
    assert set(networks) == {f"{PROJECT}_control"}
    address = networks[f"{PROJECT}_control"]["IPAddress"]
    code = "import socket, sys; socket.create_connection((sys.argv[1], 8000), 5)"
    assert "Error" in from_devices(stack, code, address, check=False)
    assert "gaierror" in from_devices(stack, code, "superlink", check=False)


def test_plain_text_is_refused(stack: Stack):
    code = """
import http.client
link = http.client.HTTPConnection("gateway", 8443, timeout=20)
link.request("POST", "/v1/fleet/pull-messages", body=b"")
answer = link.getresponse()
print(answer.status, answer.read().decode())
"""
    printed = from_devices(stack, code)
    assert printed.startswith("400 ")
    assert "plain HTTP request was sent to HTTPS port" in printed


def supernode(stack: Stack, folder: Path, *, ca: str = "ca.crt", key: str = "stranger") -> str:
    """Start a SuperNode in the devices' network with these files; return what it says when it ends by itself."""
    folder.chmod(0o755)
    for parent in folder.parents[:2]:
        parent.chmod(0o755)
    command = ["run", "--rm", "--network", f"{PROJECT}_devices", "--volume", f"{folder}:/tls:ro", f"{PROJECT}/node"]
    command += ["--superlink", "gateway:8443", "--root-certificates", f"/tls/{ca}"]
    command += [
        "--auth-supernode-private-key",
        f"/tls/{key}",
        "--max-retries",
        "0",
        "--node-config",
        "partition-id=0",
    ]
    done = subprocess.run(["docker", *command], capture_output=True, text=True, timeout=120)
    assert done.returncode != 0, done.stdout
    return done.stdout + done.stderr


def stranger(stack: Stack, folder: Path) -> Path:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", str(folder / "stranger")], check=True
    )
    (folder / "stranger").chmod(0o644)
    (folder / "ca.crt").write_bytes((stack.folder / "docker/certificates/ca.crt").read_bytes())
    return folder


def test_an_unknown_key_is_refused(stack: Stack, tmp_path: Path):
    assert "[code: 2004]" in supernode(stack, stranger(stack, tmp_path))


def test_a_node_refuses_a_server_of_another_authority(stack: Stack, tmp_path: Path):
    folder = stranger(stack, tmp_path)
    other = folder / "other"
    other.mkdir()
    (other / "certs.sh").write_bytes((stack.folder / "docker/certs.sh").read_bytes())
    subprocess.run(["sh", str(other / "certs.sh")], check=True, capture_output=True)
    (folder / "other.crt").write_bytes((other / "certificates/ca.crt").read_bytes())
    assert "CERTIFICATE_VERIFY_FAILED" in supernode(stack, folder, ca="other.crt")


def expire(stack: Stack) -> bytes:
    """Replace the gateway's certificate by one whose time is over, of the same authority; return the good one."""
    tls = stack.folder / "docker"
    good = (tls / "certificates/server.pem").read_bytes()
    old = x509.load_pem_x509_certificate(good)
    authority = serialization.load_pem_private_key((tls / "private/ca.key").read_bytes(), None)
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gfpl server")]))
        .issuer_name(old.issuer)
        .public_key(old.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=9))
        .not_valid_after(now - datetime.timedelta(days=1))
    )
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    expired = builder.sign(authority, hashes.SHA384())
    (tls / "certificates/server.pem").write_bytes(expired.public_bytes(serialization.Encoding.PEM))
    return good


def test_nodes_refuse_a_certificate_that_has_expired_and_come_back_when_it_is_renewed(stack: Stack, tmp_path: Path):
    nodes = [stack.container(f"node-{number}") for number in range(3)]
    started = {node: inspected(node)["State"]["StartedAt"] for node in nodes}
    good = expire(stack)
    try:
        docker("exec", stack.container("gateway"), "nginx", "-s", "reload")
        assert "certificate has expired" in supernode(stack, stranger(stack, tmp_path))
        for node in nodes:
            wait_for(lambda node=node: inspected(node)["State"]["StartedAt"] != started[node], 60, node)
    finally:
        (stack.folder / "docker/certificates/server.pem").write_bytes(good)
        docker("exec", stack.container("gateway"), "nginx", "-s", "reload")
    # They could not sign off, so the server takes their keys for in use for a minute; each failed start waits longer.
    for node in nodes:
        assert "certificate has expired" in docker("logs", node, check=False)
        wait_for(lambda node=node: node_ids(node, inspected(node)["State"]["StartedAt"]), 240, node)


PRESENTED = """
import socket, ssl, sys
authority, host, port = sys.argv[1:]
trust = ssl.create_default_context(cafile=authority)
with trust.wrap_socket(socket.create_connection((host, int(port)), 20), server_hostname=host) as link:
    print(ssl.DER_cert_to_PEM_cert(link.getpeercert(True)))
"""


def test_a_renewed_certificate_is_in_use_at_once(stack: Stack):
    file = stack.folder / "docker/certificates/server.pem"
    before = x509.load_pem_x509_certificate(file.read_bytes())
    stack.make("renew", "NAMES=renewed.example.org")
    issued = x509.load_pem_x509_certificate(file.read_bytes())
    assert issued.serial_number != before.serial_number
    names = issued.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "renewed.example.org" in names.get_values_for_type(x509.DNSName)
    # The nodes come back by themselves; the SuperLink would call them connected for a minute without that.
    gateway, restarted = stack.container("gateway"), inspected(stack.container("superlink"))["State"]["StartedAt"]
    wait_for(lambda: len(pulling(gateway, restarted)) == 3, 180, gateway)
    outside = from_devices(stack, PRESENTED, "/tls/ca.crt", "gateway", "8443")
    words = ("python", "-c", PRESENTED, "/app/certificates/ca.crt", "localhost", "8000")
    inside = docker("exec", stack.container("superlink"), *words)
    for presented in (outside, inside):
        assert x509.load_pem_x509_certificate(presented.encode()).serial_number == issued.serial_number


def test_a_superlink_that_has_another_address_when_it_is_started_again_is_found(stack: Stack):
    superlink, gateway = stack.container("superlink"), stack.container("gateway")

    def address() -> str:
        return str(inspected(superlink)["NetworkSettings"]["Networks"][f"{PROJECT}_control"]["IPAddress"])

    before = address()
    docker("stop", superlink)
    words = ["--network", f"{PROJECT}_control", "--entrypoint", "sleep", f"{PROJECT}/node", "600"]
    other = docker("run", "--detach", "--rm", *words).strip()
    try:
        docker("start", superlink)
        assert address() != before
        wait_for(lambda: len(pulling(gateway, inspected(superlink)["State"]["StartedAt"])) == 3, 180, gateway)
    finally:
        docker("rm", "--force", other)


def pulling(gateway: str, since: str) -> set[str]:
    """Return the addresses of nodes that the SuperLink has answered since a moment, from the gateway's log."""
    lines = docker("logs", "--since", since, gateway, check=False).splitlines()
    return {line.split()[0] for line in lines if "POST /v1/fleet/pull-messages" in line and '" 200 ' in line}


SEND = """
import http.client, json, ssl, sys
trust = ssl.create_default_context(cafile="/tls/ca.crt")
piece, count = bytes(1 << 20), 400
for chunked in (False, True):
    link = http.client.HTTPSConnection("gateway", 8443, context=trust, timeout=60)
    link.putrequest("POST", "/v1/fleet/push-messages")
    link.putheader("Content-Type", "application/protobuf")
    link.putheader(*(("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(count << 20))))
    link.endheaders()
    sent = 0
    try:
        for _ in range(count):
            link.send(b"%x\\r\\n%s\\r\\n" % (len(piece), piece) if chunked else piece)
            sent += 1
    except OSError:
        pass  # it was cut off
    try:
        status = link.getresponse().status
    except (OSError, http.client.HTTPException):
        status = None
    print(json.dumps({"chunked": chunked, "sent": sent, "status": status}))
"""


def resident(container: str) -> dict[str, int]:
    """Return the memory of each process of a container in bytes, the largest it ever had, by its id."""
    code = """
from pathlib import Path
for path in Path("/proc").glob("[0-9]*/status"):
    for line in path.read_text().splitlines():
        if line.startswith("VmHWM"):
            print(path.parent.name, line.split()[1])
"""
    lines = docker("exec", container, "python", "-c", code).splitlines()
    return {pid: int(size) * 1024 for pid, size in map(str.split, lines)}


def test_a_body_of_400_mb_does_not_reach_the_superlink(stack: Stack):
    superlink = stack.container("superlink")
    before = resident(superlink)
    answers = [json.loads(line) for line in from_devices(stack, SEND).splitlines()]
    # A health check and the process that measures come and go: they are in one of two looks alone.
    once = resident(superlink)
    time.sleep(3)
    after = {pid: size for pid, size in resident(superlink).items() if pid in once}
    grown = sum(size - before.get(pid, 0) for pid, size in after.items())
    assert "1" in before.keys() & after.keys()  # the SuperLink itself, or what runs it
    print(f"SuperLink grew by {grown / 1e6:.1f} MB; {answers}")
    assert [answer["chunked"] for answer in answers] == [False, True]
    for answer in answers:
        assert answer["status"] == 413 or (answer["status"] is None and answer["sent"] < 400), answer
    assert grown < 20e6


PUSH_TOGETHER = """
import http.client, json, ssl, sys, threading
trust = ssl.create_default_context(cafile="/tls/ca.crt")
count, size = 10, 15 << 20
all_but_a_byte = threading.Barrier(count)
answers = []

def push():
    link = http.client.HTTPSConnection("gateway", 8443, context=trust, timeout=120)
    link.putrequest("POST", "/v1/fleet/push-object")
    link.putheader("Content-Type", "application/protobuf")
    link.putheader("Content-Length", str(size))
    link.endheaders()
    try:
        link.send(bytes(size - 1))
        all_but_a_byte.wait(60)
        link.send(bytes(1))
    except (OSError, threading.BrokenBarrierError):
        pass  # it was answered before it was whole
    try:
        answers.append(link.getresponse().status)
    except (OSError, http.client.HTTPException) as error:
        answers.append(type(error).__name__)

pushing = [threading.Thread(target=push) for _ in range(count)]
for thread in pushing:
    thread.start()
for thread in pushing:
    thread.join()
print(json.dumps(answers))
"""


def test_ten_bodies_of_15_mb_at_once_are_answered_by_the_superlink(stack: Stack):
    """As a dozen devices push the weights of a ResNet: more than the gateway may take of memory."""
    answers = json.loads(from_devices(stack, PUSH_TOGETHER))
    assert answers == [400] * 10
