"""Mathematics of generative federated prototype learning: torch only, no input or output, no network.

``GaussianPrototypes`` is the one value that travels. A site makes it with ``fit_class_mixtures``, the server
joins and ``fuse``s the banks of all sites, a site draws pseudo-features from the result with ``sample``.
``simplex_etf``, ``directions_of``, ``dot_regression`` and ``hybrid_loss`` belong to the dual classifier that is
trained on both.
"""

from gfpl_flwr.core.bhattacharyya import distance
from gfpl_flwr.core.etf import simplex_etf
from gfpl_flwr.core.fusion import fuse
from gfpl_flwr.core.gmm import fit_class_mixtures, log_likelihood, relative_floor
from gfpl_flwr.core.losses import directions_of, dot_regression, hybrid_loss
from gfpl_flwr.core.prototypes import GaussianPrototypes
from gfpl_flwr.core.pseudo import sample

__all__ = [
    "GaussianPrototypes",
    "directions_of",
    "distance",
    "dot_regression",
    "fit_class_mixtures",
    "fuse",
    "hybrid_loss",
    "log_likelihood",
    "relative_floor",
    "sample",
    "simplex_etf",
]
