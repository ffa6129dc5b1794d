"""Gaussian mixtures with diagonal covariance, fitted to every class at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .gmm_starts import improve_partitions, kmeans_starts
from .prototypes import GaussianPrototypes

# Elements of the widest temporary of one chunk of problems. On a processor a chunk should stay in its cache.
_CHUNK_ELEMENTS = 1 << 19
_CHUNK_ELEMENTS_ACCELERATOR = 1 << 27
# Steps after which only the best restarts of a problem go on.
_TRIAL_STEPS = 5
_FINALISTS = 2
# Effective samples are sums of posterior probabilities: a component of exactly one sample adds up to 1 - rounding.
_COUNT_ROUNDING = 1e-6
_LOG_2PI = math.log(2.0 * math.pi)


@dataclass(frozen=True)
class _Mixtures:
    """R fits of each of Q problems: counts (Q, R, K), means and variances (Q, R, K, D), and the last E-step."""

    counts: Tensor
    means: Tensor
    variances: Tensor
    log_likelihood: Tensor  # (Q, R), nats a sample, of the parameters above
    responsibilities: Tensor  # (Q, L, R, K)
