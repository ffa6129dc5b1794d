"""What a site computes, and doing it for many sites at once."""

from gfpl_flwr.training.cohort import Samples
from gfpl_flwr.training.descent import Calibration, Descent, Loss
from gfpl_flwr.training.evaluation import PHASES, CommonCounts, Counts, Scores, evaluate
from gfpl_flwr.training.features import Features
from gfpl_flwr.training.mixtures import ClassMixtures
from gfpl_flwr.training.rounds import classifier_loss, local_rounds
from gfpl_flwr.training.site import Images, Site
from gfpl_flwr.training.work import Steps, Work, alone, together

__all__ = [
    "PHASES",
    "Calibration",
    "ClassMixtures",
    "CommonCounts",
    "Counts",
    "Descent",
    "Features",
    "Images",
    "Loss",
    "Samples",
    "Scores",
    "Site",
    "Steps",
    "Work",
    "alone",
    "classifier_loss",
    "evaluate",
    "local_rounds",
    "together",
]
