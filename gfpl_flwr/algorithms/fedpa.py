"""FedPA: "FedPA: Generator-Based Heterogeneous Federated Prototype Adversarial Learning" (Jiang, Wang, Yang, Shu,
Lin, Yi; IEEE Transactions on Dependable and Secure Computing 2024, doi 10.1109/TDSC.2024.3419211), after its code.

Beside the mean of all models the server keeps a generator of features and a prototype for each class. The generator
is trained to make features that the sites' classifiers recognise, that differ among each other and that lie far from
the prototypes: hard ones. A site trains with cross-entropy on its images and on generated features of all classes,
and with the distance of its features to the prototypes. Up travel all weights, BatchNorm's running statistics, which
are averaged like weights, the mean feature and the number of samples of each class; down the mean model, the
generator, the prototypes and the numbers of samples.

DEPARTURE: a step takes as many generated features as samples, where the released code takes 32 of each, and all steps
of a round take them, where it stops after 20 steps, which are its whole round; here all methods do the same number
of epochs.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gfpl_flwr import seeding
from gfpl_flwr.algorithms.averaging import ModelAveraging
from gfpl_flwr.algorithms.base import Reply, Tensors
from gfpl_flwr.algorithms.fedproto import class_means
from gfpl_flwr.config import ConfigError, RunConfig, option
from gfpl_flwr.core.losses import cross_entropy
from gfpl_flwr.models import SplitModel, seeded_init
from gfpl_flwr.site_names import SiteName
from gfpl_flwr.training import Counts, Features, Samples, Site, Steps, classifier_loss, local_rounds

PROTOTYPES, COUNTS, ROUND, GENERATOR, ADAM = "prototypes", "label_counts", "round", "generator/", "adam/"
# From the released code: decay of all weights a round, least weight of generated features, samples of a generator's
# step, pull away from the prototypes there, Adam's weight decay.
_DECAY, _LEAST_GENERATED, _BATCH, _HARDNESS, _WEIGHT_DECAY = 0.98, 1e-4, 32, 0.15, 1e-2


@dataclass(frozen=True, kw_only=True)
class FedPA(ModelAveraging):
    """A generator of hard features and a prototype of each class beside the mean model."""

    name: ClassVar[str] = "fedpa"

    generated_weight: float = option(
        25.0, "Weight of generated features in the first rounds; it decays, to no less than 0.0001.", at_least=0
    )
    prototype_weight: float = option(
        5.0, "Weight of the distance to the prototype in the first rounds; it decays to the floor.", at_least=0
    )
    prototype_floor: float = option(0.15, "Least weight of the distance to the prototype.", at_least=0)
    noise_dim: int = option(32, "Width of the generator's noise.", at_least=1)
    hidden_dim: int = option(256, "Width of the generator's hidden layer.", at_least=1)
    generator_steps: int = option(50, "Steps of the generator in a round.", at_least=0)
    generator_rate: float = option(3e-4, "Step size of Adam, which trains the generator; it decays.", above=0)
    seed: int = 0

    def resolve(self, config: RunConfig, num_classes: int | None) -> "FedPA":
        """Take over the run's seed; the method cannot do without label counts."""
        if not config.share_label_counts:
            raise ConfigError("share-label-counts = false: must be true with fedpa, whose sites send label counts")
        return dataclasses.replace(self, seed=config.seed)

    # ---- a site ------------------------------------------------------------------------------------------------

    def loss(
        self,
        model: SplitModel,
        features: Tensor,
        labels: Tensor,
        *,
        prototypes: Tensor,
        known: Tensor,
        weights: Tensor,
        beside: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Return ``CE(h(z), y) + alpha CE(h(g), y') + beta mean_{b,d} known_y (z_bd - P_{y,d})^2`` of each batch.

        Args:
            model: its classifier is trained with it.
            features: z (..., B, D).
            labels: y (..., B).
            prototypes: P (..., C, D).
            known: (..., C), 1 for a class that has a prototype; samples of others add nothing to the last term.
            weights: alpha and beta (..., 2).
            beside: generated features g (..., B, D), for which there is no dropout, and their classes y' (..., B).
        """
        generated, wanted = beside
        own = prototypes.take_along_dim(labels[..., None], dim=-2)
        gap = (features - own).square().mean(-1) * known.take_along_dim(labels, dim=-1)
        recognised = cross_entropy(model.classifier(generated), wanted)
        alpha, beta = weights.unbind(-1)
        return cross_entropy(model.logits(features), labels) + alpha * recognised + beta * gap.mean(-1)

    def train(self, site: Site, down: Tensors, round: int) -> Steps[tuple[list[Counts], float]]:
        """Train on images and generated features; in the first round, without any, on images alone."""
        if not down:
            return (yield from local_rounds(site, [round], classifier_loss))
        device = site.train.labels.device
        known = down[COUNTS] > 0
        decay = _DECAY ** (round - 1)
        alpha = max(_LEAST_GENERATED, self.generated_weight * decay)
        beta = max(self.prototype_floor, self.prototype_weight * decay)
        constants = {
            "prototypes": down[PROTOTYPES],
            "known": known.float(),
            "weights": torch.tensor([alpha, beta]),
        }
        draw = site.generator(round, "generated")
        classes = known.nonzero()[:, 0]
        labels = classes[torch.randint(len(classes), (len(site.train),), generator=draw)]
        noise = torch.rand(len(labels), self.noise_dim, generator=draw)
        with torch.no_grad():
            features = self._generator(down).eval()(noise, labels)
        return (
            yield from local_rounds(
                site,
                [round],
                self.loss,
                constants={name: values.to(device) for name, values in constants.items()},
                beside=Samples(features.to(device), labels.to(device)),
            )
        )

    def extras(self, site: Site, down: Tensors) -> Steps[dict[str, Tensor]]:
        """Return the mean feature (C, D) of each class, zero where there is none, and its number of samples (C,).

        DEPARTURE: the released code averages features while weights change; here those of the trained model.
        """
        features = yield Features(site, "prototypes", site.train)
        own = class_means(features.cpu(), site.train.labels.cpu())
        prototypes = torch.zeros(site.model.num_classes, features.shape[1])
        prototypes[own["labels"]] = own["means"]
        counts = torch.bincount(site.train.labels.cpu(), minlength=site.model.num_classes).float()
        return {PROTOTYPES: prototypes, COUNTS: counts}

    # ---- the server --------------------------------------------------------------------------------------------

    def initial(self, model: SplitModel | None = None) -> dict[str, Tensor]:
        """Return the model that every site starts from, an untrained generator, and no prototype."""
        state = super().initial(model)
        assert model is not None  # or the line above had raised
        shape = model.num_classes, model.feature_dim
        state |= {PROTOTYPES: torch.zeros(shape), COUNTS: torch.zeros(shape[0]), ROUND: torch.tensor(0)}
        seed = seeding.derive(self.seed, "fedpa", "generator")
        generator = seeded_init(lambda: Generator(*shape, noise=self.noise_dim, hidden=self.hidden_dim), seed)
        return state | {GENERATOR + name: value.clone() for name, value in generator.state_dict().items()}

    def expected(self, state: Tensors) -> list[str]:
        """Return the names of the weights, and of prototypes and label counts."""
        return [name for name in state if name != ROUND and not name.startswith((GENERATOR, ADAM))]

    def check_reply(self, reply: Reply, *, state: Tensors, feature_dim: int, num_classes: int | None) -> None:
        """Refuse what the mean could not use, and counts that are none."""
        super().check_reply(reply, state=state, feature_dim=feature_dim, num_classes=num_classes)
        counts = reply.tensors[COUNTS]
        if (counts < 0).any() or float(counts.sum()) > reply.samples * 1.001:
            raise ValueError(f"label_counts must be >= 0 and add up to {reply.samples}, they are {counts.tolist()}")

    def aggregate(self, state: Tensors, replies: Sequence[Reply]) -> dict[str, Tensor]:
        """Train the generator on the sites' classifiers, then average models, and prototypes by their samples."""
        if not replies:
            return dict(state)
        counts = torch.stack([reply.tensors[COUNTS] for reply in replies])
        sums = torch.stack([reply.tensors[PROTOTYPES] for reply in replies]) * counts[..., None]
        whole = counts.sum(0)
        prototypes = torch.where(whole[:, None] > 0, sums.sum(0) / whole.clamp_min(1)[:, None], state[PROTOTYPES])
        trained = self._train_generator(state, replies, counts)
        told = {PROTOTYPES: prototypes, COUNTS: torch.where(whole > 0, whole, state[COUNTS])}
        return super().aggregate(state, replies) | trained | told | {ROUND: state[ROUND] + 1}

    def downlink(self, state: Tensors, site: SiteName | None = None) -> dict[str, Tensor]:
        """Return all but the state of the generator's optimizer."""
        return {name: value for name, value in state.items() if name != ROUND and not name.startswith(ADAM)}

    def _generator(self, state: Tensors) -> "Generator":
        shape = state[PROTOTYPES].shape
        generator = seeded_init(lambda: Generator(*shape, noise=self.noise_dim, hidden=self.hidden_dim), 0)
        generator.load_state_dict(_under(state, GENERATOR))
        return generator

    def _train_generator(self, state: Tensors, replies: Sequence[Reply], counts: Tensor) -> dict[str, Tensor]:
        """Return generator and optimizer after a round's steps; those before it where no class has a sample.

        The released code asks for more than one sample of a class at some site, of counts that begin at one.
        """
        qualified = (counts.sum(0) > 0).nonzero()[:, 0]
        if not len(qualified):
            return {}
        round = int(state[ROUND])
        decay = _DECAY**round
        generator = self._generator(state).train()
        optimizer = torch.optim.Adam(
            generator.parameters(), lr=self.generator_rate * decay, weight_decay=_WEIGHT_DECAY
        )
        _load_adam(optimizer, _under(state, ADAM))
        weight, bias = (
            torch.stack([reply.tensors[f"classifier.{name}"] for reply in replies]) for name in ("weight", "bias")
        )
        shares = counts / counts.sum(0).clamp_min(1)  # (S, C)
        draw = seeding.generator(self.seed, "fedpa", "round", round)
        for _ in range(self.generator_steps):
            labels = qualified[torch.randint(len(qualified), (_BATCH,), generator=draw)]
            noise = torch.rand(_BATCH, self.noise_dim, generator=draw)
            features = generator(noise, labels)
            loss = self.generated_weight * decay * recognition_loss(features, labels, weight, bias, shares)
            loss = loss + diversity_loss(noise, features, labels)
            if round:
                loss = loss - _HARDNESS * F.mse_loss(features, state[PROTOTYPES][labels])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        found = {GENERATOR + name: value.detach().clone() for name, value in generator.state_dict().items()}
        return found | {ADAM + name: value for name, value in _saved_adam(optimizer).items()}


class Generator(nn.Module):
    """Maps noise (B, noise) and classes (B,) to features (B, D): one hidden layer with BatchNorm and ReLU."""

    def __init__(self, num_classes: int, dim: int, *, noise: int, hidden: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.layers = nn.Sequential(
            nn.Linear(noise + num_classes, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, dim)
        )

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Return a feature for each row of noise."""
        features: Tensor = self.layers(torch.cat([noise, F.one_hot(labels, self.num_classes)], dim=1))
        return features


def recognition_loss(features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, shares: Tensor) -> Tensor:
    """Return ``sum_i mean_b s_{i, y_b} CE(h_i(g_b), y_b)``: how badly the sites' classifiers know generated features.

    Args:
        features: g (B, D).
        labels: y (B,).
        weight, bias: of the classifiers h_i, (S, C, D) and (S, C).
        shares: s (S, C), the part of a class's samples that a site has.
    """
    logits = torch.baddbmm(bias[:, None], features.expand(len(weight), -1, -1), weight.mT)
    surprise = F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(weight)), reduction="none")
    return (surprise.view(len(weight), -1) * shares[:, labels]).mean(1).sum()


def diversity_loss(noise: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """Return ``exp(-mean_{b,b'} |e_b - e_b'|^2 |g_b - g_b'|_1)`` over pairs of different classes, means over widths.

    Args:
        noise: e (B, noise).
        features: g (B, D).
        labels: (B,).
    """
    apart = (labels[:, None] != labels).float()
    of_noise = (noise[:, None] - noise).square().mean(-1)
    of_features = (features[:, None] - features).abs().mean(-1)
    return (-of_noise * of_features * apart).mean().exp()


def _under(state: Tensors, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _saved_adam(optimizer: torch.optim.Adam) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value.clone() for index, values in state.items() for name, value in values.items()}


def _load_adam(optimizer: torch.optim.Adam, saved: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in saved.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value.clone()
    if state:
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
