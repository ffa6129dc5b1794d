"""A federation of real processes on this machine: SuperLink, SuperNodes and SuperExecs, with TLS, keys, isolation.

Tests break it and benchmarks measure it. Every process belongs to a folder of its own, which is its ``FLWR_HOME`` and
so its mark: what was started below a folder can be found, and ended, whatever has become of its parents.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from gfpl_flwr.flower.launch.control import Control, KnownNode, remote_control
from gfpl_flwr.flower.launch.federations import Federation
from gfpl_flwr.flower.launch.local_superlink import child_environment, marked_processes
from gfpl_flwr.flower.launch.nodes import connected, register_keys

ROOT = Path(__file__).parents[1]
SCRIPTS = Path(sysconfig.get_path("scripts"))
SUPERNODE = (sys.executable, "-m", "gfpl_flwr.flower.supernode")
"""First words of the command of a device's SuperNode."""
NAME = "here"
"""Of the federation in the app's copy of pyproject-federation.toml."""
START_SECONDS = 120.0
"""A dozen cold Python processes on two busy cores take most of a minute."""


def free_port() -> int:
    """Return a port of this machine on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


@dataclass
class Service:
    """A few processes that live and die together.

    Attributes:
        home: their folder, with their logs.
        commands: name of the log to the command.
        prefix: of every command, such as ``ip netns exec NAME``.
    """

    home: Path
    commands: Mapping[str, list[str]]
    prefix: list[str] = field(default_factory=list)
    children: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def start(self) -> "Service":
        """Start all of them; their logs are continued."""
        self.home.mkdir(parents=True, exist_ok=True)
        environment = child_environment(self.home, SCRIPTS, threads=1)
        environment.pop("GFPL_MARKS")
        for name, command in self.commands.items():
            with (self.home / f"{name}.log").open("ab") as log:
                self.children.append(
                    subprocess.Popen(
                        [*self.prefix, str(SCRIPTS / command[0]), *command[1:]],
                        cwd=self.home,
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
        return self

    def processes(self, word: str = "") -> list[int]:
        """Return the ids of its processes, those whose command line has a word in it."""
        found = []
        for pid in marked_processes(self.home):
            with contextlib.suppress(OSError):
                if word.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
        return found

    def wait_for_process(self, word: str, timeout: float = START_SECONDS) -> int:
        """Wait until a process with a word in its command line lives below it, and return its id."""
        deadline = time.monotonic() + timeout
        while not (found := self.processes(word)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"no process {word!r} of {self.home} in {timeout:.0f} s; see the logs there")
            time.sleep(0.02)
        return found[0]

    def kill(self) -> None:
        """End all of them at once, as a power cut does."""
        while alive := marked_processes(self.home):
            for pid in alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for child in self.children:
                child.poll()
            time.sleep(0.02)
        for child in self.children:
            child.wait()
        self.children.clear()

    def log(self) -> str:
        """Return everything that it printed."""
        return "".join(path.read_text(errors="replace") for path in sorted(self.home.glob("*.log")))


class Deployment:
    """A SuperLink, its SuperExec, and whatever nodes are added; a context manager that leaves nothing.

    Args:
        folder: for everything; needs a short path and should not exist.
        host: address under which nodes reach the SuperLink.
    """

    def __init__(self, folder: Path, *, host: str = "127.0.0.1") -> None:
        self.folder = folder
        self.host, self.port = host, free_port()
        self.nodes: dict[str, Service] = {}
        self._commands: list[subprocess.Popen[str]] = []
        (folder / "tls").mkdir(parents=True)
        shutil.copy(ROOT / "docker" / "certs.sh", folder / "tls")
        self._make_keys()
        self.app_dir = self._copy_app()
        secure = [
            *("--ssl-ca-certfile", str(self.ca), "--ssl-certfile", str(folder / "tls/certificates/server.pem")),
            *("--ssl-keyfile", str(folder / "tls/private/server.key"), "--enable-supernode-auth"),
        ]
        where = ["--host", "0.0.0.0", "--port", str(self.port), "--isolation", "process"]
        database = ["--database", str(folder / "superlink" / "state.db")]
        link = ["flower-superlink", *where, *database, *secure]
        self.superlink = Service(folder / "superlink", {"superlink": link})
        runtime = ["--root-certificates", str(self.ca), "--runtime-api-address", f"127.0.0.1:{self.port}"]
        self.serverapp = Service(folder / "serverapp", {"superexec": ["flower-superexec", *runtime]})

    @property
    def ca(self) -> Path:
        """The certificate authority's file."""
        return self.folder / "tls/certificates/ca.crt"

    @property
    def runs(self) -> Path:
        """Where runs are written."""
        return self.folder / "runs"

    @property
    def address(self) -> str:
        """Of the SuperLink, for nodes."""
        return f"{self.host}:{self.port}"

    def __enter__(self) -> "Deployment":
        try:
            self.superlink.start()
            self.wait_until_healthy()
            self.serverapp.start()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def end(self) -> None:
        """Kill everything; the folder and its logs stay for whoever wants to look."""
        for command in self._commands:
            if command.poll() is None:
                command.kill()
                command.communicate()
        for service in [*self.nodes.values(), self.serverapp, self.superlink]:
            service.kill()

    def wait_until_healthy(self) -> None:
        """Wait until the SuperLink answers."""
        deadline = time.monotonic() + START_SECONDS
        with self._control() as control:
            connected(control, 0, timeout=deadline - time.monotonic())

    def node(
        self,
        name: str,
        config: Mapping[str, object],
        *,
        prefix: list[str] | None = None,
        with_app: bool = True,
        supernode: Sequence[str] = SUPERNODE,
    ) -> Service:
        """Register a node's key and start its SuperNode and the SuperExec of its ClientApp.

        Args:
            name: of the node, its key and its folder.
            config: its ``--node-config``.
            prefix: of its commands.
            with_app: without a SuperExec it takes orders and never answers.
            supernode: the first words of its SuperNode's command.
        """
        self._make_keys(name)
        with self._control() as control:
            list(register_keys(control, [self.folder / "tls/certificates" / f"{name}.pub"]))
        quoted = {key: f"'{value}'" if isinstance(value, str) else value for key, value in config.items()}
        words = " ".join(f"{key}={value}" for key, value in quoted.items())
        port = free_port()
        key = self.folder / "tls/private" / name
        commands = {
            "supernode": [
                *(*supernode, "--superlink", self.address, "--root-certificates", str(self.ca)),
                *("--auth-supernode-private-key", str(key), "--isolation", "process"),
                *("--host", "127.0.0.1", "--port", str(port), "--node-config", words),
            ]
        }
        if with_app:
            commands["superexec"] = ["flower-superexec", "--insecure", "--runtime-api-address", f"127.0.0.1:{port}"]
        self.nodes[name] = Service(self.folder / name, commands, prefix or []).start()
        return self.nodes[name]

    def connected(self, count: int, timeout: float = START_SECONDS) -> list[KnownNode]:
        """Wait until so many nodes are connected."""
        with self._control() as control:
            return connected(control, count, timeout=timeout)

    def gfpl(self, *words: str) -> "subprocess.Popen[str]":
        """Start the gfpl command in the app's folder."""
        command = subprocess.Popen(
            [str(SCRIPTS / "gfpl"), *words],
            cwd=self.app_dir,
            env=child_environment(self.folder / "gfpl", SCRIPTS, threads=1),
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._commands.append(command)
        return command

    def run(self, name: str, options: Mapping[str, object], *words: str) -> "subprocess.Popen[str]":
        """Start a run of this name."""
        settings = [word for key, value in options.items() for word in ("-c", f"{key}={value}")]
        return self.gfpl("run", NAME, "--name", name, "--output-dir", str(self.runs), *settings, *words)

    @contextlib.contextmanager
    def _control(self) -> Iterator[Control]:
        control = remote_control(Federation(NAME, f"127.0.0.1:{self.port}", root_certificates=self.ca))
        try:
            yield control
        finally:
            control.close()

    def _make_keys(self, nodes: str = " ") -> None:
        subprocess.run(
            ["sh", str(self.folder / "tls/certs.sh"), self.host],
            env=os.environ | {"NODES": nodes},
            check=True,
            capture_output=True,
        )

    def _copy_app(self) -> Path:
        """Copy what ``gfpl run`` needs, beside a file of federations that has this one."""
        app = self.folder / "app"
        shutil.copytree(ROOT / "gfpl_flwr", app / "gfpl_flwr", ignore=shutil.ignore_patterns("__pycache__"))
        for file in ("pyproject.toml", ".gitignore", "client_app.py", "server_app.py"):
            shutil.copy(ROOT / file, app)
        (app / "pyproject-federation.toml").write_text(
            f'[superlink.{NAME}]\naddress = "127.0.0.1:{self.port}"\nroot-certificates = "{self.ca}"\n'
        )
        return app
