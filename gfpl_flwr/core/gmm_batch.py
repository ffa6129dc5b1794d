"""Ragged problems in groups: padded chunks for torch, all at once for the compiled kernel."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gfpl_flwr.core.gmm_em import Mixtures, Problems, Space, assign, hard_shares, maximise, padded
from gfpl_flwr.core.gmm_search import improve_partitions
from gfpl_flwr.core.gmm_starts import axis_start, even_draws, kmeans_starts, lloyd

Search = Literal["auto", "fast", "thorough"]
Kernel = Literal["auto", "torch", "numba"]
# Elements of the features from which on the compiled kernel repays the nine seconds of compiling it: an app's
# bundle is unpacked anew for every run, so that nothing compiled before is found there.
_COMPILED_FROM_ELEMENTS = 1 << 26

# Elements of the widest temporary of one chunk of problems. On a processor a chunk should stay in its cache.
_CHUNK_ELEMENTS = 3 << 19
_CHUNK_ELEMENTS_ACCELERATOR = 1 << 27
# Elements of the features that are brought to float64 at once to be sorted: more is memory that the system hands out
# page by page, which takes ten times as long as what is done with it.
_KEY_ELEMENTS = 1 << 16
# Padding brings the samples of a problem to a multiple of this.
_MULTIPLE = 8
# Effective samples are sums of probabilities: what should be exactly 5 may come out as 5 less rounding.
_COUNT_ROUNDING = 1e-9
# A component around one sample shares some of it with the others and stays under 1: only less than half is empty.
EMPTY = 0.5


@dataclass(frozen=True)
class Effort:
    """How long a problem is searched: k-means++ starts beside the axis start, and moves of single samples after."""

    restarts: int
    moves: bool = False


# From the least to the most; a problem that ends with a component too small is searched with the next.
EFFORTS = (Effort(0), Effort(8), Effort(24, moves=True))


def level(search: Search, samples: int, components: int) -> int:
    """Return the place in ``EFFORTS`` where the search of a problem begins."""
    if search != "auto":
        return 0 if search == "fast" else len(EFFORTS) - 1
    plenty = 25 * components**2
    return 0 if components == 1 or samples >= plenty else 1 if 2 * samples >= plenty else 2


@dataclass(frozen=True)
class Stop:
    """When a fit ends, and which are legal."""

    max_iter: int
    tol: float
    smallest: float  # effective samples that a component must stand for, at least 1

    @property
    def least(self) -> float:
        """Effective samples under which a component is illegal."""
        return EMPTY if self.smallest == 1 else self.smallest * (1.0 - _COUNT_ROUNDING)

    def merit(self, fitted: Mixtures) -> Tensor:
        """Log-likelihood of each restart, minus infinity where a component has too few samples, shape (Q, R)."""
        legal = (fitted.counts >= self.least).all(-1)
        return fitted.log_likelihood.masked_fill(~legal, -torch.inf)


@dataclass(frozen=True)
class Samples:
    """Samples of Q ragged problems."""

    features: Tensor  # (N, D)
    order: Tensor  # (N,): rows of the problems, one problem after the other
    first: Tensor  # (Q,): where the rows of each problem begin in ``order``
    sizes: Tensor  # (Q,)
    floor: Tensor  # (Q,), float64: lower bound of the variances

    def of(self, index: Tensor) -> Samples:
        """Return the problems of an index."""
        return Samples(self.features, self.order, self.first[index], self.sizes[index], self.floor[index])

    def padded(self, space: Space) -> tuple[Problems, Tensor]:
        """Return all problems centred in one batch in ``space``, and their centres (Q, D)."""
        slot = torch.arange(_padded(int(self.sizes.max())), device=self.order.device)
        source = self.order[(self.first[:, None] + slot).clamp_max(len(self.order) - 1)]
        rows = self.features.index_select(0, source.flatten()).view(*source.shape, -1)
        return padded(rows, self.sizes, self.floor, space=space)

    def chunks(self, width: int) -> Iterator[tuple[Tensor, Samples]]:
        """Yield groups of one padded size, of about ``width`` elements a sample, with their indices.

        A problem is padded to a size that follows from its own alone: sums over more padding would add in another
        order, and the last bits of a fit would depend on the problems beside it.
        """
        budget = _CHUNK_ELEMENTS if self.features.device.type == "cpu" else _CHUNK_ELEMENTS_ACCELERATOR
        by_size: dict[int, list[int]] = {}
        for problem, size in enumerate(self.sizes.tolist()):
            by_size.setdefault(_padded(size), []).append(problem)
        for size, problems in by_size.items():
            count = max(1, budget // (size * width))
            for start in range(0, len(problems), count):
                index = torch.tensor(problems[start : start + count], device=self.order.device)
                yield index, self.of(index)


def _padded(size: int) -> int:
    return -(-size // _MULTIPLE) * _MULTIPLE


def compiled_kernel(kernel: Kernel, elements: int, device: torch.device) -> bool:
    """Return whether the compiled kernel is to be used for so many elements of features.

    Raises:
        ValueError: ``"numba"`` is asked for and cannot be had.
    """
    if kernel == "numba" and not _has_numba():
        raise ValueError('kernel "numba" needs the package numba (extra "fast"), which is not installed')
    if kernel == "numba" and device.type != "cpu":
        raise ValueError(f'kernel "numba" needs features on the CPU, they are on {device}')
    large = elements >= _COMPILED_FROM_ELEMENTS and device.type == "cpu"
    return kernel == "numba" or (kernel == "auto" and large and _has_numba())


def fit_starts(samples: Samples, components: int, restarts: int, stop: Stop, *, compiled: bool) -> Mixtures:
    """Fit each problem from its axis start and ``restarts`` k-means++ starts; keep the likeliest legal one, R = 1."""
    shape = (len(samples.sizes), 1, components)
    counts = torch.empty(shape, dtype=torch.float64, device=samples.order.device)
    means = counts.new_empty(*shape, samples.features.shape[1])
    out = Mixtures(counts, means, torch.empty_like(means), counts.new_empty(shape[:2]))
    if compiled:
        from gfpl_flwr.core import gmm_kernel

        features = samples.features
        if features.dtype not in (torch.float32, torch.float64):
            features = features.float()
        gmm_kernel.fit_starts(
            features.contiguous().numpy(),
            samples.order.numpy(),
            samples.first.numpy(),
            samples.sizes.numpy(),
            samples.floor.numpy(),
            even_draws(restarts, components).numpy(),
            float(stop.least),
            stop.max_iter,
            float(stop.tol),
            out.counts[:, 0].numpy(),
            out.means[:, 0].numpy(),
            out.variances[:, 0].numpy(),
            out.log_likelihood[:, 0].numpy(),
        )
        return out
    space = Space(samples.order.device)
    for index, chunk in samples.chunks(2 * samples.features.shape[1] + 4 * (restarts + 1) * components):
        space.reset()
        data, centre = chunk.padded(space)
        fitted = _likeliest_start(data, components, restarts, stop, space)
        out.counts[index], out.variances[index] = fitted.counts, fitted.variances
        out.means[index] = fitted.means + centre[:, None, None]
        out.log_likelihood[index] = fitted.log_likelihood
    return out


def move_samples(samples: Samples, fitted: Mixtures, stop: Stop) -> None:
    """Search on from fitted mixtures (Q, 1) by moving single samples, and put what is likelier in their place."""
    components = fitted.counts.shape[-1]
    space = Space(samples.order.device)
    for index, chunk in samples.chunks(max(2, components) * samples.features.shape[1]):
        space.reset()
        data, centre = chunk.padded(space)
        reached = Mixtures(
            fitted.counts[index],
            fitted.means[index] - centre[:, None, None],
            fitted.variances[index],
            fitted.log_likelihood[index],
        )
        hard = assign(data, reached)[:, 0]
        better = improve_partitions(data, hard, components, smallest=stop.smallest)
        at = (better != hard).any(-1).nonzero()[:, 0]
        if len(at) == 0:
            continue
        part = data.only(at)
        second = maximise(part, hard_shares(part, better[at, None], components), max_iter=stop.max_iter, tol=stop.tol)
        won = (stop.merit(second) > stop.merit(reached)[at])[:, 0]
        target = index[at[won]]
        fitted.counts[target], fitted.variances[target] = second.counts[won], second.variances[won]
        fitted.means[target] = second.means[won] + centre[at[won], None, None]
        fitted.log_likelihood[target] = second.log_likelihood[won]


def canonical_order(features: Tensor, order: Tensor, labels: Tensor) -> Tensor:
    """Sort rows that are ordered by class by value inside each class, so that the input order has no influence."""
    dim = features.shape[1]
    # Fractions of multiples of the golden ratio: equal sums for different rows are all but impossible.
    direction = 0.5 + (torch.arange(1, dim + 1, dtype=torch.float64) * 0.6180339887498949).frac()
    direction = direction.to(features.device)
    blocks = torch.split(features, max(1, _KEY_ELEMENTS // dim))
    key = torch.cat([block.double() @ direction for block in blocks])
    by_value = order[key[order].argsort(stable=True)]
    return by_value[labels[by_value].argsort(stable=True)]


def grouped(pending: Sequence[int], keys: Sequence[tuple[int, int]]) -> list[tuple[tuple[int, int], list[int]]]:
    """Return the pending problems that share a key, key by key: as the keys are now, whatever they become."""
    distinct = sorted({keys[problem] for problem in pending})
    return [(key, [problem for problem in pending if keys[problem] == key]) for key in distinct]


def _likeliest_start(data: Problems, components: int, restarts: int, stop: Stop, space: Space) -> Mixtures:
    if components == 1:
        counts = data.sizes[:, None, None]
        means, squares = (data.totals[:, None, None] / counts[..., None]).chunk(2, dim=-1)
        variances = torch.maximum(squares - means.square(), data.floor[:, None, None, None])
        return Mixtures(counts, means, variances, torch.zeros_like(counts[..., 0]))
    clusters = axis_start(data, components)[:, None]
    if restarts:
        clusters = torch.cat([clusters, kmeans_starts(data, components, restarts)], dim=1)
    shares = hard_shares(data, lloyd(data, clusters, components), components)
    fitted = maximise(data, shares, max_iter=stop.max_iter, tol=stop.tol, space=space)
    return fitted.take(stop.merit(fitted).argmax(-1, keepdim=True)) if restarts else fitted


@functools.cache
def _has_numba() -> bool:
    try:
        from gfpl_flwr.core import gmm_kernel  # noqa: F401
    except ImportError:
        return False
    return True
