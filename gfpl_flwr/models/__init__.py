"""Image classifiers split into an extractor and heads, and many of them as one network."""

from gfpl_flwr.models.architectures import DROPOUT, FEATURE_DIMS, build_extractor, seeded_init
from gfpl_flwr.models.dropout import Dropout
from gfpl_flwr.models.split import DualClassifier, SplitModel
from gfpl_flwr.models.stacked import Stack, is_large
from gfpl_flwr.models.stacked_layers import CannotStackError

__all__ = [
    "DROPOUT",
    "FEATURE_DIMS",
    "CannotStackError",
    "Dropout",
    "DualClassifier",
    "SplitModel",
    "Stack",
    "build_extractor",
    "is_large",
    "seeded_init",
]
