"""Prototypes in fewer bytes: the forms in which a bank may travel, and the error that each of them makes.

=========  ================================================  ============  ====================================
precision  means (N, D) and variances (N, D) travel as       bytes a row   error of a mean; of a log-variance
=========  ================================================  ============  ====================================
float32    themselves                                        8 D + 12      none; none
float16    float16 of the mean and of the log-variance       4 D + 5       2^-11 of itself; 2^-11 of itself
int8       int8 codes of the two, with a scale for each row  2 D + 21      half a step; half a step
=========  ================================================  ============  ====================================

A step is the range of the row's means, or of its log-variances, over 254. An error e of the log-variance is a factor
exp(e) of the variance. A mean below 2^-14 loses at most 2^-25 in float16, where numbers of that size are no longer
rounded to a share of themselves.

Variances travel as logarithms: features of one bank have variances that lie seven orders of magnitude apart, and it
is their ratio that a distance, a likelihood or a sample depends on.
Counts stay float32, so that no sample is lost in the fusion; labels take the smallest integer that holds them. One
array a field, one row a component, whatever classes there are.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from gfpl_flwr.core.prototypes import GaussianPrototypes

PRECISIONS: Mapping[str, tuple[str, ...]] = {
    "float32": ("labels", "counts", "means", "variances"),
    "float16": ("labels", "counts", "means", "log_variances"),
    "int8": ("labels", "counts", "means", "log_variances", "scales"),
}
"""Every form and the arrays that it consists of."""

LABEL_DTYPES = (torch.uint8, torch.int32, torch.int64)
LOG_VARIANCE_RANGE = (-87.0, 88.0)
"""Smallest and largest log-variance that travels: float32 ends where exp of them does."""

LEVELS = 254
"""Steps between the smallest and the largest value of a row; rounding both ends can take one of 255 away."""

FINEST_STEP = 2.0**-14
"""Smallest step as a share of a row's largest magnitude; it bounds the zero point of rows that hardly vary."""

LARGEST_ZERO = 2**15
SMALLEST_STEP = torch.finfo(torch.float32).tiny


def compress(bank: GaussianPrototypes, precision: str) -> dict[str, Tensor]:
    """Return the arrays in which a bank travels.

    Args:
        bank: of N rows and dimension D.
        precision: one of :data:`PRECISIONS`. ``"float32"`` is the bank itself, bit for bit.

    Returns:
        ``float32``: the four fields. ``float16``: labels (N,), counts (N,) float32, means and log_variances (N, D)
        float16. ``int8``: the same with means and log_variances int8, and scales (N, 4) float32: step and zero
        point of the means, step and zero point of the log-variances; a value is ``(code - zero) * step``.

    Raises:
        ValueError: an unknown precision, or a mean that is out of the range of float16.
    """
    keys = keys_of(precision)
    if precision == "float32":
        return bank.to_tensors()
    means, logs = bank.means.double(), bank.variances.double().log().clamp(*LOG_VARIANCE_RANGE)
    fields = {"labels": _smallest(bank.labels), "counts": bank.counts.float()}
    if precision == "float16":
        fields |= {"means": means.half(), "log_variances": logs.half()}
        _check_rows("means must be within ±65504 to travel as float16", fields["means"].isfinite(), bank.means)
    else:
        fields["means"], *of_means = _quantise(means)
        fields["log_variances"], *of_logs = _quantise(logs)
        fields["scales"] = torch.stack([*of_means, *of_logs], dim=1).float()
    return {key: fields[key] for key in keys}


def decompress(tensors: Mapping[str, Tensor], precision: str) -> GaussianPrototypes:
    """Return the bank that came in a given form; whatever a stranger sends, a sound bank or an error.

    Args:
        tensors: what :func:`compress` returned.
        precision: the form that was agreed upon; no other is accepted.

    Returns:
        The bank, in float32 unless it travelled uncompressed.

    Raises:
        ValueError: a key is missing or unknown, an array has another dtype or shape than the form asks for, or the
            values are no valid bank: a step that is not positive, a variance too small or large for float32.
    """
    keys = keys_of(precision)
    if precision == "float32":
        return GaussianPrototypes.from_tensors(tensors)
    if set(tensors) != set(keys):
        missing, unknown = sorted(set(keys) - set(tensors)), sorted(set(tensors) - set(keys))
        raise ValueError(f"prototypes in {precision} need exactly {list(keys)}: missing {missing}, unknown {unknown}")
    _check_layout(tensors, torch.float16 if precision == "float16" else torch.int8)
    means, logs = tensors["means"].float(), tensors["log_variances"].float()
    if precision == "int8":
        scales = tensors["scales"]
        _check_scales(scales)
        means = (means - scales[:, 1:2]) * scales[:, 0:1]
        logs = (logs - scales[:, 3:4]) * scales[:, 2:3]
    return GaussianPrototypes(tensors["labels"].long(), tensors["counts"], means, logs.exp())


def keys_of(precision: str) -> tuple[str, ...]:
    """Return the names of the arrays of a form.

    Raises:
        ValueError: there is no such form.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    return PRECISIONS[precision]


def _smallest(labels: Tensor) -> Tensor:
    largest = int(labels.max()) if len(labels) else 0
    return labels.to(next(dtype for dtype in LABEL_DTYPES if largest <= torch.iinfo(dtype).max))


def _quantise(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return int8 codes (N, D), step (N,) and zero point (N,), so that values are about ``(codes - zero) * step``.

    The zero point is an integer, so that 0 is a code wherever a row reaches it: the units that ReLU switched off
    for a whole component come back as exact zeros. The error is at most half a step, where the step is the range
    of the row over 254, or 2^-14 of its largest magnitude if that is more.
    """
    low, high = values.amin(1), values.amax(1)
    finest = FINEST_STEP * torch.maximum(-low, high)
    step = torch.maximum((high - low) / LEVELS, finest).clamp(min=SMALLEST_STEP).float().double()
    first = (low / step).round()  # the number of steps from 0 to the lowest code, -128
    codes = (values / step[:, None]).round() - first[:, None] - 128
    return codes.to(torch.int8), step, -128 - first


def _check_layout(tensors: Mapping[str, Tensor], packed: torch.dtype) -> None:
    means = tensors["means"]
    if means.ndim != 2 or means.shape[1] < 1:
        raise ValueError(f"means must have shape (N, D) with D >= 1, got {tuple(means.shape)}")
    rows = means.shape[0]
    expected = {
        "labels": (LABEL_DTYPES, (rows,)),
        "counts": ((torch.float32,), (rows,)),
        "means": ((packed,), tuple(means.shape)),
        "log_variances": ((packed,), tuple(means.shape)),
        "scales": ((torch.float32,), (rows, 4)),
    }
    for key, value in tensors.items():
        dtypes, shape = expected[key]
        if value.dtype not in dtypes:
            raise ValueError(f"{key} must be {' or '.join(map(str, dtypes))}, they are {value.dtype}")
        if tuple(value.shape) != shape:
            raise ValueError(f"{key} must have shape {shape} to match means, got {tuple(value.shape)}")


def _check_scales(scales: Tensor) -> None:
    steps, zeros = scales[:, 0::2], scales[:, 1::2]
    _check_rows("scales must be finite", scales.isfinite(), scales)
    _check_rows("steps in scales must be > 0", steps > 0, steps)
    whole = (zeros == zeros.round()) & (zeros.abs() <= LARGEST_ZERO)
    _check_rows(f"zero points in scales must be integers within ±{LARGEST_ZERO}", whole, zeros)


def _check_rows(rule: str, holds: Tensor, values: Tensor) -> None:
    if not bool(holds.all()):
        row, column = (~holds).nonzero()[0].tolist()
        raise ValueError(f"{rule}, row {row} has {values[row, column].item():.8g}")
