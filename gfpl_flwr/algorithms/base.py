"""The contract of an algorithm: a frozen value with both halves of a method as plain functions over named tensors.

An algorithm knows nothing of Flower. One Strategy and one ClientApp carry every algorithm, in simulation and on
devices alike (:mod:`gfpl_flwr.flower`), so a paper is one file that is read from top to bottom and tested without
a network.

A **visit** is one message to every site and its reply. It covers as many local rounds as the method needs no
exchange for, which is what makes GFPL cheap where each message costs seconds.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from gfpl_flwr.config import RunConfig
from gfpl_flwr.models import SplitModel, seeded_init
from gfpl_flwr.site_names import SiteName
from gfpl_flwr.training import Counts, Site, Steps, alone

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Visit:
    """One message to every site: which local rounds it covers and what travels.

    Attributes:
        index: position among the visits of the run, from 1.
        first_round, last_round: local rounds done in it, inclusive, from 1; none if first_round > last_round.
        download: whether the message carries the server's state.
        upload: whether the reply carries tensors.
    """

    index: int
    first_round: int
    last_round: int
    download: bool = False
    upload: bool = False

    @property
    def rounds(self) -> range:
        """The local rounds of this visit."""
        return range(self.first_round, self.last_round + 1)


@dataclass(frozen=True)
class Reply:
    """What a site answers to a visit.

    Attributes:
        tensors: what travels to the server; its keys do not depend on which classes the site has.
        samples: training samples of the site.
        accuracy: one entry per evaluation, in order.
        diagnostics: scalars for the run's log.
        seconds: time spent by phase.
        site: whose reply it is, as the server found out; a site's half leaves it alone.
    """

    tensors: Tensors
    samples: int
    accuracy: Sequence[Counts] = ()
    diagnostics: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    site: SiteName = 0


def every_round(rounds: int) -> list[Visit]:
    """Return the schedule of a method that exchanges after every round.

    Visit t covers round t and brings what was aggregated after the round before. The first brings nothing, since
    every site builds the same initial model from the seed; one more brings what was aggregated after the last round.
    """
    visits = [Visit(round, round, round, download=round > 1, upload=True) for round in range(1, rounds + 1)]
    return [*visits, Visit(rounds + 1, rounds + 1, rounds, download=True)]


class Algorithm(ABC):
    """A federated method. Subclasses are frozen dataclasses whose fields are its hyper-parameters."""

    name: ClassVar[str]
    """Section of its keys in the configuration and its name there."""

    state_name: ClassVar[str] = "state"
    """What the server's state is called in the run's folder."""

    knows_model: ClassVar[bool] = False
    """Whether the server's half needs the shape of the model, and so that of the images and the classes."""

    heads: ClassVar[tuple[str, ...]] = ("classifier",)
    """The inference heads whose accuracy it can report."""

    remembers: ClassVar[bool] = True
    """Whether a site's own model must outlive a visit; not where the next one hands it down whole."""

    by_site: ClassVar[bool] = False
    """Whether sites are handed down different tensors."""

    def resolve(self, config: RunConfig, num_classes: int | None) -> "Algorithm":
        """Return this algorithm with every ``auto`` replaced and checked against the run.

        Args:
            config: the run's options.
            num_classes: C; None where only the sites know.

        Raises:
            ConfigError: a combination that cannot work, before anything is sent.
        """
        return self

    def build_model(
        self, extractor: nn.Module, feature_dim: int, num_classes: int, *, dropout: float, seed: int
    ) -> SplitModel:
        """Return the untrained model every site starts from; it depends on the seed alone.

        Args:
            extractor: maps images to features (B, D), with its initial weights.
            feature_dim: D.
            num_classes: C.
            dropout: share of the features dropped before the classifier.
            seed: of the heads' initial weights; another one than the extractor's.

        Returns:
            Extractor and linear classifier, unless a method has other heads.
        """
        return seeded_init(lambda: SplitModel(extractor, feature_dim, num_classes, dropout=dropout), seed)

    @abstractmethod
    def visits(self, config: RunConfig) -> list[Visit]:
        """Return the whole schedule: which local rounds each message to the sites covers."""

    def initial(self, model: SplitModel | None = None) -> dict[str, Tensor]:
        """Return the server's state before the first visit; what a checkpoint holds.

        Args:
            model: that every site starts from, where the algorithm ``knows_model``.
        """
        return {}

    @abstractmethod
    def steps(self, site: Site, down: Tensors, visit: Visit) -> Steps[Reply]:
        """The site's half: do one visit, changing ``site.model`` in place.

        It is written for one site. Heavy work is yielded (``loss = yield Descent(...)``), so that
        :func:`gfpl_flwr.training.together` can do it for many sites at once; a method whose work is of no such kind
        just does it, site after site.

        Args:
            site: its model, data and random numbers.
            down: the server's state as handed down; empty before the first exchange.
            visit: which rounds, and what travels.

        Returns:
            The reply, from a generator.
        """

    def visit(self, site: Site, down: Tensors, visit: Visit) -> Reply:
        """Do one visit of one site by itself."""
        return alone(self.steps(site, down, visit))

    def check_reply(self, reply: Reply, *, state: Tensors, feature_dim: int, num_classes: int | None) -> None:
        """Refuse a reply whose tensors the server's half could not use.

        Args:
            reply: of one site, decoded; its numbers are whatever the site sent.
            state: of the server.
            feature_dim: D of the run's model.
            num_classes: C; None where only the sites know.

        Raises:
            ValueError: says what was expected and what came; the site's contribution is then left out.
        """
        if reply.tensors:
            raise ValueError(f"{self.name} sends no tensors, but {', '.join(reply.tensors)} came")

    def aggregate(self, state: Tensors, replies: Sequence[Reply]) -> dict[str, Tensor]:
        """The server's half: the new state from the old one and the checked replies, sorted by site."""
        return dict(state)

    def downlink(self, state: Tensors, site: SiteName | None = None) -> dict[str, Tensor]:
        """Return what the server hands down of its state where a visit says so: all of it, as it is kept.

        Args:
            state: of the server.
            site: to which, where the algorithm hands down ``by_site``; None for one that has not answered yet.
        """
        return dict(state)

    def describe(self, state: Tensors, replies: Sequence[Reply]) -> dict[str, Any] | None:
        """Return what the run's log says of an aggregation, from its outcome and its replies."""
        return None
