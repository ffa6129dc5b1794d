"""Runs started from Python end as they say they do, and leave no process, port or folder behind."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from gfpl_flwr.flower.launch import local_superlink
from gfpl_flwr.flower.launch import superlink as launch
from gfpl_flwr.flower.launch.failure import one_line
from gfpl_flwr.flower.launch.federations import Federation
from gfpl_flwr.flower.launch.local_superlink import LaunchError, marked_processes, start_local_superlink

PYPROJECT = """
[project]
name = "trial"
version = "0.1.0"
license = "Apache-2.0"
[tool.flwr.app]
publisher = "gfpl"
[tool.flwr.app.components]
serverapp = "trial_server:app"
clientapp = "trial_client:app"
[tool.flwr.app.config]
mode = "answer"
[tool.flwr.app.config.gmm]
k = 2
"""

CLIENT = """
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from gfpl_flwr.flower.marks import around_visit, mark

app = ClientApp()
app.lifespan()(around_visit)
mark("apps")

@app.query()
def query(message: Message, context: Context) -> Message:
    site = ConfigRecord({"site": int(context.node_config["partition-id"])})
    return Message(RecordDict({"site": site}), reply_to=message)
"""

SERVER = """
import time
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp
from gfpl_flwr.flower.marks import around_run

app = ServerApp()
app.lifespan()(around_run)

@app.main()
def main(grid: Grid, context: Context) -> None:
    mode = context.run_config["mode"]
    print("mode", mode, "k", context.run_config["gmm.k"], flush=True)
    if mode == "raise":
        raise ValueError("threshold must be >= 0,\\ngot -1 in \\x1b[31mred\\x1b[0m")
    while len(nodes := list(grid.get_node_ids())) < 2:
        time.sleep(0.05)
    question = RecordDict({"question": ConfigRecord({"a": 1})})
    replies = grid.send_and_receive([Message(question, node, "query") for node in nodes])
    print("sites", sorted(int(reply.content["site"]["site"]) for reply in replies), flush=True)
    while mode == "wait":
        time.sleep(0.05)
"""


@pytest.fixture
def app_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "trial"
    folder.mkdir()
    for name, text in (
        ("pyproject.toml", PYPROJECT),
        ("trial_client.py", CLIENT),
        ("trial_server.py", SERVER),
    ):
        (folder / name).write_text(text)
    return folder


def everything_is_gone(home: Path, address: str) -> bool:
    host, port = address.split(":")
    with socket.socket() as probe:
        refused = probe.connect_ex((host, int(port))) != 0
    return refused and not marked_processes(home) and not home.exists()


def test_a_wrong_option_is_refused_before_anything_is_started(
    app_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "start_local_superlink", lambda *_args, **_more: pytest.fail("started a SuperLink"))
    federation = Federation("local", ":local:")
    work = tmp_path / "work"
    with pytest.raises(ValueError, match=r"^unknown option 'mod'; did you mean mode\?$"):
        launch.run_app(app_dir, federation, {"mode": "a", "mod": 1}, work_dir=work)
    with pytest.raises(ValueError, match=r"option 'gmm\.k' must be bool, int, float or str, got \[1\]"):
        launch.run_app(app_dir, federation, {"gmm.k": [1]}, work_dir=work)  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="does not describe a Flower app"):
        launch.run_app(tmp_path, federation, {}, work_dir=work)
    assert not work.exists()
    launch.check_overrides(app_dir, {"mode": "wait", "gmm.k": 3})


def test_a_folder_that_is_no_app_is_refused_on_one_line(app_dir: Path) -> None:
    from gfpl_flwr.flower.launch.control import bundle_app

    assert len(bundle_app(app_dir)) < 10_000
    (app_dir / "pyproject.toml").write_text('[project]\nname = "not_allowed"\n')
    with pytest.raises(ValueError, match="is not a valid Flower app: ") as caught:
        bundle_app(app_dir)
    assert "\n" not in str(caught.value)


def test_a_superlink_that_is_not_there_is_said_on_one_line(app_dir: Path, tmp_path: Path) -> None:
    nobody = Federation("lan", "127.0.0.1:9", insecure=True)  # the discard port
    with pytest.raises(LaunchError, match=r"127\.0\.0\.1:9: Connection to the SuperLink is unavailable") as caught:
        launch.run_app(app_dir, nobody, {}, work_dir=tmp_path / "work")
    assert "\n" not in str(caught.value)


# In the place of a SuperLink: quick, and as unwilling to end as a process can be.
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
body = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
orphan = "import sys, subprocess as s; s.Popen([sys.executable, '-c', sys.argv[1]], start_new_session=True)"
subprocess.run([sys.executable, "-c", orphan, body], check=True)
print("ready", flush=True)
time.sleep(600)
"""


def test_every_process_is_ended_also_one_that_refuses_and_one_that_was_orphaned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_superlink, "_START", STUBBORN)
    mine = dict(os.environ)
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    child = start_local_superlink(tmp_path / "superlink.log", threads=3)
    try:
        deadline = time.monotonic() + 20
        while "ready" not in child.log.read_text() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(child.processes()) == 2
        environment = (Path("/proc") / str(child.process.pid) / "environ").read_text().split("\0")
        assert {"OMP_NUM_THREADS=3", f"FLWR_HOME={child.home}", f"RAY_TMPDIR={child.home}"} <= set(environment)
        with pytest.raises(LaunchError, match=rf"no answer from the SuperLink on {child.address} in 0 s: ready"):
            child.wait_until_healthy(0.1)
        child.end(grace=0.3)
        assert everything_is_gone(child.home, child.address)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
        child.end(grace=0.0)
    assert dict(os.environ) == mine


def test_a_superlink_that_dies_is_told_with_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_superlink, "_START", "import sys; print('port taken'); sys.exit(3)")
    child = start_local_superlink(tmp_path / "superlink.log")
    with pytest.raises(LaunchError, match=r"ended with exit status 3: port taken \(all of it in .*superlink\.log"):
        child.wait_until_healthy(20.0)
    child.end()
    assert everything_is_gone(child.home, child.address)


def test_two_superlinks_get_different_ports_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_superlink, "_START", "import time; time.sleep(600)")
    children = [start_local_superlink(tmp_path / f"{number}.log") for number in range(3)]
    try:
        assert len({child.address for child in children}) == len({child.home for child in children}) == 3
    finally:
        for child in children:
            child.end()
    # Ray's sockets below RAY_TMPDIR need 65 of the 107 characters that the kernel takes.
    assert all(len(str(child.home)) <= 107 - 65 for child in children)


# One worker serves both sites: Ray starts faster, and the tests have time for no second one.
TWO_SITES = Federation("local", ":local:", simulation={"num_supernodes": 5, "init_args_num_cpus": 1})


@pytest.mark.ray
def test_runs_share_a_superlink_and_leave_nothing(app_dir: Path, tmp_path: Path) -> None:
    from gfpl_flwr.flower.launch.control import bundle_app, remote_control

    lines: list[str] = []
    polls: list[float] = []
    with launch.connect(TWO_SITES, work_dir=tmp_path / "work") as link:
        assert link.local
        good = link.run(
            app_dir,
            {"gmm.k": 7},
            num_sites=2,
            on_log=lines.append,
            on_poll=lambda: polls.append(time.monotonic()),
        )
        assert (good.status, good.reason) == ("completed", "")
        assert {"mode answer k 7", "sites [0, 1]"} <= set(lines)
        assert max(later - earlier for earlier, later in pairwise(polls)) < 2.0
        assert good.seconds["start"] > 0
        parts = [good.seconds[phase] for phase in ("apps", "ray", "workers", "visits", "ray_end")]
        assert min(parts) > 0
        # Flower's moment of the request is not ours to the last tick.
        assert sum(parts) == pytest.approx(good.seconds["run"], abs=0.1)

        bad = link.run(app_dir, {"mode": "raise"}, num_sites=2)
        assert bad.status == "failed"
        assert bad.reason == "ValueError: threshold must be >= 0, got -1 in red"
        assert "workers" not in bad.seconds

        with pytest.raises(LaunchError, match=r"\[code: 15\] Invalid run configuration") as refused:
            link.control.submit(bundle_app(app_dir), {"nonsense": 1}, simulation=TWO_SITES.simulation_of(2))
        assert str(refused.value) == one_line(str(refused.value))

        # The same SuperLink, as one that somebody else runs.
        lan = remote_control(Federation("lan", link.local.address, insecure=True))
        assert [lan.state(run.run_id).result for run in (good, bad)] == ["completed", "failed"]
        lan.close()
    assert everything_is_gone(link.local.home, link.local.address)
    assert {"superlink", "shutdown"} <= set(link.seconds)
    assert "sites [0, 1]" in (tmp_path / "work/flower.log").read_text()


@pytest.mark.ray
def test_an_interrupt_in_the_middle_stops_the_run_and_leaves_nothing(
    app_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[local_superlink.LocalSuperLink] = []

    def start(*args: Any, **more: Any) -> local_superlink.LocalSuperLink:
        started.append(start_local_superlink(*args, **more))
        return started[-1]

    monkeypatch.setattr(launch, "start_local_superlink", start)
    deadline = time.monotonic() + 200

    def interrupt() -> None:
        # SuperLink, SuperExec, simulation, and Ray's gcs, raylet and Python daemons: Ray is half started.
        if len(started[0].processes()) >= 8:
            raise KeyboardInterrupt
        assert time.monotonic() < deadline

    work = tmp_path / "work"
    with pytest.raises(KeyboardInterrupt):
        launch.run_app(app_dir, TWO_SITES, {"mode": "wait"}, num_sites=2, work_dir=work, on_poll=interrupt)
    assert everything_is_gone(started[0].home, started[0].address)


@pytest.mark.ray
def test_a_superlink_ends_itself_when_we_are_killed(tmp_path: Path) -> None:
    script = """
import sys, time
from pathlib import Path
from gfpl_flwr.flower.launch.local_superlink import start_local_superlink
child = start_local_superlink(Path(sys.argv[1]))
child.wait_until_healthy(60.0)
print(child.home, flush=True)
time.sleep(600)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "superlink.log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        home = Path(parent.stdout.readline().strip())
        assert marked_processes(home)
        parent.kill()
    deadline = time.monotonic() + 20
    while marked_processes(home) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = marked_processes(home)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    shutil.rmtree(home)
    assert left == []
