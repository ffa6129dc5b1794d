"""FedProx: "Federated Optimization in Heterogeneous Networks" (Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith; MLSys
2020, arXiv 1812.06127), equation 2 and algorithm 2.

As FedAvg, but a site's loss has the proximal term ``mu / 2 |w - w_t|^2`` to the model w_t that it took over; the norm
is squared, and over the weights, not over BatchNorm's statistics. Up and down travel all weights and BatchNorm's
running statistics, as in FedAvg. With mu = 0 it is FedAvg.
"""

from dataclasses import dataclass
from typing import ClassVar

from gfpl_flwr.algorithms.averaging import ModelAveraging
from gfpl_flwr.algorithms.base import Tensors
from gfpl_flwr.config import option
from gfpl_flwr.training import Counts, Site, Steps, classifier_loss, local_rounds


@dataclass(frozen=True, kw_only=True)
class FedProx(ModelAveraging):
    """Cross-entropy with a pull to the server's model at every site, the mean of all models at the server."""

    name: ClassVar[str] = "fedprox"

    mu: float = option(0.1, "Weight of the proximal term, mu / 2 times the squared distance.", at_least=0)

    def train(self, site: Site, down: Tensors, round: int) -> Steps[tuple[list[Counts], float]]:
        """Train the whole model with cross-entropy, pulled to where the round began."""
        return (yield from local_rounds(site, [round], classifier_loss, pull=self.mu))
