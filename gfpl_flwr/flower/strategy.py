"""One Flower Strategy that carries every algorithm, and GFPL's named face of it."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import Tensor

from gfpl_flwr.algorithms.base import Algorithm, Visit
from gfpl_flwr.algorithms.gfpl import GFPL
from gfpl_flwr.config import RunConfig
from gfpl_flwr.flower.hosting import downloads, failure_in, hosted_sites, split_reply, uploads
from gfpl_flwr.flower.ledger import Ledger
from gfpl_flwr.flower.overdue import Overdue
from gfpl_flwr.flower.progress import Progress
from gfpl_flwr.flower.run_folder import RunFolder
from gfpl_flwr.flower.tensors import Size, decode_tensors, encode_tensors, size_of
from gfpl_flwr.flower.wire import Order, SiteReply, decode_reply, encode_order
from gfpl_flwr.models import SplitModel
from gfpl_flwr.site_names import SiteName

logger = logging.getLogger("flwr.gfpl")
SETTLED_AFTER = 3.0
"""Seconds without a new node after which their number counts as settled."""


class QuorumError(RuntimeError):
    """Too few sites answered; what was computed before is kept and can be resumed."""


class VisitStrategy(Strategy):
    """Runs an algorithm's visits: one train message to every node, one reply, one aggregation, for each visit.

    A node is one site, or hosts ``sites-per-node`` of them. Replies are matched to messages by id, checked one by
    one, site by site, and the sites sorted before anything is summed. A bad,
    late, duplicate or missing reply costs that site's contribution and is recorded with its reason; the run goes
    on while a quorum answers. A reply that comes when its visit is over is noted in the visit under way and used in
    none. After every aggregation the visit is written to the run's folder and the server's state checkpointed.

    There is no evaluate phase: a reply carries the counts of every evaluation the site made, which halves the
    messages.

    Args:
        algorithm: both halves of the method, resolved.
        config: the run's options.
        folder: of the run.
        feature_dim: D.
        num_classes: C; None where only the sites know.
        model: that every site starts from, where the algorithm knows it.
        on_progress: called when replies came and after every visit.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        config: RunConfig,
        folder: RunFolder,
        *,
        feature_dim: int,
        num_classes: int | None,
        model: SplitModel | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self.algorithm = algorithm
        self.config = config
        self.folder = folder
        self.feature_dim = feature_dim
        self.num_classes = num_classes
        self.on_progress = on_progress or (lambda progress: None)
        self.visits: Sequence[Visit] = algorithm.visits(config)
        self.state: dict[str, Tensor] = algorithm.initial(model)
        self.sites: dict[int, Sequence[SiteName]] = {}  # node id to the sites it answered for
        self.expected = config.num_sites
        self._ledger = Ledger()
        self._current = 0
        self._overdue = Overdue()
        self._titles: dict[int, str] = {}  # node id to the name under which its key was registered
        self._finished: dict[SiteName, int] = {}  # site to the last visit that it answered

    def summary(self) -> None:
        """Log the algorithm, the schedule and the first round after which anything is sent."""
        sends = [visit.last_round for visit in self.visits if visit.upload]
        logger.info("%s over %d visits: %r", self.algorithm.name, len(self.visits), self.algorithm)
        logger.info(
            "tensors travel after rounds %s",
            ", ".join(map(str, sends)) if sends else "none: nothing is exchanged",
        )

    # ---- Flower's hooks -------------------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Address visit ``server_round`` to every connected node, with the server's state where the visit says so."""
        visit = self.visits[server_round - 1]
        self._current = visit.index
        nodes = self._wait_for_nodes(grid)
        contents = self._orders(visit, decode_tensors(arrays), nodes)
        # Twice the deadline: Flower refuses the reply to a message that has expired, and a late one is to be noted.
        ttl = 2 * self.config.visit_deadline
        return [
            Message(content, node, MessageType.TRAIN, ttl=ttl, group_id=str(server_round))
            for node, content in zip(nodes, contents, strict=True)
        ]

    def _orders(self, visit: Visit, state: dict[str, Tensor], nodes: Sequence[int]) -> list[RecordDict]:
        """Return the content of the message to each node; one value where all are told the same."""
        if not (visit.download and self.algorithm.by_site):
            down = self.algorithm.downlink(state) if visit.download else {}
            return [encode_order(Order(self.folder.key, visit, down))] * len(nodes)
        order = Order(self.folder.key, visit, {})
        unknown: Sequence[SiteName | None] = [None] * self.config.sites_per_node
        hosted = [self.sites.get(node, unknown) for node in nodes]
        return [encode_order(order, [self.algorithm.downlink(state, site) for site in sites]) for sites in hosted]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate the sound replies of a visit; write its record and the checkpoint.

        Raises:
            QuorumError: fewer sites than the quorum answered.
        """
        start = time.perf_counter()
        visit, ledger = self.visits[server_round - 1], self._ledger
        for message in replies:
            self._receive(message)
        self._note_missing()
        answers = ledger.answers
        if len(answers) < self._quorum():
            reasons = "; ".join(f"site {site}: {reason}" for site, reason in ledger.failures[:3])
            raise QuorumError(
                f"visit {visit.index}: {len(answers)} of {self.expected} sites answered, "
                f"quorum = {self.config.quorum:g}; {reasons or 'no reply came'}"
            )
        fusion = None
        if visit.upload:
            contributions = [replace(answer.reply, site=answer.site) for answer in answers]
            self.state = self.algorithm.aggregate(self.state, contributions)
            fusion = self.algorithm.describe(self.state, contributions)
        ledger.seconds["aggregate"] = time.perf_counter() - start
        ledger.seconds["total"] = sum(ledger.seconds.values())
        self.folder.record(visit.index, ledger.line(visit, fusion), self.state)
        self._tell(done=True)
        mean, std = ledger.accuracy(self.config.head)
        metrics = None if mean is None or std is None else MetricRecord({"accuracy-mean": mean, "accuracy-std": std})
        return encode_tensors(self.state), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send nothing: train replies carry the evaluations."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return nothing: train replies carry the evaluations."""
        return None

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int | None = None,
        timeout: float | None = None,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run all visits that are not done yet, each with its deadline.

        Flower's own loop counts from round 1 and waits for the last reply before it looks at the first; this one
        starts after the checkpoint and checks replies as they come. Number of rounds, deadlines and state come
        from the configuration, so only ``grid`` is looked at.

        Raises:
            QuorumError: too few nodes connected, or too few sites answered.
        """
        self.summary()
        done, state = self.folder.load_state()
        if done:
            self.state = state
            logger.info("resumed after visit %d of %d", done, len(self.visits))
        result = Result()
        arrays = encode_tensors(self.state)
        for index in range(done + 1, len(self.visits) + 1):
            self._ledger = Ledger()
            began = time.perf_counter()
            messages = list(self.configure_train(index, arrays, ConfigRecord(), grid))
            sent = time.perf_counter()
            self._exchange(grid, messages)
            self._ledger.seconds = {"wait_for_nodes": sent - began, "sites": time.perf_counter() - sent}
            new_arrays, metrics = self.aggregate_train(index, [])
            arrays = arrays if new_arrays is None else new_arrays
            if metrics is not None:
                result.train_metrics_clientapp[index] = metrics
        result.arrays = arrays
        return result

    # ---- one visit ------------------------------------------------------------------------------------------

    def _quorum(self) -> int:
        """Return how many sites must answer; 0.28 of 25 are 7, though the product of the floats is above it."""
        return max(1, math.ceil(self.config.quorum * self.expected - 1e-9))

    def _wait_for_nodes(self, grid: Grid) -> list[int]:
        """Wait for every node before the first visit, later only for a quorum: a dead node delays nothing."""
        start = time.monotonic()
        wanted = self._nodes_of(self._quorum() if self.sites else max(1, self.expected))
        nodes, since = sorted(grid.get_node_ids()), start
        while time.monotonic() - start < self.config.node_deadline:
            # Where nobody said how many there will be, nodes may still be on their way.
            settled = self.expected > 0 or time.monotonic() - since >= SETTLED_AFTER
            if len(nodes) >= wanted and settled:
                break
            time.sleep(0.1)
            before, nodes = nodes, sorted(grid.get_node_ids())
            since = since if nodes == before else time.monotonic()
        if not self.config.num_sites:
            self.expected = max(self.expected, len(nodes))
        if len(nodes) < self._nodes_of(self._quorum()):
            each = self.config.sites_per_node
            shared = f" / sites-per-node = {self._nodes_of(self.expected)}" if each > 1 else ""
            raise QuorumError(
                f"{len(nodes)} of {self._nodes_of(self.expected) or 'any'} nodes connected within node-deadline = "
                f"{self.config.node_deadline:g} s, quorum = {self.config.quorum:g}; "
                f"in simulation num-supernodes must be num-sites{shared}"
            )
        self._titles |= {node.node_id: node.name for node in grid.get_nodes() if node.name}
        return nodes

    def _nodes_of(self, sites: int) -> int:
        return -(-sites // self.config.sites_per_node)

    def _exchange(self, grid: Grid, messages: list[Message]) -> None:
        contents = {id(message.content): message for message in messages}  # most often all carry the same one
        sizes = {content: size_of(message) for content, message in contents.items()}
        sent = [(message.metadata.dst_node_id, sizes[id(message.content)]) for message in messages]
        self._ledger.sent = dict(zip(grid.push_messages(messages), sent, strict=True))
        waiting = set(self._ledger.sent)
        deadline = time.monotonic() + self.config.visit_deadline
        while waiting and time.monotonic() < deadline:
            came = list(grid.pull_messages(waiting | self._overdue.message_ids))
            for message in came:
                answered = message.metadata.reply_to_message_id
                if answered not in self._overdue.message_ids:
                    waiting.discard(answered)
                    self._receive(message)
                elif late := self._overdue.note(message):
                    node, note = late
                    for name in self._names(node):
                        self._ledger.note(name, note)
            if came:
                self._tell(done=False)
            if waiting and not came:
                time.sleep(0.1)
        for message_id in waiting:
            self._overdue.add(message_id, visit=self._current, node=self._ledger.sent[message_id][0])

    def _receive(self, message: Message) -> None:
        """Check one reply, site by site; a bad one is recorded and left out."""
        ledger, answered = self._ledger, message.metadata.reply_to_message_id
        if answered in ledger.answered:
            return  # delivered twice
        ledger.answered.add(answered)
        # Errors of Flower's own come from its server, not from the node: the message they answer says which it is.
        node, down = ledger.sent.get(answered, (message.metadata.src_node_id, Size()))
        if message.has_error():
            for name in self._names(node):
                ledger.fail(name, f"{message.error.reason} (code {message.error.code})")
            return
        size = size_of(message)
        ledger.up += size
        try:
            groups = split_reply(message.content, sites_per_node=self.config.sites_per_node)
        except ValueError as error:
            for name in self._names(node):
                ledger.fail(name, f"ValueError: {error}")
            return
        checked = [self._checked(group, node, place) for place, group in enumerate(groups)]
        names = self._names(node)  # now that it may have said which it is
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

    def _compare_start(self, answer: SiteReply) -> None:
        """Note a site that did not go on from the model it had after the last visit that it answered."""
        if not self.algorithm.remembers:
            return
        last = self._finished.get(answer.site, 0)
        if answer.started_from < last:
            began = f"its model of visit {answer.started_from}" if answer.started_from else "the initial model"
            self._ledger.note(answer.site, f"its model of visit {last} is lost: it went on from {began}")
        elif answer.started_from == 0 and self._current > 1:
            self._ledger.note(answer.site, "it has no model of an earlier visit: it started from the initial one")
        self._finished[answer.site] = self._current

    def _names(self, node: int) -> Sequence[SiteName]:
        """Return the sites of a node; before it has said which they are, its own name for each."""
        return self.sites.get(node, [f"node {self._titles.get(node, node)}"] * self.config.sites_per_node)

    def _checked(self, group: RecordDict, node: int, place: int) -> SiteReply | str:
        """Return one site's reply, or why it is left out; remember which sites a node has that told the truth."""
        try:
            failure = failure_in(group) if self.config.sites_per_node > 1 else None
            if failure is not None:
                self.sites[node] = self._identified(failure.site, node, place)
                return failure.reason
            answer = decode_reply(group)
            hosted = self._check(answer, node, place)
        except (ValueError, TypeError, KeyError, IndexError, OverflowError, RuntimeError) as error:
            return f"{type(error).__name__}: {error}"
        self.sites[node] = hosted
        return answer

    def _identified(self, site: SiteName, node: int, place: int) -> Sequence[SiteName]:
        """Return the sites of the node that this site is of, if it is the one in this place."""
        if site in self._ledger.good:
            raise ValueError(f"site {site} answered already: two nodes have the same partition-id or site")
        each = self.config.sites_per_node
        hosted: Sequence[SiteName] = self.sites.get(node, ())
        if not hosted and each == 1:
            hosted = [site]
        elif not hosted:
            if not isinstance(site, int) or not 0 <= site < self.expected:
                raise ValueError(f"says it is site {site}, expected a number below num-sites = {self.expected}")
            hosted = hosted_sites(site // each, self.config)
        if place >= len(hosted):
            raise ValueError(f"says it is site {site}, but its node hosts no more than {len(hosted)} sites")
        if hosted[place] != site:
            raise ValueError(f"says it is site {site}, but it was site {hosted[place]}")
        return hosted

    def _check(self, answer: SiteReply, node: int, place: int) -> Sequence[SiteName]:
        visit = self.visits[self._current - 1]
        if (answer.run, answer.visit) != (self.folder.key, visit.index):
            raise ValueError(f"answers visit {answer.visit} of run {answer.run!r}, expected visit {visit.index}")
        hosted = self._identified(answer.site, node, place)
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

    def _note_missing(self) -> None:
        ledger = self._ledger
        sent = {node for node, _ in ledger.sent.values()}
        heard = ledger.good.keys() | {name for name, _ in ledger.failures}
        for node in sorted(sent | self.sites.keys()):
            late = f"no reply within visit-deadline = {self.config.visit_deadline:g} s"
            for name in self._names(node):
                if name not in heard:
                    ledger.fail(name, late if node in sent else "not connected when the visit began")
        for name in self._strangers():
            ledger.fail(name, "no node of this site has ever connected")
        for name, reason in ledger.failures:
            logger.warning("site %s left out of this visit: %s", name, reason)

    def _strangers(self) -> list[SiteName]:
        """Return the sites that were announced and of which nothing was ever heard."""
        heard = self._ledger.good.keys() | {name for name, _ in self._ledger.failures}
        missing = self.expected - len(heard)
        if missing <= 0:
            return []
        numbers = set(range(self.expected)) - heard
        if self.config.partition != "own" and len(numbers) == missing:
            return sorted(numbers)
        return [f"{missing} more"]  # their names are known to them alone

    def _tell(self, *, done: bool) -> None:
        accuracy, std = self._ledger.accuracy(self.config.head)
        heard = self._ledger.heard
        self.on_progress(Progress(self._current, len(self.visits), heard, self.expected, accuracy, std, done))


class GFPLStrategy(VisitStrategy):
    """GFPL's protocol on Flower.

    1. Every site builds the same initial model from the seed in the run's configuration. It trains rounds 1 to T0
       by itself. Nothing but the order to do so has travelled.
    2. It fits a Gaussian mixture to the features of each of its classes and replies with four arrays, ``labels``
       (N,) int64, ``counts`` (N,), ``means`` (N, D) and ``variances`` (N, D) float32, one row a component, or
       with their compressed form (:mod:`gfpl_flwr.core.compression`) where ``gfpl.precision`` asks for it.
    3. The server joins the rows of all sites, merges components of one class that are close in Bhattacharyya
       distance (Algorithm 1), and hands the fused rows down with the order for the next P rounds.
    4. A site samples balanced pseudo-features from them, retrains its heads, trains P rounds, and goes on at 2.
       After the last exchange one more visit hands down the last fused prototypes.

    Source: arXiv 2602.21873, Algorithms 1 and 2.
    """

    algorithm: GFPL
