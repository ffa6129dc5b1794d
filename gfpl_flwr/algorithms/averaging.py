"""What the methods in which weights travel have in common: a visit a round, weights up, their mean down."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from gfpl_flwr.algorithms.base import Algorithm, Reply, Tensors, Visit, every_round
from gfpl_flwr.algorithms.checks import check_like
from gfpl_flwr.config import RunConfig
from gfpl_flwr.models import SplitModel
from gfpl_flwr.training import Counts, Site, Steps, evaluate


class ModelAveraging(Algorithm):
    """A method whose server averages weights, and buffers with them, by the sites' numbers of samples.

    The mean is that of FedAvg, ``w = sum_i n_i / n w_i``. BatchNorm's running mean and variance are averaged like
    weights; its count of batches, which nothing reads, stays at home.

    A subclass says what a site does in a round (:meth:`train`) and, where not everything travels, what does
    (:meth:`shared`).
    """

    knows_model: ClassVar[bool] = True
    remembers: ClassVar[bool] = False

    def shared(self, model: SplitModel) -> list[str]:
        """Return the names of the weights and buffers that travel, and are floating point."""
        return [name for name, value in model.state_dict().items() if value.is_floating_point()]

    @abstractmethod
    def train(self, site: Site, down: Tensors, round: int) -> Steps[tuple[list[Counts], float]]:
        """Train and test a site's model, which has taken over what was handed down, in one round.

        Returns:
            Counts, and the mean loss.
        """

    def fit_in(self, site: Site, down: Tensors, round: int) -> Steps[None]:
        """Adapt a site's own weights to what it has just taken over, before that is tested."""
        yield from ()

    def extras(self, site: Site, down: Tensors) -> Steps[dict[str, Tensor]]:
        """Return what travels up beside the weights, after the round."""
        yield from ()
        return {}

    def visits(self, config: RunConfig) -> list[Visit]:
        """Return a visit for every round, and one that brings the last mean."""
        return every_round(config.rounds)

    def initial(self, model: SplitModel | None = None) -> dict[str, Tensor]:
        """Return what is shared of the model that every site starts from."""
        if model is None:
            raise ValueError(f"{self.name} starts from a model, got none")
        values = model.state_dict()
        return {name: values[name].clone() for name in self.shared(model)}

    def steps(self, site: Site, down: Tensors, visit: Visit) -> Steps[Reply]:
        """Take over what was handed down, test it, train for a round, and send what is shared."""
        accuracy: list[Counts] = []
        diagnostics: dict[str, float] = {}
        if visit.download and down:
            with torch.no_grad():
                values = site.model.state_dict()
                for name in self.shared(site.model):
                    values[name].copy_(down[name])
            yield from self.fit_in(site, down, visit.first_round - 1)
            accuracy.append((yield from evaluate(site, round=visit.first_round - 1, phase="received")))
        for round in visit.rounds:
            counts, loss = yield from self.train(site, down, round)
            accuracy += counts
            diagnostics["train_loss"] = loss
        tensors: dict[str, Tensor] = {}
        if visit.upload:
            values = site.model.state_dict()
            tensors = {name: values[name].detach().cpu().clone() for name in self.shared(site.model)}
            tensors |= yield from self.extras(site, down)
        return Reply(tensors, len(site.train), accuracy, diagnostics, site.watch.seconds)

    def check_reply(self, reply: Reply, *, state: Tensors, feature_dim: int, num_classes: int | None) -> None:
        """Refuse anything but finite numbers in the shapes of what the server has."""
        check_like(reply.tensors, {name: state[name] for name in self.expected(state)})

    def expected(self, state: Tensors) -> Sequence[str]:
        """Return the names of the tensors of a reply; the server's state has all of them."""
        return list(state)

    def aggregate(self, state: Tensors, replies: Sequence[Reply]) -> dict[str, Tensor]:
        """Average by samples; without a sample the old state stays."""
        return dict(state) | weighted_mean(replies, self.expected(state))


def weighted_mean(replies: Sequence[Reply], names: Sequence[str]) -> dict[str, Tensor]:
    """Return ``sum_i n_i / n w_i`` of the named tensors, summed in float64; nothing where no site has a sample."""
    whole = sum(reply.samples for reply in replies)
    if not whole:
        return {}
    means = {}
    for name in names:
        total = torch.zeros(replies[0].tensors[name].shape, dtype=torch.float64)
        for reply in replies:
            total.add_(reply.tensors[name], alpha=reply.samples / whole)
        means[name] = total.to(replies[0].tensors[name].dtype)
    return means
