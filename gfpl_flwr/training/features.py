"""Features of the images of many sites at once, as inference sees them."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gfpl_flwr.models import Stack, is_large
from gfpl_flwr.training.cohort import fold, joined
from gfpl_flwr.training.site import Images, Site
from gfpl_flwr.training.work import Work, network_kind

# Images of a lane and lanes of a pass: what a core's cache holds, or an accelerator likes.
_SMALL, _LARGE, _ACCELERATOR = (16, 20), (64, 1), (256, 32)


@dataclass(frozen=True)
class Features(Work):
    """The features (N, D) of some images: evaluation mode, no augmentation.

    The images of all sites are cut into lanes of equal length, and some lanes at a time go through one network of
    stacked layers, each with the weights of its site. A site by itself takes several lanes: a grouped convolution
    is twice as fast as a plain one of so few channels, and its results do not depend on the lanes beside it.

    Attributes:
        site: its model is put into evaluation mode.
        phase: under which the time is noted.
        data: images of this site; may be empty.
    """

    site: Site
    phase: str
    data: Images

    def kind(self) -> Hashable:
        """Return the shape of the model and of the images."""
        return network_kind(self.site), self.phase, self.data.images.shape[1:]

    @classmethod
    @torch.no_grad()
    def do(cls, works: "Sequence[Features]") -> list[Tensor]:
        """Pass the images of all these sites through one network."""
        models = [work.site.model.eval() for work in works]
        images, device = works[0].data, works[0].data.labels.device
        size, width = _ACCELERATOR if device.type != "cpu" else _LARGE if is_large(models[0]) else _SMALL
        if device.type != "cpu":
            size = max(1, min(size, max(len(work.data) for work in works)))  # a lane that is not full is filled up
        pixels = joined([work.data.images for work in works])
        lanes, owners, end = [], [], 0
        for index, work in enumerate(works):
            first, end = end, end + len(work.data)
            for start in range(first, end, size):
                # The last lane of a site is filled up with its last image.
                lanes.append(torch.arange(start, start + size).clamp_max_(end - 1))
                owners.append(index)
        found = pixels.new_empty(len(pixels), models[0].feature_dim, dtype=images.mean.dtype)
        stack = Stack(models)
        stack.network.eval()
        width = 1 if stack.single else width
        for start in range(0, len(lanes), width):
            chosen, sites = lanes[start : start + width], owners[start : start + width]
            if len(chosen) == 1 and width > 1:
                chosen, sites = chosen * 2, sites * 2  # a convolution of one lane would be no grouped one
            rows = torch.stack(chosen).to(device)
            stack.select(torch.tensor(sites, device=device))
            folded = fold(Images(pixels, images.labels, images.mean, images.std), rows[None], stack.layout)
            found[rows.flatten()] = stack.features(folded[0]).flatten(0, 1)
        return list(torch.split(found, [len(work.data) for work in works]))
