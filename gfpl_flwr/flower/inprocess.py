"""A Grid whose nodes live in this process and a few more: the sites of devices, without Ray and without waiting.

Tests and sweeps use it. Sites whose messages wait are handled in cohorts, one cohort as one stacked network, and
cohorts go to worker processes, at least one to each. What a site computes does not depend on its cohort.
"""

import multiprocessing
import os
import sys
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any

import torch
from flwr.app import Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from gfpl_flwr.algorithms import parse_run
from gfpl_flwr.flower.client import Ask, answer, reply_to
from gfpl_flwr.flower.polled_grid import PolledGrid
from gfpl_flwr.flower.progress import Progress
from gfpl_flwr.flower.run_folder import RunFolder
from gfpl_flwr.flower.server import run
from gfpl_flwr.flower.site_setup import pick_device
from gfpl_flwr.flower.workers import begin_worker

RUN_ID = 1
DEFAULT_SITES = 20
"""Sites where the configuration names no number, as in pyproject-federation.toml and in the paper."""


class InProcessGrid(PolledGrid):
    """Nodes that live in this process, or in worker processes of it.

    Args:
        node_configs: one mapping a node, as a SuperNode's ``--node-config``.
        run_config: the run's flat configuration.
        cohort: most nodes handled at once.
        workers: worker processes; with 1 everything is done in this process.
    """

    def __init__(
        self,
        node_configs: Iterable[Mapping[str, Any]],
        run_config: Mapping[str, Any],
        *,
        cohort: int = 1,
        workers: int = 1,
    ) -> None:
        # Flower's Message looks these up when it is made; its engines set them for the process of an app.
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN_ID, 1, 1
        self._node_configs = {node: dict(config) for node, config in enumerate(node_configs, start=2)}  # 1: server
        self._run_config = dict(run_config)
        self._cohort, self._count = cohort, workers
        threads = int(run_config.get("torch-threads", 1))
        self._workers = _Workers(workers, threads=threads) if workers > 1 else None
        self._pending: dict[str, Message] = {}
        self._underway: dict[Future[list[RecordDict | str]], list[Message]] = {}
        self._run = Run.create_empty(RUN_ID)

    def __enter__(self) -> "InProcessGrid":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the worker processes, whatever they are doing."""
        if self._workers is not None:
            self._workers.end()

    def set_run(self, run: Run) -> None:
        """Take over the run's description."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run's description."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message, as Flower's deprecated method of this name does."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all nodes."""
        return list(self._node_configs)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return a description of all nodes."""
        return [NodeInfo(node_id=node) for node in self._node_configs]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Accept messages; without workers each is handled when its reply is pulled."""
        ids = []
        for message in messages:
            message_id = str(uuid.uuid4())
            message.metadata.__dict__["_message_id"] = message_id
            self._pending[message_id] = message
            ids.append(message_id)
        if self._workers is not None:
            for cohort in self._cohorts(list(self._pending)):
                self._underway[self._workers.submit(self._asks(cohort))] = cohort
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies of a cohort that is done, or handle the oldest of these messages and reply."""
        if self._workers is None:
            wanted = set(message_ids)
            for cohort in self._cohorts([message_id for message_id in self._pending if message_id in wanted]):
                return [reply_to(*pair) for pair in zip(cohort, answer(self._asks(cohort)), strict=True)]
            return []
        done, _ = wait(self._underway, timeout=0.1, return_when=FIRST_COMPLETED)
        replies = []
        for future in done:
            cohort = self._underway.pop(future)
            replies += [reply_to(*pair) for pair in zip(cohort, _outcomes(future, len(cohort)), strict=True)]
        return replies

    def _cohorts(self, message_ids: Sequence[str]) -> Iterable[list[Message]]:
        """Yield messages in cohorts of about equal number; they are pending no more."""
        count = max(-(-len(message_ids) // self._cohort), min(self._count, len(message_ids)))
        for index in range(count):
            yield [self._pending.pop(message_id) for message_id in message_ids[index::count]]

    def _asks(self, messages: Sequence[Message]) -> list[Ask]:
        return [
            Ask(message.content, self._run_config, self._node_configs[message.metadata.dst_node_id])
            for message in messages
        ]


class _Workers:
    """Processes that handle cohorts; one that dies costs the cohorts underway and is replaced."""

    def __init__(self, count: int, *, threads: int) -> None:
        # Forked ones start at once with everything imported, but cannot have threads of torch: see _begin_worker.
        forked = sys.platform == "linux" and threads == 1
        self._context = multiprocessing.get_context("fork" if forked else "spawn")
        self._count = count
        self._pool: ProcessPoolExecutor | None = None
        self._others = set(multiprocessing.active_children())

    def submit(self, asks: list[Ask]) -> "Future[list[RecordDict | str]]":
        for _ in range(2):
            if self._pool is None:
                self._pool = ProcessPoolExecutor(self._count, self._context, initializer=_begin_worker)
            try:
                return self._pool.submit(answer, asks)
            except BrokenProcessPool:
                self.end()
        raise BrokenProcessPool("worker processes die as soon as they start")

    def end(self) -> None:
        if self._pool is not None:
            mine = [child for child in multiprocessing.active_children() if child not in self._others]
            for child in mine:
                child.terminate()
            # The pool reaps its own: two threads that wait for one process take its end from each other.
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None


def _begin_worker() -> None:
    """Begin as every worker, and do without the threads of the process that forked it, which are not copied."""
    begin_worker()
    # An operation that is shared among threads would wait for ever for those of the parent.
    torch.set_num_threads(1)


def _outcomes(future: "Future[list[RecordDict | str]]", count: int) -> list[RecordDict | str]:
    try:
        return future.result()
    except BrokenProcessPool:
        return ["a worker process of the in-process engine died: out of memory?"] * count


def run_in_process(flat: Mapping[str, Any], *, on_progress: Callable[[Progress], None] | None = None) -> RunFolder:
    """Run a whole federation in this process and its workers.

    Args:
        flat: the run's flat configuration; ``num-sites = 0`` means :data:`DEFAULT_SITES`.
        on_progress: called when replies came and after every visit; they are logged by default.

    Returns:
        The run's folder.
    """
    sites = int(flat.get("num-sites", 0)) or DEFAULT_SITES
    flat = {**flat, "num-sites": sites}
    config, _ = parse_run(flat)
    nodes = [{"partition-id": node, "num-partitions": config.num_nodes} for node in range(config.num_nodes)]
    cohort = max(1, config.cohort // config.sites_per_node)
    workers = config.workers or (os.cpu_count() or 1)
    if pick_device(config.device).type != "cpu":
        workers = 1  # the accelerator is the worker
    workers = min(workers, len(nodes))
    with InProcessGrid(nodes, flat, cohort=cohort, workers=workers) as grid:
        return run(grid, flat, engine="inprocess", on_progress=on_progress)
