"""The ClientApp: one handler that carries every algorithm's half of a site."""

import copy
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from gfpl_flwr.algorithms import parse_run
from gfpl_flwr.algorithms.base import Algorithm, Reply
from gfpl_flwr.config import ConfigError, RunConfig
from gfpl_flwr.data.datasets import ImageDataset
from gfpl_flwr.flower.hosting import hosted_sites, join_replies
from gfpl_flwr.flower.node import Node
from gfpl_flwr.flower.site_setup import build_site, initial_model, open_dataset, pick_device
from gfpl_flwr.flower.state import SiteStore
from gfpl_flwr.flower.wire import Order, SiteReply, decode_order, encode_reply
from gfpl_flwr.models import SplitModel
from gfpl_flwr.training import Site, together

logger = logging.getLogger("flwr.gfpl")

SITE_FAILED = 100
"""Flower error code of a reply in which a site says why it could not do its visit."""


def build_client_app() -> ClientApp:
    """Return the ClientApp that runs one visit per train message."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        """Do one visit; a failure becomes an error reply with its reason on one line."""
        with _alone(context.node_config):
            (outcome,) = answer([Ask(message.content, context.run_config, context.node_config)])
        return reply_to(message, outcome)

    return app


@contextmanager
def _alone(own: Mapping[str, Any]) -> Iterator[None]:
    """Wait until no other process of a device is at a visit, and keep others out meanwhile.

    A node that is one message behind can have two at once (record 15). The second then finds the answer of the first.
    """
    with ExitStack() as held:
        name = own.get("site", own.get("partition-id"))
        if "state-dir" in own and name is not None:
            try:
                import fcntl

                folder = Path(str(own["state-dir"])).expanduser()
                folder.mkdir(parents=True, exist_ok=True)
                fcntl.flock(held.enter_context((folder / f"site-{name}.lock").open("w")), fcntl.LOCK_EX)
            except (ImportError, OSError, RuntimeError, ValueError) as error:
                # What is wrong with the folder, the visit tells.
                logger.warning("no lock in state-dir = %r: %s", own["state-dir"], error)
        yield


@dataclass(frozen=True)
class Ask:
    """A visit that a node is asked for.

    Attributes:
        content: of the server's message.
        run_config, node_config: Flower's flat mappings.
        place: for which of the node's sites, where it hosts several.
    """

    content: RecordDict
    run_config: Mapping[str, Any]
    node_config: Mapping[str, Any]
    place: int = 0


def answer(asks: Sequence[Ask]) -> list[RecordDict | str]:
    """Do visits of nodes side by side, equal kinds of work of all their sites at once.

    Returns:
        For each the content of its reply, or why there is none, on one line.
    """
    hosts = [_hosted(ask) for ask in asks]
    visits = [
        replace(ask, place=place)
        for ask, sites in zip(asks, hosts, strict=True)
        for place in range(1 if sites is None else len(sites))
    ]
    outcomes = iter(_answer_sites(visits))
    return [
        next(outcomes) if sites is None else join_replies({site: next(outcomes) for site in sites}) for sites in hosts
    ]


def _hosted(ask: Ask) -> range | None:
    """Return the numbers of a node's sites; None where it is one site."""
    try:
        config, _ = _parsed(_sorted(ask.run_config))
        if config.sites_per_node > 1:
            return hosted_sites(ask.node_config.get("partition-id"), config)
    except ConfigError:
        pass  # the visit meets the same, and tells
    return None


def _answer_sites(asks: Sequence[Ask]) -> list[RecordDict | str]:
    outcomes: list[RecordDict | str | None] = [None] * len(asks)
    begun: dict[int, _Begun] = {}
    for index, ask in enumerate(asks):
        with _told(outcomes, index):
            visit = _begin(ask)
            if isinstance(visit, RecordDict):
                outcomes[index] = visit
            else:
                begun[index] = visit
    halves = [visit.algorithm.steps(visit.site, visit.order.tensors, visit.order.visit) for visit in begun.values()]
    for (index, visit), reply in zip(begun.items(), together(halves), strict=True):
        with _told(outcomes, index):
            if isinstance(reply, Exception):
                raise reply
            outcomes[index] = _finish(visit, reply)
    return [outcome if outcome is not None else "no outcome" for outcome in outcomes]


def reply_to(message: Message, outcome: RecordDict | str) -> Message:
    """Make the reply to a message from the outcome of its visit."""
    if isinstance(outcome, str):
        return Message(Error(SITE_FAILED, outcome), reply_to=message)
    return Message(outcome, reply_to=message)


@contextmanager
def _told(outcomes: list[RecordDict | str | None], index: int) -> Iterator[None]:
    """Turn whatever goes wrong into the reason that the server hears: it must go on without this site."""
    try:
        yield
    except Exception as error:
        logger.error("the visit failed", exc_info=error)
        outcomes[index] = f"{type(error).__name__}: {' '.join(str(error).split())}"


@dataclass(frozen=True)
class _Begun:
    """A visit with everything that it needs; without a store it leaves nothing that anybody would need."""

    order: Order
    algorithm: Algorithm
    site: Site
    store: SiteStore | None
    started_from: int


def _sorted(run_config: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(run_config.items()))


@lru_cache(maxsize=4)
def _parsed(items: tuple[tuple[str, Any], ...]) -> tuple[RunConfig, Algorithm]:
    return parse_run(dict(items))


@lru_cache(maxsize=4)
def _common(
    items: tuple[tuple[str, Any], ...], data_dir: Path
) -> tuple[RunConfig, Algorithm, ImageDataset, SplitModel]:
    """Return what all sites of a run share; only sites that share the algorithm can work as one."""
    config, algorithm = _parsed(items)
    dataset = open_dataset(config, data_dir)
    algorithm = algorithm.resolve(config, dataset.num_classes)
    return config, algorithm, dataset, initial_model(config, algorithm, dataset.image_shape, dataset.num_classes)


def _begin(ask: Ask) -> _Begun | RecordDict:
    """Return a visit with everything that it needs; the content of its reply where it was finished before."""
    items = _sorted(ask.run_config)
    node = Node.of(ask.node_config, _parsed(items)[0], ask.place)
    order = decode_order(ask.content, ask.place)
    store = SiteStore(node.state_dir, order.run, node.site)
    if (answered := store.answer_to(order)) is not None:
        return answered
    config, algorithm, dataset, initial = _common(items, node.data_dir)
    torch.set_num_threads(config.torch_threads)
    device = pick_device(config.device)
    model = copy.deepcopy(initial).to(device)
    keeps = algorithm.remembers or not order.visit.upload or node.is_device
    if keeps:
        store.reserve(model.state_dict())
    saved = store.load(before=order.visit.index) if algorithm.remembers else None
    if saved is not None:
        model.load_state_dict(dict(saved.model))
    site = build_site(config, dataset, model, node.site, node.partition_id, node.num_partitions, device)
    return _Begun(order, algorithm, site, store if keeps else None, saved.visit if saved else 0)


def _finish(visit: _Begun, reply: Reply) -> RecordDict:
    site, order = visit.site, visit.order
    labels = Counter(site.train.labels.tolist()) if site.config.share_label_counts else {}
    content = encode_reply(
        SiteReply(site.key, order.run, order.visit.index, reply, dict(sorted(labels.items())), visit.started_from)
    )
    if visit.store is not None:
        # The last visit, which sends nothing, leaves every site the model that the run was for.
        needed = visit.algorithm.remembers or not order.visit.upload
        # Model and answer reach the disk before the answer leaves: a site never tells what it could forget.
        visit.store.save(order, site.model.state_dict() if needed else {}, content)
    return content
