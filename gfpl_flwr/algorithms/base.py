"""The contract of an algorithm: a frozen value with both halves of a method as plain functions over named tensors.

An algorithm knows nothing of Flower. One Strategy and one ClientApp carry every algorithm, in simulation and on
devices alike (:mod:`gfpl_flwr.flower`), so a paper is one file that is read from top to bottom and tested without
a network.

A **visit** is one message to every site and its reply. It covers as many local rounds as the method needs no
exchange for, which is what makes GFPL cheap where each message costs seconds.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gfpl_flwr import seeding
from gfpl_flwr.config import RunConfig
from gfpl_flwr.data.augment import crop_and_flip
from gfpl_flwr.data.evaluation import count_correct
from gfpl_flwr.models import SplitModel
from gfpl_flwr.site_names import SiteName

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Visit:
    """One message to every site: which local rounds it covers and what travels.

    Attributes:
        index: position among the visits of the run, from 1.
        first_round, last_round: local rounds done in it, inclusive, from 1; none if first_round > last_round.
        download: whether the message carries the server's state.
        upload: whether the reply carries tensors.
    """

    index: int
    first_round: int
    last_round: int
    download: bool = False
    upload: bool = False

    @property
    def rounds(self) -> range:
        """The local rounds of this visit."""
        return range(self.first_round, self.last_round + 1)


@dataclass(frozen=True)
class Images:
    """Labelled images of one site, on its device, not yet in floating point.

    Attributes:
        images: (N, channels, H, W) uint8.
        labels: (N,) int64.
        mean, std: (channels, 1, 1) float32, of pixels in [0, 1].
    """

    images: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def pixels(self, rows: Tensor | slice, *, augment: torch.Generator | None = None) -> Tensor:
        """Return the normalised float32 images of some rows (B, channels, H, W), cropped and flipped if asked."""
        images = self.images[rows]
        if augment is not None:
            images = crop_and_flip(images, generator=augment)
        return (images.float() / 255 - self.mean) / self.std

    def batches(self, size: int = 256) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (pixels, labels) in order, a batch at a time."""
        for start in range(0, len(self), size):
            rows = slice(start, start + size)
            yield self.pixels(rows), self.labels[rows]


@dataclass(frozen=True)
class Site:
    """What a site's half of an algorithm works on.

    Attributes:
        key: the site's number, or its name on a real device.
        model: the site's own model; a visit changes it in place.
        train, test: the site's own images.
        config: the run's options.
        batch_size: samples a step, resolved for the data set.
        augment: whether training images are cropped and flipped.
    """

    key: SiteName
    model: SplitModel
    train: Images
    test: Images
    config: RunConfig
    batch_size: int
    augment: bool = False

    def generator(self, round: int, purpose: str) -> torch.Generator:
        """Return this site's generator for one purpose in one round, on the CPU."""
        return seeding.generator(self.config.seed, "site", self.key, "round", round, purpose)

    def device_generator(self, round: int, purpose: str) -> torch.Generator:
        """Return this site's generator for one purpose in one round, on the device of its images."""
        keys = ("site", self.key, "round", round, purpose)
        return seeding.generator(self.config.seed, *keys, device=self.train.images.device)


@dataclass(frozen=True)
class Counts:
    """Accuracy of a site's model as counts, never averages.

    Attributes:
        round: the local round after which it was measured, from 0.
        phase: ``"train"`` after local training, ``"retrain"`` after retraining on what the server handed down.
        total: (C,) int64 test samples of each class.
        correct: inference head to (C,) int64 samples of each class that it got right.
    """

    round: int
    phase: str
    total: Tensor
    correct: dict[str, Tensor]


@dataclass(frozen=True)
class Reply:
    """What a site answers to a visit.

    Attributes:
        tensors: what travels to the server; its keys do not depend on which classes the site has.
        samples: training samples of the site.
        accuracy: one entry per evaluation, in order.
        diagnostics: scalars for the run's log.
        seconds: time spent by phase.
    """

    tensors: Tensors
    samples: int
    accuracy: Sequence[Counts] = ()
    diagnostics: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)


class Algorithm(ABC):
    """A federated method. Subclasses are frozen dataclasses whose fields are its hyper-parameters."""

    name: ClassVar[str]
    """Section of its keys in the configuration and its name there."""

    state_name: ClassVar[str] = "state"
    """What the server's state is called in the run's folder."""

    def resolve(self, config: RunConfig, num_classes: int | None) -> "Algorithm":
        """Return this algorithm with every ``auto`` replaced and checked against the run.

        Args:
            config: the run's options.
            num_classes: C; None where only the sites know.

        Raises:
            ConfigError: a combination that cannot work, before anything is sent.
        """
        return self

    @abstractmethod
    def build_model(
        self, extractor: nn.Module, feature_dim: int, num_classes: int, *, dropout: float, seed: int
    ) -> SplitModel:
        """Return the untrained model every site starts from; it depends on the seed alone.

        Args:
            extractor: maps images to features (B, D), with its initial weights.
            feature_dim: D.
            num_classes: C.
            dropout: share of the features dropped before the classifier.
            seed: of the heads' initial weights; another one than the extractor's.
        """

    @abstractmethod
    def visits(self, config: RunConfig) -> list[Visit]:
        """Return the whole schedule: which local rounds each message to the sites covers."""

    def initial(self) -> dict[str, Tensor]:
        """Return the server's state before the first visit; what a checkpoint holds."""
        return {}

    @abstractmethod
    def visit(self, site: Site, down: Tensors, visit: Visit) -> Reply:
        """The site's half: do one visit, changing ``site.model`` in place."""

    def check_reply(self, reply: Reply, *, feature_dim: int, num_classes: int | None) -> None:
        """Refuse a reply whose tensors the server's half could not use.

        Args:
            reply: of one site, decoded; its numbers are whatever the site sent.
            feature_dim: D of the run's model.
            num_classes: C; None where only the sites know.

        Raises:
            ValueError: says what was expected and what came; the site's contribution is then left out.
        """
        if reply.tensors:
            raise ValueError(f"{self.name} sends no tensors, but {', '.join(reply.tensors)} came")

    def aggregate(self, state: Tensors, replies: Sequence[Reply]) -> dict[str, Tensor]:
        """The server's half: the new state from the old one and the checked replies, sorted by site."""
        return dict(state)

    def describe(self, state: Tensors, replies: Sequence[Reply]) -> dict[str, Any] | None:
        """Return what the run's log says of an aggregation, from its outcome and its replies."""
        return None


@torch.no_grad()
def features_of(model: SplitModel, data: Images) -> Tensor:
    """Return the features (N, D) of a site's images as inference sees them: evaluation mode, no augmentation."""
    model.eval()
    parts = [model.extractor(pixels) for pixels, _ in data.batches()]
    return torch.cat(parts) if parts else data.mean.new_empty(0, model.feature_dim)


@torch.no_grad()
def evaluate(model: SplitModel, test: Images, *, round: int, phase: str) -> Counts:
    """Count, class by class, what every inference head gets right, in one pass over the test images.

    Args:
        model: is put into evaluation mode.
        test: a site's test images; may be empty.
        round, phase: as in :class:`Counts`.
    """
    model.eval()
    total = torch.zeros(model.num_classes, dtype=torch.int64)
    correct: dict[str, Tensor] = {}
    for pixels, labels in test.batches():
        heads = model(pixels)
        for head, scores in heads.items():
            right, seen = count_correct(scores.argmax(1), labels, model.num_classes)
            correct[head] = correct.get(head, torch.zeros_like(total)) + right.cpu()
        total += seen.cpu()
    return Counts(round, phase, total, correct)
