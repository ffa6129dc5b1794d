"""The ClientApp: one handler that carries every algorithm's half of a site."""

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from torch import Tensor

from gfpl_flwr import seeding
from gfpl_flwr.algorithms import parse_run
from gfpl_flwr.algorithms.base import Algorithm, Images, Site
from gfpl_flwr.config import ConfigError, RunConfig
from gfpl_flwr.data.datasets import ImageDataset, load, normalisation
from gfpl_flwr.data.partitions import partition
from gfpl_flwr.data.sites import SiteIndices
from gfpl_flwr.dataset_settings import architecture_of, settings_for
from gfpl_flwr.flower.state import SavedSite, SiteStore
from gfpl_flwr.flower.wire import SiteReply, decode_order, encode_reply
from gfpl_flwr.models import DROPOUT, FEATURE_DIMS, SplitModel, build_extractor, seeded_init
from gfpl_flwr.site_names import SiteName

logger = logging.getLogger("flwr.gfpl")

SITE_FAILED = 100
"""Flower error code of a reply in which a site says why it could not do its visit."""


def build_client_app() -> ClientApp:
    """Return the ClientApp that runs one visit per train message."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        """Do one visit; a failure becomes an error reply with its reason on one line."""
        try:
            return _visit(message, context)
        except Exception as error:
            # The boundary to Flower: whatever went wrong here, the server must hear it and go on without this site.
            logger.exception("the visit failed")
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            return Message(Error(SITE_FAILED, reason), reply_to=message)

    return app


@dataclass(frozen=True)
class Node:
    """What a node's own configuration says, with the run's for what it leaves out.

    Attributes:
        site: its ``site`` name, else its ``partition-id``.
        partition_id, num_partitions: which share of a common data set is this site's.
        data_dir, state_dir: folders of this node.
    """

    site: SiteName
    partition_id: int | None
    num_partitions: int
    data_dir: Path
    state_dir: Path

    @classmethod
    def of(cls, context: Context, config: RunConfig) -> "Node":
        """Read Flower's ``node_config``.

        Raises:
            ConfigError: the node has no identity, or its partition does not exist.
        """
        own = context.node_config
        index = own.get("partition-id")
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
        )


def _visit(message: Message, context: Context) -> Message:
    config, algorithm = parse_run(context.run_config)
    node = Node.of(context, config)
    order = decode_order(message.content)
    torch.set_num_threads(config.torch_threads)
    dataset = open_dataset(config, node.data_dir)
    algorithm = algorithm.resolve(config, dataset.num_classes)
    device = pick_device(config.device)
    model = initial_model(config, algorithm, dataset).to(device)
    store = SiteStore(node.state_dir / order.run / f"site-{node.site}")
    saved = store.load(before=order.visit.index)
    if saved is not None:
        model.load_state_dict(dict(saved.model))
    site = build_site(config, dataset, model, node.site, node.partition_id, node.num_partitions, device)
    reply = algorithm.visit(site, order.tensors, order.visit)
    store.save(SavedSite(order.visit.index, own_state(model)))
    labels = Counter(site.train.labels.tolist()) if config.share_label_counts else {}
    answer = SiteReply(
        node.site, order.run, order.visit.index, reply, dict(sorted(labels.items())), saved.visit if saved else 0
    )
    return Message(encode_reply(answer), reply_to=message)


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
def _load(name: str, data_dir: Path, image_size: int, class_names: tuple[str, ...]) -> ImageDataset:
    return load(name, data_dir, image_size=image_size, class_names=class_names or None)


def open_dataset(config: RunConfig, data_dir: Path) -> ImageDataset:
    """Return the run's data set, memory-mapped and kept open for the process's next visit.

    Raises:
        DatasetNotFoundError: says where it was looked for and how to get it.
    """
    return _load(config.dataset, data_dir, config.image_size, config.class_list)


def initial_model(config: RunConfig, algorithm: Algorithm, dataset: ImageDataset) -> SplitModel:
    """Return the model every site starts from: it depends on the run's seed and the shape of the data alone."""
    architecture = architecture_of(config)
    # Two seeds: layers drawn from one would begin with the same numbers.
    body, heads = (seeding.derive(config.seed, "initial-model", part) for part in ("extractor", "heads"))
    extractor = seeded_init(lambda: build_extractor(architecture, dataset.image_shape), body)
    return algorithm.build_model(
        extractor,
        FEATURE_DIMS[architecture],
        dataset.num_classes,
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
    return Site(
        key=key,
        model=model,
        train=images(dataset.train_images, dataset.train_labels, share and share.train),
        test=images(dataset.test_images, dataset.test_labels, share and share.test),
        config=config,
        batch_size=config.batch_size or (32 if architecture_of(config) == "resnet18" else preset.batch_size),
        augment=preset.augment if config.augment == "auto" else config.augment == "crop-flip",
    )
