"""What the server wrote down of each visit, as checked values."""

from dataclasses import dataclass
from typing import NamedTuple

from gfpl_flwr.site_names import SiteName

PHASES = ("train", "retrain", "received")  # of two of one round, the later tells what a site would use
TRAFFIC_KEYS = (
    "messages",
    "bytes_up",
    "bytes_down",
    "array_bytes_up",
    "array_bytes_down",
    "scalars_up",
    "scalars_down",
)


SHARES = ("all", "seen", "unseen")


class Common(NamedTuple):
    """Counts on test images of every class: of classes that the site has trained on, and of all others."""

    total: tuple[int, int]
    correct: dict[str, tuple[int, int]]

    def fraction(self, head: str, share: str) -> float | None:
        """Return what ``head`` gets right of ``all``, ``seen`` or ``unseen`` classes; None without such samples."""
        places = {"all": (0, 1), "seen": (0,), "unseen": (1,)}[share]
        samples = sum(self.total[place] for place in places)
        if not samples or head not in self.correct:
            return None
        return sum(self.correct[head][place] for place in places) / samples


class Accuracy(NamedTuple):
    """Test counts of one site after one round: ``total`` per class, ``correct`` per head and class."""

    round: int
    phase: str
    classes: tuple[int, ...]
    total: tuple[int, ...]
    correct: dict[str, tuple[int, ...]]
    common: Common | None = None

    def fraction(self, head: str) -> float | None:
        """Return the share of test samples that ``head`` gets right; None without head or samples."""
        samples = sum(self.total)
        return sum(self.correct[head]) / samples if samples and head in self.correct else None


class Merge(NamedTuple):
    """One fusion on the server: components before and after, in all and by class."""

    visit: int
    round: int
    components_in: int
    components_out: int
    by_class: dict[int, tuple[int, int]]
    suppressed_classes: int

    @property
    def rate(self) -> float:
        """Share of the components that fusion merged away, (in - out) / in; 0 when nothing came in."""
        return (self.components_in - self.components_out) / self.components_in if self.components_in else 0.0


@dataclass(frozen=True)
class SiteReply:
    """What one site answered in one visit; a site that failed has a ``reason`` and nothing else."""

    site: SiteName
    status: str
    reason: str
    labels: dict[int, int]
    accuracy: tuple[Accuracy, ...]

    @property
    def ok(self) -> bool:
        """Whether the reply was used."""
        return self.status == "ok"


@dataclass(frozen=True)
class Visit:
    """One line of ``rounds.jsonl``; a visit that only retrains has ``first_round = last_round + 1``."""

    visit: int
    first_round: int
    last_round: int
    retrain: bool
    exchange: bool
    traffic: dict[str, int]
    seconds: float
    merge: Merge | None
    sites: tuple[SiteReply, ...]
    notes: tuple[tuple[SiteName, str], ...] = ()

    @property
    def down_round(self) -> int:
        """The round whose model needs what was sent down: the one before the first when it is retrained."""
        return min(self.first_round - self.retrain, self.last_round)
