"""Simplex equiangular tight frame: the fixed, equally spread class directions of the ETF classifier."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def simplex_etf(num_classes: int, dim: int, *, generator: torch.Generator) -> Tensor:
    """Return a randomly oriented simplex equiangular tight frame.

    Equations 2 and 10 of the GFPL paper, ``V = sqrt(C / (C - 1)) U (I - 1 1^T / C)`` with ``U^T U = I``,
    whose columns satisfy equation 3: ``v_i . v_j = C / (C - 1) [i = j] - 1 / (C - 1)``. U comes from the QR
    decomposition of a seeded normal matrix (equation 9). That needs ``dim >= C``, but the frame spans only C
    - 1 directions; for ``dim = C - 1`` the same frame is written in an orthonormal basis of the eigenvectors
    of the centring matrix, turned by a seeded rotation.

    DEPARTURE: the normal distribution instead of the uniform one of public implementations. With the diagonal of
    the triangular factor made positive, U is then uniform over all orientations, and does not depend on the sign
    convention of the linear algebra library.

    Args:
        num_classes: C, at least 2.
        dim: P, at least C - 1.
        generator: source of the orientation.

    Returns:
        Unit columns, one a class, shape (P, C), in torch's default dtype (computed in float64), on the device
        of the generator.

    Raises:
        ValueError: fewer than 2 classes, or ``dim < C - 1``, in which no such frame exists.

    Source: Papyan et al., "Prevalence of neural collapse" (2020); Lu et al., "GFPL", equations 2, 3, 9 and 10.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}")
    if dim < num_classes - 1:
        raise ValueError(f"a simplex ETF of {num_classes} classes needs dim >= {num_classes - 1}, got dim = {dim}")
    scale = math.sqrt(num_classes / (num_classes - 1))
    if dim >= num_classes:
        frame = _orthonormal(dim, num_classes, generator)
        frame = scale * (frame - frame.mean(dim=1, keepdim=True))
    else:
        frame = scale * _orthonormal(dim, dim, generator) @ _centring_eigenvectors(num_classes, generator)
    return frame.to(torch.get_default_dtype())


def _orthonormal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    normal = torch.randn(rows, columns, generator=generator, device=generator.device, dtype=torch.float64)
    basis, triangle = torch.linalg.qr(normal)
    return torch.mul(basis, triangle.diagonal().sign())


def _centring_eigenvectors(num_classes: int, generator: torch.Generator) -> Tensor:
    """Orthonormal rows orthogonal to the ones vector, shape (C - 1, C): Helmert's closed form."""
    row = torch.arange(1, num_classes, device=generator.device, dtype=torch.float64)[:, None]
    column = torch.arange(num_classes, device=generator.device, dtype=torch.float64)
    helmert = (column < row).double() - row * (column == row)
    return helmert / (row * (row + 1)).sqrt()
