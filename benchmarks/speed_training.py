"""Local training and retraining against plain loops, written as an implementer of FedProto's protocol would.

The plain network is made of torch's own layers, the plain data set is one of torchvision's kind: an image from memory
becomes a PIL image, is transformed and normalised, one at a time, and a DataLoader makes batches of them.
"""

import copy
import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.models import resnet18

from benchmarks.pairs import Pair, Way, compare
from gfpl_flwr.algorithms import parse_run
from gfpl_flwr.algorithms.gfpl import GFPL
from gfpl_flwr.data.datasets import normalisation
from gfpl_flwr.flower.site_setup import build_site, initial_model, open_dataset
from gfpl_flwr.models import DROPOUT, FEATURE_DIMS, DualClassifier
from gfpl_flwr.training import Descent, Images, Samples, Site

MNIST: dict[str, Any] = {"dataset": "mnist", "num-sites": 20}
CIFAR: dict[str, Any] = {"dataset": "cifar10", "num-sites": 1, "ways": 3, "ways-spread": 0}
PSEUDO = 1_000
OF_A_CORE = 10
"""Sites that the in-process engine stacks where two cores share the 20."""
CPU = torch.device("cpu")
Batch = tuple[Tensor, Tensor]


class Pictures(Dataset[tuple[Any, int]]):
    """Images in memory, each transformed when it is asked for, as torchvision's MNIST and CIFAR10 do it."""

    def __init__(self, data: Images, transform: transforms.Compose) -> None:
        self.images = [image.squeeze(0).numpy() for image in data.images]
        if data.images.shape[1] > 1:
            self.images = [image.permute(1, 2, 0).contiguous().numpy() for image in data.images]
        self.labels = data.labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


class Plain(nn.Module):
    """The dual classifier in torch's own layers."""

    def __init__(self, architecture: str, etf: Tensor) -> None:
        super().__init__()
        dim, (projection, classes) = FEATURE_DIMS[architecture], etf.shape
        self.extractor = _plain_cnn() if architecture == "cnn" else _plain_resnet18()
        self.dropout = nn.Dropout(DROPOUT[architecture])
        self.classifier, self.projection = nn.Linear(projection, classes), nn.Linear(dim, projection)
        self.register_buffer("etf", etf.clone())

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return the hybrid loss of a batch of features (B, D)."""
        projected = F.normalize(self.projection(features))
        cosines = (projected * self.get_buffer("etf").T[labels]).sum(1)
        logits = self.classifier(self.dropout(projected))
        return F.cross_entropy(logits, labels) + 0.5 * (cosines - 1).square().mean()


def _plain_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 10, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(10, 20, 5), nn.Dropout2d(), nn.MaxPool2d(2),
        nn.ReLU(), nn.Flatten(), nn.Linear(320, 50), nn.ReLU(),
    )  # fmt: skip


def _plain_resnet18() -> nn.Module:
    network: nn.Module = resnet18(weights=None)
    network.fc = nn.Identity()
    return network


def epoch(model: Plain, batches: Iterable[Batch], site: Site, *, heads: bool = False) -> None:
    """Train for one epoch with SGD, momentum starting at zero: on images, or the heads alone on features."""
    config = site.config
    trained = [*model.classifier.parameters(), *model.projection.parameters()] if heads else model.parameters()
    optimizer = torch.optim.SGD(trained, lr=config.learning_rate, momentum=config.momentum)
    model.train(not heads)
    losses = []
    for inputs, labels in batches:
        optimizer.zero_grad()
        loss = model.loss(inputs if heads else model.extractor(inputs), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())


def loader(site: Site, dataset: str) -> "DataLoader[tuple[Any, int]]":
    """Return batches as FedProto's program makes them."""
    crop = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()] if site.augment else []
    transform = transforms.Compose([*crop, transforms.ToTensor(), transforms.Normalize(*normalisation(dataset))])
    return DataLoader(Pictures(site.train, transform), batch_size=site.batch_size, shuffle=True)


def shuffled(inputs: Tensor, labels: Tensor, size: int) -> Iterator[Batch]:
    """Yield the batches of an epoch of samples that lie in memory as floating-point tensors."""
    for rows in torch.split(torch.randperm(len(labels)), size):
        yield inputs[rows], labels[rows]


def sites_of(flat: dict[str, Any], data_dir: Path, device: torch.device = CPU) -> tuple[GFPL, list[Site]]:
    """Return the algorithm and the sites of a run, as the ClientApp makes them."""
    config, algorithm = parse_run(flat | {"data-dir": str(data_dir), "device": device.type})
    dataset = open_dataset(config, data_dir)
    algorithm = algorithm.resolve(config, dataset.num_classes)
    if not isinstance(algorithm, GFPL):
        raise ValueError(f"the benchmark trains with GFPL's loss, not with {algorithm.name}'s")
    initial = initial_model(config, algorithm, dataset.image_shape, dataset.num_classes)
    return algorithm, [
        build_site(config, dataset, copy.deepcopy(initial).to(device), key, key, config.num_sites, device)
        for key in range(config.num_sites)
    ]


def descend(works: Sequence[Descent], cohort: int) -> None:
    """Do works as the in-process engine does, in cohorts of about equal number.

    Raises:
        ValueError: a training diverged: then no time of it counts.
    """
    count = -(-len(works) // cohort)
    for index in range(count):
        if any(isinstance(result, Exception) for result in Descent.do(works[index::count])):
            raise ValueError("training diverged")


def _plain_of(site: Site, architecture: str) -> Plain:
    if not isinstance(site.model, DualClassifier):
        raise ValueError("the benchmark needs GFPL's dual classifier")
    return Plain(architecture, site.model.etf)


def _loops(models: list[Plain], loaders: list[Any], sites: list[Site]) -> None:
    for model, batches, site in zip(models, loaders, sites, strict=True):
        epoch(model, batches, site)


def _tensor_loops(models: list[Plain], pixels: list[Tensor], sites: list[Site]) -> None:
    for model, images, site in zip(models, pixels, sites, strict=True):
        epoch(model, shuffled(images, site.train.labels, site.batch_size), site)


def _head_loops(models: list[Plain], samples: list[Samples], sites: list[Site]) -> None:
    for model, data, site in zip(models, samples, sites, strict=True):
        epoch(model, shuffled(data.features, data.labels, site.batch_size), site, heads=True)


def pairs(data_dir: Path, *, repeats: int = 5) -> Iterator[Pair]:
    """Yield training of the CNN on MNIST, one site alone, retraining of the heads, and ResNet18 on CIFAR-10."""
    torch.set_num_threads(1)
    algorithm, sites = sites_of(MNIST, data_dir)
    plain = [_plain_of(site, "cnn") for site in sites]
    yield from _cnn(algorithm, sites, plain, repeats)
    yield from _retraining(algorithm, sites, plain, repeats)
    yield _resnet18(data_dir, repeats + 2)


def in_turn(ways: Mapping[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    """Return the CPU seconds of some ways to do the same, each run once before the clock runs and then in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, run in ways.items():
            start = time.process_time()
            run()
            if turn:
                seconds[name].append(time.process_time() - start)
    return seconds


def _cnn(algorithm: GFPL, sites: list[Site], plain: list[Plain], repeats: int) -> Iterator[Pair]:
    own = [dataclasses.replace(site, config=dataclasses.replace(site.config, partition="own")) for site in sites]
    loaders = [loader(site, "mnist") for site in sites]
    pixels = [site.train.pixels(slice(None)) for site in sites]

    def works(of: list[Site]) -> list[Descent]:
        return [Descent(site, "train", site.train, algorithm.loss, 1, 1) for site in of]

    stacked, whole = f"stacks of {OF_A_CORE}", "one stack of 20"
    device, eager, tensors = "one site alone, as on a device", "DataLoader loop", "loop over tensors in memory"
    ways = {
        stacked: functools.partial(descend, works(sites), OF_A_CORE),
        whole: functools.partial(descend, works(sites), 20),
        device: functools.partial(descend, works(own), 1),
        eager: functools.partial(_loops, plain, loaders, sites),
        tensors: functools.partial(_tensor_loops, plain, pixels, sites),
    }
    seconds = in_turn(ways, repeats)
    work = f"CNN, batch 4, MNIST, 20 sites, an epoch of {sum(len(site.train) for site in sites):,} samples"
    compiled = "Compiled, which nothing here is, it was to be 5 times."
    slower = "Whether the code that stacks made a site alone slower than the plainest loop."
    plan: tuple[tuple[str, str, float | None, str], ...] = (
        (stacked, eager, 3, compiled),
        (whole, eager, 3, compiled),
        (stacked, tensors, None, ""),
        (device, eager, None, ""),
        (device, tensors, 1, slower),
    )
    for ours, theirs, goal, note in plan:
        yield Pair("training", work, ours, theirs, seconds[ours], seconds[theirs], "cpu", goal, note)


def _retraining(algorithm: GFPL, sites: list[Site], plain: list[Plain], repeats: int) -> Iterator[Pair]:
    generator = torch.Generator().manual_seed(0)
    samples = [
        Samples(torch.rand(PSEUDO, 50, generator=generator), torch.arange(PSEUDO) % 10) for _ in range(len(sites))
    ]
    works = [Descent(site, "retrain", data, algorithm.loss, 1, 1) for site, data in zip(sites, samples, strict=True)]
    stacked, whole, tensors = f"stacks of {OF_A_CORE}", "one stack of 20", "loop over tensors in memory"
    ways = {
        stacked: functools.partial(descend, works, OF_A_CORE),
        whole: functools.partial(descend, works, len(works)),
        tensors: functools.partial(_head_loops, plain, samples, sites),
    }
    seconds = in_turn(ways, repeats)
    work = f"retraining of the heads, batch 4, 20 sites, {PSEUDO:,} pseudo-features of 50 dimensions each"
    for ours in (stacked, whole):
        yield Pair("training", work, ours, tensors, seconds[ours], seconds[tensors], "cpu", 10)


def _resnet18(data_dir: Path, repeats: int) -> Pair:
    algorithm, sites = sites_of(CIFAR, data_dir)
    works = [Descent(site, "train", site.train, algorithm.loss, 1, 1) for site in sites]
    plain = [_plain_of(site, "resnet18") for site in sites]
    loaders = [loader(site, "cifar10") for site in sites]
    return compare(
        "training",
        f"ResNet18, batch 32, CIFAR-10, an epoch of {len(sites[0].train)} samples",
        Way("one site alone", functools.partial(descend, works, 1)),
        Way("DataLoader loop", functools.partial(_loops, plain, loaders, sites)),
        repeats=repeats,
        goal=0.95,
        note="Large networks are not stacked on a processor: arithmetic sets their time.",
    )
