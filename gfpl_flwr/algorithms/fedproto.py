"""FedProto: "Federated Prototype Learning across Heterogeneous Clients" (Tan, Long, Liu, Zhou, Lu, Jiang, Zhang; AAAI
2022, arXiv 2105.00243), algorithm 1.

In every round a site trains with cross-entropy and the distance of each feature to the global prototype of its class,
and sends the mean feature of each of its own classes; the server takes the mean over the sites that hold a class. Up
travel labels and means of a site's own classes, down those of all classes; no weight leaves a site.

Two ways to answer, as in the paper's released code: the classifier, and the nearest global prototype. The latter is
looked for among the site's own classes there (head ``own-prototype``); ``prototype`` looks among all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gfpl_flwr.algorithms.base import Algorithm, Reply, Tensors, Visit, every_round
from gfpl_flwr.algorithms.checks import check_means
from gfpl_flwr.config import RunConfig, option
from gfpl_flwr.core.losses import cross_entropy
from gfpl_flwr.models import SplitModel
from gfpl_flwr.training import Counts, Features, Site, Steps, evaluate, local_rounds


@dataclass(frozen=True, kw_only=True)
class FedProto(Algorithm):
    """Mean features up, their means over sites down."""

    name: ClassVar[str] = "fedproto"
    state_name: ClassVar[str] = "prototypes"
    heads: ClassVar[tuple[str, ...]] = ("classifier", "prototype", "own-prototype")

    weight: float = option(
        1.0, "Lambda: weight of the mean squared distance to the prototype, over samples and dimensions.", at_least=0
    )

    def visits(self, config: RunConfig) -> list[Visit]:
        """Return a visit for every round, and one that brings the last prototypes."""
        return every_round(config.rounds)

    def loss(
        self, model: SplitModel, features: Tensor, labels: Tensor, *, prototypes: Tensor, known: Tensor
    ) -> Tensor:
        """Return ``CE + lambda mean_{b,d} known_y (z_bd - P_{y,d})^2`` of each batch, equations 6 and 7.

        Args:
            model: its classifier is trained with it.
            features: (..., B, D).
            labels: (..., B).
            prototypes: (..., C, D).
            known: (..., C), 1 for a class that has a prototype; samples of others add nothing.
        """
        own = prototypes.take_along_dim(labels[..., None], dim=-2)
        gap = (features - own).square().mean(-1) * known.take_along_dim(labels, dim=-1)
        return cross_entropy(model.logits(features), labels) + self.weight * gap.mean(-1)

    def steps(self, site: Site, down: Tensors, visit: Visit) -> Steps[Reply]:
        """Test with the prototypes handed down, train for a round, and send the means of the own classes."""
        prototypes, known = self.table(site, down)
        own = torch.zeros(len(known), dtype=torch.bool, device=known.device)
        own[site.train.labels] = True

        def scores(model: SplitModel, features: Tensor) -> dict[str, Tensor]:
            found = model.scores(features)
            if down:
                near = -torch.cdist(features, prototypes)
                found["prototype"] = near.masked_fill(~known, -torch.inf)
                found["own-prototype"] = near.masked_fill(~(known & own), -torch.inf)
            return found

        accuracy: list[Counts] = []
        diagnostics: dict[str, float] = {}
        if visit.download and down:
            accuracy.append((yield from evaluate(site, round=visit.first_round - 1, phase="received", scores=scores)))
        if visit.rounds:
            constants = {"prototypes": prototypes, "known": known.to(prototypes.dtype)}
            counts, loss = yield from local_rounds(site, visit.rounds, self.loss, scores=scores, constants=constants)
            accuracy += counts
            diagnostics["train_loss"] = loss
        tensors: dict[str, Tensor] = {}
        if visit.upload:
            # DEPARTURE: the released code averages the features of the last epoch, batch by batch while weights
            # change and dropout drops; here those of the trained model, in evaluation mode.
            features = yield Features(site, "prototypes", site.train)
            tensors = class_means(features.cpu(), site.train.labels.cpu())
        return Reply(tensors, len(site.train), accuracy, diagnostics, site.watch.seconds)

    def table(self, site: Site, down: Tensors) -> tuple[Tensor, Tensor]:
        """Return the prototypes (C, D) that were handed down, zero where there is none, and where there is one."""
        device, classes = site.train.labels.device, site.model.num_classes
        prototypes = torch.zeros(classes, site.model.feature_dim, device=device)
        known = torch.zeros(classes, dtype=torch.bool, device=device)
        if down:
            usable = down["labels"] < classes  # a site may know fewer classes than the others
            labels = down["labels"][usable].to(device)
            prototypes[labels], known[labels] = down["means"][usable].to(device), True
        return prototypes, known

    def check_reply(self, reply: Reply, *, state: Tensors, feature_dim: int, num_classes: int | None) -> None:
        """Refuse anything but one finite mean for each of some classes."""
        check_means(reply.tensors, feature_dim=feature_dim, num_classes=num_classes)

    def aggregate(self, state: Tensors, replies: Sequence[Reply]) -> dict[str, Tensor]:
        """Return the unweighted mean over the sites that hold a class; a class that nobody sent keeps its last one.

        DEPARTURE: equation 6 of the paper weights sites by their samples and divides by their number once more, so
        that its weights do not add up to one; the released code takes the plain mean, as here.
        """
        if not replies:
            return dict(state)
        means: dict[int, list[Tensor]] = {}
        for reply in replies:
            for label, mean in zip(reply.tensors["labels"].tolist(), reply.tensors["means"], strict=True):
                means.setdefault(label, []).append(mean)
        rows = {int(label): mean for label, mean in zip(state.get("labels", ()), state.get("means", ()), strict=True)}
        rows |= {label: torch.stack(its).double().mean(0).float() for label, its in means.items()}
        if not rows:
            return {}
        return {"labels": torch.tensor(sorted(rows)), "means": torch.stack([rows[label] for label in sorted(rows)])}


def class_means(features: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return the classes among some labels (n,) and the mean feature of each (n, D), equation 3 of FedProto.

    Args:
        features: (N, D).
        labels: (N,) int64.
    """
    classes, place = torch.unique(labels, return_inverse=True)
    sums = torch.zeros(len(classes), features.shape[1], dtype=torch.float64).index_add_(0, place, features.double())
    counts = torch.bincount(place, minlength=len(classes))
    return {"labels": classes, "means": (sums / counts[:, None]).float()}
