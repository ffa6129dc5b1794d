"""Where the seconds between ``gfpl run`` and the first training step go, and which of them are Ray's."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

UNTIL_FIRST_STEP = {
    "checks": "imports and checks",
    "superlink": "SuperLink",
    "submit": "bundle and request",
    "start": "Flower's process",
    "apps": "import of the apps",
    "ray": "Ray's start",
    "workers": "start and imports of Ray's workers",
}
"""The phases until a site trains, in their order, each with its words for the user."""

RAY = ("ray", "workers", "ray_end")
"""The phases that a run without Ray has not."""


def phases_of(marks: Path, *, begun: float, ended: float) -> dict[str, float]:
    """Return the phases within a run on Flower's simulation engine.

    Args:
        marks: file of :mod:`gfpl_flwr.flower.marks`; the marks of other runs in it are passed over.
        begun: when the ServerApp's process had begun, in seconds since the epoch.
        ended: when the run had ended.

    Returns:
        Seconds of ``apps``, until Flower had imported both apps; ``ray``, until Ray started its first worker;
        ``workers``, until a worker began a site's first visit; ``visits``, until the ServerApp ended; ``ray_end``,
        until the run ended. What follows a mark that is missing is left out.
    """
    lines = marks.read_text(encoding="utf-8").splitlines() if marks.exists() else []
    found = [mark for mark in map(json.loads, lines) if begun - 1.0 <= mark["time"] <= ended + 1.0]
    apps, first, served = (_first(found, moment) for moment in ("apps", "visit", "served"))
    moments: dict[str, float | None] = {
        "apps": apps.get("time"),
        "ray": first.get("born"),
        "workers": first.get("time"),
        "visits": served.get("time"),
        "ray_end": ended,
    }
    seconds: dict[str, float] = {}
    before = begun
    for phase, moment in moments.items():
        if moment is None:
            break
        seconds[phase] = max(0.0, moment - before)
        before = max(before, moment)
    return seconds


def first_step(seconds: Mapping[str, float]) -> str:
    """Return one line: when the first training step came, the phases before it, and Ray's share.

    Args:
        seconds: ``launch_seconds`` of a run's summary.

    Returns:
        The line; empty where no step came, or nobody noticed.
    """
    if "run" in seconds and "workers" not in seconds:
        return ""
    known = {phase: seconds[phase] for phase in UNTIL_FIRST_STEP if phase in seconds}
    if not known:
        return ""
    told = ", ".join(f"{UNTIL_FIRST_STEP[phase]} {value:.1f}" for phase, value in known.items())
    line = f"first training step after {sum(known.values()):.1f} s: {told}"
    ray = sum(seconds.get(phase, 0.0) for phase in RAY)
    return f"{line}; Ray with its end {ray:.1f} s" if ray else line


def _first(marks: list[dict[str, Any]], moment: str) -> dict[str, Any]:
    """Return the earliest mark of a moment; an empty one where there is none."""
    return min((mark for mark in marks if mark["moment"] == moment), key=lambda mark: mark["time"], default={})
