"""A site: its own model, images and random numbers."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from gfpl_flwr import seeding
from gfpl_flwr.config import RunConfig
from gfpl_flwr.data.augment import cut_windows
from gfpl_flwr.models import SplitModel
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


@dataclass(frozen=True)
class Site:
    """What a site's half of an algorithm works on.

    Attributes:
        key: the site's number, or its name on a real device.
        model: the site's own model; a visit changes it in place.
        train, test: the site's own images.
        common: test images of every class, the same for all sites; None where there are none.
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
    common: Images | None = None
    watch: Stopwatch = field(default_factory=Stopwatch, compare=False)

    def generator(self, round: int, purpose: str) -> torch.Generator:
        """Return this site's generator for one purpose in one round, on the CPU."""
        return seeding.generator(self.config.seed, "site", self.key, "round", round, purpose)

    def device_generator(self, round: int, purpose: str) -> torch.Generator:
        """Return this site's generator for one purpose in one round, on the device of its images."""
        keys = ("site", self.key, "round", round, purpose)
        return seeding.generator(self.config.seed, *keys, device=self.train.images.device)
