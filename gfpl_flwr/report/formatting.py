"""Numbers as text: bytes, seconds and accuracies with a precision that fits their size."""

import math

NOTHING = "–"


def human_bytes(count: int | float) -> str:
    """Write a number of bytes with three significant digits and an SI unit (1 kB = 1000 bytes).

    Args:
        count: bytes, at least 0.

    Returns:
        For example ``0 B``, ``999 B``, ``1.23 MB``, ``140 kB``.
    """
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    if value < 999.5:
        return f"{value:.0f} B"
    # 999.6 kB has to become 1.00 MB and not 1000 kB, hence the rounded comparison.
    while value >= 999.5 and len(units) > 1:
        value /= 1000
        units.pop(0)
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f} {units[0]}"


def human_seconds(seconds: float) -> str:
    """Write a duration in seconds with a precision that fits its size: ``0.42``, ``8.1``, ``1204``."""
    return f"{seconds:.2f}" if seconds < 1 else f"{seconds:.1f}" if seconds < 100 else f"{seconds:.0f}"


def percent(mean: float, std: float | None = None) -> str:
    """Write a fraction in percent with two decimals, and ``± std`` when it is given; a dash for NaN."""
    if math.isnan(mean):
        return NOTHING
    return f"{100 * mean:.2f}" if std is None else f"{100 * mean:.2f} ± {100 * std:.2f}"
