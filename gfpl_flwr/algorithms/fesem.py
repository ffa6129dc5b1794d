"""FeSEM: "Multi-Center Federated Learning: Clients Clustering for Better Personalization" (Long, Xie, Shen, Zhou,
Wang, Jiang, Zhang; World Wide Web 2022, doi 10.1007/s11280-022-01046-x, arXiv 2005.01026), its EM algorithm.

The server keeps several centres. In every round it gives each site's model to the nearest centre in weights (E step)
and moves each centre to the mean of its models (M step), each site counting once; a site goes on from its centre. Up
travel all weights and BatchNorm's running statistics, which are averaged like weights but have no part in distances;
down those of the one centre of the site.

All sites begin with the same model, so centres that began there would never part. The first ones are chosen among the
models of the first round: one at random, then always the one farthest from those chosen, as in k-means++ without its
chance. A centre that loses its last site begins anew with the model farthest from its own centre.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from gfpl_flwr import seeding
from gfpl_flwr.algorithms.averaging import ModelAveraging
from gfpl_flwr.algorithms.base import Reply, Tensors
from gfpl_flwr.config import RunConfig, option
from gfpl_flwr.models import SplitModel
from gfpl_flwr.site_names import SiteName
from gfpl_flwr.training import Counts, Site, Steps, classifier_loss, local_rounds

CENTRES, MEMBER = "centres/", "member/"


@dataclass(frozen=True, kw_only=True)
class FeSEM(ModelAveraging):
    """Several mean models, each of the sites whose models are nearest to it."""

    name: ClassVar[str] = "fesem"
    by_site: ClassVar[bool] = True

    num_centres: int = option(2, "Centres that the server keeps.", at_least=2)
    distance_on: str = option(
        "all", "Weights whose distance tells the nearest centre.", choices=("all", "classifier")
    )
    seed: int = 0

    def resolve(self, config: RunConfig, num_classes: int | None) -> "FeSEM":
        """Take over the run's seed."""
        return dataclasses.replace(self, seed=config.seed)

    def train(self, site: Site, down: Tensors, round: int) -> Steps[tuple[list[Counts], float]]:
        """Train the whole model with cross-entropy, from the site's centre."""
        return (yield from local_rounds(site, [round], classifier_loss))

    def initial(self, model: SplitModel | None = None) -> dict[str, Tensor]:
        """Return every centre at the model that every site starts from; no site belongs to any yet."""
        state = super().initial(model)
        return {CENTRES + name: torch.stack([value] * self.num_centres) for name, value in state.items()}

    def check_reply(self, reply: Reply, *, state: Tensors, feature_dim: int, num_classes: int | None) -> None:
        """Refuse anything but finite numbers in the shapes of a centre."""
        one = {name: values[0] for name, values in _centres(state).items()}
        super().check_reply(reply, state=one, feature_dim=feature_dim, num_classes=num_classes)

    def aggregate(self, state: Tensors, replies: Sequence[Reply]) -> dict[str, Tensor]:
        """Give every model to the nearest centre, and move the centres; a site that did not answer keeps its own.

        A centre whose sites are all silent stays where it is.
        """
        if not replies:
            return dict(state)
        centres, members = _centres(state), {key: value for key, value in state.items() if key.startswith(MEMBER)}
        names = list(centres)
        models = {name: torch.stack([reply.tensors[name] for reply in replies]) for name in names}
        if not members:
            first = self._first(self._flat(models))
            centres = {name: models[name][first] for name in names}
        distances = torch.cdist(self._flat(models), self._flat(centres))
        nearest = distances.argmin(1)
        answered = {f"{MEMBER}{reply.site}" for reply in replies}
        silent = {int(centre) for key, centre in members.items() if key not in answered}
        for centre in set(range(len(distances[0]))) - silent:
            if not (nearest == centre).any() and (taken := self._spare(distances, nearest)) is not None:
                nearest[taken] = centre
        moved = {
            name: torch.stack(
                [
                    models[name][nearest == centre].double().mean(0).to(values.dtype)
                    if (nearest == centre).any()
                    else values[centre]
                    for centre in range(self.num_centres)
                ]
            )
            for name, values in centres.items()
        }
        members |= {f"{MEMBER}{reply.site}": nearest[place].clone() for place, reply in enumerate(replies)}
        return {CENTRES + name: values for name, values in moved.items()} | members

    def downlink(self, state: Tensors, site: SiteName | None = None) -> dict[str, Tensor]:
        """Return the centre of a site; for one that has not answered yet, that of most sites."""
        members = [int(value) for key, value in state.items() if key.startswith(MEMBER)]
        own = state.get(f"{MEMBER}{site}")
        centre = int(own) if own is not None else max(range(self.num_centres), key=members.count)
        return {name: values[centre].clone() for name, values in _centres(state).items()}

    def describe(self, state: Tensors, replies: Sequence[Reply]) -> dict[str, Any] | None:
        """Return how many sites each centre has."""
        members = [int(value) for key, value in state.items() if key.startswith(MEMBER)]
        return {"sites_by_centre": [members.count(centre) for centre in range(self.num_centres)]}

    def _flat(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return the weights that distances are taken over, (models, weights) in float64."""
        wanted = [
            name
            for name in values
            if "running_" not in name and (self.distance_on == "all" or name.startswith("classifier."))
        ]
        return torch.cat([values[name].flatten(1).double() for name in wanted], dim=1)

    def _first(self, flat: Tensor) -> list[int]:
        """Return the models that the centres begin with."""
        draw = seeding.generator(self.seed, "fesem", "centres")
        chosen = [int(torch.randint(len(flat), (1,), generator=draw))]
        while len(chosen) < self.num_centres:
            chosen.append(int(torch.cdist(flat, flat[chosen]).min(1).values.argmax()))
        return chosen

    def _spare(self, distances: Tensor, nearest: Tensor) -> int | None:
        """Return the model farthest from its centre, of those whose centre has others too; None without any."""
        own = distances.gather(1, nearest[:, None])[:, 0]
        sizes = torch.bincount(nearest, minlength=distances.shape[1])[nearest]
        own = own.masked_fill(sizes < 2, -1.0)
        return int(own.argmax()) if bool((sizes > 1).any()) else None


def _centres(state: Tensors) -> dict[str, Tensor]:
    return {name.removeprefix(CENTRES): value for name, value in state.items() if name.startswith(CENTRES)}
