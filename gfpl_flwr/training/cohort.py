"""The data of sites that train together, cut into batches."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gfpl_flwr.data.augment import draw_windows
from gfpl_flwr.models import Stack
from gfpl_flwr.training.site import Images

# Elements of the images of the steps that are prepared at once: they should stay in the cache until they are used.
_BLOCK = 1 << 18


@dataclass(frozen=True)
class Samples:
    """Labelled features, on the device of the site: what heads are retrained on.

    Attributes:
        features: (N, D).
        labels: (N,) int64.
    """

    features: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Draws:
    """A site's generators of one round.

    Attributes:
        shuffle: order of the samples, on the CPU.
        dropout: masks, on the device of the site; None where nothing is dropped.
        augment: crops and flips, on the CPU; None where images are trained as they are.
    """

    shuffle: torch.Generator
    dropout: torch.Generator | None = None
    augment: torch.Generator | None = None


class Step(NamedTuple):
    """What a stack takes in a step of the active sites.

    Attributes:
        inputs: folded images (B, S channels, H, W), or features (S, B, D).
        labels: (S, B).
        masks: one for each dropout layer.
        beside: features (S, B, D) and labels (S, B) that go with the step; empty where none do.
    """

    inputs: Tensor
    labels: Tensor
    masks: Sequence[Tensor]
    beside: Sequence[Tensor]


@dataclass(frozen=True)
class Run:
    """Steps in a row that the same sites take.

    Attributes:
        sites: which.
        count: how many steps.
        steps: what goes into each.
    """

    sites: slice | Tensor
    count: int
    steps: Iterator[Step]


def batches(num_samples: int, batch_size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Return the rows of each step of one epoch: a permutation cut into batches.

    A last batch of a single row joins the batch before it, because BatchNorm cannot train on one sample.

    Args:
        num_samples: N.
        batch_size: B, rows a step.
        generator: source of the permutation, on the CPU.
    """
    rows = torch.randperm(num_samples, generator=generator)
    whole = whole_batches(num_samples, batch_size)
    rest = num_samples - whole * batch_size
    return torch.split(rows, [batch_size] * whole + [rest] * (rest > 0))


def whole_batches(num_samples: int, batch_size: int) -> int:
    """Return how many batches of an epoch have exactly ``batch_size`` rows; at most one more has others."""
    alone = num_samples > batch_size > 1 and num_samples % batch_size == 1
    return num_samples // batch_size - alone


class Cohort:
    """Sites that train together, each on its own data in its own order.

    Args:
        data: of each site, those with more whole batches first; all images or all features.
        stack: the network that will be trained, in the mode in which it will be.
        draws: of each site.
        beside: of each site as many labelled features as it has samples, of which each step takes as many as it takes
            samples, in the order given; empty where steps take samples alone.
    """

    def __init__(
        self,
        data: Sequence[Images | Samples],
        stack: Stack,
        draws: Sequence[Draws],
        beside: Sequence[Samples] = (),
    ) -> None:
        self.stack = stack
        self.draws = draws
        fields = ("features", "labels") if beside else ()
        self.beside = [torch.cat([getattr(part, field) for part in beside]) for field in fields]
        self.images = data[0] if isinstance(data[0], Images) else None
        self.lengths = [len(part) for part in data]
        self.starts = [sum(self.lengths[:index]) for index in range(len(data))]
        self.labels = joined([part.labels for part in data])
        self.values = joined([part.images if isinstance(part, Images) else part.features for part in data])
        self.device = self.labels.device

    def epoch(self, size: int) -> Iterator[Run]:
        """Yield the steps of one pass: whole batches of as many sites as still have one, then the last batches."""
        cut = [batches(n, size, draws.shuffle) for n, draws in zip(self.lengths, self.draws, strict=True)]
        whole = [whole_batches(length, size) for length in self.lengths]
        rows = torch.cat([torch.cat(parts) + start for parts, start in zip(cut, self.starts, strict=True)])
        starts = torch.tensor(self.starts)[:, None]
        lanes = starts + torch.arange(size)
        plan: list[tuple[list[int], Tensor]] = []
        done = 0
        for count in sorted(set(whole) - {0}):
            active = sum(number >= count for number in whole)
            steps = torch.arange(done, count)[:, None, None] * size
            plan.append((list(range(active)), lanes[:active] + steps))
            done = count
        left = [length - number * size for length, number in zip(self.lengths, whole, strict=True)]
        for rest, sites in self._last_batches(left):
            skip = torch.tensor([whole[site] * size for site in sites])[:, None]
            plan.append((sites, (starts[sites] + skip + torch.arange(rest))[None]))
        # All at once: a device would be waited for with every copy between steps.
        indices = [torch.tensor(sites) for sites, _ in plan]
        rows, *moved = _moved([rows, *indices, *(positions for _, positions in plan)], self.device)
        epoch = _Epoch(self, rows)
        for (sites, _), index, positions in zip(plan, moved[: len(plan)], moved[len(plan) :], strict=True):
            in_a_row = slice(sites[0], sites[0] + len(sites))
            chosen = in_a_row if sites == list(range(in_a_row.start, in_a_row.stop)) else index
            yield Run(chosen, len(positions), epoch.steps(positions))

    def _last_batches(self, left: Sequence[int]) -> list[tuple[int, list[int]]]:
        """Return the lengths of last batches, each with the sites that take theirs together."""
        if self.stack.exact:
            # In a stack of odd batches a matrix can lie where products add in another order.
            return [(rest, [site]) for site, rest in enumerate(left) if rest]
        return [(rest, [site for site, its in enumerate(left) if its == rest]) for rest in sorted(set(left) - {0})]


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Join the rows of all sites; those of one site stay where they are, on a device in a file mapped into memory."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _moved(parts: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Return tensors of one type on a device, by one copy."""
    flat = torch.cat([part.flatten() for part in parts]).to(device)
    cut = torch.split(flat, [part.numel() for part in parts])
    return [its.view(part.shape) for part, its in zip(parts, cut, strict=True)]


class _Epoch:
    """The samples of an epoch, site after site, each site's in the order of its batches; fetched block by block."""

    def __init__(self, cohort: Cohort, rows: Tensor) -> None:
        self.images = cohort.images
        self.stack = cohort.stack
        self.rows = rows
        self.beside = cohort.beside
        self.values, self.labels = cohort.values, cohort.labels[rows]
        layers = cohort.stack.dropout if cohort.stack.network.training else []
        drawn = [
            [layer.draw(length, draws.dropout) for layer in layers]
            for length, draws in zip(cohort.lengths, cohort.draws, strict=True)
            if draws.dropout is not None
        ]
        self.masks = [torch.cat(of_sites) for of_sites in zip(*drawn, strict=True)]
        windows = [
            draw_windows(length, generator=draws.augment)
            for length, draws in zip(cohort.lengths, cohort.draws, strict=True)
            if draws.augment is not None
        ]
        self.windows = torch.cat(windows).to(rows.device) if windows else None

    def steps(self, positions: Tensor) -> Iterator[Step]:
        """Yield the samples at positions (steps, S, B), step by step."""
        of_step = positions[0].numel() * self.values[0].numel()
        for block in torch.split(positions, max(1, _BLOCK // of_step)):
            inputs = self._inputs(block)
            masks = self.stack.arrange([mask[block] for mask in self.masks])
            beside = [values[block] for values in self.beside]
            nothing: list[Sequence[Tensor]] = [()] * len(block)
            yield from map(
                Step,
                inputs,
                self.labels[block],
                zip(*masks, strict=True) if masks else nothing,
                zip(*beside, strict=True) if beside else nothing,
            )

    def _inputs(self, block: Tensor) -> Tensor:
        if self.images is None:
            return self.values[self.rows[block]]
        images = dataclasses.replace(self.images, images=self.values)
        windows = None if self.windows is None else self.windows[block]
        return fold(images, self.rows[block], self.stack.layout, windows=windows)


def fold(images: Images, rows: Tensor, layout: torch.memory_format, *, windows: Tensor | None = None) -> Tensor:
    """Return images as a stack takes them, with the sites as channels.

    Args:
        images: of all sites; the labels are not looked at.
        rows: which, (steps, S, B).
        layout: memory format of each step.
        windows: for each of them what to crop and whether to flip (steps, S, B, 3); None for the whole images.

    Returns:
        Normalised float32 (steps, B, S channels, H, W).
    """
    steps, sites, batch = rows.shape
    if windows is not None:
        windows = windows.transpose(1, 2).flatten(0, 2)
    pixels = images.pixels(rows.transpose(1, 2).flatten(), windows=windows)
    folded = pixels.view(steps * batch, sites * pixels.shape[1], *pixels.shape[2:])
    return folded.clone(memory_format=layout).view(steps, batch, *folded.shape[1:])
