"""What stands in a table or figure of an experiment: numbers of finished runs, by the cell that they are for."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gfpl_flwr.experiments.design import Part, Planned
from gfpl_flwr.experiments.outcomes import Outcome
from gfpl_flwr.experiments.spread import Interval, interval

Measure = Callable[[Outcome], float | None]
OURS = "GFPL"
"""The method that the others are set beside, in a part that has a row of this name."""


@dataclass(frozen=True)
class Cells:
    """Outcomes of a part on one page, by the values of its axes.

    Attributes:
        part: of the experiment.
        page: values of the axes without a role.
        outcomes: of all runs, by key.
    """

    part: Part
    page: Mapping[str, str]
    outcomes: Mapping[str, Outcome]

    def planned(self, **roles: str) -> list[Planned]:
        """Return the runs of a cell, by the values that axes have in their roles."""
        wanted = {self.part.roles[role]: value for role, value in roles.items()}
        return [its for its in self.on_page() if all(its.cell[axis] == value for axis, value in wanted.items())]

    def on_page(self) -> list[Planned]:
        """Return the runs of the page."""
        return [its for its in self.part.planned if all(its.cell[axis] == name for axis, name in self.page.items())]

    @property
    def empty(self) -> bool:
        """Whether no run of the page is done."""
        return not any(its.key in self.outcomes for its in self.on_page())

    def values(self, measure: Measure, **roles: str) -> dict[int, float]:
        """Return a number of every finished run of a cell by its seed."""
        found = {}
        for its in self.planned(**roles):
            outcome = self.outcomes.get(its.key)
            value = measure(outcome) if outcome is not None else None
            if value is not None and not math.isnan(value):
                found[its.seed] = value
        return found

    def interval(self, measure: Measure, **roles: str) -> Interval:
        """Return mean and interval over the seeds of a cell."""
        return interval(list(self.values(measure, **roles).values()))

    def along(self, measure: Measure, line: str) -> dict[str, Interval]:
        """Return mean and interval of each step of a line, over the seeds that all its steps with an outcome share.

        Over others, a difference between two steps could be that of their seeds. Where they share none it is the seed
        that the most of them have.
        """
        steps = {x: self.values(measure, x=x, lines=line) for x in self.of("x")}
        had = Counter(seed for values in steps.values() for seed in values)
        done = sum(1 for values in steps.values() if values)
        shared = {seed for seed, count in had.items() if count == done} or {seed for seed, _ in had.most_common(1)}
        return {
            x: interval([value for seed, value in values.items() if seed in shared]) for x, values in steps.items()
        }

    def finished(self, **roles: str) -> list[Outcome]:
        """Return the outcomes of the finished runs of a cell."""
        return [self.outcomes[its.key] for its in self.planned(**roles) if its.key in self.outcomes]

    def of(self, role: str) -> list[str]:
        """Return the values of the axis in a role."""
        return list(self.part.axes[self.part.roles[role]])

    @property
    def middle(self) -> str:
        """The value of the columns that is shown where there is room for but one: of those with an outcome."""
        columns = self.of("columns")
        known = [column for column in columns if self.finished(columns=column)] or columns
        return known[len(known) // 2]

    @property
    def where(self) -> str:
        """The page in words; empty where there is but one."""
        return ", ".join(self.page.values())

    def stem(self, what: str) -> str:
        """Return the name of a file that shows something of the page."""
        return "-".join([self.part.name, *(value.lower().replace(" ", "-") for value in self.page.values()), what])


def own(outcome: Outcome) -> float:
    """Return the accuracy on a site's own classes at the end, in percent, mean over sites."""
    return 100 * outcome.accuracy[outcome.head][0]


def with_head(head: str) -> Measure:
    """Return the measure of the accuracy on own classes with one way of inference, in percent."""

    def measure(outcome: Outcome) -> float | None:
        return 100 * outcome.accuracy[head][0] if head in outcome.accuracy else None

    return measure


def site_std(outcome: Outcome) -> float:
    """Return its standard deviation over sites, in points."""
    return 100 * outcome.accuracy[outcome.head][1]


def trained(outcome: Outcome) -> float:
    """Return the accuracy on a site's own classes after the last local training, in percent."""
    return 100 * outcome.trained


def common(share: str) -> Measure:
    """Return the measure of the accuracy on ``all``, ``seen`` or ``unseen`` classes at the end, in percent."""

    def measure(outcome: Outcome) -> float | None:
        value = outcome.final(share)
        return None if value is None else 100 * value

    return measure


def sent(outcome: Outcome) -> float:
    """Return the bytes of all messages of the whole run, both ways."""
    return outcome.up[0] + outcome.down[0]


def scalars_a_round(outcome: Outcome) -> float:
    """Return thousands of numbers that all sites together send up, a round."""
    return outcome.up[2] / 1000 / max(1, outcome.curve[-1][0])
