"""Plain ``flwr run .``, as the README shows it, on the app as it lies in the checkout."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gfpl_flwr.flower.launch.local_superlink import marked_processes

ROOT = Path(__file__).parents[3]
OPTIONS = {"num-sites": 2, "rounds": 2, "gfpl.first-exchange": 1, "gfpl.pseudo-per-class": 10, "name": "plain"}


@pytest.fixture
def flwr(tmp_path):
    """Return a function that calls the command; Flower's daemon, which outlives it, is ended afterwards."""
    home, scripts = tmp_path / "flower", sysconfig.get_path("scripts")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "FLWR_HOME": str(home),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(port),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "PATH": os.pathsep.join([scripts, os.environ["PATH"]]),
        "no_proxy": "127.0.0.1,localhost",
    }

    def call(*words: str) -> str:
        done = subprocess.run(
            [f"{scripts}/flwr", *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    yield call
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + 10
        for pid in marked_processes(home):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        while marked_processes(home) and time.monotonic() < deadline:
            time.sleep(0.1)
    assert marked_processes(home) == []


@pytest.mark.slow
@pytest.mark.ray
def test_plain_flwr_run_works_on_the_checkout(flwr: Callable[..., str], tmp_path: Path) -> None:
    options = OPTIONS | {"output-dir": str(tmp_path / "runs"), "data-dir": str(tmp_path / "data")}
    config = " ".join(f"{key}={json.dumps(value)}" for key, value in options.items())
    federation = "num-supernodes=2 client-resources-num-cpus=1"
    log = flwr("run", ".", "local", "--stream", "--federation-config", federation, "-c", config)
    assert "visit 2/2: 2/2 sites" in log
    # `flwr run` exits with 0 whatever becomes of the run: its state is the answer.
    (run,) = json.loads(flwr("list", "local", "--format", "json"))["runs"]
    assert run["status"] == "finished:completed"
    folder = tmp_path / "runs" / "plain"
    assert json.loads((folder / "summary.json").read_text())["status"] == "completed"
    assert json.loads((folder / "config.json").read_text())["command"] == "flwr run"
    assert len((folder / "rounds.jsonl").read_text().splitlines()) == 2
