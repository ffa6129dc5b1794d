"""One Flower Strategy that carries every algorithm, and GFPL's named face of it."""

import logging
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
from gfpl_flwr.flower.attendance import Attendance, QuorumError
from gfpl_flwr.flower.orders import Orders, Patience
from gfpl_flwr.flower.overdue import Overdue, is_flowers_word
from gfpl_flwr.flower.progress import Progress
from gfpl_flwr.flower.reception import Reception
from gfpl_flwr.flower.run_folder import RunFolder
from gfpl_flwr.flower.tensors import decode_tensors, encode_tensors, size_of
from gfpl_flwr.flower.wire import Order, encode_order
from gfpl_flwr.models import SplitModel
from gfpl_flwr.site_names import SiteName

logger = logging.getLogger("flwr.gfpl")
SETTLE = 60.0
"""Seconds that a finished run waits for replies that it does not need."""


class VisitStrategy(Strategy):
    """Runs an algorithm's visits: one train message to every node, one reply, one aggregation, for each visit.

    A node is one site, or hosts ``sites-per-node`` of them. Replies are matched to messages by id, checked one by
    one, site by site, and the sites sorted before anything is summed. A bad, late, duplicate or missing reply costs
    that site's contribution and is recorded with its reason; the run goes on while a quorum answers. A reply that
    comes when its visit is over is noted in the visit under way and used in none. After every aggregation the visit
    is written to the run's folder and the server's state checkpointed.

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
        self.attendance = Attendance(config)
        self._overdue = Overdue()
        self._patience = Patience(config.ask_again_after)
        self._reception: Reception  # of the visit under way

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
        nodes = self.attendance.wait(grid)
        self._reception = Reception(
            visit,
            self.algorithm,
            self.attendance,
            run=self.folder.key,
            state=self.state,
            feature_dim=self.feature_dim,
            num_classes=self.num_classes,
        )
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
        hosted = [self.attendance.sites.get(node, unknown) for node in nodes]
        return [encode_order(order, [self.algorithm.downlink(state, site) for site in sites]) for sites in hosted]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate the sound replies of a visit; write its record and the checkpoint.

        Raises:
            QuorumError: fewer sites than the quorum answered.
        """
        start = time.perf_counter()
        visit, ledger = self.visits[server_round - 1], self._reception.ledger
        for message in replies:
            self._reception.receive(message)
        self._reception.close()
        answers = ledger.answers
        if len(answers) < self.attendance.quorum:
            reasons = "; ".join(f"site {site}: {reason}" for site, reason in ledger.failures[:3])
            raise QuorumError(
                f"visit {visit.index}: {len(answers)} of {self.attendance.expected} sites answered, "
                f"quorum = {self.config.quorum:g}; {reasons or 'no reply came'}"
            )
        fusion = None
        if visit.upload:
            contributions = [replace(answer.reply, site=answer.site) for answer in answers]
            self.state = self.algorithm.aggregate(self.state, contributions)
            fusion = self.algorithm.describe(self.state, contributions)
        ledger.seconds["aggregate"] = time.perf_counter() - start
        ledger.seconds["total"] = sum(ledger.seconds.values())
        self.folder.record(visit.index, ledger.line(visit, fusion, expected=self.attendance.expected), self.state)
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
            self.attendance.restore(self.folder.lines())
            logger.info("resumed after visit %d of %d", done, len(self.visits))
        result = Result()
        arrays = encode_tensors(self.state)
        for index in range(done + 1, len(self.visits) + 1):
            began = time.perf_counter()
            messages = list(self.configure_train(index, arrays, ConfigRecord(), grid))
            sent = time.perf_counter()
            self._exchange(grid, messages)
            self._reception.ledger.seconds = {"wait_for_nodes": sent - began, "sites": time.perf_counter() - sent}
            new_arrays, metrics = self.aggregate_train(index, [])
            arrays = arrays if new_arrays is None else new_arrays
            if metrics is not None:
                result.train_metrics_clientapp[index] = metrics
        result.arrays = arrays
        return result

    def settle(self, grid: Grid) -> None:
        """Wait a moment for nodes that still have an order which they were sent twice; for a run that is completed.

        Flower (1.41) would leave a SuperNode that is receiving one when the run ends one message behind.
        """
        began = time.monotonic()
        try:
            while (owed := self._overdue.repeated(len(self.visits))) and time.monotonic() - began < SETTLE:
                for message in grid.pull_messages(owed):
                    self._overdue.note(message)
                time.sleep(0.1)
        except Exception as error:
            logger.warning("replies that nobody needs are not waited for: %s", error)

    # ---- one visit ------------------------------------------------------------------------------------------

    def _exchange(self, grid: Grid, messages: list[Message]) -> None:
        """Send the messages of a visit and take replies in as they come, until the last or the deadline."""
        reception, ledger, overdue = self._reception, self._reception.ledger, self._overdue
        visit = reception.visit.index
        orders = Orders(grid, ledger, self._patience)
        orders.send(messages)
        began = time.monotonic()
        while orders.open and time.monotonic() - began < self.config.visit_deadline:
            came = list(grid.pull_messages([*orders.open, *overdue.message_ids]))
            for message in came:
                answered = message.metadata.reply_to_message_id
                if answered in overdue.message_ids:
                    self._take_late(message)
                elif answered not in orders.open:
                    reception.receive(message)  # which says that it is nobody's
                elif not (is_flowers_word(message, ledger.sent[answered][0]) and orders.drop(answered)):
                    reception.receive(message)
                    for other in orders.close(answered):
                        overdue.add_answered(other, visit=visit, node=ledger.sent[other][0])
            if came:
                self._tell(done=False)
            for node in orders.send_again():
                self._note(node, f"no reply after {orders.waited(node):.0f} s: asked again")
            if orders.open and not came:
                time.sleep(0.1)
        for message_id in orders.open:
            overdue.add(message_id, visit=visit, node=ledger.sent[message_id][0])

    def _take_late(self, message: Message) -> None:
        if message.has_content():
            self._reception.ledger.up += size_of(message)
        if late := self._overdue.note(message):
            self._note(*late)

    def _note(self, node: int, text: str) -> None:
        for name in dict.fromkeys(self.attendance.names(node)):
            self._reception.ledger.note(name, text)

    def _tell(self, *, done: bool) -> None:
        ledger, visit = self._reception.ledger, self._reception.visit.index
        mean, std = ledger.accuracy(self.config.head)
        self.on_progress(Progress(visit, len(self.visits), ledger.heard, self.attendance.expected, mean, std, done))


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
