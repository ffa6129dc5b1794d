"""A run as a value, and every number that tables and figures show of it.

Accuracies are fractions in [0, 1]. Means over sites are unweighted, so that a site with many test samples
counts like any other, and standard deviations are the population's (divided by S).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gfpl_flwr.report.records import PHASES, TRAFFIC_KEYS, Merge, Visit
from gfpl_flwr.site_names import SiteName, site_order

# How the server calls a node that failed before it had said which site it is.
UNKNOWN_NODE = re.compile(r"node \d+")


class Point(NamedTuple):
    """Accuracy after one local round: unweighted mean and population std over ``n_sites`` sites."""

    round: int
    mean: float
    std: float
    n_sites: int


class Final(NamedTuple):
    """Accuracy at the end: of each site, and mean and population std over sites (NaN without any)."""

    by_site: dict[SiteName, float]
    mean: float
    std: float


class Traffic(NamedTuple):
    """Bytes sent by and to all sites together, from the start until the model of ``round`` existed."""

    round: int
    up: int
    down: int


class Totals(NamedTuple):
    """Sums over all visits: messages, bytes, bytes and scalars of the arrays alone, seconds of wall time."""

    messages: int
    bytes_up: int
    bytes_down: int
    array_bytes_up: int
    array_bytes_down: int
    scalars_up: int
    scalars_down: int
    seconds: float


class Failure(NamedTuple):
    """A site's missing contribution to one visit, with the reason that the server recorded."""

    visit: int
    first_round: int
    last_round: int
    site: SiteName
    reason: str


@dataclass(frozen=True)
class Run:
    """A run as its files tell it: the settings, the visits in order, and the numbers derived from them."""

    path: Path
    name: str
    config: dict[str, Any]
    visits: tuple[Visit, ...]
    status: str
    reason: str
    notes: tuple[str, ...]

    @cached_property
    def sites(self) -> tuple[SiteName, ...]:
        """The sites that any visit names, sorted, those that never answered included.

        A node that never said which site it is stands among the failures only: it may be any of the sites.
        """
        replies = [reply for visit in self.visits for reply in visit.sites]
        named = {r.site for r in replies if r.ok or not UNKNOWN_NODE.fullmatch(str(r.site))}
        return tuple(sorted(named, key=site_order))

    @cached_property
    def heads(self) -> tuple[str, ...]:
        """The inference heads that were evaluated, in the order in which they first appear."""
        return tuple(
            dict.fromkeys(
                head for v in self.visits for reply in v.sites for entry in reply.accuracy for head in entry.correct
            )
        )

    @property
    def head(self) -> str:
        """The head reported by default: the configured one, or the first that this algorithm evaluates."""
        configured = str(self.config.get("head", "classifier"))
        return configured if configured in self.heads or not self.heads else self.heads[0]

    @property
    def last_round(self) -> int:
        """The last local round that a visit covers; 0 without visits."""
        return max((visit.last_round for visit in self.visits), default=0)

    @property
    def exchange_rounds(self) -> tuple[int, ...]:
        """The rounds after which sites sent what they exchange."""
        return tuple(visit.last_round for visit in self.visits if visit.exchange)

    @cached_property
    def tested_phases(self) -> dict[str, frozenset[int]]:
        """The phases in which sites were tested, in the order of :data:`PHASES`, with their rounds."""
        entries = [entry for v in self.visits for reply in v.sites for entry in reply.accuracy]
        rounds = {phase: frozenset(e.round for e in entries if e.phase == phase) for phase in PHASES}
        return {phase: its for phase, its in rounds.items() if its}

    @property
    def merges(self) -> tuple[Merge, ...]:
        """The server's fusions, one per exchange that reached a quorum."""
        return tuple(visit.merge for visit in self.visits if visit.merge is not None)

    @property
    def failures(self) -> list[Failure]:
        """Every contribution that is missing, in the order of visits and sites."""
        return [
            Failure(v.visit, v.first_round, v.last_round, reply.site, reply.reason or reply.status)
            for v in self.visits
            for reply in v.sites
            if not reply.ok
        ]

    @property
    def stale_sites(self) -> tuple[SiteName, ...]:
        """The sites whose last reply failed: they count with their last known accuracy, if there is one."""
        last: dict[SiteName, bool] = {}
        for visit in self.visits:
            # The good reply last: a second one of the same site is refused, and costs nothing.
            last |= {reply.site: reply.ok for reply in sorted(visit.sites, key=lambda reply: reply.ok)}
        return tuple(site for site in self.sites if not last[site])

    @property
    def labels(self) -> dict[SiteName, dict[int, int]]:
        """Training samples per class of every site that told them: ``{site: {class: count}}``."""
        known = {r.site: r.labels for visit in self.visits for r in visit.sites if r.labels}
        return {site: known[site] for site in sorted(known, key=site_order)}

    @property
    def totals(self) -> Totals:
        """What the run cost in messages, bytes, scalars and seconds."""
        sums = {key: sum(visit.traffic[key] for visit in self.visits) for key in TRAFFIC_KEYS}
        return Totals(**sums, seconds=float(sum(visit.seconds for visit in self.visits)))

    @property
    def first_array_round(self) -> int | None:
        """The first round whose model needed, or produced, a message with arrays; None without any."""
        rounds = [v.down_round for v in self.visits if v.traffic["array_bytes_down"]]
        rounds += [v.last_round for v in self.visits if v.traffic["array_bytes_up"]]
        return min(rounds, default=None)

    def curve(self, head: str | None = None) -> list[Point]:
        """Return the accuracy by round of the model that a site would use after it.

        That is the model after retraining on what the server handed down, or the one that the server handed down,
        where there was one, else the model after local training.

        A site that failed is carried on with its last known accuracy, so that the mean does not move because
        a weak or a strong site fell out. A site without test samples, or not yet heard of, is left out.

        Args:
            head: inference head; the run's default when None.

        Returns:
            One point per round that at least one site reported, sorted by round.

        Raises:
            ValueError: the run did not evaluate that head.
        """
        return _points(self._by_round(head, PHASES))

    def after_training(self, head: str | None = None) -> list[Point]:
        """Return the accuracy by round after local training alone; else as :meth:`curve`."""
        return _points(self._by_round(head, ("train",)))

    def final_accuracy(self, head: str | None = None) -> Final:
        """Return every site's last known accuracy and their mean and std; see :attr:`stale_sites`.

        Raises:
            ValueError: the run did not evaluate that head.
        """
        last: dict[SiteName, float] = {}
        for _, values in sorted(self._by_round(head, PHASES).items()):
            last.update(values)
        by_site = {site: last[site] for site in sorted(last, key=site_order)}
        if not by_site:
            return Final({}, float("nan"), float("nan"))
        return Final(by_site, *_mean_std(by_site))

    def rounds_to(self, fraction: float = 0.99, *, head: str | None = None) -> int | None:
        """Return the first round whose mean is at least ``fraction`` of the final mean; None without rounds.

        Raises:
            ValueError: the run did not evaluate that head.
        """
        curve = self.curve(head)
        return next((point.round for point in curve if point.mean >= fraction * curve[-1].mean), None)

    def cumulative_bytes(self) -> list[Traffic]:
        """Return the bytes sent until the model of each round existed, summed over all sites, both ways.

        A site sends after the last round of a visit. What it receives serves the first round of the visit or,
        when it retrains on it, the round before: that message pays for the accuracy after retraining.
        """
        rounds = range(1, self.last_round + 1)
        up = np.zeros(self.last_round + 1, dtype=np.int64)
        down = np.zeros(self.last_round + 1, dtype=np.int64)
        for visit in self.visits:
            up[visit.last_round] += visit.traffic["bytes_up"]
            down[visit.down_round] += visit.traffic["bytes_down"]
        up, down = up.cumsum(), down.cumsum()
        return [Traffic(r, int(up[r]), int(down[r])) for r in rounds]

    def common_curve(self, share: str = "all", *, head: str | None = None) -> list[Point]:
        """Return the accuracy on test images of every class, by round; else as :meth:`curve`.

        Args:
            share: ``all`` classes, those ``seen`` in the site's training images, or the ``unseen``.
            head: inference head; the run's default when None.

        Returns:
            One point per round in which that was tested; none if the run did not.

        Raises:
            ValueError: the run did not evaluate that head.
        """
        return _points(self._by_round(head, PHASES, share=share))

    def _by_round(
        self, head: str | None, phases: tuple[str, ...], *, share: str | None = None
    ) -> dict[int, dict[SiteName, float]]:
        """Collect ``{round: {site: accuracy}}``; of two phases of a round the later in ``phases`` wins."""
        head = head or self.head
        if self.heads and head not in self.heads:
            raise ValueError(f"run {self.name} has no head {head!r}, only {', '.join(self.heads)}")
        found: dict[int, dict[SiteName, float]] = {}
        for phase in phases:
            for visit in self.visits:
                for reply in visit.sites:
                    for entry in reply.accuracy:
                        if entry.phase != phase:
                            continue
                        common = entry.common
                        value = entry.fraction(head) if share is None else common and common.fraction(head, share)
                        if value is not None:
                            found.setdefault(entry.round, {})[reply.site] = value
        return found


def display_names(runs: Sequence[Run]) -> list[str]:
    """Return the runs' names, numbered where two runs have the same, for use as labels."""
    names = [run.name for run in runs]
    return [f"{n} ({names[:i].count(n) + 1})" if names.count(n) > 1 else n for i, n in enumerate(names)]


def _mean_std(values: Mapping[SiteName, float]) -> tuple[float, float]:
    array = np.array([values[site] for site in sorted(values, key=site_order)], dtype=np.float64)
    return float(array.mean()), float(array.std())


def _points(by_round: Mapping[int, Mapping[SiteName, float]]) -> list[Point]:
    known: dict[SiteName, float] = {}
    points = []
    for number in sorted(by_round):
        known.update(by_round[number])
        points.append(Point(number, *_mean_std(known), len(known)))
    return points
