"""The likelihood of every fit is at least scikit-learn's, problem by problem."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from gfpl_flwr.core import fit_class_mixtures, log_likelihood

FLOOR = 1e-6


def problem(number):
    """Return features (n, D) and K: n from 2 to 200, D in 2, 50, 128, 512, K from 1 to 4, four kinds of data."""
    rng = np.random.default_rng([20, number])
    dim, components, kind = [2, 50, 128, 512][number % 4], 1 + number // 4 % 4, number // 16 % 4
    size = int(np.exp(rng.uniform(np.log(2), np.log(200.99))))
    centres = rng.normal(size=(rng.integers(1, 5), dim)) * rng.choice([0.3, 1.0, 3.0])
    blob = rng.integers(0, len(centres), size)
    if kind == 0:  # Gaussian blobs of different widths
        width = rng.uniform(0.3, 1.5, size=len(centres))[blob]
        return centres[blob] + width[:, None] * rng.normal(size=(size, dim)), components
    if kind == 1:  # blobs behind a ReLU, 30 % of the units dead
        features = np.maximum(centres[blob] + rng.normal(size=(size, dim)) - rng.uniform(0.0, 1.5), 0.0)
        return features * (rng.random(dim) > 0.3), components
    if kind == 2:  # ten latent directions behind a ReLU, 20 % of the units dead
        latent = rng.normal(size=(size, 10)) @ rng.normal(size=(10, dim)) / 3
        return np.maximum(latent - rng.uniform(0.0, 1.0, size=dim), 0.0) * (rng.random(dim) > 0.2), components
    return rng.normal(size=(size, dim)) * rng.uniform(0.1, 3.0, size=dim), components  # no structure at all


def peer_likelihood(features, components, seed):
    with warnings.catch_warnings():
        # Fewer distinct points than components, or 100 steps: it warns, and its result counts all the same.
        warnings.simplefilter("ignore", ConvergenceWarning)
        peer = GaussianMixture(
            min(components, len(features)), covariance_type="diag", reg_covar=FLOOR, random_state=seed
        )
        return peer.fit(features).score(features)


@pytest.mark.slow
@pytest.mark.parametrize("dim", [2, 50, 128, 512])
def test_likelihood_is_at_least_that_of_scikit_learn(dim):
    failures, checked = [], 0
    for components in range(1, 5):
        numbers = [i for i in range(200) if problem(i)[0].shape[1] == dim and problem(i)[1] == components]
        features = [torch.tensor(problem(i)[0]) for i in numbers]
        labels = [torch.full((len(part),), i) for i, part in zip(numbers, features, strict=True)]
        # All problems of one size are the classes of one call: this is how the package uses it.
        bank = fit_class_mixtures(
            torch.cat(features),
            torch.cat(labels),
            num_components=components,
            variance_floor=FLOOR,
        )
        for i, part, label in zip(numbers, features, labels, strict=True):
            ours, peer = log_likelihood(bank, part, label), peer_likelihood(part.numpy(), components, seed=i)
            checked += 1
            if not ours >= peer - 1e-3 * abs(peer):
                failures.append(f"problem {i}, n {len(part)}, K {components}: {ours:.6g} < {peer:.6g}")
    assert checked == 50
    assert not failures, "\n".join(failures)
