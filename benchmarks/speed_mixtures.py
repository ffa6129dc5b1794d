"""Mixtures of all classes of all sites in one call, against scikit-learn fitting one after the other."""

import functools
import importlib.util
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.mixture import GaussianMixture

from benchmarks.pairs import Pair, Way, compare
from gfpl_flwr.core import GaussianPrototypes, fit_class_mixtures, log_likelihood
from gfpl_flwr.core.gmm_batch import Kernel

SITES, CLASSES, SAMPLES, COMPONENTS = 20, 5, 100, 2
GOALS: dict[Kernel, dict[int, float]] = {"torch": {50: 8, 128: 5, 512: 3}, "numba": {50: 18, 128: 20, 512: 15}}


def relu_features(dim: int, seed: int = 0) -> NDArray[np.float32]:
    """Draw features like those of a trained network's last ReLU layer, (sites * classes, samples, D).

    Each class has a pattern of units that are on, off or at the edge, six directions along which its samples differ,
    and noise; 15 % of the units are dead. A little over half of all values are zero.
    """
    rng = np.random.default_rng([seed, dim])
    out = np.empty((SITES * CLASSES, SAMPLES, dim), np.float32)
    for rows in out:
        pattern, directions = rng.normal(size=dim), rng.normal(size=(6, dim)) / 4
        within = rng.normal(size=(SAMPLES, 6)) * [1, 0.8, 0.6, 0.5, 0.4, 0.3]
        noise = 0.25 * rng.normal(size=(SAMPLES, dim))
        rows[:] = np.maximum(pattern + within @ directions + noise, 0.0) * (rng.random(dim) > 0.15)
    return out


def scikit_learn(features: NDArray[np.float32]) -> list[GaussianMixture]:
    """Fit each class by itself: k-means start, one start, tolerance 1e-3, regularisation 1e-6, its defaults."""
    return [
        GaussianMixture(COMPONENTS, covariance_type="diag", random_state=problem).fit(rows)
        for problem, rows in enumerate(features)
    ]


def fit(rows: torch.Tensor, labels: torch.Tensor, kernel: Kernel) -> GaussianPrototypes:
    """Fit all classes in one call, with the defaults of the package."""
    return fit_class_mixtures(rows, labels, num_components=COMPONENTS, variance_floor=1e-6, tol=1e-3, kernel=kernel)


def pairs() -> Iterator[Pair]:
    """Yield one pair for each kernel that is installed and each width of features, on one thread."""
    torch.set_num_threads(1)
    labels = torch.arange(SITES * CLASSES).repeat_interleave(SAMPLES)
    for kernel, goals in GOALS.items():
        if kernel == "numba" and importlib.util.find_spec("numba") is None:
            continue
        for dim, goal in goals.items():
            features = relu_features(dim)
            rows = torch.from_numpy(features.reshape(-1, dim))
            ours = log_likelihood(fit(rows, labels, kernel), rows, labels)
            peers = scikit_learn(features)
            theirs = np.mean(
                [peer.score(part.astype(np.float64)) for peer, part in zip(peers, features, strict=True)]
            )
            yield compare(
                "mixtures",
                f"{SITES} sites x {CLASSES} classes, {SAMPLES} samples, K = {COMPONENTS}, D = {dim}",
                Way(f"one call, {kernel}", functools.partial(fit, rows, labels, kernel)),
                Way("scikit-learn, class by class", functools.partial(scikit_learn, features)),
                goal=goal,
                note=f"mean log-likelihood in nats a sample: {ours:.2f}, scikit-learn {theirs:.2f}",
            )


if __name__ == "__main__":
    for pair in pairs():
        spread = f"{min(pair.ratios):.1f} to {max(pair.ratios):.1f}"
        print(f"{pair.work}, {pair.ours}: {pair.ratio:.1f} times ({spread}), goal {pair.goal:g}; {pair.note}")
