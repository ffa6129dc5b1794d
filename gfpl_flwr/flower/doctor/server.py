"""What a device sees of its server: address, certificate, clock, and whether the device's key is registered."""

import http.client
import socket
import ssl
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from gfpl_flwr.flower.doctor.findings import Finding

TIMEOUT_SECONDS = 10.0
FASTEST, SLOWEST = 5.0, 300.0
"""Seconds that a device's clock may be ahead of the server's and behind it: Flower refuses its signatures else."""
SET_CLOCK = "set the clock: sudo timedatectl set-ntp true, and wait until `timedatectl` says synchronized"


@dataclass(frozen=True)
class Server:
    """Where a device finds its server.

    Attributes:
        address: ``host:port``.
        root_certificates: the certificate authority's file; None: the system's.
        insecure: plain HTTP.
    """

    address: str
    root_certificates: Path | None = None
    insecure: bool = False

    @property
    def host_port(self) -> tuple[str, int]:
        """Host and port.

        Raises:
            ValueError: the address has none.
        """
        host, _, port = self.address.rpartition(":")
        if not host or not port.isdecimal():
            raise ValueError(f"address {self.address!r} is not HOST:PORT")
        return host.strip("[]"), int(port)


def connection(server: Server) -> Iterator[Finding]:
    """Check that the server answers, with a certificate that is valid for its address, at about the same time."""
    host, port = server.host_port
    try:
        socket.create_connection((host, port), TIMEOUT_SECONDS).close()
    except OSError as error:
        remedy = "check the address, that the server runs, and the firewalls between"
        yield Finding("address", False, f"{server.address} cannot be reached: {error.strerror or error}", remedy)
        return
    yield Finding("address", True, f"{server.address} can be reached")
    if server.insecure:
        yield from _clock(http.client.HTTPConnection(host, port, timeout=TIMEOUT_SECONDS), "nothing is encrypted")
        return
    if server.root_certificates is not None and not server.root_certificates.is_file():
        remedy = "copy certificates/ca.crt from the server"
        yield Finding("certificate", False, f"there is no file {server.root_certificates}", remedy)
        return
    trust = ssl.create_default_context(cafile=server.root_certificates)
    secure = http.client.HTTPSConnection(host, port, timeout=TIMEOUT_SECONDS, context=trust)
    try:
        secure.connect()
    except ssl.SSLCertVerificationError as error:
        yield Finding("certificate", False, error.verify_message, _remedy_for(error, host))
        return
    except (ssl.SSLError, OSError) as error:
        told = getattr(error, "reason", None) or str(error)
        yield Finding("certificate", False, f"no TLS at {server.address}: {told}", "check the port; is it insecure?")
        return
    told = str((secure.sock.getpeercert() or {}).get("notAfter"))
    days = (ssl.cert_time_to_seconds(told) - time.time()) / 86400
    yield Finding("certificate", True, f"valid for {host} until {told}, {days:.0f} days")
    yield from _clock(secure)


def key(server: Server, file: Path) -> Iterator[Finding]:
    """Check a node's private key and that the server knows the public one, without making the node appear there."""
    make_one = f"make one: ssh-keygen -t ecdsa -b 384 -N '' -f {file}"
    try:
        if stat.S_IMODE(file.stat().st_mode) & 0o077:
            yield Finding("key", False, f"{file} can be read by others", f"chmod 600 {file}")
        private = load_ssh_private_key(file.read_bytes(), None)
        if not isinstance(private, ec.EllipticCurvePrivateKey):
            raise ValueError("it is no ECDSA key")
    except OSError as error:
        yield Finding("key", False, f"{file}: {error.strerror}", make_one)
        return
    except (ValueError, UnsupportedAlgorithm) as error:
        yield Finding("key", False, f"{file} is no key that Flower can use: {error}", make_one)
        return
    yield _registered(server, private, file)


def certificate(file: Path) -> Iterator[Finding]:
    """Check a server's own certificate file: since when, until when and for which names it is valid."""
    make_one = "make a new one: make renew; devices keep their ca.crt"
    loaded = x509.load_pem_x509_certificate(file.read_bytes())
    try:
        names = loaded.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        yield Finding("certificate", False, f"{file.name} is valid for no name: it has no subjectAltName", make_one)
        return
    told = ", ".join(str(name.value) for name in names)
    begins, ends = loaded.not_valid_before_utc.timestamp(), loaded.not_valid_after_utc.timestamp()
    days = (ends - time.time()) / 86400
    ok = begins <= time.time() < ends
    found = f"{file.name} is valid for {told}" + (
        f", {days:.0f} days" if ok else f", but not now: {days:.0f} days left"
    )
    yield Finding("certificate", ok, found, make_one)


def _registered(server: Server, private: ec.EllipticCurvePrivateKey, file: Path) -> Finding:
    public = private.public_key()
    client = FleetHttpClient.from_server_address(
        server.address,
        server.insecure,
        server.root_certificates.read_bytes() if server.root_certificates else None,
        interceptors=[RuntimeVersionHttpInterceptor("SuperNode"), NodeAuthHttpInterceptor(private, public)],
    )
    try:
        # The server looks for the key first, and then at the interval, which is impossible: nothing is activated.
        client.ActivateNode(ActivateNodeRequest(public_key=public_key_to_bytes(public), heartbeat_interval=-1.0))
        return Finding("key", False, "the server's answer is not understood", "is it Flower 1.41?")
    except httpx.HTTPStatusError as error:
        told = FlowerError.from_json(error.response.text)
        if told is not None and told.code == ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL:
            return Finding("key", True, f"{file} is registered")
        if told is not None and told.code == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
            remedy = f"on the server: gfpl register FEDERATION {file.name}.pub"
            return Finding("key", False, f"{file} is not registered", remedy)
        if error.response.status_code == httpx.codes.UNAUTHORIZED:
            return Finding("key", False, "the server refuses the signature", SET_CLOCK)
        words = told.message if told else f"status {error.response.status_code}"
        return Finding("key", False, f"the server refuses: {words}", "is it Flower 1.41, behind docker/gateway.conf?")
    except httpx.HTTPError as error:
        return Finding("key", False, f"cannot be asked for: {error}", "see the findings above")
    finally:
        client.close()


def _clock(link: http.client.HTTPConnection, note: str = "") -> Iterator[Finding]:
    """Compare this clock with the ``Date`` of an answer, which has whole seconds."""
    try:
        before = time.time()
        link.request("GET", "/health")
        answer = link.getresponse()
        now = (before + time.time()) / 2
        answer.read()
        if note:
            yield Finding("certificate", True, note)
        if (date := answer.getheader("Date")) is None:
            yield Finding("clock", False, "the server does not tell the time", "is it a SuperLink or its gateway?")
            return
        ahead = now - parsedate_to_datetime(date).timestamp() - 0.5
        found = f"{abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} the server's, to the second"
        yield Finding("clock", -SLOWEST <= ahead <= FASTEST, found, SET_CLOCK)
    except (OSError, http.client.HTTPException) as error:
        yield Finding("address", False, f"does not speak HTTP: {error}", "is it a SuperLink, with --insecure or not?")
    finally:
        link.close()


def _remedy_for(error: ssl.SSLCertVerificationError, host: str) -> str:
    words = error.verify_message
    if "expired" in words or "not yet valid" in words:
        return "on the server: make renew; if the server's is new, set this device's clock"
    if "mismatch" in words or "match" in words:
        return f"on the server: make renew NAMES={host}; or use a name that the certificate has"
    return "copy certificates/ca.crt from the server anew: the one here did not sign the server's certificate"
