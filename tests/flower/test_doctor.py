"""What the doctor says of machines and servers that are not well."""

import datetime
import http.server
import os
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import format_datetime
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from PIL import Image
from safetensors.torch import load_file

from gfpl_flwr.flower.doctor import machine, rehearsal, server
from gfpl_flwr.flower.doctor.findings import Finding, carried_out

CERTS = Path(__file__).parents[2] / "docker" / "certs.sh"


def by_check(findings: Iterator[Finding]) -> dict[str, Finding]:
    return {finding.check: finding for finding in findings}


@pytest.fixture(scope="module")
def tls(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    shutil.copy(CERTS, folder)
    subprocess.run(["sh", folder / "certs.sh"], check=True, capture_output=True)
    return folder


@contextmanager
def serving(*, ahead: float = 0.0, tls: Path | None = None, date: bool = True) -> Iterator[str]:
    """An HTTP server whose clock is so many seconds ahead of this machine's."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            moment = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=ahead)
            self.send_response_only(200)
            if date:
                self.send_header("Date", format_datetime(moment, usegmt=True))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_words: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as here:
        here.handle_error = lambda *_request: None  # a client that refuses the certificate hangs up
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls / "certificates/server.pem", tls / "private/server.key")
            here.socket = context.wrap_socket(here.socket, server_side=True)
        thread = threading.Thread(target=here.serve_forever, daemon=True)
        thread.start()
        yield f"127.0.0.1:{here.server_port}"
        here.shutdown()
        thread.join()


def test_a_server_that_is_well_is_said_to_be(tls):
    with serving(tls=tls) as address:
        found = by_check(server.connection(server.Server(address, tls / "certificates/ca.crt")))
    assert [finding.passed for finding in found.values()] == [True] * 3
    assert "valid for 127.0.0.1 until" in found["certificate"].found
    assert "825 days" in found["certificate"].found or "824 days" in found["certificate"].found


@pytest.mark.parametrize(("ahead", "passed"), [(-7, False), (-3, True), (200, True), (320, False), (-86400, False)])
def test_a_clock_that_flower_would_refuse_is_found_out(ahead, passed):
    """The server's clock is ahead by so much, so the device's is behind: it may be 5 s fast and 300 s slow."""
    with serving(ahead=ahead) as address:
        found = by_check(server.connection(server.Server(address, insecure=True)))
    assert found["clock"].passed is passed
    assert "timedatectl" in found["clock"].remedy


def test_a_server_of_another_authority_or_name_is_refused_with_advice(tls, tmp_path):
    shutil.copy(CERTS, tmp_path)
    subprocess.run(["sh", tmp_path / "certs.sh"], check=True, capture_output=True)
    with serving(tls=tls) as address:
        found = by_check(server.connection(server.Server(address, tmp_path / "certificates/ca.crt")))
        assert not found["certificate"].passed
        assert "ca.crt from the server anew" in found["certificate"].remedy
        port = address.partition(":")[2]
        found = by_check(server.connection(server.Server(f"127.0.0.2:{port}", tls / "certificates/ca.crt")))
        assert "cannot be reached" in found["address"].found or "match" in found["certificate"].found
    with serving() as address:
        found = by_check(server.connection(server.Server(address, tls / "certificates/ca.crt")))
        assert "no TLS at" in found["certificate"].found
    missing = by_check(server.connection(server.Server(address, tls / "gone.crt")))
    assert not missing["address"].passed  # it is gone, and that comes first


def test_nothing_that_answers_is_said_so():
    (finding,) = server.connection(server.Server("127.0.0.1:9"))
    assert not finding.passed
    assert "127.0.0.1:9 cannot be reached" in finding.found
    with pytest.raises(ValueError, match="address 'superlink' is not HOST:PORT"):
        next(server.connection(server.Server("superlink")))
    (finding,) = carried_out([("address", lambda: server.connection(server.Server("superlink")))])
    assert finding == Finding("address", False, "address 'superlink' is not HOST:PORT", "see the message")


def test_a_key_that_is_none_or_open_to_others_is_told(tls, tmp_path):
    nowhere = server.Server("127.0.0.1:9", tls / "certificates/ca.crt")
    (finding,) = server.key(nowhere, tmp_path / "gone")
    assert "ssh-keygen -t ecdsa" in finding.remedy
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "edwards"], check=True)
    (finding,) = server.key(nowhere, tmp_path / "edwards")
    assert "is no key that Flower can use: it is no ECDSA key" in finding.found
    shutil.copy(tls / "private/node-0", tmp_path)
    (tmp_path / "node-0").chmod(0o644)
    first, second = server.key(nowhere, tmp_path / "node-0")
    assert first.remedy == f"chmod 600 {tmp_path / 'node-0'}"
    assert "cannot be asked for" in second.found


def test_a_servers_certificate_tells_its_names_and_its_end(tls):
    (finding,) = server.certificate(tls / "certificates/server.pem")
    assert finding.passed
    assert "localhost, superlink, gateway, 127.0.0.1" in finding.found


def test_a_certificate_that_is_made_again_keeps_its_names(tmp_path):
    shutil.copy(CERTS, tmp_path)
    for names in (["server.example.org", "192.0.2.1"], [], ["server.example.org", "2001:db8::1"], []):
        subprocess.run(["sh", tmp_path / "certs.sh", *names], check=True, capture_output=True)
    (finding,) = server.certificate(tmp_path / "certificates/server.pem")
    told = "localhost, superlink, gateway, 127.0.0.1, server.example.org, 192.0.2.1, 2001:db8::1"
    assert finding.found.startswith(f"server.pem is valid for {told}, ")


def test_a_servers_certificate_without_names_is_told_with_what_to_do(tls, tmp_path):
    issued = x509.load_pem_x509_certificate((tls / "certificates/server.pem").read_bytes())
    authority = serialization.load_pem_private_key((tls / "private/ca.key").read_bytes(), None)
    nameless = (
        x509.CertificateBuilder(issued.issuer, issued.subject, issued.public_key(), issued.serial_number)
        .not_valid_before(issued.not_valid_before_utc)
        .not_valid_after(issued.not_valid_after_utc)
        .sign(authority, hashes.SHA384())
    )
    file = tmp_path / "server.pem"
    file.write_bytes(nameless.public_bytes(serialization.Encoding.PEM))
    (finding,) = carried_out([("certificate", lambda: server.certificate(file))])
    assert not finding.passed
    assert finding.found == "server.pem is valid for no name: it has no subjectAltName"
    assert "make renew" in finding.remedy


# ---- the machine --------------------------------------------------------------------------------------------


def test_this_machine_is_fit():
    assert all(finding.passed for check in (machine.interpreter, machine.packages) for finding in check())


def test_a_package_of_another_version_is_told_with_what_is_needed(monkeypatch):
    real = machine.version
    monkeypatch.setattr(machine, "version", lambda name: "1.30.0" if name == "flwr" else real(name))
    found = by_check(machine.packages())
    assert not found["flwr"].passed
    assert ">=1.41" in found["flwr"].remedy


def test_packages_that_are_not_installed_as_such_are_told_on_one_line(monkeypatch):
    """The project may lie there and run, uninstalled: nothing says then what it needs."""

    def requires(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(machine, "requires", requires)
    (finding,) = carried_out([("packages", machine.packages)])
    assert finding == Finding("packages", False, "No package metadata was found for gfpl-flwr", "see the message")


def test_a_torchvision_for_another_torch_is_told(monkeypatch):
    real = machine.version
    monkeypatch.setattr(machine, "version", lambda name: "2.3.0" if name == "torch" else real(name))
    assert "this is torch 2.3.0" in by_check(machine.packages())["torchvision"].found


def test_a_small_memory_is_told(monkeypatch):
    text = "MemTotal:  900000 kB\nMemFree: 1 kB\nMemAvailable:   204800 kB\n"
    monkeypatch.setattr(machine.Path, "read_text", lambda _path: text)
    (finding,) = machine.memory()
    assert not finding.passed
    assert finding.found == "200 MB of 878 MB are free"


def test_a_folder_that_cannot_hold_a_state_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    (finding,) = machine.state(tmp_path / "file" / "state")
    assert not finding.passed
    assert str(tmp_path / "file" / "state") in finding.remedy
    found = by_check(machine.state(tmp_path / "state"))
    assert found["state"].passed
    assert os.listdir(tmp_path / "state") == []


def pictures(folder: Path, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new("L", (16, 16), number).save(folder / name / f"{number}.png")
    return folder


def test_the_data_are_counted_by_class_and_an_empty_one_is_named(tmp_path):
    images = pictures(tmp_path / "images", {"cat": 5, "dog": 10, "none": 0})
    (finding,) = machine.data({"dataset": f"folder:{images}", "image-size": 16}, tmp_path / "data")
    assert finding.passed
    assert finding.found == "12 images to train on: cat 4, dog 8, none 0; 3 to test on; none of none"


def test_what_the_doctor_prepares_is_what_the_first_visit_reads(tmp_path):
    images = pictures(tmp_path / "images", {"cat": 5, "dog": 10})
    options = {"dataset": f"folder:{images}", "image-size": 16, "image-channels": 3}
    (finding,) = machine.data(options, tmp_path / "data")
    assert finding.passed
    (prepared,) = (tmp_path / "data").glob("*.safetensors")
    assert load_file(prepared)["train_images"].shape[1:] == (3, 16, 16)


@pytest.mark.parametrize("spoil", ["empty", "gone", "broken"])
def test_data_that_cannot_be_used_are_told_on_one_line(tmp_path, spoil):
    images = tmp_path / "images"
    if spoil == "empty":
        images.mkdir()
    elif spoil == "broken":
        pictures(images, {"cat": 2})
        (images / "cat" / "0.png").write_bytes(b"\x89PNG nothing")
    (finding,) = machine.data({"dataset": f"folder:{images}"}, tmp_path / "data")
    assert not finding.passed
    assert "\n" not in finding.found
    assert str(images) in finding.found


# ---- the rehearsal ------------------------------------------------------------------------------------------


def test_a_rehearsal_tells_time_and_memory_of_a_real_visit(tmp_path):
    images = pictures(tmp_path / "images", {"cat": 10, "dog": 10})
    options = {"dataset": f"folder:{images}", "image-size": 16, "data-dir": str(tmp_path / "data")}
    done = rehearsal.rehearse(options)
    assert done.samples == 16
    assert 0 < done.training < done.seconds
    assert 100 < done.own <= done.peak
    # A process that may take less of its own than it has taken by then is refused more.
    with pytest.raises((RuntimeError, ValueError), match="visit"):
        rehearsal.rehearse(options, limit=done.own // 4)
