"""Mixtures of the classes of many sites in one call."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gfpl_flwr.core.gmm import fit_class_mixtures
from gfpl_flwr.core.prototypes import GaussianPrototypes
from gfpl_flwr.training.cohort import joined
from gfpl_flwr.training.site import Site
from gfpl_flwr.training.work import Work


@dataclass(frozen=True)
class ClassMixtures(Work):
    """Fit a mixture to the features of each class of a site (GFPL, equations 4 to 6).

    Attributes:
        site: whose features they are.
        phase: under which the time is noted.
        features: (N, D).
        labels: (N,) int64.
        floor: lower bound of every variance, in squared units of the features.
        options: further arguments of :func:`fit_class_mixtures`.
    """

    site: Site
    phase: str
    features: Tensor
    labels: Tensor
    floor: float
    options: Mapping[str, Any]

    def kind(self) -> Hashable:
        """Return what a call is given once for all classes."""
        return self.features.shape[1], self.features.dtype, self.features.device, tuple(sorted(self.options.items()))

    @classmethod
    def do(cls, works: "Sequence[ClassMixtures]") -> list[GaussianPrototypes]:
        """Fit the classes of all these sites in one call, under labels ``site * C + class``."""
        classes = max(int(work.labels.max()) + 1 if len(work.labels) else 1 for work in works)
        labels = torch.cat([work.labels + place * classes for place, work in enumerate(works)])
        floors = torch.tensor([work.floor for work in works], dtype=torch.float64).repeat_interleave(classes)
        features = joined([work.features for work in works])
        joint = fit_class_mixtures(features, labels, variance_floor=floors, **works[0].options)
        banks = [joint.rows(joint.labels // classes == place) for place in range(len(works))]
        return [replace(bank, labels=bank.labels % classes) for bank in banks]
