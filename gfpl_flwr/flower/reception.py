"""Replies to one visit: checked one by one and site by site, and entered in the visit's books."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import Message, RecordDict
from torch import Tensor

from gfpl_flwr.algorithms.base import Algorithm, Visit
from gfpl_flwr.flower.attendance import Attendance
from gfpl_flwr.flower.hosting import downloads, failure_in, split_reply, uploads
from gfpl_flwr.flower.ledger import Ledger
from gfpl_flwr.flower.tensors import size_of
from gfpl_flwr.flower.wire import SiteReply, decode_reply
from gfpl_flwr.site_names import SiteName

logger = logging.getLogger("flwr.gfpl")


@dataclass
class Reception:
    """Takes the replies to a visit; a bad, duplicate or missing one costs its site's contribution and is recorded.

    Attributes:
        visit: under way.
        algorithm: resolved.
        attendance: of the run.
        run: its key, which replies must have.
        state: the server's, to which replies must fit.
        feature_dim: D.
        num_classes: C; None where only the sites know.
        ledger: the visit's books.
    """

    visit: Visit
    algorithm: Algorithm
    attendance: Attendance
    run: str
    state: Mapping[str, Tensor]
    feature_dim: int
    num_classes: int | None
    ledger: Ledger = field(default_factory=Ledger)

    def receive(self, message: Message) -> None:
        """Check one reply, site by site; a bad one is recorded and left out, a stray one is ignored."""
        ledger, answered = self.ledger, message.metadata.reply_to_message_id
        if answered not in ledger.sent:
            # Whose it is, nothing but itself says.
            logger.warning("a reply to %r ignored: visit %d sent no such message", answered[:80], self.visit.index)
            return
        if answered in ledger.answered:
            return  # delivered twice
        ledger.answered.add(answered)
        # Errors of Flower's own come from its server, not from the node: the message they answer says which it is.
        node, down = ledger.sent[answered]
        if message.has_error():
            self._fail_all(node, f"{message.error.reason} (code {message.error.code})")
            return
        size = size_of(message)
        ledger.up += size
        try:
            groups = split_reply(message.content, sites_per_node=self.attendance.config.sites_per_node)
        except ValueError as error:
            self._fail_all(node, f"ValueError: {error}")
            return
        checked = [self._checked(group, node, place) for place, group in enumerate(groups)]
        names = self.attendance.names(node)  # now that it may have said which it is
        for place, outcome in enumerate(checked):
            if isinstance(outcome, str):
                ledger.fail(names[place] if place < len(names) else f"node {node}", outcome)
        for name in names[len(groups) :]:
            ledger.fail(name, "the reply of its node has nothing of it")
        sound = {place: answer for place, answer in enumerate(checked) if isinstance(answer, SiteReply)}
        if not sound:
            return
        ups = uploads(message.content, len(groups), first=min(sound)) if len(groups) > 1 else [size]
        for (place, answer), share in zip(sound.items(), downloads(down, len(sound)), strict=True):
            ledger.good[answer.site] = (answer, ups[place], share)
            self._compare_start(answer)

    def close(self) -> None:
        """Record the sites of which nothing sound came, and log every failure."""
        ledger, attendance = self.ledger, self.attendance
        sent = ledger.asked
        late = f"no reply within visit-deadline = {attendance.config.visit_deadline:g} s"
        heard = ledger.names
        for node in sorted(sent | attendance.sites.keys(), key=lambda node: (node not in sent, node)):
            # A site whose node came back under a new id has two.
            missing = [name for name in attendance.names(node) if name not in heard]
            for name in missing:
                ledger.fail(name, late if node in sent else "not connected when the visit began")
            heard |= set(missing)
        for name, reason in attendance.absent(ledger.names, ledger.heard):
            ledger.fail(name, reason)
        for name, reason in ledger.failures:
            logger.warning("site %s left out of this visit: %s", name, reason)

    def _fail_all(self, node: int, reason: str) -> None:
        for name in self.attendance.names(node):
            self.ledger.fail(name, reason)

    def _checked(self, group: RecordDict, node: int, place: int) -> SiteReply | str:
        """Return one site's reply, or why it is left out; remember which sites a node has that told the truth."""
        sites = self.attendance.sites
        try:
            failure = failure_in(group) if self.attendance.config.sites_per_node > 1 else None
            if failure is not None:
                sites[node] = self._hosted(failure.site, node, place)
                return failure.reason
            answer = decode_reply(group)
            hosted = self._check(answer, node, place)
        except (ValueError, TypeError, KeyError, IndexError, OverflowError, RuntimeError) as error:
            return f"{type(error).__name__}: {error}"
        sites[node] = hosted
        return answer

    def _check(self, answer: SiteReply, node: int, place: int) -> Sequence[SiteName]:
        """Refuse a reply that does not belong here; return the sites of its node."""
        visit = self.visit
        if (answer.run, answer.visit) != (self.run, visit.index):
            raise ValueError(f"answers visit {answer.visit} of run {answer.run!r}, expected visit {visit.index}")
        hosted = self._hosted(answer.site, node, place)
        rounds = {counts.round for counts in answer.reply.accuracy}
        if not rounds <= {visit.first_round - 1, *visit.rounds}:
            raise ValueError(f"evaluated rounds {sorted(rounds)[:9]}, the visit covers {visit.rounds}")
        known = self.num_classes
        if known is not None and any(len(counts.total) > known for counts in answer.reply.accuracy):
            raise ValueError(f"tested on a class that is not among the {known} of the data set")
        if visit.upload:
            self.algorithm.check_reply(
                answer.reply, state=self.state, feature_dim=self.feature_dim, num_classes=known
            )
        elif answer.reply.tensors:
            raise ValueError(f"tensors came that nobody asked for: {', '.join(answer.reply.tensors)}")
        return hosted

    def _hosted(self, site: SiteName, node: int, place: int) -> Sequence[SiteName]:
        if site in self.ledger.good:
            raise ValueError(f"site {site} answered already: two nodes have the same partition-id or site")
        return self.attendance.hosted(site, node, place, self.ledger.asked)

    def _compare_start(self, answer: SiteReply) -> None:
        """Note a site that did not go on from the model it had after the last visit that it answered."""
        last = self.attendance.finished.get(answer.site, 0)
        self.attendance.finished[answer.site] = self.visit.index
        if not self.algorithm.remembers:
            return
        if answer.started_from < last:
            began = f"its model of visit {answer.started_from}" if answer.started_from else "the initial model"
            self.ledger.note(answer.site, f"its model of visit {last} is lost: it went on from {began}")
        elif answer.started_from == 0 and self.visit.index > 1:
            self.ledger.note(answer.site, "it has no model of an earlier visit: it started from the initial one")
