"""The nodes that a SuperLink knows: listing them, and registering the keys of new ones."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, uses_nist_ec_curve

from gfpl_flwr.flower.launch.control import Control, KnownNode
from gfpl_flwr.flower.launch.local_superlink import LaunchError

ADVICE = "make one: ssh-keygen -t ecdsa -b 384 -N '' -f NAME"


def known_nodes(control: Control) -> list[KnownNode]:
    """Return the nodes that are registered, by name and number.

    Raises:
        LaunchError: the SuperLink cannot be reached.
    """
    return sorted(control.nodes(), key=lambda node: (node.name, node.node_id))


def connected(control: Control, count: int, *, timeout: float) -> list[KnownNode]:
    """Wait until so many nodes are connected; a SuperLink that does not answer yet is waited for as well.

    Args:
        control: of the SuperLink.
        count: how many.
        timeout: seconds.

    Raises:
        LaunchError: there are fewer in that time.
    """
    deadline = time.monotonic() + timeout
    online, trouble = 0, ""
    while time.monotonic() < deadline:
        try:
            found = known_nodes(control)
            online, trouble = sum(node.status == "online" for node in found), ""
            if online >= count:
                return found
        except LaunchError as error:
            trouble = f": {error}"
        time.sleep(1.0)
    raise LaunchError(f"{online} of {count} nodes are connected after {timeout:.0f} s{trouble}")


def register_keys(control: Control, files: Sequence[Path]) -> Iterator[tuple[str, int, bool]]:
    """Register public keys; all files are read before the first is sent.

    Args:
        control: of the SuperLink.
        files: ``NAME.pub``, as ssh-keygen writes them.

    Yields:
        Name, number of the node, and whether it is new.

    Raises:
        ValueError: a file is no public key that Flower takes.
        LaunchError: the SuperLink cannot be reached or refuses.
    """
    keys = {file.name.removesuffix(".pub"): _read(file) for file in files}
    known = {node.public_key: node.node_id for node in control.nodes()}
    for name, key in keys.items():
        new = key.hex() not in known
        yield name, control.register(key, name) if new else known[key.hex()], new


def _read(file: Path) -> bytes:
    try:
        key = load_ssh_public_key(file.read_bytes())
    except OSError as error:
        raise ValueError(f"cannot read the key {file}: {error.strerror}; {ADVICE}") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError(f"{file} is no public key in OpenSSH's format; {ADVICE}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not uses_nist_ec_curve(key):
        raise ValueError(f"{file} is no ECDSA key on a NIST curve; {ADVICE}")
    return public_key_to_bytes(key)
