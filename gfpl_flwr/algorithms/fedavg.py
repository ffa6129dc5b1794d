"""FedAvg: "Communication-Efficient Learning of Deep Networks from Decentralized Data" (McMahan, Moore, Ramage,
Hampson, Aguera y Arcas; AISTATS 2017, arXiv 1602.05629), algorithm 1.

In every round a site takes over the server's model, trains it on its own images and sends it back; the server takes
the mean by numbers of samples. Up and down travel all weights and BatchNorm's running statistics, which are averaged
like weights.
"""

from dataclasses import dataclass
from typing import ClassVar

from gfpl_flwr.algorithms.averaging import ModelAveraging
from gfpl_flwr.algorithms.base import Tensors
from gfpl_flwr.training import Counts, Site, Steps, classifier_loss, local_rounds


@dataclass(frozen=True, kw_only=True)
class FedAvg(ModelAveraging):
    """Cross-entropy at every site, the mean of all models at the server."""

    name: ClassVar[str] = "fedavg"

    def train(self, site: Site, down: Tensors, round: int) -> Steps[tuple[list[Counts], float]]:
        """Train the whole model with cross-entropy."""
        return (yield from local_rounds(site, [round], classifier_loss))
