"""A device as its guide has it: the service's own command, its own images, and what the doctor says of it."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.deployment import ROOT, SCRIPTS, SUPERNODE, Deployment, Service

from .conftest import ended, record

pytestmark = pytest.mark.deployment
UNIT = ROOT / "devices" / "gfpl-node.service"


def photograph(folder: Path) -> Path:
    """Write noisy pictures of three colours, a folder a colour."""
    noise = np.random.default_rng(0)
    for channel, colour in enumerate(("blue", "green", "red")):
        (folder / colour).mkdir(parents=True)
        for number in range(12):
            pixels = noise.integers(0, 120, (16, 16, 3), dtype=np.uint8)
            pixels[:, :, 2 - channel] += 130
            Image.fromarray(pixels).save(folder / colour / f"{number:02}.png")
    return folder


def command_of(unit: Path, settings: dict[str, str]) -> list[str]:
    """Return the command of a service as systemd would make it with these settings, but of this environment."""
    text = unit.read_text().replace("\\\n", " ")
    (line,) = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    words = [re.sub(r"\$\{(\w+)\}", lambda name: settings[name[1]], word) for word in shlex.split(line)]
    assert ["@GFPL@/.venv/bin/python", *SUPERNODE[1:]] == words[:3]
    return [*SUPERNODE, *words[3:]]


def doctor(deployment: Deployment, settings: dict[str, str], images: Path) -> dict[str, dict[str, object]]:
    """Return what the doctor found, by check; the last word on a check counts."""
    words = ["--superlink", settings["GFPL_SUPERLINK"], "--root-certificates", settings["GFPL_CA"], "--json"]
    words += ["--key", settings["GFPL_KEY"], "--data-dir", settings["GFPL_DATA_DIR"]]
    words += ["--state-dir", settings["GFPL_STATE_DIR"], "-c", f"dataset=folder:{images}", "-c", "image-size=16"]
    done = subprocess.run(
        [f"{SCRIPTS}/gfpl", "doctor", *words], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    told = json.loads(done.stdout)
    assert done.returncode == (0 if told["fit"] else 1)
    return {finding["check"]: finding for finding in told["findings"]}


def test_a_device_joins_with_its_own_images_as_its_guide_says(deployment: Deployment):
    images, home = photograph(deployment.folder / "images"), deployment.folder / "camera-3"
    settings = {
        "GFPL_SUPERLINK": deployment.address,
        "GFPL_CA": str(deployment.ca),
        "GFPL_KEY": str(home / "key"),
        "GFPL_SITE": "camera-3",
        "GFPL_DATA_DIR": str(home / "data"),
        "GFPL_STATE_DIR": str(home / "state"),
    }
    home.mkdir()
    found = doctor(deployment, settings, images)
    assert "ssh-keygen" in str(found["key"]["remedy"])
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", str(home / "key")], check=True)
    found = doctor(deployment, settings, images)
    assert [name for name, finding in found.items() if not finding["passed"]] == ["key"]
    assert "is not registered" in str(found["key"]["found"])
    assert "blue 10, green 10, red 10; 6 to test on" in str(found["data"]["found"])
    assert "days" in str(found["certificate"]["found"])
    shutil.copy(home / "key.pub", home / "camera-3.pub")
    for words in ("registered, node", "was registered before, node"):
        register = deployment.gfpl("register", "here", str(home / "camera-3.pub"))
        assert f"camera-3: {words}" in ended(register)
    found = doctor(deployment, settings, images)
    assert all(finding["passed"] for finding in found.values()), found
    command = command_of(UNIT, settings)
    deployment.nodes["camera-3"] = Service(home, {"supernode": command}).start()
    assert [node.name for node in deployment.connected(1)] == ["camera-3"]
    # A node that is connected already is not disturbed by a look at it.
    assert doctor(deployment, settings, images)["key"]["passed"]
    options = {"partition": "own", "dataset": f"folder:{images}", "image-size": 16, "rounds": 2}
    ended(deployment.run("own", options | {"num-sites": 1, "gfpl.first-exchange": 1, "gfpl.pseudo-per-class": 5}))
    for line in record(deployment, "own"):
        (site,) = line["sites"]
        assert (site["site"], site["status"], site["samples"]) == ("camera-3", "ok", 30)
    assert [path.parent.name for path in (home / "state").rglob("visit-2.safetensors")] == ["site-camera-3"]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_the_service_is_one_that_systemd_understands(tmp_path: Path):
    program = tmp_path / ".venv" / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / "gfpl-node.service"
    unit.write_text(UNIT.read_text().replace("@GFPL@", str(tmp_path)).replace("User=gfpl", "User=root"))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert str(unit) not in done.stderr  # no remark on a line of ours
    assert "RestartSec=10" in unit.read_text()
    assert "StartLimitIntervalSec=0" in unit.read_text()
