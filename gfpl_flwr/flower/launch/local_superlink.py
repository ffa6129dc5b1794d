"""A SuperLink of our own: started as a child, known by its mark, ended together with all that it started.

Flower's command line starts a local SuperLink that outlives its runs, in the environment of whoever came
first, on one fixed port. This one has a folder, a port and an environment of its own. The folder's path is
the ``FLWR_HOME`` of every process below it (SuperExec, simulation, Ray's daemons and workers), which tells
each from anybody else's, whatever its parent is; so none is left after :meth:`LocalSuperLink.end`.
"""

import contextlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from gfpl_flwr.flower.launch.failure import one_line
from gfpl_flwr.flower.marks import MARKS

POLL_SECONDS = 0.05

# The SuperLink watches us and ends when we are gone, also after a SIGKILL; its children watch it in turn.
_START = """
import sys
from flwr.supercore.app_utils import start_parent_process_monitor
from flwr.superlink.cli.flower_superlink import flower_superlink
start_parent_process_monitor(int(sys.argv.pop(1)))
sys.exit(flower_superlink())
"""

# Ray's Unix sockets lie 65 characters below RAY_TMPDIR and the kernel takes 107.
_LONGEST_FOLDER = 24


class LaunchError(RuntimeError):
    """A SuperLink that does not start or answer, or refuses a run; the message is one line."""


@dataclass(frozen=True)
class LocalSuperLink:
    """A running child.

    Args:
        process: the SuperLink.
        address: ``127.0.0.1:port`` where it listens, or will in some seconds.
        home: its folder, the mark of its processes.
        log: what it printed.
        reservation: keeps its port from others until it listens there itself.
    """

    process: subprocess.Popen[bytes]
    address: str
    home: Path
    log: Path
    reservation: socket.socket

    @property
    def marks(self) -> Path:
        """The file to which the processes of its runs add their marks."""
        return self.home / "marks.jsonl"

    def wait_until_healthy(self, timeout: float) -> None:
        """Wait until it answers.

        Args:
            timeout: seconds.

        Raises:
            LaunchError: it ended, or does not answer in time; with the last line of its log.
        """
        deadline = time.monotonic() + timeout
        while not self._answers():
            self.check_alive()
            if time.monotonic() > deadline:
                words = self._last_words()
                raise LaunchError(f"no answer from the SuperLink on {self.address} in {timeout:.0f} s{words}")
            time.sleep(POLL_SECONDS)
        self.reservation.close()
        # Another program that took the port would answer too, and ours would be gone.
        self.check_alive()

    def check_alive(self) -> None:
        """Raise LaunchError, with the last line of its log, if it has ended."""
        if (status := self.process.poll()) is not None:
            raise LaunchError(f"the SuperLink ended with exit status {status}{self._last_words()}")

    def processes(self) -> list[int]:
        """Return the ids of its processes that live: those with its mark in their environment."""
        found = set(marked_processes(self.home)) if Path("/proc/self/environ").exists() else set()
        # A process that has only just been started shows no environment yet. Without /proc the SuperLink alone
        # is ended: its children watch it and follow, and Ray follows them.
        return sorted(found | ({self.process.pid} if self.process.poll() is None else set()))

    def end(self, grace: float = 5.0) -> None:
        """End every process and remove the folder.

        Args:
            grace: seconds from the polite signal to the one that cannot be refused.

        Raises:
            LaunchError: a process survived even that.
        """
        self.reservation.close()
        for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, grace)):
            deadline = time.monotonic() + patience
            asked: set[int] = set()
            while (alive := self.processes()) and time.monotonic() < deadline:
                for pid in alive:
                    # One may be born while the others end. A repeated SIGTERM would cut a clean exit short.
                    if pid not in asked or number == signal.SIGKILL:
                        asked.add(pid)
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, number)
                self.process.poll()
                time.sleep(POLL_SECONDS)
        if alive := self.processes():
            raise LaunchError(f"processes {alive} of the SuperLink on {self.address} cannot be ended")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=1.0)
        shutil.rmtree(self.home, ignore_errors=True)

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection(self.address, timeout=1.0)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
            if last := next((one_line(line) for line in reversed(lines) if line.strip()), ""):
                return f": {last} (all of it in {self.log})"
        return ""


def start_local_superlink(log: Path, *, threads: int = 1) -> LocalSuperLink:
    """Start a SuperLink with the simulation engine, state in memory, on a free port of 127.0.0.1.

    Returns at once; the SuperLink takes some seconds of imports until it answers.

    Args:
        log: file for what it prints.
        threads: of the numerical libraries, in each process below it.

    Raises:
        LaunchError: it cannot be started at all.
    """
    scripts = Path(sysconfig.get_path("scripts"))
    if not (scripts / "flower-superexec").exists():
        raise LaunchError(f"no flower-superexec in {scripts}: flwr[simulation] is not installed there")
    folder = tempfile.gettempdir()
    home = Path(tempfile.mkdtemp(prefix="gfpl-", dir=folder if len(folder) <= _LONGEST_FOLDER else "/tmp"))
    port, reservation = _reserve_port()
    command = [sys.executable, "-P", "-c", _START, str(os.getpid()), "--insecure", "--simulation"]
    command += ["--isolation", "subprocess", "--host", "127.0.0.1", "--port", str(port)]
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                env=child_environment(home, scripts, threads=threads),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # A Ctrl-C in the terminal goes to the foreground group: it is ours to pass on.
                start_new_session=True,
            )
    except OSError as error:
        reservation.close()
        shutil.rmtree(home, ignore_errors=True)
        raise LaunchError(f"cannot start the SuperLink: {error}") from None
    return LocalSuperLink(process, f"127.0.0.1:{port}", home, log, reservation)


def child_environment(home: Path, scripts: Path, *, threads: int) -> dict[str, str]:
    """Return the environment of the SuperLink and of all below it; our own is left as it is.

    Args:
        home: of Flower and of Ray.
        scripts: folder of Flower's commands, which call one another by name.
        threads: of the numerical libraries; more than a site has cores slows small networks down many times.
    """
    environment = dict(os.environ)
    environment |= {
        "FLWR_HOME": str(home),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        # Flower looks for a new run once a second.
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
        MARKS: str(home / "marks.jsonl"),
        "RAY_TMPDIR": str(home),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # Flower's actors have a runtime environment, which the workers that Ray starts in advance have not:
        # each of those would import Ray, 1.5 s of a core, and be thrown away.
        "RAY_prestart_worker_first_driver": "0",
        "RAY_enable_metrics_collection": "0",
        "PATH": os.pathsep.join([str(scripts), environment.get("PATH", os.defpath)]),
    }
    for library in ("OMP", "MKL", "OPENBLAS", "VECLIB_MAXIMUM", "NUMEXPR"):
        environment[f"{library}_NUM_THREADS"] = str(threads)
    # The children talk to one another over HTTP; a company's proxy must not come between.
    direct = [environment.get("no_proxy") or environment.get("NO_PROXY", ""), "127.0.0.1", "localhost"]
    environment["no_proxy"] = environment["NO_PROXY"] = ",".join(filter(None, direct))
    return environment


def marked_processes(home: Path) -> list[int]:
    """Return the ids of the living processes, not this one, with ``FLWR_HOME=home`` in their environment."""
    mark = f"FLWR_HOME={home}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        # A process may end while we look, and other users' cannot be read. A dead one's environment is empty.
        with contextlib.suppress(OSError):
            if folder.name.isdecimal() and mark in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return sorted(set(found) - {os.getpid()})


def _reserve_port() -> tuple[int, socket.socket]:
    holder = socket.socket()
    # A port that is bound but silent goes to nobody else; Linux lets the SuperLink bind it all the same.
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    port: int = holder.getsockname()[1]
    if not sys.platform.startswith("linux"):
        holder.close()
    return port, holder
