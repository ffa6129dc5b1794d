"""Moments that only the processes of a run know, written down for whoever started them: where its start goes.

Flower says when a run was submitted, began and ended. When its apps were imported, and when Ray had a worker that
could train, nobody says. A mark costs microseconds, and nothing where nobody asked for it, as on devices.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flwr.app import Context

MARKS = "GFPL_MARKS"
"""Environment variable with the file that marks are added to; without it there are none."""


def mark(moment: str) -> None:
    """Add a line to the file of marks: what happened, when, and when this process was born.

    Args:
        moment: a word for it.
    """
    if file := os.environ.get(MARKS):
        line = json.dumps({"moment": moment, "time": time.time(), "born": born()})
        # A run is worth more than the knowledge of where its seconds went.
        with contextlib.suppress(OSError), Path(file).open("a") as marks:
            marks.write(f"{line}\n")


def born() -> float | None:
    """Return when this process was started, in seconds since the epoch; None where there is no /proc."""
    try:
        words = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    # Field 22 of proc(5), counted behind the name, which is field 2: clock ticks since the machine was started.
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(words[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - age


@cache
def _mark_once(moment: str) -> None:
    mark(moment)


def around_visit(_context: "Context") -> Iterator[None]:
    """Mark the first visit of this process: a lifespan function for Flower's ClientApp."""
    _mark_once("visit")
    yield


def around_run(_context: "Context") -> Iterator[None]:
    """Mark the end of the ServerApp, however it ends: a lifespan function for Flower's ServerApp."""
    yield
    mark("served")
