"""A site made of the run's configuration: its data set, its share of it, the model it starts from, its device."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gfpl_flwr import seeding
from gfpl_flwr.algorithms.base import Algorithm
from gfpl_flwr.config import ConfigError, RunConfig
from gfpl_flwr.data.datasets import ImageDataset, load, normalisation
from gfpl_flwr.data.partitions import partition
from gfpl_flwr.data.sites import Indices, SiteIndices, rows_of_each
from gfpl_flwr.dataset_settings import architecture_of, settings_for
from gfpl_flwr.models import DROPOUT, FEATURE_DIMS, SplitModel, build_extractor, seeded_init
from gfpl_flwr.site_names import SiteName
from gfpl_flwr.training import Images, Site


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


PARTITIONED_BY = ("partition", "seed", "ways", "ways_spread", "shots", "test_shots", "alpha", "tail_ratio")
"""The options that a partition depends on, beside the data set and the number of sites."""


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
