"""What a site computes, and doing it for many sites at once."""

from gfpl_flwr.training.cohort import Samples
from gfpl_flwr.training.descent import Descent, Loss
from gfpl_flwr.training.rounds import classifier_loss, local_rounds
from gfpl_flwr.training.site import Counts, Images, Site, evaluate, features_of
from gfpl_flwr.training.work import Steps, Work, alone, together

__all__ = [
    "Counts",
    "Descent",
    "Images",
    "Loss",
    "Samples",
    "Site",
    "Steps",
    "Work",
    "alone",
    "classifier_loss",
    "evaluate",
    "features_of",
    "local_rounds",
    "together",
]
