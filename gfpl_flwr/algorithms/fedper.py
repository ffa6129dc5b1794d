"""FedPer: "Federated Learning with Personalization Layers" (Arivazhagan, Aggarwal, Singh, Choudhary; 2019, arXiv
1912.00818), algorithms 1 and 2.

A site trains base and personal layers together, as in FedAvg, but only the base travels, up and down, and is averaged
by numbers of samples, BatchNorm's running statistics with it; the personal layers never leave the site. Which layers
are personal is an option: all fully connected ones, as FedProto's comparison has it, or the classifier alone.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from gfpl_flwr.algorithms.averaging import ModelAveraging
from gfpl_flwr.algorithms.base import Tensors
from gfpl_flwr.config import option
from gfpl_flwr.models import SplitModel
from gfpl_flwr.training import Counts, Site, Steps, classifier_loss, local_rounds

PERSONAL = ("linear", "classifier")


@dataclass(frozen=True, kw_only=True)
class FedPer(ModelAveraging):
    """Cross-entropy at every site, the mean of the bases at the server."""

    name: ClassVar[str] = "fedper"
    remembers: ClassVar[bool] = True

    personal: str = option(
        "linear", "Layers that stay at a site: every fully connected one, or the classifier alone.", choices=PERSONAL
    )

    def shared(self, model: SplitModel) -> list[str]:
        """Return the names of the base."""
        own = personal_names(model, self.personal)
        return [name for name in super().shared(model) if name not in own]

    def train(self, site: Site, down: Tensors, round: int) -> Steps[tuple[list[Counts], float]]:
        """Train base and personal layers together, with cross-entropy."""
        return (yield from local_rounds(site, [round], classifier_loss))


def personal_names(model: SplitModel, personal: str) -> list[str]:
    """Return the names of the weights that stay at a site.

    Args:
        model: of the site.
        personal: ``"linear"`` or ``"classifier"``.
    """
    layers = {
        path for path, layer in model.named_modules() if personal == "linear" and isinstance(layer, nn.Linear)
    } | {"classifier"}
    return [name for name in model.state_dict() if name.rpartition(".")[0] in layers]
