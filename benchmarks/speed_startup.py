"""Seconds before anything is trained: ``gfpl --help``, and the start of a small run by phase, on both engines.

``python -m benchmarks.speed_startup`` prints them. They depend on whether the environment's bytecode was compiled
when it was installed, as ``make .venv`` does: without it each process compiles what it imports.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gfpl_flwr.flower.launch.phases import UNTIL_FIRST_STEP

ROOT = Path(__file__).parents[1]
GFPL = [sys.executable, "-c", "from gfpl_flwr.cli import main; main()"]
SMALL = {"dataset": "digits", "num-sites": 4, "shots": 15, "rounds": 2, "gfpl.first-exchange": 1}
PHASES = UNTIL_FIRST_STEP | {"visits": "all visits", "ray_end": "Ray's end"}


def rows(*, helps: int = 10, runs: int = 1) -> list[tuple[str, list[float]]]:
    """Measure everything.

    Args:
        helps: how often ``gfpl --help`` is called.
        runs: how many runs are made on each engine; one on Flower's takes about half a minute of two cores.

    Returns:
        What was measured, and its seconds, one entry a repeat.
    """
    walls, cpus = zip(*[_call("--help") for _ in range(helps)], strict=True)
    found = [("gfpl --help, wall", list(walls)), ("gfpl --help, CPU", list(cpus))]
    for engine in ("inprocess", "flower"):
        measured = [_run(engine) for _ in range(runs)]
        for phase in measured[0]:
            found.append((f"{engine}: {phase}", [seconds[phase] for seconds in measured]))
    return found


def _call(*words: str) -> tuple[float, float]:
    """Call ``gfpl``; return its seconds on the wall and, with all its children that it waited for, on the CPU."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([*GFPL, *words], cwd=ROOT, env=_environment(), capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - begun, cpu


def _run(engine: str) -> dict[str, float]:
    """Return the seconds of a small run by phase, and the whole of it; the data are prepared beforehand."""
    with tempfile.TemporaryDirectory() as folder:
        where = ["--output-dir", f"{folder}/runs", "--data-dir", f"{folder}/data"]
        _call("data", "--data-dir", f"{folder}/data", "-c", "dataset=digits", "--num-sites", "4")
        options = [word for key, value in SMALL.items() for word in ("-c", f"{key}={value}")]
        whole, _ = _call("run", "--engine", engine, "--name", "run", *where, *options)
        seconds = json.loads(Path(folder, "runs/run/summary.json").read_text())["launch_seconds"]
    first_step = sum(seconds[phase] for phase in UNTIL_FIRST_STEP if phase in seconds)
    told = {words: seconds[phase] for phase, words in PHASES.items() if phase in seconds}
    return told | {"until the first training step": first_step, "the whole command": whole}


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def main() -> None:
    """Print the median of each row."""
    for name, seconds in rows():
        print(f"{name:<55} {statistics.median(seconds):8.2f} s")


if __name__ == "__main__":
    main()
