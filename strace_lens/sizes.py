"""Functions of a curve over relative sizes: the grid of the paper, density, sizes needed.

Source: s-Trace (arXiv 2605.27033), sections "extraction" (the grid) and "measures".
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from strace_lens.measures import MASS_TOLERANCE

SIZES = (
    *(1e-5, 2e-5, 4e-5, 8e-5, 1e-4, 2e-4, 4e-4, 8e-4),
    *(1e-3, 1.2e-3, 1.4e-3, 2e-3, 3e-3, 4e-3, 6e-3, 8e-3),
    *(1e-2, 2e-2, 4e-2, 6e-2, 8e-2, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0),
)
"""The default grid: relative sizes at which a trace is measured."""

DENSITY_SIZES = tuple(float(s) for s in np.geomspace(1e-4, 0.8, 25))
"""Evenly spaced in the logarithm: the sizes over which estimators are compared by density."""

ESTIMATOR_SIZES = tuple(sorted({*DENSITY_SIZES, 0.01, 0.05, 0.1, 0.2, 0.4}))
"""The sizes at which estimators are compared: those of density, and round ones for tables."""

Curve = Float[Tensor, " size"] | Float[np.ndarray, " size"]
"""One value a size, by rising size."""

Holds = Bool[Tensor, " size"] | Bool[np.ndarray, " size"]
"""Whether a condition holds, by rising size."""


def density(sizes: Curve, tv: Curve) -> float:
    """Density of a prompt: area under TV over log10 s, over the range of log10 s; in [0, 1].

    The trapezoid rule between the measured sizes (s-Trace, arXiv 2605.27033).

    Args:
        sizes: relative sizes in (0, 1], strictly rising, at least two.
        tv: total variation at each size.

    Raises:
        ValueError: fewer than two sizes, sizes that do not rise or lie outside (0, 1], values of
            `tv` that are NaN or outside [0, 1], or unequal lengths.
    """
    s, y = check_sizes(sizes), _curve(tv, "tv", len(sizes))
    if len(s) < 2:
        raise ValueError(f"density needs at least two sizes; got {len(s)}")
    wrong = y[~((y >= -1e-6) & (y <= 1 + 1e-6))]
    if wrong.size:
        raise ValueError(f"tv must lie in [0, 1]; got {wrong[0]}")
    x = np.log10(s)
    return float(np.trapezoid(y, x) / (x[-1] - x[0]))


def smallest_size_from_which(sizes: Curve, holds: Holds) -> float:
    """Smallest size from which a condition holds at every larger size; nan if not at the largest.

    Args:
        sizes: relative sizes in (0, 1], strictly rising.
        holds: whether the condition holds at each size.

    Raises:
        ValueError: sizes that do not rise or lie outside (0, 1], `holds` that is not boolean, or
            unequal lengths.
    """
    s = check_sizes(sizes)
    flags = holds.cpu().numpy() if isinstance(holds, Tensor) else np.asarray(holds)
    if flags.dtype != np.bool_ or flags.shape != s.shape:
        raise ValueError(
            f"holds must be {len(s)} booleans, one a size; got {flags.dtype} of shape {flags.shape}"
        )
    failures = np.flatnonzero(~flags)
    first = int(failures[-1]) + 1 if failures.size else 0
    return float(s[first]) if first < len(s) else math.nan


def size_for_nucleus(sizes: Curve, nuclei: Curve, p: float) -> float:
    """Smallest size from which the shared nucleus is at least p at every larger size; else nan.

    Args:
        sizes: relative sizes in (0, 1], strictly rising.
        nuclei: `shared_nucleus` at each size.
        p: the level asked for, in (0, 1).

    Raises:
        ValueError: p outside (0, 1), NaN in `nuclei`, bad sizes, or unequal lengths.
    """
    if not 0 < p < 1:
        raise ValueError(f"p must lie in (0, 1); got {p}")
    levels = _curve(nuclei, "nuclei", len(sizes))
    if np.isnan(levels).any():
        raise ValueError("nuclei hold NaN; pass the values of shared_nucleus")
    return smallest_size_from_which(sizes, levels >= p - MASS_TOLERANCE)


def _curve(values: Curve, name: str, length: int | None = None) -> Float[np.ndarray, " size"]:
    array = np.asarray(
        values.detach().cpu().double().numpy() if isinstance(values, Tensor) else values,
        dtype=np.float64,
    )
    if array.ndim != 1 or (length is not None and len(array) != length):
        wanted = "one-dimensional" if length is None else f"{length} values, one a size"
        raise ValueError(f"{name} must be {wanted}; got shape {array.shape}")
    return array


def check_sizes(sizes: Curve) -> Float[np.ndarray, " size"]:
    """Relative sizes as a float64 array.

    Raises:
        ValueError: none at all, one outside (0, 1], or sizes that do not rise strictly.
    """
    s = _curve(sizes, "sizes")
    if s.size == 0:
        raise ValueError("sizes are empty; pass at least one")
    outside = s[~((s > 0) & (s <= 1))]  # NaN too
    if outside.size:
        raise ValueError(f"sizes must lie in (0, 1]; got {outside[0]}")
    falls = np.flatnonzero(np.diff(s) <= 0)
    if falls.size:
        raise ValueError(
            f"sizes must rise strictly; got {s[falls[0] + 1]} after {s[falls[0]]}; sort them"
        )
    return s
