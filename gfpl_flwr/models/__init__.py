"""Image classifiers split into an extractor and heads."""

from gfpl_flwr.models.architectures import DROPOUT, FEATURE_DIMS, build_extractor, seeded_init
from gfpl_flwr.models.dropout import Dropout, use_generator
from gfpl_flwr.models.split import DualClassifier, SplitModel

__all__ = [
    "DROPOUT",
    "FEATURE_DIMS",
    "Dropout",
    "DualClassifier",
    "SplitModel",
    "build_extractor",
    "seeded_init",
    "use_generator",
]
