"""The project's own make targets, on a copy of it, with a Docker engine that is there."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = "gfpl-test"
PORT = "18443"
IMAGES = ("server", "node", "app", "gateway")
KINDS = {"container": "ps --all --quiet", "network": "network ls --quiet", "volume": "volume ls --quiet"}


@dataclass
class Stack:
    """A federation in containers, driven by ``make`` as a user does it.

    Attributes:
        folder: copy of the project.
        tls: which of the two.
    """

    folder: Path
    tls: bool

    def make(self, target: str, *words: str, check: bool = True) -> str:
        """Make a target; return what it printed."""
        python = Path(sys.executable).parent
        options = [f"BIN={python}", f"INSTALLED={self.folder}/.installed", f"PROJECT={PROJECT}", *words]
        done = subprocess.run(
            ["make", "--no-print-directory", target, *(["TLS=1"] if self.tls else []), *options],
            cwd=self.folder,
            env=os.environ | {"GATEWAY_PORT": PORT, "GFPL_IMAGES": PROJECT},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0 or not check, done.stdout
        return done.stdout

    def container(self, service: str) -> str:
        """Return the id of a service's container."""
        wanted = [f"label=com.docker.compose.project={PROJECT}", f"label=com.docker.compose.service={service}"]
        found = docker("ps", "--quiet", "--no-trunc", *(word for label in wanted for word in ("--filter", label)))
        assert len(found.split()) == 1, f"{service}: {found}"
        return found.strip()

    def left(self) -> dict[str, list[str]]:
        """Return what there is of this federation: containers, networks, volumes."""
        mine = f"label=com.docker.compose.project={PROJECT}"
        return {kind: docker(*words.split(), "--filter", mine).split() for kind, words in KINDS.items()}


def docker(*words: str, check: bool = True) -> str:
    done = subprocess.run(["docker", *words], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0 or not check, f"docker {' '.join(words)}: {done.stdout}{done.stderr}"
    return done.stdout if check else done.stdout + done.stderr


@pytest.fixture(scope="session")
def engine() -> None:
    answers = shutil.which("docker") and not subprocess.run(["docker", "info"], capture_output=True).returncode
    if not answers or not os.environ.get("BASE"):
        pytest.skip("no Docker engine with the tests' base image: `make docker-test` sets one up and runs this")


@pytest.fixture(scope="session")
def project(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the project's files, without what the user's own federation may have left among them."""
    folder = tmp_path_factory.mktemp("project")
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    (folder / ".installed").touch()  # the environment of these tests is the one that runs them
    yield folder
    docker("image", "rm", "--force", *(f"{PROJECT}/{name}" for name in IMAGES), check=False)
    assert docker("images", "--quiet", f"{PROJECT}/*") == ""


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "tls"])
def stack(project: Path, request: pytest.FixtureRequest) -> Iterator[Stack]:
    """A federation that is up."""
    yield from running(Stack(project, request.param))


def running(stack: Stack) -> Iterator[Stack]:
    try:
        printed = stack.make("up")
        assert "3 of 3 nodes are connected" in printed
        yield stack
    finally:
        stack.make("down", check=False)
        assert stack.left() == {kind: [] for kind in KINDS}


def inspected(container: str) -> dict[str, Any]:
    (facts,) = json.loads(docker("inspect", container))
    return facts


def node_ids(container: str, since: str) -> list[str]:
    """Return the ids under which a node has joined since a moment, from its log."""
    return re.findall(r"SuperNode ID: (\d+)", docker("logs", "--since", since, container, check=False))


def wait_for(condition: Callable[[], object], seconds: float, container: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, docker("logs", container, check=False)
        time.sleep(0.5)
