"""GFPL: Generative Federated Prototype Learning (Lu, He, Li, Wang, Gong; arXiv 2602.21873).

A site trains its own classifier with a dual head (DCS): a trainable classifier with cross-entropy beside a
projection that dot regression draws to the vertices of a fixed simplex ETF (equation 13). From round T0 on, and
then every P rounds, it fits a small Gaussian mixture to the features of each of its classes (equations 4 to 6)
and sends the mixtures' parameters. The server fuses components of all sites that are close in Bhattacharyya
distance (equations 7 and 8, Algorithm 1) and hands the fused mixtures back. The site samples class-balanced
pseudo-features from them (PFG) and retrains projection and classifier with the extractor frozen (equation 14).

Up and down travel four arrays, labels, counts, means and variances, or their compressed form
(:mod:`gfpl_flwr.core.compression`), and nothing else; never a weight, gradient, feature or sample, and nothing at
all before round T0. The server computes with, and keeps, float32.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gfpl_flwr import seeding
from gfpl_flwr.algorithms.base import Algorithm, Reply, Tensors, Visit
from gfpl_flwr.algorithms.checks import check_bank
from gfpl_flwr.config import ConfigError, RunConfig, option
from gfpl_flwr.core.compression import PRECISIONS, compress, decompress
from gfpl_flwr.core.etf import simplex_etf
from gfpl_flwr.core.fusion import fuse
from gfpl_flwr.core.gmm import relative_floor
from gfpl_flwr.core.losses import hybrid_loss
from gfpl_flwr.core.prototypes import GaussianPrototypes
from gfpl_flwr.core.pseudo import sample
from gfpl_flwr.dataset_settings import settings_for
from gfpl_flwr.models import DualClassifier, SplitModel, seeded_init
from gfpl_flwr.site_names import SiteName
from gfpl_flwr.training import (
    ClassMixtures,
    Counts,
    Descent,
    Features,
    Samples,
    Site,
    Steps,
    classifier_loss,
    evaluate,
    local_rounds,
)


@dataclass(frozen=True, kw_only=True)
class GFPL(Algorithm):
    """Hyper-parameters of GFPL and both halves of the method.

    ``"auto"`` and ``0`` are resolved by :meth:`resolve`. The switches ``dual_classifier`` and ``retraining`` are
    the ablations of the paper's Table 2.
    """

    name: ClassVar[str] = "gfpl"
    heads: ClassVar[tuple[str, ...]] = ("classifier", "etf", "sum")
    state_name: ClassVar[str] = "prototypes"

    first_exchange: int = option(30, "T0: first round after which prototypes are exchanged.", at_least=1)
    exchange_every: int = option(5, "P: rounds between exchanges.", at_least=1)
    # dual-classifier structure
    dual_classifier: bool = option(True, "DCS: train a projection to the simplex ETF beside the classifier.")
    dr_weight: float = option(1.0, "Lambda: weight of dot regression in the hybrid loss.", at_least=0)
    projection_dim: int = option(
        0, "Width of projection and ETF, at least classes - 1; 0: the data set's.", at_least=0
    )
    classifier_on: str = option(
        "projection", "What the classifier sees with DCS.", choices=("features", "projection")
    )
    # prototypes
    num_components: int = option(2, "Gaussian components a class.", at_least=1)
    min_samples: int = option(5, "A class with fewer training samples sends no prototype.", at_least=1)
    min_component_samples: int = option(
        5, "Fewest samples behind a component: one of a single sample is that sample.", at_least=1
    )
    variance_floor: float = option(
        1e-4, "Smallest variance, as a share of the features' mean variance.", above=0, below=1
    )
    em_max_iter: int = option(100, "Most iterations of EM.", at_least=1)
    em_tol: float = option(1e-3, "EM stops when the log-likelihood per sample rises by less, in nats.", above=0)
    share_counts: bool = option(
        True, "Send sample counts as weights of the fusion; to hide them set share-label-counts = false too."
    )
    precision: str = option(
        "float32", "Number format in which prototypes travel, up and down.", choices=tuple(PRECISIONS)
    )
    # fusion
    threshold: float = option(
        1.0, "Components closer than this merge; 0: none, inf: all of a class.", at_least=0, finite=False
    )
    scale: str = option(
        "auto",
        "Distance in nats: sum over dimensions, or mean; auto: mean, sum in the paper preset.",
        choices=("auto", "mean", "sum"),
    )
    rule: str = option("closest_pair", "Order of merging.", choices=("closest_pair", "first_fit"))
    merge: str = option(
        "moment",
        "Merged component: the pooled moments, or plain weighted averages.",
        choices=("moment", "average"),
    )
    # pseudo-feature generation
    retraining: bool = option(True, "PFG: exchange prototypes and retrain the heads; false sends nothing.")
    pseudo_per_class: int = option(100, "Pseudo-features sampled a class.", at_least=1)
    retrain_epochs: int = option(1, "Passes over the pseudo-features.", at_least=1)
    retrain_classes: str = option(
        "all", "Classes of the pseudo-features: all, or the site's own.", choices=("all", "own")
    )
    clamp_pseudo: bool = option(False, "Cut pseudo-features off at zero, where ReLU features end.")

    def resolve(self, config: RunConfig, num_classes: int | None) -> "GFPL":
        """Replace ``auto`` by the preset's and the data set's values, and check the schedule and the ETF."""
        if self.retraining and self.first_exchange > config.rounds:
            raise ConfigError(
                f"gfpl.first-exchange = {self.first_exchange}: must be <= rounds = {config.rounds}, "
                "or nothing is ever exchanged (gfpl.retraining = false asks for that)"
            )
        if config.head != "classifier" and not self.dual_classifier:
            raise ConfigError(f"head = {config.head!r}: must be classifier when gfpl.dual-classifier = false")
        paper = config.preset == "paper"
        dim = self.projection_dim or settings_for(config.dataset).projection_dim
        if num_classes is not None and dim < num_classes - 1:
            raise ConfigError(
                f"gfpl.projection-dim = {dim}: must be >= {num_classes - 1}, "
                f"a simplex of {num_classes} classes does not fit in fewer dimensions"
            )
        scale = self.scale if self.scale != "auto" else "sum" if paper else "mean"
        return dataclasses.replace(self, projection_dim=dim, scale=scale)

    def build_model(
        self, extractor: nn.Module, feature_dim: int, num_classes: int, *, dropout: float, seed: int
    ) -> SplitModel:
        """Return the dual classifier, or the plain one without DCS."""
        if not self.dual_classifier:
            return seeded_init(lambda: SplitModel(extractor, feature_dim, num_classes, dropout=dropout), seed)
        etf = simplex_etf(num_classes, self.projection_dim, generator=seeding.generator(seed, "etf"))
        return seeded_init(
            lambda: DualClassifier(extractor, feature_dim, etf, classifier_on=self.classifier_on, dropout=dropout),
            seed,
        )

    def visits(self, config: RunConfig) -> list[Visit]:
        """Return Algorithm 2's schedule with one visit an exchange.

        The first visit covers rounds 1 to T0, each further one P rounds. What an exchange hands down arrives with
        the next visit, so a last one brings the fused prototypes of the last exchange.
        """
        last = config.rounds
        exchanges = list(range(self.first_exchange, last + 1, self.exchange_every)) if self.retraining else []
        starts = [1, *(round + 1 for round in exchanges)]
        stops = [*exchanges, last]
        return [
            Visit(index, start, stop, download=index > 1, upload=index <= len(exchanges))
            for index, (start, stop) in enumerate(zip(starts, stops, strict=True), start=1)
        ]

    def loss(self, model: SplitModel, features: Tensor, labels: Tensor) -> Tensor:
        """Return the hybrid loss of each batch, equations 13 and 14, or cross-entropy without DCS."""
        if not isinstance(model, DualClassifier):
            return classifier_loss(model, features, labels)
        logits, directions = model.dual(features)
        return hybrid_loss(logits, directions, labels, model.etf, dr_weight=self.dr_weight)

    def steps(self, site: Site, down: Tensors, visit: Visit) -> Steps[Reply]:
        """Retrain on the prototypes handed down, do the local rounds, fit and send the own prototypes."""
        accuracy: list[Counts] = []
        diagnostics: dict[str, float] = {}
        if visit.download and down:
            round = visit.first_round - 1
            diagnostics |= yield from self.retrain(site, decompress(down, self.precision), round=round)
            accuracy.append((yield from evaluate(site, round=round, phase="retrain")))
        counts, loss = yield from local_rounds(site, visit.rounds, self.loss)
        if visit.rounds:
            diagnostics["train_loss"] = loss
        tensors: dict[str, Tensor] = {}
        if visit.upload:
            bank, found = yield from self.prototypes(site)
            tensors, diagnostics = compress(bank, self.precision), diagnostics | found
        return Reply(tensors, len(site.train), [*accuracy, *counts], diagnostics, site.watch.seconds)

    def prototypes(self, site: Site) -> Steps[tuple[GaussianPrototypes, dict[str, float]]]:
        """Fit a mixture to the features of each class of a site (equations 4 to 6).

        Args:
            site: its training images are seen in evaluation mode, without augmentation.

        Returns:
            The bank of float32 components, and diagnostics: classes suppressed because they are too small, and
            the mean cosine between a projected feature and its ETF vertex.
        """
        features = (yield Features(site, "prototypes", site.train)).cpu()
        labels = site.train.labels.cpu()
        options = {
            "num_components": self.num_components,
            "max_iter": self.em_max_iter,
            "tol": self.em_tol,
            "min_samples": self.min_samples,
            "min_component_samples": self.min_component_samples,
        }
        floor = relative_floor(features, fraction=self.variance_floor)
        bank = yield ClassMixtures(site, "prototypes", features, labels, floor, options)
        found = {"suppressed_classes": float(len(torch.unique(labels)) - len(bank.classes))}
        if isinstance(site.model, DualClassifier) and len(labels):
            found["etf_cosine"] = site.model.mean_cosine(features, labels)
        if not self.share_counts:
            bank = dataclasses.replace(bank, counts=bank.weights)
        return bank, found

    def retrain(self, site: Site, bank: GaussianPrototypes, *, round: int) -> Steps[dict[str, float]]:
        """Retrain a site's heads on class-balanced pseudo-features (equation 14).

        The extractor is not run, so its weights and BatchNorm statistics stay as they are; dropout is off. The
        pseudo-features are sampled on the CPU whatever the device, so that every device retrains on the same ones.

        Args:
            site: the projection and the classifier of its model are changed in place.
            bank: the fused prototypes.
            round: of the exchange they come from; it seeds sampling and shuffling.

        Returns:
            Diagnostics: the mean loss and the share of negative pseudo-feature coordinates, which a ReLU feature
            never has.
        """
        wanted = bank.labels < site.model.num_classes  # a site may know fewer classes than the others
        if self.retrain_classes == "own":
            wanted &= torch.isin(bank.labels, site.train.labels.cpu())
        bank = bank.rows(wanted)
        features, labels = sample(bank, per_class=self.pseudo_per_class, generator=site.generator(round, "pseudo"))
        negative = float((features < 0).double().mean()) if len(labels) else 0.0
        if self.clamp_pseudo:
            features = features.clamp(min=0)
        found = {"negative_fraction": negative}
        if not len(labels):
            return found
        device = next(site.model.parameters()).device
        samples = Samples(features.to(device), labels.to(device))
        try:
            loss = yield Descent(site, "retrain", samples, self.loss, round, self.retrain_epochs)
        except FloatingPointError:
            # Prototypes that another site made up must not cost this one its heads, which are as they were.
            return found | {"retrain_diverged": 1.0}
        return found | {"retrain_loss": loss}

    def check_reply(self, reply: Reply, *, state: Tensors, feature_dim: int, num_classes: int | None) -> None:
        """Refuse anything but a bank that a site of this run could have fitted.

        Whatever passes can be fused in float32: one site's numbers cannot make the others' overflow.
        """
        check_bank(
            decompress(reply.tensors, self.precision),
            feature_dim=feature_dim,
            num_classes=num_classes,
            num_components=self.num_components,
            samples=reply.samples if self.share_counts else None,
        )

    def aggregate(self, state: Tensors, replies: Sequence[Reply]) -> dict[str, Tensor]:
        """Fuse the components of all sites (Algorithm 1).

        A class that no reply has keeps its fused components of before, without any component the whole state stays:
        a site that misses an exchange takes no class from the others. The paper has no absent sites.
        """
        banks = [decompress(reply.tensors, self.precision) for reply in replies]
        if not any(len(bank) for bank in banks):
            return dict(state)
        fused = fuse(
            GaussianPrototypes.concat(banks),
            threshold=self.threshold,
            scale="mean" if self.scale == "mean" else "sum",
            rule="first_fit" if self.rule == "first_fit" else "closest_pair",
            merge="average" if self.merge == "average" else "moment",
        )
        old = GaussianPrototypes.from_tensors(state) if state else fused.rows(fused.labels < 0)
        kept = old.rows(~torch.isin(old.labels, fused.labels))
        return dict(
            GaussianPrototypes.concat([fused, kept]).canonical().to_tensors() if len(kept) else fused.to_tensors()
        )

    def downlink(self, state: Tensors, site: SiteName | None = None) -> dict[str, Tensor]:
        """Return the fused prototypes as they travel; nothing where there are none yet."""
        return compress(GaussianPrototypes.from_tensors(state), self.precision) if state else {}

    def describe(self, state: Tensors, replies: Sequence[Reply]) -> dict[str, Any] | None:
        """Return how many components came and how many are left of their classes, in all and by class."""
        before = Counter(int(label) for reply in replies for label in reply.tensors["labels"])
        after = Counter(label for label in map(int, state.get("labels", ())) if label in before)
        came, left = before.total(), after.total()
        return {
            "components_in": came,
            "components_out": left,
            "merge_rate": 1 - left / came if came else 0.0,
            "by_class": {str(label): [before[label], after[label]] for label in sorted(before)},
            "suppressed_classes": sum(int(reply.diagnostics.get("suppressed_classes", 0)) for reply in replies),
        }
