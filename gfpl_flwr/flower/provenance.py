"""What a result came from: packages, the sources of this one, and the processor, on which the last digits depend."""

import hashlib
import platform
from importlib.metadata import version
from pathlib import Path

import gfpl_flwr

PACKAGES = ("torch", "flwr", "numpy")


def provenance() -> dict[str, str]:
    """Return the versions of Python and of :data:`PACKAGES`, ``sources`` and ``processor``."""
    versions = {package: version(package) for package in PACKAGES}
    its = f"{processor()}, {instructions()}"
    return {"python": platform.python_version(), **versions, "sources": sources(), "processor": its}


def sources(folder: Path | None = None) -> str:
    """Return twelve digits that change with every change of this package's sources.

    Args:
        folder: of the sources; the package's own by default.
    """
    folder = folder or Path(gfpl_flwr.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
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
