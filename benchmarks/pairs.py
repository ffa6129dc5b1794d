"""Two ways to do the same work, timed in turn in one process, so that both meet the same machine."""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}


@dataclass(frozen=True)
class Way:
    """One way to do the work.

    Attributes:
        name: as it stands in the table.
        run: does the work once.
    """

    name: str
    run: Callable[[], object]


@dataclass(frozen=True)
class Pair:
    """What was measured of two ways to do the same work.

    Attributes:
        part: section of the table.
        work: what was done, with its sizes.
        ours, theirs: names of the two ways.
        our_seconds, their_seconds: one entry a repeat, taken in turn.
        clock: ``"cpu"``, the CPU time of this process, for work on one thread, or ``"wall"``.
        goal: ratio to reach; None where there is none.
        note: what a reader must know to read the ratio.
    """

    part: str
    work: str
    ours: str
    theirs: str
    our_seconds: list[float]
    their_seconds: list[float]
    clock: str
    goal: float | None = None
    note: str = ""

    @property
    def ratios(self) -> list[float]:
        """Seconds of theirs for one of ours, repeat by repeat."""
        return [theirs / ours for ours, theirs in zip(self.our_seconds, self.their_seconds, strict=True)]

    @property
    def ratio(self) -> float:
        """Median of the ratios."""
        return statistics.median(self.ratios)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, for a result file."""
        return asdict(self)


def compare(
    part: str,
    work: str,
    ours: Way,
    theirs: Way,
    *,
    repeats: int = 5,
    warm_up: bool = True,
    clock: str = "cpu",
    goal: float | None = None,
    note: str = "",
) -> Pair:
    """Time two ways in turn.

    Args:
        part, work, goal, note: as in :class:`Pair`.
        ours, theirs: the two ways.
        repeats: how often each is done.
        warm_up: do each once before the clock runs.
        clock: a key of :data:`CLOCKS`.
    """
    ways = (ours, theirs)
    if warm_up:
        for way in ways:
            way.run()
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for way, taken in zip(ways, seconds, strict=True):
            start = CLOCKS[clock]()
            way.run()
            taken.append(CLOCKS[clock]() - start)
    return Pair(part, work, ours.name, theirs.name, *seconds, clock, goal, note)
