"""Faithfulness of a ranking's circuits by size, with intervals over the pairs.

Intervals are bootstrapped: whole pairs are drawn with replacement, and faithfulness, the areas and
the edges for 85 % are recomputed from the means of each draw, including those of the full and the
empty circuit. Curves with the same number of pairs share their draws, so that two methods that were
evaluated on the same pairs can be compared draw by draw.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from strace_lens.measures.intervals import RESAMPLES, interval_text, percentiles, weights
from strace_lens.utils.html_repr import facts

FAITHFUL = 0.85
"""Faithfulness from which a circuit counts as faithful, for `edges_at_85`."""

NO_INTERVAL = (math.nan, math.nan)
"""The two ends of an interval that is not to be had."""

MEASURES = ("cpr", "cmd", "edges_at_85")
"""The single figures of a curve."""


class PairMetrics(NamedTuple):
    """The metric on each pair of the circuits that a curve was made of."""

    sizes: tuple[int, ...]  # rising, from 0 (the empty circuit) to all edges (the full one)
    metrics: tuple[tuple[float, ...], ...]  # one row a size, one metric a pair
    by_sign: tuple[tuple[float, ...], ...]  # one row a fraction; none where CPR has no own curve


class CurveDraws(NamedTuple):
    """What each draw of pairs makes of a curve; NaN where full and empty circuit do not differ."""

    values: Float[np.ndarray, "resample fraction"]
    cpr_values: Float[np.ndarray, "resample fraction"]
    cpr: Float[np.ndarray, " resample"]
    cmd: Float[np.ndarray, " resample"]
    edges_at_85: Float[np.ndarray, " resample"]


@dataclass(frozen=True)
class Faithfulness:
    """Faithfulness of a ranking's best edges, by how many are kept.

    Attributes:
        ranking: one of `RANKED_BY`.
        fractions: the fractions of all edges that were measured.
        edges: number of edges kept at each (nodes, if `level` is "node"), int(fraction * total) as
            in MIB; may be 0 on a tiny graph.
        values: faithfulness at each, with edges ranked by magnitude, or by sign if `ranking` is
            "signed".
        cpr_values: faithfulness at each, with edges ranked as for CPR: by sign if `ranking` is
            "mib", otherwise the same as `values`. Scores that are not effects have only one order.
        cpr: area under `cpr_values` (MIB's circuit performance ratio; higher is better).
        cmd: area of |1 - value| over `values` (MIB's circuit-model distance; lower is better).
        full: metric of the full circuit, the mean over pairs.
        empty: metric of the empty circuit; under resample that of the corrupted run.
        full_gap: largest difference, over pairs, between the full circuit and the unmodified model.
        edges_at_85: fewest edges from which `values` are at least 0.85 at every larger size that
            was measured, including those of the bisection (nodes, if `level` is "node").
        pairs: the metric of each circuit on each pair, from which intervals are drawn.
        level, selection, connected: how circuits were selected, as for `faithfulness`.
    """

    ranking: str
    fractions: tuple[float, ...]
    edges: tuple[int, ...]
    values: tuple[float, ...]
    cpr_values: tuple[float, ...]
    cpr: float
    cmd: float
    full: float
    empty: float
    full_gap: float
    edges_at_85: int
    pairs: PairMetrics
    level: str = "edge"
    selection: str = "top"
    connected: bool = False

    @functools.cached_property
    def draws(self) -> CurveDraws | None:
        """The curve of each bootstrap draw of pairs; None if `faithfulness_draws` has none."""
        return _curve_draws(self)

    def interval(self, measure: str) -> tuple[float, float]:
        """The 95 % percentile bootstrap interval, over pairs, of a measure of the curve.

        NaN for a single pair, and if the full and the empty circuit do not clearly differ (see
        `faithfulness_draws`). The interval of two pairs is little more than their range. The ends
        of that of `edges_at_85` are among the sizes that were measured.

        Args:
            measure: one of `MEASURES`.

        Raises:
            ValueError: an unknown measure.
        """
        if measure not in MEASURES:
            raise ValueError(f"unknown measure {measure!r}; choose from {', '.join(MEASURES)}")
        if self.draws is None:
            return NO_INTERVAL
        low, high = percentiles(getattr(self.draws, measure))
        return float(low), float(high)

    def to_pandas(self) -> pd.DataFrame:
        """One row per size: `fraction` of all edges, `edges` (or `nodes`), `faithfulness`.

        The column `faithfulness_by_sign` is added if CPR has a separate curve. The suffixes `_low`
        and `_high` mark the ends of a value's 95 % interval over pairs.
        """
        columns = {"fraction": self.fractions, f"{self.level}s": self.edges}
        columns |= self._columns("faithfulness", "values")
        if self.cpr_values != self.values:
            columns |= self._columns("faithfulness_by_sign", "cpr_values")
        return pd.DataFrame(columns)

    def _columns(self, name: str, values: str) -> dict[str, Any]:
        low, high = np.full((2, len(self.fractions)), np.nan)
        if self.draws is not None:
            low, high = percentiles(getattr(self.draws, values))
        return {name: getattr(self, values), f"{name}_low": low, f"{name}_high": high}

    def _repr_html_(self) -> str:
        cpr, cmd = (
            interval_text(getattr(self, name), *self.interval(name), "{:.3f}")
            for name in ("cpr", "cmd")
        )
        line = (
            f"Faithfulness: CPR {cpr}, CMD {cmd}; 85 % from "
            f"{self.edges_at_85:,} {self.level}s on; "
            f"metric from {self.empty:.3g} to {self.full:.3g}"
        )
        return facts(line, self.to_pandas())


def faithfulness_draws(
    circuits: Float[np.ndarray, "circuit pair"],
    full: Float[np.ndarray, " pair"],
    empty: Float[np.ndarray, " pair"],
) -> Float[np.ndarray, "resample circuit"] | None:
    """Faithfulness of circuits on each draw of pairs, normalised by that draw's full and empty.

    The draws are the same for any circuits of as many pairs.

    Args:
        circuits: the metric of each circuit on each pair.
        full: that of the full circuit.
        empty: that of the empty one.

    Returns:
        NaN in a draw in which full and empty have the same mean. None for fewer than two pairs, and
        where the 95 % interval of the mean of full less empty holds 0: a quotient by what may be
        zero or of either sign has no bounds.
    """
    if len(full) < 2:
        return None
    drawn = weights(len(full), RESAMPLES, seed=0)
    between = drawn @ (full - empty)
    low, high = percentiles(between)
    if low <= 0 <= high:
        return None
    between[between == 0] = np.nan
    return (drawn @ (circuits - empty).T) / between[:, None]


def areas(
    fractions: Sequence[float],
    values: Sequence[float] | Float[np.ndarray, "*resample fraction"],
) -> tuple[Float[np.ndarray, "*resample"], Float[np.ndarray, "*resample"]]:
    """CPR and CMD of a curve: the areas under it and between it and 1, by the trapezoid rule."""
    distance = np.abs(1 - np.asarray(values))
    cpr, cmd = (np.trapezoid(y, fractions) for y in (values, distance))
    return np.asarray(cpr), np.asarray(cmd)


def better(measure: str, low: float, high: float) -> bool:
    """Whether the interval of a difference in CPR or CMD lies wholly on the better side of 0."""
    return low > 0 if measure == "cpr" else high < 0


def difference(measure: str, one: Faithfulness, other: Faithfulness) -> tuple[float, float]:
    """The 95 % interval over pairs of a measure of one curve less that of another, paired.

    Both are worked out on each draw of pairs, so that what a pair does to both cancels. NaN where a
    curve has no interval.

    Args:
        measure: "cpr" or "cmd".
        one: a curve.
        other: of the same pairs.

    Raises:
        ValueError: curves of other numbers of pairs.
    """
    counts = [len(curve.pairs.metrics[0]) for curve in (one, other)]
    if counts[0] != counts[1]:
        raise ValueError(
            f"curves of {counts[0]} and {counts[1]} pairs cannot be compared pair by pair; "
            "evaluate both on the same pairs"
        )
    if one.draws is None or other.draws is None:
        return NO_INTERVAL
    low, high = percentiles(getattr(one.draws, measure) - getattr(other.draws, measure))
    return float(low), float(high)


def _curve_draws(curve: Faithfulness) -> CurveDraws | None:
    sizes = np.array(curve.pairs.sizes)
    metrics = np.array(curve.pairs.metrics)
    by_sign = np.array(curve.pairs.by_sign).reshape(-1, metrics.shape[1])
    drawn = faithfulness_draws(np.concatenate([metrics, by_sign]), metrics[-1], metrics[0])
    if drawn is None:
        return None
    measured, by_sign = drawn[:, : len(sizes)], drawn[:, len(sizes) :]
    values = measured[:, np.searchsorted(sizes, curve.edges)]
    cpr_values = by_sign if by_sign.shape[1] else values
    # Above the last size that is not faithful; at the largest, the full circuit, all are.
    fails = ~(measured >= FAITHFUL)
    first = len(sizes) - np.argmax(fails[:, ::-1], axis=1)
    edges = np.append(sizes, 0)[first].astype(np.float64)
    edges[np.isnan(measured).any(1)] = np.nan
    return CurveDraws(
        values=values,
        cpr_values=cpr_values,
        cpr=areas(curve.fractions, cpr_values)[0],
        cmd=areas(curve.fractions, values)[1],
        edges_at_85=edges,
    )
