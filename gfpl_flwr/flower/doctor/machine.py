"""What a machine needs before it joins: interpreter, packages, memory, disk, its data and a place for its state."""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from gfpl_flwr.algorithms import parse_run
from gfpl_flwr.config import ConfigError, Scalar
from gfpl_flwr.flower.doctor.findings import Finding
from gfpl_flwr.flower.site_setup import open_dataset

MEMORY_NEEDED = 700
"""MB that SuperNode, SuperExec and a ClientApp with a site of some thousand small images take (docs/devices.md)."""
DISK_NEEDED = 200
"""MB for the app, two models and a prepared data set of some ten thousand small images."""
OLDEST_PYTHON = (3, 11)
PACKAGES = ("flwr", "torch", "numpy", "safetensors", "pillow")
MACHINES = ("x86_64", "aarch64", "arm64")


def interpreter() -> Iterator[Finding]:
    """Check Python's version and that the machine is one that has wheels."""
    found = f"{platform.python_version()} on {platform.machine()}"
    ok = sys.version_info[:2] >= OLDEST_PYTHON
    remedy = f"install Python {OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]} or newer"
    if platform.machine() not in MACHINES:
        ok, remedy = False, f"use a 64-bit system, one of {', '.join(MACHINES)}: torch has no package for this one"
    yield Finding("python", ok, found, remedy)


def packages() -> Iterator[Finding]:
    """Check the packages that a node needs against what this package asks for, and torchvision against torch."""
    wanted = {need.name: need.specifier for need in map(Requirement, requires("gfpl-flwr") or ())}
    for name in PACKAGES:
        try:
            found = version(name)
        except PackageNotFoundError:
            yield Finding(name, False, "is not installed", "install the device's packages: make device")
            continue
        ok = name not in wanted or wanted[name].contains(found, prereleases=True)
        yield Finding(name, ok, found, f"needed: {name}{wanted.get(name, '')}; install it anew: make device")
    yield _torchvision()


def _torchvision() -> Finding:
    try:
        found, its_needs = version("torchvision"), map(Requirement, requires("torchvision") or ())
        torch = version("torch")
    except PackageNotFoundError:
        return Finding("torchvision", True, "is not installed; only model = resnet18 needs it")
    needed = next((need.specifier for need in its_needs if need.name == "torch"), None)
    remedy = "install the two as a pair, from the same place: make device"
    # A build for CUDA has the version of the one without, and its operators are missing: only loading it tells.
    trial = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True, check=False)
    if needed is not None and not needed.contains(torch, prereleases=True):
        return Finding("torchvision", False, f"{found} is made for torch{needed}, this is torch {torch}", remedy)
    if trial.returncode:
        last = (trial.stderr.strip().splitlines() or ["it does not load"])[-1]
        return Finding("torchvision", False, f"{found} does not fit torch {torch}: {last}", remedy)
    return Finding("torchvision", True, f"{found} fits torch {torch}")


def memory() -> Iterator[Finding]:
    """Check the memory that is free for a node and its app."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free, whole = (int(fields[name].split()[0]) // 1024 for name in ("MemAvailable", "MemTotal"))
    yield Finding(
        "memory",
        free >= MEMORY_NEEDED,
        f"{free} MB of {whole} MB are free",
        f"{MEMORY_NEEDED} MB are needed: end other programs, or use a device with 1 GB or more",
    )


def state(folder: Path) -> Iterator[Finding]:
    """Check that a site can keep its model in a folder: it can be written, flushed and has room."""
    remedy = f"give user {os.geteuid()} the folder: sudo install -d -o {os.geteuid()} {folder}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        yield Finding("state", False, f"{folder} cannot be written: {error.strerror}", remedy)
        return
    yield Finding("state", True, f"{folder} can be written")
    free = shutil.disk_usage(folder).free // 2**20
    yield Finding("disk", free >= DISK_NEEDED, f"{free} MB are free in {folder}", f"make room for {DISK_NEEDED} MB")


def data(options: dict[str, Scalar], data_dir: Path) -> Iterator[Finding]:
    """Check the data set by preparing it, as the first visit would, and count its classes."""
    try:
        config, _ = parse_run(options)
        images = open_dataset(config, data_dir)
    except (ConfigError, ValueError) as error:
        yield Finding("data", False, " ".join(str(error).split()), "see docs/devices.md, the folder of images")
        return
    counts = images.train_labels.bincount(minlength=images.num_classes).tolist()
    names = images.class_names or tuple(map(str, range(images.num_classes)))
    held = ", ".join(f"{name} {count}" for name, count in zip(names, counts, strict=True))
    missing = [name for name, count in zip(names, counts, strict=True) if not count]
    told = f"{len(images.train_labels)} images to train on: {held}; {len(images.test_labels)} to test on"
    if missing:
        told += f"; none of {', '.join(missing)}"
    yield Finding("data", True, told)
