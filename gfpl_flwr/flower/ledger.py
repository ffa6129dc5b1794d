"""What happened in one visit: messages out, replies in, failures with their reasons, bytes and seconds."""

import logging
import re
from dataclasses import dataclass, field
from typing import Any

from gfpl_flwr.algorithms.base import Reply, Visit
from gfpl_flwr.data.evaluation import mean_and_std
from gfpl_flwr.flower.tensors import Size
from gfpl_flwr.flower.wire import SiteReply
from gfpl_flwr.site_names import SiteName, site_order
from gfpl_flwr.training import Counts

logger = logging.getLogger("flwr.gfpl")
LONGEST_REASON = 300
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@dataclass
class Ledger:
    """The books of one visit.

    Attributes:
        sent: message id to the node it went to and its size; a node that was asked again has several.
        answered: ids of the messages whose reply has come, sound or not.
        good: site to its checked reply and the size of that and of the order to it. Of a node that hosts several
            sites each has its own records, its first sound one the reply's framing too, and the order to the node
            is split evenly over its sound ones; so the sizes of sites add up to those of their node's messages, but
            for what was sent or came a second time.
        failures: (site, or node that never said which it is; one line that says what went wrong).
        notes: (site, one line) of what changed no contribution but should be known: a late reply, a lost model.
        up: size of everything that came meanwhile, sound or not, late or twice.
        seconds: by phase.
    """

    sent: dict[str, tuple[int, Size]] = field(default_factory=dict)
    answered: set[str] = field(default_factory=set)
    good: dict[SiteName, tuple[SiteReply, Size, Size]] = field(default_factory=dict)
    failures: list[tuple[SiteName, str]] = field(default_factory=list)
    notes: list[tuple[SiteName, str]] = field(default_factory=list)
    up: Size = field(default_factory=Size)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def asked(self) -> set[int]:
        """Ids of the nodes that the visit was sent to."""
        return {node for node, _ in self.sent.values()}

    @property
    def answers(self) -> list[SiteReply]:
        """The checked replies, sorted by site: the order in which messages arrive must not matter."""
        return [self.good[site][0] for site in sorted(self.good, key=site_order)]

    def fail(self, site: SiteName, reason: str) -> None:
        """Record why a site's contribution is left out, on one line: a reason can come from anywhere."""
        line = " ".join(_ANSI.sub("", reason).split())
        self.failures.append((site, line if len(line) <= LONGEST_REASON else f"{line[:LONGEST_REASON]} …"))

    def note(self, site: SiteName, text: str) -> None:
        """Record something about a site that changed no contribution."""
        logger.warning("site %s: %s", site, text)
        self.notes.append((site, text))

    @property
    def heard(self) -> int:
        """Sites that answered or failed so far."""
        return len(self.good) + len(self.failures)

    @property
    def names(self) -> set[SiteName]:
        """Sites that answered or failed so far; of a node that never said which they are, its own name."""
        return self.good.keys() | {name for name, _ in self.failures}

    def accuracy(self, head: str) -> tuple[float | None, float | None]:
        """Return unweighted mean and standard deviation over sites of the latest accuracy; None without one.

        Flower's own aggregation would weight sites by their samples.
        """
        return mean_and_std([latest_accuracy(answer.reply, head) for answer in self.answers])

    def line(self, visit: Visit, fusion: dict[str, Any] | None, *, expected: int) -> dict[str, Any]:
        """Return the visit's line of ``rounds.jsonl``; ``expected`` is how many sites the run has."""
        down = sum((size for _, size in self.sent.values()), Size())
        sites = [_site_line(*self.good[site]) for site in sorted(self.good, key=site_order)]
        sites += [{"site": site, "status": "error", "reason": reason} for site, reason in self.failures]
        return {
            "visit": visit.index,
            "first_round": visit.first_round,
            "last_round": visit.last_round,
            "retrain": visit.download,
            "exchange": visit.upload,
            "expected": expected,
            "messages": len(self.sent),
            "bytes_down": down.message,
            "bytes_up": self.up.message,
            "array_bytes_down": down.arrays,
            "array_bytes_up": self.up.arrays,
            "scalars_down": down.scalars,
            "scalars_up": self.up.scalars,
            "seconds": {phase: round(value, 4) for phase, value in self.seconds.items()},
            "fusion": fusion,
            "sites": sites,
            "notes": [{"site": site, "note": note} for site, note in self.notes],
        }


def latest_accuracy(reply: Reply, head: str) -> float | None:
    """Return a site's accuracy after its last evaluation; None without test samples.

    Args:
        reply: of the site.
        head: inference head; a model without it is judged by its classifier.
    """
    if not reply.accuracy:
        return None
    last = reply.accuracy[-1]
    correct = last.correct[head if head in last.correct else "classifier"]
    return float(correct.sum() / last.total.sum())


def _site_line(answer: SiteReply, up: Size, down: Size) -> dict[str, Any]:
    reply = answer.reply
    return {
        "site": answer.site,
        "status": "ok",
        "bytes_up": up.message,
        "bytes_down": down.message,
        "array_bytes_up": up.arrays,
        "seconds": {phase: round(value, 4) for phase, value in reply.seconds.items()},
        "samples": reply.samples,
        "started_from": answer.started_from,
        "labels": {"classes": list(answer.label_counts), "counts": list(answer.label_counts.values())},
        "diagnostics": dict(reply.diagnostics),
        "accuracy": [_counts_line(counts) for counts in reply.accuracy],
    }


def _counts_line(counts: Counts) -> dict[str, Any]:
    classes = counts.total.nonzero().flatten()
    line = {
        "round": counts.round,
        "phase": counts.phase,
        "classes": classes.tolist(),
        "total": counts.total[classes].tolist(),
        "correct": {head: correct[classes].tolist() for head, correct in counts.correct.items()},
    }
    if counts.common is not None:
        line["common"] = {"total": counts.common.total, "correct": counts.common.correct}
    return line
