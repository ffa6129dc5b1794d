"""Data sets, how their samples are spread over sites, augmentation and evaluation counts.

``datasets``    load a data set by name, memory-mapped from its prepared file (``prepared``)
``sources``     where the named data sets come from; ``folders`` reads a device's own images
``partitions``  which sample belongs to which site, by scheme (``shots``, ``skew``) and seed
``augment``     random crop and flip of a batch
``evaluation``  correct answers per class, accuracy, mean and spread over sites
``hub``         every partition as a ``flwr_datasets`` partitioner, where that package is installed
"""

from gfpl_flwr.data.datasets import DatasetNotFoundError, ImageDataset, load, normalisation
from gfpl_flwr.data.partitions import SCHEMES, partition
from gfpl_flwr.data.shots import default_test_shots, shot_range
from gfpl_flwr.data.sites import SiteIndices, label_counts

__all__ = [
    "SCHEMES",
    "DatasetNotFoundError",
    "ImageDataset",
    "SiteIndices",
    "default_test_shots",
    "label_counts",
    "load",
    "normalisation",
    "partition",
    "shot_range",
]
