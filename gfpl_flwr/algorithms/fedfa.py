"""FedFA: "FedFA: Federated Learning with Feature Anchors to Align Features and Classifiers for Heterogeneous Data"
(Zhou, Zhang, Tsang; IEEE Transactions on Mobile Computing 2023, arXiv 2211.09299), algorithm 1.

All sites share an anchor in feature space for each class. A site trains with cross-entropy and the squared distance
of its features to the anchors, and after every step calibrates its classifier on all anchors; then it moves the
anchors of its own classes towards the means of its features. The server averages models and anchors by numbers of
samples. Up and down travel all weights, BatchNorm's running statistics, which are averaged like weights, and the
anchors.

DEPARTURE: the released code lets learning rate and weights decay; here all methods have the same SGD. It calibrates
with a step size of 1e-3 after batches of 64. After batches of 4, sixteen times as many, the classifier grows that way
until training diverges (MNIST, 20 sites, within 60 rounds with each of three seeds): the default here is 1e-4.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from gfpl_flwr import seeding
from gfpl_flwr.algorithms.averaging import ModelAveraging
from gfpl_flwr.algorithms.base import Tensors
from gfpl_flwr.algorithms.fedproto import class_means
from gfpl_flwr.config import option
from gfpl_flwr.core.losses import cross_entropy
from gfpl_flwr.models import SplitModel
from gfpl_flwr.training import Calibration, Counts, Features, Site, Steps, local_rounds

ANCHORS = "anchors"


@dataclass(frozen=True, kw_only=True)
class FedFA(ModelAveraging):
    """Feature anchors that all sites share, and a classifier calibrated on them."""

    name: ClassVar[str] = "fedfa"

    weight: float = option(0.1, "Lambda: weight of the distance between features and anchors.", at_least=0)
    anchor_momentum: float = option(0.5, "What an anchor keeps of itself in a round.", at_least=0, at_most=1)
    calibration_rate: float = option(1e-4, "Step size of Adam, which calibrates the classifier.", above=0)

    def initial(self, model: SplitModel | None = None) -> dict[str, Tensor]:
        """Return the model that every site starts from, and the first anchors."""
        state = super().initial(model)
        assert model is not None  # or the line above had raised
        return state | {ANCHORS: first_anchors(model.num_classes, model.feature_dim)}

    def loss(self, model: SplitModel, features: Tensor, labels: Tensor, *, anchors: Tensor) -> Tensor:
        """Return ``CE + lambda / C sum_b |z_b - a_{y_b}|^2 / n_{y_b}``, n_c the samples of class c in the batch.

        Args:
            model: its classifier is trained with it.
            features: (..., B, D).
            labels: (..., B).
            anchors: (..., C, D).
        """
        distance = (features - anchors.take_along_dim(labels[..., None], dim=-2)).square().sum(-1)
        alike = (labels[..., :, None] == labels[..., None, :]).sum(-1)
        pull = (distance / alike).sum(-1) / anchors.shape[-2]
        return cross_entropy(model.logits(features), labels) + self.weight * pull

    def calibrate(self, model: SplitModel, *, anchors: Tensor) -> Tensor:
        """Return the cross-entropy of the classifier on the anchors of all classes, without dropout."""
        labels = torch.arange(anchors.shape[-2], device=anchors.device).expand(anchors.shape[:-1])
        return cross_entropy(model.classifier(anchors), labels)

    def train(self, site: Site, down: Tensors, round: int) -> Steps[tuple[list[Counts], float]]:
        """Train the model towards the anchors, calibrating the classifier after every step."""
        anchors = self._anchors(site, down).to(site.train.labels.device)
        calibration = Calibration(self.calibrate, self.calibration_rate)
        return (
            yield from local_rounds(site, [round], self.loss, constants={"anchors": anchors}, calibration=calibration)
        )

    def extras(self, site: Site, down: Tensors) -> Steps[dict[str, Tensor]]:
        """Return the anchors after the round: ``a_c <- m a_c + (1 - m) mean feature`` of the site's own classes.

        DEPARTURE: the released code averages batch means while weights change, and divides by the number of all
        batches, also of those without the class, which shrinks anchors the more the smaller batches are. Here it is
        the mean feature of the trained model, in evaluation mode, once a round however many its local epochs.
        """
        features = yield Features(site, "prototypes", site.train)
        own = class_means(features.cpu(), site.train.labels.cpu())
        anchors = self._anchors(site, down).clone()
        anchors[own["labels"]] = torch.lerp(own["means"], anchors[own["labels"]], self.anchor_momentum)
        return {ANCHORS: anchors}

    def _anchors(self, site: Site, down: Tensors) -> Tensor:
        return down[ANCHORS] if down else first_anchors(site.model.num_classes, site.model.feature_dim)


def first_anchors(num_classes: int, dim: int) -> Tensor:
    """Return unit vectors (C, D): of the axes where there are enough, else of directions drawn at random."""
    if num_classes <= dim:
        return torch.eye(num_classes, dim)
    return F.normalize(torch.randn(num_classes, dim, generator=seeding.generator(0, "fedfa", ANCHORS)), dim=1)
