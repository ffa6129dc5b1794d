"""Rule ``first_fit`` of Algorithm 1, as a value that takes the sites' components one bank after the other."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from gfpl_flwr.core.bhattacharyya import Gaussians
from gfpl_flwr.core.fusion_search import (
    Merge,
    Search,
    discriminating,
    kernels,
    merge_into,
    reordered,
)
from gfpl_flwr.core.prototypes import GaussianPrototypes

Scale = Literal["mean", "sum"]

# Rows of one class from which on its stream goes through compiled loops. How many more will come is not known; with
# as many sites as these take, compiling costs a server seconds once in a run.
COMPILED_FROM_ROWS = 128
# Components that a class has room for at first; the room is doubled when it is full.
_FIRST_ROOM = 8
# From so many components on it pays to look first at the coordinates that tell them apart.
_REORDER_FROM_ROWS = 64


def limit_of(threshold: float, scale: Scale, dim: int) -> float:
    """Return the threshold as a distance in nats."""
    return threshold * dim if scale == "mean" else threshold


def check_options(threshold: float, scale: str, merge: str) -> None:
    """Refuse a threshold or a name that fusion does not know."""
    if not threshold >= 0:
        raise ValueError(f"threshold must be a number >= 0, got {threshold}")
    for name, value, allowed in (("scale", scale, get_args(Scale)), ("merge", merge, get_args(Merge))):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {list(allowed)}, got {value!r}")


class FirstFit:
    """Fuses banks as they come, by the rule ``first_fit``: what came is not kept, only the fused components.

    ``fuse(GaussianPrototypes.concat(banks), rule="first_fit")`` gives, to the bit, what ``add`` of one bank after
    the other and ``result`` give; a server that adds each reply when it comes never holds all of them.

    Count, mean and second moment of a class add up, and ``merge="moment"`` keeps the three sums. So a bank may be
    one that was fused before: edge servers fuse the sites of their shards, and one server the shards' results. The
    sums are then the same as without shards, to rounding; which components merged may differ, as it depends on
    the order.

    Memory: 16 D bytes for each fused component, in float64, and up to as much again as room for more, however many
    rows came. Where components merge that is next to nothing. Where nothing merges it is the bank of all rows
    again, and time grows with the square of the rows of a class.

    Args:
        threshold: as in ``fuse``.
        scale: as in ``fuse``.
        merge: as in ``fuse``.

    Raises:
        ValueError: the threshold is negative or NaN, or an option has an unknown name.
    """

    def __init__(self, *, threshold: float, scale: Scale = "mean", merge: Merge = "moment") -> None:
        check_options(threshold, scale, merge)
        self.threshold, self.scale, self.merge = threshold, scale, merge
        self._classes: dict[int, _Components] = {}
        self._like: Tensor | None = None

    def __len__(self) -> int:
        return sum(components.size for components in self._classes.values())

    def add(self, bank: GaussianPrototypes) -> None:
        """Merge each row, in order, into the nearest component of its class below the threshold, or append it.

        Args:
            bank: rows of any classes; it is left as it is.

        Raises:
            ValueError: the bank's dimension or device is not that of the banks before.
        """
        like = bank.means.new_empty(0, bank.dim)
        if self._like is not None:
            if self._like.shape != like.shape or self._like.device != like.device:
                raise ValueError(
                    f"banks must share one dimension and device, expected D = {self._like.shape[1]} on "
                    f"{self._like.device}, got D = {bank.dim} on {bank.means.device}"
                )
            like = like.to(torch.promote_types(self._like.dtype, like.dtype))
        self._like = like
        order = bank.labels.argsort(stable=True)
        rows = Gaussians.prepare(bank.means[order], bank.variances[order])
        counts = bank.counts[order].to("cpu", torch.float64)
        labels, sizes = torch.unique(bank.labels, return_counts=True)
        start = 0
        for label, size in zip(labels.tolist(), sizes.tolist(), strict=True):
            if label not in self._classes:
                limit = limit_of(self.threshold, self.scale, bank.dim)
                self._classes[label] = _Components(rows.means, limit, self.merge)
            part = slice(start, start + size)
            self._classes[label].absorb(counts[part], rows.rows(part))
            start += size

    def result(self, *, dtype: torch.dtype | None = None) -> GaussianPrototypes:
        """Return the fused bank so far, sorted by class, within a class in the order of first appearance.

        Args:
            dtype: of the result; None for that of the banks. A shard that is fused further should say
                ``torch.float64``, the precision in which sums are kept.

        Raises:
            ValueError: no bank was added, so that not even the dimension is known.
        """
        if self._like is None:
            raise ValueError("nothing to return: add at least one bank, it may be empty")
        dtype = dtype or self._like.dtype
        means = self._like.new_empty(len(self), self._like.shape[1], dtype=dtype)
        variances, counts = torch.empty_like(means), means.new_empty(len(self))
        labels = torch.empty_like(counts, dtype=torch.int64)
        start = 0
        for label in sorted(self._classes):
            components = self._classes[label]
            part = slice(start, start + components.size)
            labels[part], counts[part] = label, components.counts[: components.size].to(counts)
            components.write(means[part], variances[part])
            start = part.stop
        return GaussianPrototypes(labels, counts, means, variances)


class _Components:
    """The fused components of one class: float64 arrays with room for more."""

    def __init__(self, like: Tensor, limit: float, merge: Merge) -> None:
        self.size = 0
        self.counts = torch.empty(_FIRST_ROOM, dtype=torch.float64)
        self._rows = Gaussians(*(like.new_empty(_FIRST_ROOM, like.shape[1]) for _ in range(2)))
        self._limit, self._merge = limit, merge
        self._caps = like.new_full((_FIRST_ROOM,), limit)
        self._tiny = False
        self._search = Search(like, self.size, tiny=False)
        self._columns: Tensor | None = None
        self._seen = 0

    def absorb(self, counts: Tensor, rows: Gaussians) -> None:
        """Take rows in order; but for tiny variances their cut into calls has no influence, not even on a bit."""
        if rows.tiny and not self._tiny:
            self._tiny = True
            self._search = Search(self._caps, self.size, tiny=True)
        taken = 0
        while taken < len(counts):
            if self.size == len(self.counts):
                self._grow()
            on_cpu = rows.means.device.type == "cpu"
            loops_pay = self._seen >= COMPILED_FROM_ROWS and on_cpu and not self._tiny
            compiled = kernels() if loops_pay else None
            stop = len(counts) if compiled else min(len(counts), taken + max(1, COMPILED_FROM_ROWS - self._seen))
            new = rows.rows(slice(taken, stop))
            if self._columns is not None:
                new = reordered(new, self._columns)
            some = counts[taken:stop]
            done = self._absorb_compiled(compiled, some, new) if compiled else self._absorb(some, new)
            taken += done
            self._seen += done

    def write(self, means: Tensor, variances: Tensor) -> None:
        """Copy means and variances of the components to where they are wanted, in the dtype wanted there."""
        for out, value in ((means, self._rows.means), (variances, self._rows.variances)):
            if self._columns is None:
                out.copy_(value[: self.size])
            else:
                out[:, self._columns] = value[: self.size].to(out.dtype)

    def _absorb_compiled(self, compiled: Any, counts: Tensor, new: Gaussians) -> int:
        mine = [value.numpy() for value in (self.counts, *self._rows)]
        yours = [value.numpy() for value in (counts, *new)]
        moment = self._merge == "moment"
        size, taken = compiled.absorb(*mine, self.size, *yours, self._limit, moment)
        self.size = int(size)
        return int(taken)

    def _absorb(self, counts: Tensor, new: Gaussians) -> int:
        for row, count in enumerate(counts.tolist()):
            near = self._nearest(new.rows(slice(row, row + 1)))
            if near is not None:
                merge_into(self.counts, self._rows, near, count, new, row, self._merge)
                continue
            if self.size == len(self.counts):
                return row
            self.counts[self.size] = count
            for mine, value in zip(self._rows, new, strict=True):
                mine[self.size] = value[row]
            self.size += 1
        return len(counts)

    def _nearest(self, new: Gaussians) -> int | None:
        if self.size == 0 or self._limit == 0:
            return None
        if self._limit == math.inf:
            return 0  # there is no other, and even a distance that overflowed to infinity merges
        mine = slice(self.size)
        distance, near = self._search.within(new, self._rows.rows(mine), self._caps[mine])[0].min(dim=0)
        return int(near) if distance < self._limit else None

    def _grow(self) -> None:
        self.counts = torch.cat([self.counts, torch.empty_like(self.counts)])
        columns = None
        if self.size >= _REORDER_FROM_ROWS:
            columns = discriminating(self._rows)
            self._columns = columns if self._columns is None else self._columns[columns]
        rows = []
        for value in self._rows:
            grown = value.new_empty(2 * self.size, value.shape[1])
            grown[: self.size] = value if columns is None else value[:, columns]
            rows.append(grown)
        self._rows = Gaussians(*rows)
        self._caps = self._caps.new_full((2 * self.size,), self._limit)
        self._search = Search(self._caps, self.size, tiny=self._tiny)
