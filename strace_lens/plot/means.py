"""How the means of estimators over prompts are drawn: lines over bands, each in its look."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from strace_lens.measures.intervals import interval_text
from strace_lens.plot.charts import add_band
from strace_lens.plot.style import ESTIMATOR_COLOURS, ESTIMATOR_DASHES


def names_of(rows: pd.DataFrame) -> list[str]:
    """The estimators of some rows, in the order in which they come.

    Raises:
        ValueError: there are none.
    """
    names = rows["estimator"].unique().tolist()
    if not names:
        raise ValueError("there is no estimator to draw: the trial has no rows")
    return names


def by_estimator(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The rows of each estimator, in the order of `names_of`."""
    names_of(rows)
    for name, own in rows.groupby("estimator", sort=False):
        yield str(name), own


def line_of(estimator: str) -> dict[str, object]:
    """How an estimator's line looks."""
    return {
        "color": ESTIMATOR_COLOURS[estimator],
        "dash": ESTIMATOR_DASHES[estimator],
        "width": 2.5,
    }


def add_line(
    fig: go.Figure,
    estimator: str,
    curve: pd.DataFrame,
    what: str,
    row: int = 1,
    col: int = 1,
    showlegend: bool = True,
) -> None:
    """A mean curve (of `mean_curve`) in its estimator's colours, over the band of its interval."""
    place = {"row": row, "col": col, "legendgroup": estimator}
    add_band(fig, curve, ESTIMATOR_COLOURS[estimator], **place)
    fig.add_scatter(
        x=curve["size"],
        y=curve["mean"],
        name=estimator,
        showlegend=showlegend,
        mode="lines",
        line=line_of(estimator),
        hoverinfo="text",
        hovertext=curve_texts(curve, f"<b>{estimator}</b>, ", what),
        **place,
    )


def curve_texts(curve: pd.DataFrame, start: str, what: str) -> list[str]:
    """Hover texts of a mean curve."""
    return [
        f"{start}s = {size:.4g}<br>{what} {interval_text(*of)}"
        for size, *of in curve[["size", "mean", "low", "high"]].itertuples(index=False)
    ]


def quantity_of(table: pd.DataFrame, estimator: str, quantity: str) -> dict[str, Any]:
    """The row of a `phase_table` that holds one quantity of an estimator."""
    (row,) = table.query("estimator == @estimator and quantity == @quantity").to_dict("records")
    return row
