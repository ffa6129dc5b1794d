"""The one value that travels between sites and server: a flat bank of Gaussian mixture components."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_KEYS = ("labels", "counts", "means", "variances")


@dataclass(frozen=True, eq=False)
class GaussianPrototypes:
    """Diagonal Gaussian components of all classes, one row a component.

    Class c is the mixture ``sum_k w_k N(means_k, diag(variances_k))`` over the rows labelled c, with the
    mixing weights ``w_k = counts_k / sum of counts of class c``: equation 4 of the GFPL paper. Rows need no
    order and classes may hold different numbers of components, so that sites are joined by concatenation
    alone.

    Args:
        labels: class of each row, shape (N,), int64, at least 0.
        counts: samples that each row stands for, shape (N,), above 0; fractions are allowed. Kept in the
            dtype of ``means``.
        means: shape (N, D), floating point, in units of the features.
        variances: shape (N, D), in squared units of the features, above 0; dtype of ``means``.

    Raises:
        ValueError: a field has the wrong type, dtype, shape or device, or a row holds a value that is not
            finite or out of range; the message names the row, its class and the value.

    Source: Lu et al., "GFPL" (arXiv 2602.21873), section 3.2 and equation 4. A bank without rows is legal and
    keeps its dimension.
    """

    labels: Tensor
    counts: Tensor
    means: Tensor
    variances: Tensor

    def __post_init__(self) -> None:
        for key in _KEYS:
            value: object = getattr(self, key)
            if not isinstance(value, Tensor):
                raise ValueError(f"{key} must be a torch.Tensor, got {type(value).__name__}")
        _check_layout(self.labels, self.counts, self.means, self.variances)
        object.__setattr__(self, "counts", self.counts.to(self.means.dtype))
        _check_rows(self.labels, self.counts, self.means, self.variances)

    def __len__(self) -> int:
        return self.labels.shape[0]

    def __repr__(self) -> str:
        return f"GaussianPrototypes(rows={len(self)}, dim={self.dim}, classes={self.classes})"

    @property
    def dim(self) -> int:
        """Dimension D of the features."""
        return self.means.shape[1]

    @property
    def classes(self) -> tuple[int, ...]:
        """Classes that have at least one row, in increasing order."""
        return tuple(torch.unique(self.labels).tolist())

    @property
    def weights(self) -> Tensor:
        """Mixing weight of each row inside its class, shape (N,), summing to 1 in each class."""
        _, group = torch.unique(self.labels, return_inverse=True)
        totals = torch.zeros_like(self.counts).index_add_(0, group, self.counts)
        return self.counts / totals[group]

    def of_class(self, label: int) -> GaussianPrototypes:
        """Return the rows of one class in their order; no rows if the bank does not hold the class."""
        return self.rows(self.labels == label)

    def rows(self, index: Tensor) -> GaussianPrototypes:
        """Return the rows that an index or a mask names."""
        return GaussianPrototypes(self.labels[index], self.counts[index], self.means[index], self.variances[index])

    def canonical(self) -> GaussianPrototypes:
        """Return the same rows by class, then decreasing count, then mean and variance by coordinate.

        Two banks that hold the same rows in different orders give the same tensors, bit for bit.
        """
        if len(self) < 2:
            return self
        key = torch.cat(
            [
                self.labels[:, None].to(torch.float64),
                -self.counts[:, None].double(),
                self.means,
                self.variances,
            ],
            dim=1,
        )
        # unique(dim=0) is torch's lexicographic sort; equal rows are interchangeable.
        _, rank = torch.unique(key, dim=0, return_inverse=True)
        return self.rows(rank.argsort(stable=True))

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> GaussianPrototypes:
        """Return the bank with its floating point fields in ``dtype`` and every field on ``device``."""
        floats = (self.counts, self.means, self.variances)
        counts, means, variances = (value.to(device=device, dtype=dtype) for value in floats)
        return GaussianPrototypes(self.labels.to(device=device), counts, means, variances)

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the four fields by name: what a site sends, and all that it sends."""
        return {key: getattr(self, key) for key in _KEYS}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> GaussianPrototypes:
        """Build a bank from the mapping that ``to_tensors`` gives.

        Args:
            tensors: exactly the keys ``labels``, ``counts``, ``means`` and ``variances``.

        Raises:
            ValueError: a key is missing or unknown, or the values are no valid bank.
        """
        if set(tensors) != set(_KEYS):
            missing, unknown = sorted(set(_KEYS) - set(tensors)), sorted(set(tensors) - set(_KEYS))
            raise ValueError(f"prototypes need exactly the keys {list(_KEYS)}: missing {missing}, unknown {unknown}")
        return cls(**tensors)

    @classmethod
    def empty(
        cls, dim: int, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> GaussianPrototypes:
        """Return a bank of dimension ``dim`` without rows, in torch's default dtype unless told otherwise."""
        if dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}")
        return cls(
            torch.empty(0, dtype=torch.int64, device=device),
            torch.empty(0, dtype=dtype, device=device),
            torch.empty(0, dim, dtype=dtype, device=device),
            torch.empty(0, dim, dtype=dtype, device=device),
        )

    @classmethod
    def concat(cls, banks: Sequence[GaussianPrototypes]) -> GaussianPrototypes:
        """Return the rows of all banks, in the order given.

        Args:
            banks: at least one bank, all of one dimension and on one device; mixed dtypes are promoted.

        Raises:
            ValueError: no bank, or banks of different dimensions.
        """
        if not banks:
            raise ValueError("concat needs at least one bank, got none (an empty bank keeps its dimension)")
        dims = sorted({bank.dim for bank in banks})
        if len(dims) > 1:
            raise ValueError(f"banks must share one dimension, got {dims}")
        return cls(*(torch.cat([getattr(bank, key) for bank in banks]) for key in _KEYS))


def _check_layout(labels: Tensor, counts: Tensor, means: Tensor, variances: Tensor) -> None:
    if means.ndim != 2 or means.shape[1] < 1:
        raise ValueError(f"means must have shape (N, D) with D >= 1, got {tuple(means.shape)}")
    if not means.is_floating_point():
        raise ValueError(f"means must be floating point, got {means.dtype}")
    rows = means.shape[0]
    for key, value, shape in (
        ("labels", labels, (rows,)),
        ("counts", counts, (rows,)),
        ("variances", variances, tuple(means.shape)),
    ):
        if tuple(value.shape) != shape:
            raise ValueError(f"{key} must have shape {shape} to match means, got {tuple(value.shape)}")
        if value.device != means.device:
            raise ValueError(f"{key} must be on {means.device} like means, got {value.device}")
    if labels.dtype != torch.int64:
        raise ValueError(f"labels must be int64, got {labels.dtype}")
    if counts.is_complex() or counts.dtype == torch.bool:
        raise ValueError(f"counts must be real numbers, got {counts.dtype}")
    if variances.dtype != means.dtype:
        raise ValueError(f"variances must have the dtype of means, {means.dtype}, got {variances.dtype}")


def _check_rows(labels: Tensor, counts: Tensor, means: Tensor, variances: Tensor) -> None:
    checks = (
        ("labels must be >= 0", labels, labels < 0),
        ("counts must be finite", counts, ~counts.isfinite()),
        ("counts must be > 0", counts, counts <= 0),
        ("means must be finite", means, ~means.isfinite()),
        ("variances must be finite", variances, ~variances.isfinite()),
        ("variances must be > 0", variances, variances <= 0),
    )
    # One transfer for the six answers: on an accelerator each would wait for the device.
    failed = torch.stack([bad.any() for _, _, bad in checks]).tolist()
    for (rule, value, bad), fails in zip(checks, failed, strict=True):
        if fails:
            row, *feature = bad.nonzero()[0].tolist()
            where = f"row {row}" if value is labels else f"row {row} (class {labels[row].item()})"
            at = f" at feature {feature[0]}" if feature else ""
            raise ValueError(f"{rule}, {where} has {value[(row, *feature)].item():.8g}{at}")
