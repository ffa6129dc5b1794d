"""FedRep: "Exploiting Shared Representations for Personalized Federated Learning" (Collins, Hassani, Mokhtari,
Shakkottai; ICML 2021, arXiv 2102.07078), algorithm 1.

In every round a site takes over the server's representation, trains its own head for some epochs while the
representation stays, then the representation for one while the head stays, and sends the representation; the server
takes the mean by numbers of samples. The head never leaves the site. BatchNorm belongs to the representation: its
running statistics follow the batches of all these epochs, travel and are averaged.

After the last round a site fits its head to the last representation, as the paper does before it tests.
"""

from dataclasses import dataclass
from typing import ClassVar

from gfpl_flwr.algorithms.averaging import ModelAveraging
from gfpl_flwr.algorithms.base import Tensors
from gfpl_flwr.algorithms.fedper import PERSONAL, personal_names
from gfpl_flwr.config import option
from gfpl_flwr.models import SplitModel
from gfpl_flwr.training import Counts, Descent, Site, Steps, classifier_loss, evaluate


@dataclass(frozen=True, kw_only=True)
class FedRep(ModelAveraging):
    """Cross-entropy for the head, then for the representation at every site; the mean of the latter at the server."""

    name: ClassVar[str] = "fedrep"
    remembers: ClassVar[bool] = True

    head_epochs: int = option(10, "Epochs of a round in which the head alone is trained.", at_least=0)
    body_epochs: int = option(1, "Epochs of a round in which the representation alone is trained.", at_least=1)
    personal: str = option(
        "linear", "Layers that make the head: every fully connected one, or the classifier alone.", choices=PERSONAL
    )

    def shared(self, model: SplitModel) -> list[str]:
        """Return the names of the representation."""
        own = personal_names(model, self.personal)
        return [name for name in super().shared(model) if name not in own]

    def fit_in(self, site: Site, down: Tensors, round: int) -> Steps[None]:
        """Train the head alone, on the representation that has come."""
        yield from self._descend(site, round, self.head_epochs, head=True)

    def train(self, site: Site, down: Tensors, round: int) -> Steps[tuple[list[Counts], float]]:
        """Train the representation alone; in the first round, when none has come, the head before it."""
        if not down:
            yield from self._descend(site, round - 1, self.head_epochs, head=True)
        loss = yield from self._descend(site, round, self.body_epochs, head=False)
        return [(yield from evaluate(site, round=round, phase="train"))], loss

    def _descend(self, site: Site, round: int, epochs: int, *, head: bool) -> Steps[float]:
        own = personal_names(site.model, self.personal)
        trained = [name for name, _ in site.model.named_parameters() if (name in own) == head]
        if not epochs:
            return float("nan")
        turn = "head " if head else ""
        loss: float = yield Descent(
            site, "train", site.train, classifier_loss, round, epochs, trained=tuple(trained), turn=turn
        )
        return loss
