"""What a result came from: packages, the sources of this one, and the machine, on which the last digits depend."""

import hashlib
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import torch

import gfpl_flwr

PACKAGES = ("torch", "flwr", "numpy")
NO_PART = (
    "cli.py", "cli_devices.py", "command_line.py", "watch.py", "data/hub.py", "experiments", "flower/doctor",
    "flower/inprocess.py", "flower/launch", "flower/supernode.py", "report",
)  # fmt: skip
"""What the app's bundle leaves out, since no result depends on it, and a server in a deployment lacks."""


def provenance(device: str = "cpu") -> dict[str, str]:
    """Return the versions of Python and of :data:`PACKAGES`, ``sources``, and of the server's machine ``processor``.

    Args:
        device: that the run's configuration asks for. Where it can be a GPU there is its name too, as ``gpu``.
    """
    versions = {package: version(package) for package in PACKAGES}
    found = {"python": platform.python_version(), **versions, "sources": sources()}
    found["processor"] = f"{processor()}, {instructions()}"
    if device != "cpu" and torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def continued(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    """Return the provenance of a run that was resumed: what changed is told one after the other.

    A run from before something was recorded goes on without it: nobody knows what its first part had.
    """
    whole = dict(before)
    for name in {*before, "gpu"} & {*before, *now}:
        told, its = before.get(name, "none"), now.get(name, "none")
        whole[name] = told if told.rpartition(", then ")[2] == its else f"{told}, then {its}"
    return whole


def sources(folder: Path | None = None) -> str:
    """Return twelve digits that change with every change of this package's sources that a result can depend on.

    Args:
        folder: of the sources; the package's own by default.
    """
    folder = folder or Path(gfpl_flwr.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder).as_posix()
        if not any(name == left_out or name.startswith(f"{left_out}/") for left_out in NO_PART):
            digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def processor() -> str:
    """Return the name of the processor."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def instructions() -> str:
    """Return the widest vector instructions that the processor has, of those that choose torch's kernels."""
    flags = _cpuinfo().get("flags", "").split()
    return next((told for flag, told in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in flags), "none known")


def _cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
