"""What a server takes from a site: tensors of the expected names, types and shapes, and of bounded numbers.

What passes can be added up and fused in float32: one site's numbers cannot make the others' overflow.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from gfpl_flwr.core.prototypes import GaussianPrototypes

LARGEST = 1e9
"""Largest magnitude of a number; weights, statistics and features of trained networks stay far below."""
LARGEST_MEAN = 1e6
"""Of a Gaussian component: its square is a variance."""


def check_like(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Refuse tensors of other names, dtypes or shapes than wanted, or with numbers that are not finite or too large.

    Raises:
        ValueError: names the tensor, what was expected and what came.
    """
    if tensors.keys() != wanted.keys():
        missing, unknown = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
        raise ValueError(f"expected the tensors of the model: missing {missing[:5]}, unknown {unknown[:5]}")
    for name, like in wanted.items():
        values = tensors[name]
        if values.dtype != like.dtype or values.shape != like.shape:
            raise ValueError(
                f"{name} must be {like.dtype} {tuple(like.shape)}, it is {values.dtype} {tuple(values.shape)}"
            )
        _check_magnitude(name, values)


def check_means(tensors: Mapping[str, Tensor], *, feature_dim: int, num_classes: int | None) -> None:
    """Refuse anything but labels (n,) int64, each once, and finite float32 means (n, D).

    Raises:
        ValueError: says what was expected and what came.
    """
    if tensors.keys() != {"labels", "means"}:
        raise ValueError(f"expected the tensors labels and means, got {', '.join(sorted(tensors)) or 'none'}")
    labels, means = tensors["labels"], tensors["means"]
    if labels.dtype != torch.int64 or labels.ndim != 1 or means.dtype != torch.float32:
        raise ValueError(f"labels must be int64 (n,) and means float32, they are {labels.dtype} and {means.dtype}")
    if means.shape != (len(labels), feature_dim):
        raise ValueError(f"means must be {(len(labels), feature_dim)}, they are {tuple(means.shape)}")
    if len(set(labels.tolist())) != len(labels) or (len(labels) and int(labels.min()) < 0):
        raise ValueError(f"labels must be >= 0 and each come once, they are {labels.tolist()[:20]}")
    _check_classes(labels, num_classes)
    _check_magnitude("means", means)


def check_bank(
    bank: GaussianPrototypes, *, feature_dim: int, num_classes: int | None, num_components: int, samples: int | None
) -> None:
    """Refuse anything but float32 prototypes that a site of the run could have fitted.

    Args:
        bank: a site's.
        feature_dim: D.
        num_classes: C; None where only the sites know.
        num_components: most of a class.
        samples: of the site where components count them, most that all together may stand for; None where the
            components of a class count as one sample.

    Raises:
        ValueError: says what was expected and what came.
    """
    for name, largest in (("counts", LARGEST), ("means", LARGEST_MEAN), ("variances", LARGEST)):
        values: Tensor = getattr(bank, name)
        if values.dtype != torch.float32:
            raise ValueError(f"{name} must be float32, they are {values.dtype}")
        _check_magnitude(name, values, largest)
    if bank.dim != feature_dim:
        raise ValueError(f"means must have {feature_dim} dimensions, these have {bank.dim}")
    _check_classes(bank.labels, num_classes)
    for label in bank.classes:
        counts = bank.counts[bank.labels == label]
        if len(counts) > num_components:
            raise ValueError(f"class {label} has {len(counts)} components, at most {num_components} were asked for")
        if samples is None and float(counts.sum()) > 1.001:
            raise ValueError(f"class {label} counts {float(counts.sum()):g} samples, without counts it is one")
    if samples is not None and float(bank.counts.sum()) > samples * 1.001:
        raise ValueError(f"components count {float(bank.counts.sum()):g} samples, the site has {samples}")


def _check_classes(labels: Tensor, num_classes: int | None) -> None:
    if num_classes is not None and len(labels) and int(labels.max()) >= num_classes:
        raise ValueError(f"labels must be below {num_classes}, the largest is {int(labels.max())}")


def _check_magnitude(name: str, values: Tensor, largest: float = LARGEST) -> None:
    found = float(values.abs().max()) if values.numel() else 0.0
    if not found <= largest:  # not a number is not
        raise ValueError(f"{name} must be finite and at most {largest:g}, the largest is {found:g}")
