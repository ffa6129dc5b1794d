"""The Control API of a SuperLink: what ``flwr run``, ``list``, ``log`` and ``stop`` call, without a process.

Each of those commands costs 2.7 s of a core for its imports, and a small run takes little more; a request
costs milliseconds. The bundle and the requests are made by Flower's own functions, so a run is the one that
``flwr run`` would have started. They are internal to Flower 1.41, and only this module uses them.
"""

import contextlib
import hashlib
import io
import os
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import click
import httpx
from flwr.cli.build import build_fab_from_files
from flwr.cli.typing import SuperLinkConnection
from flwr.cli.utils import flwr_cli_exc_handler, init_http_client_from_connection
from flwr.common.serde import fab_to_proto, run_from_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    StreamLogsRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.utils import simulation_config_from_json

from gfpl_flwr.flower.launch.failure import one_line
from gfpl_flwr.flower.launch.federations import Federation, Scalar
from gfpl_flwr.flower.launch.local_superlink import LaunchError

TIMEOUT_SECONDS = 30.0
_ENVIRONMENT = "pyvenv.cfg"
"""The file that makes a folder a virtual environment."""
_NEVER_BUNDLED = {".git", "__pycache__"}
"""Folders without a file of the app; Flower's own rules leave the second out."""


@dataclass(frozen=True)
class RunState:
    """What the SuperLink says of a run.

    Args:
        status: ``pending``, ``starting``, ``running`` or ``finished``.
        result: of a finished run: ``completed``, ``failed`` or ``stopped``.
        details: why it failed, in Flower's words.
        waited: seconds from its submission until its process had started; ``None`` while it has not.
        ran: seconds from there to its end; ``None`` before.
    """

    status: str
    result: str
    details: str
    waited: float | None
    ran: float | None


@dataclass(frozen=True)
class KnownNode:
    """A node as the SuperLink knows it.

    Args:
        node_id: Flower's number.
        name: given when its key was registered; empty where it registered itself.
        status: ``registered``, ``online``, ``offline`` or ``unregistered``.
        public_key: in hexadecimal.
    """

    node_id: int
    name: str
    status: str
    public_key: str


class Control:
    """One SuperLink, as a client sees it.

    Args:
        client: of Flower.
        address: for messages.
    """

    def __init__(self, client: ControlHttpClient, address: str) -> None:
        self._client = client
        self._address = address

    def submit(
        self,
        bundle: bytes,
        overrides: Mapping[str, Scalar],
        *,
        simulation: Mapping[str, Scalar],
        group: str = "",
    ) -> int:
        """Start a run and return its id.

        Args:
            bundle: of :func:`bundle_app`.
            overrides: options of the app; the SuperLink checks the keys.
            simulation: settings of the simulation engine; empty for a federation of real devices.
            group: Flower's federation, ``@account/name``; empty: the SuperLink's default.

        Raises:
            LaunchError: the SuperLink cannot be reached or refuses, with its reason.
        """
        request = StartRunRequest(
            fab=fab_to_proto(Fab(hashlib.sha256(bundle).hexdigest(), bundle, {})),
            override_config=user_config_to_proto(dict(overrides)),
            federation=group,
            override_federation_config=simulation_config_from_json(dict(simulation)) if simulation else None,
        )
        with self._one_line("no run started by the SuperLink at {}"):
            response = self._client.StartRun(request)
        if not response.HasField("run_id"):
            raise LaunchError(f"the SuperLink at {self._address} started no run")
        return int(response.run_id)

    def state(self, run_id: int) -> RunState:
        """Ask for the state of a run.

        Raises:
            LaunchError: the SuperLink cannot be reached or does not know the run.
        """
        with self._one_line("no state from the SuperLink at {}"):
            response = self._client.ListRuns(ListRunsRequest(run_id=run_id))
        if run_id not in response.run_dict:
            raise LaunchError(f"the SuperLink at {self._address} does not know run {run_id}")
        run = run_from_proto(response.run_dict[run_id])
        return RunState(
            status=run.status.status,
            result=run.status.sub_status,
            details=run.status.details,
            waited=_seconds_between(run.pending_at, run.running_at),
            ran=_seconds_between(run.running_at, run.finished_at),
        )

    def logs(self, run_id: int, after: float) -> Iterator[tuple[str, float]]:
        """Yield pieces of a run's log as they come, until the run has ended.

        Args:
            run_id: of the run.
            after: moment of the last piece that is known, in seconds; 0 for all.

        Yields:
            Some lines of text and the moment they were printed.

        Raises:
            LaunchError: the SuperLink cannot be reached any more.
        """
        with self._one_line("no log from the SuperLink at {}"):
            for part in self._client.StreamLogs(StreamLogsRequest(run_id=run_id, after_timestamp=after)):
                yield part.log_output, part.latest_timestamp

    def stop(self, run_id: int) -> None:
        """Stop a run.

        Raises:
            LaunchError: the SuperLink cannot be reached or the run is over.
        """
        with self._one_line("the SuperLink at {} did not stop the run"):
            self._client.StopRun(StopRunRequest(run_id=run_id))

    def nodes(self) -> list[KnownNode]:
        """List the nodes that are registered.

        Raises:
            LaunchError: the SuperLink cannot be reached.
        """
        with self._one_line("no list of nodes from the SuperLink at {}"):
            found = self._client.ListNodes(ListNodesRequest()).nodes_info
        return [KnownNode(node.node_id, node.name, node.status, node.public_key.hex()) for node in found]

    def register(self, public_key: bytes, name: str) -> int:
        """Register the public key of a node, and return the node's number.

        Raises:
            LaunchError: the SuperLink cannot be reached or refuses.
        """
        with self._one_line("the SuperLink at {} did not register the key of " + name):
            return int(self._client.RegisterNode(RegisterNodeRequest(public_key=public_key, name=name)).node_id)

    def close(self) -> None:
        """Close its connections; a log that is being read ends."""
        self._client.close()

    @contextlib.contextmanager
    def _one_line(self, message: str) -> Iterator[None]:
        try:
            with flwr_cli_exc_handler():
                yield
        except click.ClickException as error:
            raise LaunchError(f"{message.format(self._address)}: {one_line(error.message)}") from None
        except (RuntimeError, OSError, ValueError) as error:
            # The client was closed by another thread, or the answer is not one.
            raise LaunchError(f"{message.format(self._address)}: {one_line(str(error))}") from None


def local_control(address: str) -> Control:
    """Return the Control API of a SuperLink on this machine, without TLS.

    Args:
        address: host:port.
    """
    client = ControlHttpClient.from_server_address(
        address, True, None, [RuntimeVersionHttpInterceptor(component_name="flwr CLI")]
    )
    # Flower's client would take this machine's own address through a proxy of the environment.
    client._client.close()
    client._client = httpx.Client(trust_env=False, timeout=TIMEOUT_SECONDS)
    return Control(client, address)


def remote_control(federation: Federation) -> Control:
    """Return the Control API of a SuperLink that runs already, with the user's ``flwr login`` if any.

    Raises:
        LaunchError: its certificate cannot be read.
    """
    certificates = federation.root_certificates
    if certificates and not certificates.is_file():
        raise LaunchError(f"federation {federation.name!r}: root-certificates is not a file: {certificates}")
    connection = SuperLinkConnection(
        name=federation.name,
        address=federation.address,
        root_certificates=str(certificates) if certificates else None,
        insecure=federation.insecure,
    )
    try:
        # Flower prints which connection it uses.
        with contextlib.redirect_stdout(io.StringIO()):
            client = init_http_client_from_connection(connection)
    except (click.ClickException, ValueError, OSError) as error:
        raise LaunchError(f"federation {federation.name!r}: {one_line(str(error))}") from None
    return Control(client, federation.address)


def bundle_app(app_dir: Path) -> bytes:
    """Return the bundle of a Flower app: what ``flwr build`` makes of it, compressed.

    Flower means to compress but stores: its entries are made without the archive's method. Every node downloads the
    bundle, and compressed it is less than a third.

    ``flwr build`` looks at every file below the app, also at the tens of thousands of an environment beside it,
    before it leaves them out. Here environments are not entered, so one that an app's own patterns would take in
    is left out as well.

    Args:
        app_dir: folder of the app's pyproject.toml.

    Raises:
        ValueError: it is not a valid Flower app, with Flower's reason.
    """
    try:
        # Flower calls a library of its own in a way that is deprecated: nothing to our users.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return _compressed(build_fab_from_files(_files_of(app_dir.resolve()))[0])
    except (click.ClickException, click.exceptions.Exit, ValueError, OSError) as error:
        reason = error.message if isinstance(error, click.ClickException) else str(error)
        raise ValueError(f"{app_dir} is not a valid Flower app: {one_line(reason)}") from None


def _compressed(archive: bytes) -> bytes:
    """Return the same archive with compressed entries."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as stored, zipfile.ZipFile(packed, "w") as target:
        for entry in stored.infolist():
            target.writestr(entry, stored.read(entry), compress_type=zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def _files_of(app_dir: Path) -> dict[str, Path]:
    """Return the files below an app by their path within it, as Flower collects them: symbolic links are left out."""
    files: dict[str, Path] = {}
    for folder, below, names in os.walk(app_dir):
        here = Path(folder)
        below[:] = set(below) - _NEVER_BUNDLED - {name for name in below if (here / name / _ENVIRONMENT).exists()}
        paths = [here / name for name in names]
        files |= {path.relative_to(app_dir).as_posix(): path for path in paths if not path.is_symlink()}
    return files


def _seconds_between(start: str, end: str) -> float | None:
    if not start or not end:
        return None
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()
