"""A site: its own model, images and random numbers, and how its model is tested."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gfpl_flwr import seeding
from gfpl_flwr.config import RunConfig
from gfpl_flwr.data.augment import cut_windows
from gfpl_flwr.data.evaluation import count_correct
from gfpl_flwr.models import SplitModel, memory_format
from gfpl_flwr.site_names import SiteName
from gfpl_flwr.training.stopwatch import Stopwatch


@dataclass(frozen=True)
class Images:
    """Labelled images, on the device of the site, not yet in floating point.

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

    def pixels(self, rows: Tensor | slice, *, windows: Tensor | None = None) -> Tensor:
        """Return the normalised float32 images of some rows (B, channels, H, W).

        Args:
            rows: which.
            windows: for each row what to crop and whether to flip, from ``draw_windows``; None for the whole image.
        """
        images = self.images[rows]
        if windows is not None:
            images = cut_windows(images, windows)
        return (images.float() / 255 - self.mean) / self.std

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (pixels, labels) in order, as many at a time as a core's cache holds or an accelerator likes."""
        size = 64 if self.labels.device.type == "cpu" else 1024
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
        watch: the time the site took, by phase.
    """

    key: SiteName
    model: SplitModel
    train: Images
    test: Images
    config: RunConfig
    batch_size: int
    augment: bool = False
    watch: Stopwatch = field(default_factory=Stopwatch, compare=False)

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


@torch.no_grad()
def features_of(model: SplitModel, data: Images) -> Tensor:
    """Return the features (N, D) of a site's images as inference sees them: evaluation mode, no augmentation."""
    model.eval()
    layout = memory_format(model)
    parts = [model.extractor(pixels.clone(memory_format=layout)) for pixels, _ in data.batches()]
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
    layout = memory_format(model)
    total = torch.zeros(model.num_classes, dtype=torch.int64)
    correct: dict[str, Tensor] = {}
    for pixels, labels in test.batches():
        heads = model(pixels.clone(memory_format=layout))
        for head, scores in heads.items():
            right, seen = count_correct(scores.argmax(1), labels, model.num_classes)
            correct[head] = correct.get(head, torch.zeros_like(total)) + right.cpu()
        total += seen.cpu()
    return Counts(round, phase, total, correct)
