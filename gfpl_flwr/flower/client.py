"""The ClientApp: one handler that carries every algorithm's half of a site."""

import copy
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from gfpl_flwr import seeding
from gfpl_flwr.algorithms import parse_run
from gfpl_flwr.algorithms.base import Algorithm, Reply
from gfpl_flwr.config import ConfigError, RunConfig
from gfpl_flwr.data.datasets import ImageDataset, load, normalisation
from gfpl_flwr.data.partitions import partition
from gfpl_flwr.data.sites import Indices, SiteIndices, rows_of_each
from gfpl_flwr.dataset_settings import architecture_of, settings_for
from gfpl_flwr.flower.hosting import hosted_sites, join_replies
from gfpl_flwr.flower.state import SiteStore
from gfpl_flwr.flower.wire import Order, SiteReply, decode_order, encode_reply
from gfpl_flwr.models import DROPOUT, FEATURE_DIMS, SplitModel, build_extractor, seeded_init
from gfpl_flwr.site_names import SiteName
from gfpl_flwr.training import Images, Site, together

logger = logging.getLogger("flwr.gfpl")

SITE_FAILED = 100
"""Flower error code of a reply in which a site says why it could not do its visit."""


def build_client_app() -> ClientApp:
    """Return the ClientApp that runs one visit per train message."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        """Do one visit; a failure becomes an error reply with its reason on one line."""
        (outcome,) = answer([Ask(message.content, context.run_config, context.node_config)])
        return reply_to(message, outcome)

    return app


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
class Node:
    """What a node's own configuration says of one site, with the run's for what it leaves out.

    Attributes:
        site: its ``site`` name, else its ``partition-id``; the number of a hosted site.
        partition_id, num_partitions: which share of a common data set is this site's.
        data_dir, state_dir: folders of this node.
        is_device: whether it has a folder for states of its own, and so keeps every answer: on a network one is lost.
    """

    site: SiteName
    partition_id: int | None
    num_partitions: int
    data_dir: Path
    state_dir: Path
    is_device: bool = False

    @classmethod
    def of(cls, own: Mapping[str, Any], config: RunConfig, place: int = 0) -> "Node":
        """Read Flower's ``node_config``, for one site of the node where it hosts several.

        Raises:
            ConfigError: the node has no identity, or its partition does not exist.
        """
        index = own.get("partition-id")
        if config.sites_per_node > 1:
            if "site" in own:
                raise ConfigError(
                    f"node config: site = {own['site']!r}: leave it out with sites-per-node = "
                    f"{config.sites_per_node}; hosted sites are known by their numbers"
                )
            index = hosted_sites(index, config)[place]
        site = own.get("site", index)
        if not isinstance(site, (int, str)) or isinstance(site, bool):
            raise ConfigError("node config: give site = 'NAME' or partition-id = NUMBER; the site has no identity")
        count = config.num_sites or int(own.get("num-partitions", 0))
        if config.partition != "own" and not (isinstance(index, int) and 0 <= index < count):
            raise ConfigError(
                f"node config: partition-id = {index!r}: must be an integer below num-sites = {count} "
                f"when partition = {config.partition!r}"
            )
        default_state = Path(config.output_dir) / "site-models"
        return cls(
            site=site,
            partition_id=index if isinstance(index, int) else None,
            num_partitions=count,
            data_dir=Path(str(own.get("data-dir", config.data_dir))).expanduser(),
            state_dir=Path(str(own.get("state-dir", config.state_dir or default_state))).expanduser(),
            is_device="state-dir" in own,
        )


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
        store.reserve(own_state(model))
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
        visit.store.save(order, own_state(site.model) if needed else {}, content)
    return content


def pick_device(wanted: str) -> torch.device:
    """Return the device a site computes on.

    Raises:
        ConfigError: cuda was asked for and there is none.
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise ConfigError("device = 'cuda': torch sees no CUDA device here; allowed: auto, cpu")
    return torch.device("cuda" if available and wanted != "cpu" else "cpu")


@lru_cache(maxsize=2)
def _load(name: str, data_dir: Path, image_size: int, class_names: tuple[str, ...], channels: int) -> ImageDataset:
    return load(name, data_dir, image_size=image_size, class_names=class_names or None, channels=channels or None)


def open_dataset(config: RunConfig, data_dir: Path) -> ImageDataset:
    """Return the run's data set, memory-mapped and kept open for the process's next visit.

    Raises:
        DatasetNotFoundError: says where it was looked for and how to get it.
    """
    return _load(config.dataset, data_dir, config.image_size, config.class_list, config.image_channels)


def initial_model(
    config: RunConfig, algorithm: Algorithm, image_shape: tuple[int, int, int], num_classes: int
) -> SplitModel:
    """Return the model every site starts from: it depends on the run's seed and the shape of the data alone.

    Args:
        config: the run's options.
        algorithm: resolved.
        image_shape: channels, height and width in pixels.
        num_classes: C.
    """
    architecture = architecture_of(config)
    # Two seeds: layers drawn from one would begin with the same numbers.
    body, heads = (seeding.derive(config.seed, "initial-model", part) for part in ("extractor", "heads"))
    extractor = seeded_init(lambda: build_extractor(architecture, image_shape), body)
    return algorithm.build_model(
        extractor,
        FEATURE_DIMS[architecture],
        num_classes,
        dropout=DROPOUT[architecture],
        seed=heads,
    )


def own_state(model: SplitModel) -> Mapping[str, Tensor]:
    """Return what a site must remember of its model: its weights and buffers."""
    return model.state_dict()


@lru_cache(maxsize=2)
def partition_of(config: RunConfig, dataset: ImageDataset, num_sites: int) -> list[SiteIndices]:
    """Return which rows of the common data set each site holds; every site computes the same from the seed."""
    return partition(
        dataset,
        num_sites,
        scheme=config.partition,
        seed=seeding.derive(config.seed, "partition"),
        ways=config.ways,
        ways_spread=config.ways_spread,
        shots=config.shots or settings_for(config.dataset).shots,
        test_shots=config.test_shots,
        alpha=config.alpha,
        tail_ratio=config.tail_ratio,
    )


@lru_cache(maxsize=2)
def common_test_of(config: RunConfig, dataset: ImageDataset) -> Indices | None:
    """Return the test rows on which every site is tested beside its own; None where none are asked for.

    Raises:
        ConfigError: a class has too few test images.
    """
    if not config.common_test_shots or config.partition == "own":
        return None
    seed = seeding.derive(config.seed, "common-test")
    try:
        return rows_of_each(dataset.test_labels.numpy(), dataset.num_classes, config.common_test_shots, seed=seed)
    except ValueError as error:
        raise ConfigError(f"common-test-shots = {config.common_test_shots}: {error}") from None


def build_site(
    config: RunConfig,
    dataset: ImageDataset,
    model: SplitModel,
    key: SiteName,
    index: int | None,
    num_sites: int,
    device: torch.device,
) -> Site:
    """Return a site with its share of the data on its device.

    Args:
        config: the run's options.
        dataset: the common data set, or the node's own when ``partition = "own"``.
        model: the site's model.
        key: number or name of the site.
        index: number of its share; None when the data is its own.
        num_sites: S, number of shares.
        device: where the site computes.
    """
    share = None if config.partition == "own" or index is None else partition_of(config, dataset, num_sites)[index]
    mean, std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in normalisation(config.dataset))

    def images(pixels: Tensor, labels: Tensor, rows: Any) -> Images:
        chosen = slice(None) if rows is None else torch.as_tensor(rows)
        return Images(pixels[chosen].to(device), labels[chosen].to(device), mean, std)

    preset = settings_for(config.dataset)
    common = common_test_of(config, dataset)
    return Site(
        key=key,
        model=model,
        train=images(dataset.train_images, dataset.train_labels, share and share.train),
        test=images(dataset.test_images, dataset.test_labels, share and share.test),
        common=None if common is None else images(dataset.test_images, dataset.test_labels, common),
        config=config,
        batch_size=config.batch_size or (32 if architecture_of(config) == "resnet18" else preset.batch_size),
        augment=preset.augment if config.augment == "auto" else config.augment == "crop-flip",
    )
