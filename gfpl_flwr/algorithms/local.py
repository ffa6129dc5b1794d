"""Local: every site trains by itself and sends nothing. The floor that federation has to beat."""

from dataclasses import dataclass
from typing import ClassVar

from gfpl_flwr.algorithms.base import Algorithm, Reply, Tensors, Visit
from gfpl_flwr.config import RunConfig
from gfpl_flwr.training import Site, Steps, classifier_loss, local_rounds


@dataclass(frozen=True, kw_only=True)
class Local(Algorithm):
    """Cross-entropy on a site's own data; up: nothing, down: nothing, one visit for the whole run."""

    name: ClassVar[str] = "local"

    def visits(self, config: RunConfig) -> list[Visit]:
        """Return the single visit that covers every round."""
        return [Visit(1, 1, config.rounds)]

    def steps(self, site: Site, down: Tensors, visit: Visit) -> Steps[Reply]:
        """Train on the site's own images with cross-entropy."""
        accuracy, loss = yield from local_rounds(site, visit.rounds, classifier_loss)
        return Reply({}, len(site.train), accuracy, {"train_loss": loss}, site.watch.seconds)
