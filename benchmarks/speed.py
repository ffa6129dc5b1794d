"""What this project costs, beside other ways and programs: measured in turn, kept, and made into a page.

    python -m benchmarks.speed run --data-dir data --fedproto PATH --pflib PATH    # all parts
    python -m benchmarks.speed run --data-dir data --only training,fusion          # some, again
    python -m benchmarks.speed table                                               # writes docs/performance.md

A part that is measured replaces what was known of it in benchmarks/results/speed.json, as soon as it is done. PATH
is a checkout of FedProto's or PFLlib's code, of which nothing comes with this project. Two cores that do nothing else
are needed, and about twenty minutes. The part gpu is left out where there is none.
"""

import argparse
import dataclasses
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks import (
    speed_fusion,
    speed_gpu,
    speed_mixtures,
    speed_profile,
    speed_results,
    speed_round,
    speed_scale,
    speed_startup,
    speed_text,
    speed_training,
)
from gfpl_flwr.flower.provenance import processor

Measured = dict[str, Any]
PACKAGES = ("torch", "torchvision", "flwr", "ray", "numpy", "numba", "scikit-learn")


def parts(data_dir: Path, checkouts: dict[str, Path]) -> dict[str, Callable[[], Measured]]:
    """Return how each part is measured, in the order of the page."""
    return {
        "training": lambda: {"pairs": list(speed_training.pairs(data_dir))},
        "round": lambda: _rounds(data_dir, checkouts),
        "mixtures": lambda: {"pairs": list(speed_mixtures.pairs())},
        "fusion": lambda: {
            "pairs": list(speed_fusion.pairs()),
            "stream": dataclasses.asdict(speed_fusion.scale_check()),
        },
        "sites": lambda: {"sites": speed_scale.sites(data_dir)},
        "messages": lambda: {"pairs": speed_scale.messages()},
        "startup": lambda: {"rows": speed_startup.rows()},
        "profile": lambda: {
            "cohort": speed_profile.COHORT,
            "phases": speed_profile.phases(data_dir),
            "operators": speed_profile.operators(data_dir),
        },
        "gpu": lambda: speed_gpu.found(data_dir, torch.device("cuda")),
    }


def _rounds(data_dir: Path, checkouts: dict[str, Path]) -> Measured:
    passed = speed_round.in_turn(data_dir, checkouts)
    pairs = [*speed_round.pairs(passed), *speed_round.resnet18(data_dir)]
    return {"pairs": pairs, "runs": speed_round.whole_runs(data_dir, passed)}


def conditions() -> Measured:
    """Return where and when something is measured, and what else the machine does."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "load": [round(value, 2) for value in os.getloadavg()],
        "processor": processor(),
        "cores": os.cpu_count(),
        "versions": versions,
        "command": shlex.join(["python", "-m", "benchmarks.speed", *map(_short, sys.argv[1:])]),
    }


def _short(word: str) -> str:
    """Return an argument without the folders of whoever measured."""
    return Path(word).name if "/" in word else word


def plain(value: Any) -> Any:
    """Return a value as JSON has it, numbers with five digits."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def run(data_dir: Path, checkouts: dict[str, Path], only: list[str]) -> None:
    """Measure some parts, or all; each is saved as soon as it is done."""
    torch.set_num_threads(1)
    for name, measure in parts(data_dir, checkouts).items():
        if name not in only if only else name == "gpu" and not torch.cuda.is_available():
            continue
        where, began = conditions(), time.perf_counter()
        found = measure()
        seconds = time.perf_counter() - began
        results = speed_results.load()
        results[name] = plain({"conditions": where | {"seconds": seconds}, **found})
        speed_results.save(results)
        print(f"{name}: {seconds:.0f} s", flush=True)


def main() -> None:
    """Measure, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run", help="measure")
    runner.add_argument(
        "--data-dir", type=Path, required=True, help="folder with mnist and cifar10.safetensors, or to download to"
    )
    runner.add_argument("--fedproto", type=Path, help="checkout of FedProto's code")
    runner.add_argument("--pflib", type=Path, help="checkout of PFLlib's code")
    runner.add_argument("--only", default="", help=f"parts, comma-separated: {', '.join(speed_text.PARTS)}")
    commands.add_parser("table", help="write docs/performance.md")
    arguments = parser.parse_args()
    if arguments.command == "table":
        speed_results.REPORT.write_text(speed_results.document(speed_results.load()))
        return
    only = [name for name in arguments.only.split(",") if name]
    if unknown := sorted(set(only) - set(speed_text.PARTS)):
        parser.error(f"unknown part {unknown[0]!r}: known are {', '.join(speed_text.PARTS)}")
    if "gpu" in only and not torch.cuda.is_available():
        parser.error("part 'gpu': torch sees no CUDA device here")
    given = {"fedproto": arguments.fedproto, "pflib": arguments.pflib}
    run(arguments.data_dir.resolve(), {name: path.resolve() for name, path in given.items() if path}, only)


if __name__ == "__main__":
    main()
