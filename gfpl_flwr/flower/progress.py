"""Progress of a run as lines of its log, so that whoever reads the log, person or program, can follow it."""

import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

logger = logging.getLogger("flwr.gfpl")
# From its start: a site's reason for failing, which other lines of the log end in, can read like this.
_LINE = re.compile(
    r"(?:(?:\x1b\[[0-9;]*m)*INFO [\d :,-]*(?:\x1b\[[0-9;]*m)*: *)?"  # Flower's, with or without colours and the time
    r"visit (\d+)/(\d+): (\d+)/(\d+) sites(?:, accuracy ([\d.]+) \+- ([\d.]+))?(, done)?"
)


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        visit, visits: the visit under way and how many there are.
        sites, expected: sites that answered it, or failed, and how many were asked.
        accuracy, std: unweighted mean and standard deviation over the sites so far; None without test samples.
        done: whether the visit has been aggregated and written down.
    """

    visit: int
    visits: int
    sites: int
    expected: int
    accuracy: float | None = None
    std: float | None = None
    done: bool = False

    def __str__(self) -> str:
        measured = f", accuracy {self.accuracy:.4f} +- {self.std:.4f}" if self.accuracy is not None else ""
        done = ", done" if self.done else ""
        return f"visit {self.visit}/{self.visits}: {self.sites}/{self.expected} sites{measured}{done}"

    @classmethod
    def parse(cls, line: str) -> "Progress | None":
        """Read a line of a log; None if it does not tell of progress."""
        match = _LINE.fullmatch(line.rstrip())
        if match is None:
            return None
        visit, visits, sites, expected = (int(match[group]) for group in range(1, 5))
        accuracy, std = (float(match[group]) if match[group] else None for group in (5, 6))
        return cls(visit, visits, sites, expected, accuracy, std, match[7] is not None)


def logged(every: float = 1.0) -> Callable[[Progress], None]:
    """Return a listener that logs the end of every visit, and replies at most every so many seconds."""
    last = -every

    def listen(progress: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if progress.done or now - last >= every:
            last = now
            logger.info("%s", progress)

    return listen
