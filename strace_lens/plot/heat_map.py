"""Heat maps of a column of a table: by size and layer, by head and layer, or by two sizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float

from strace_lens.plot.style import SCALE, cell_bounds, percent


def add_heat(
    fig: go.Figure,
    rows: pd.DataFrame,
    column: str,
    hover: Callable[[dict[Any, Any]], str],
    drawn: Callable[[np.ndarray], np.ndarray] = lambda values: values,
    *,
    across: str = "size",
    up: str = "layer",
    row: int | None = None,
    col: int | None = None,
    **look: Any,
) -> None:
    """A column of a table as a heat map, by size and layer, by head and layer, or by two sizes.

    Cells of sizes meet half way between them on a logarithmic axis; layers and heads, counted from
    0, have cells of one size, blank where the table has none.

    Args:
        fig: to draw into.
        rows: a row a cell.
        column: its value.
        hover: a row to its hover text.
        drawn: values to what is coloured; NaN is left blank.
        across: column along x, a size or "head".
        up: column along y, a size or "layer".
        row: of the panel.
        col: of the panel.
        look: of the heat map: its colours.
    """
    said = rows.assign(_said=[hover(r) for r in rows.to_dict("records")])
    values, texts = (said.pivot(index=up, columns=across, values=of) for of in (column, "_said"))
    values, texts = (_in_order(_in_order(of, up, 0), across, 1) for of in (values, texts))
    place: dict[str, Any] = {} if row is None else {"row": row, "col": col}
    fig.add_heatmap(
        x=_bounds(values.columns, across),
        y=_bounds(values.index, up),
        z=drawn(values.to_numpy(dtype=np.float64)),
        hoverinfo="text",
        text=texts.astype(object).where(texts.notna(), "").to_numpy().tolist(),
        **look,
        **place,
    )
    fig.update_xaxes(_cell_axis(values.columns, across), **place)
    fig.update_yaxes(_cell_axis(values.index, up), **place)


_COUNTED = ("layer", "head")


def _in_order(table: pd.DataFrame, name: str, axis: Literal[0, 1]) -> pd.DataFrame:
    """With every layer or head up to the last along an axis that counts them."""
    if name not in _COUNTED:
        return table
    labels = table.axes[axis]
    return table.reindex(range(int(labels.to_numpy().max()) + 1), axis=axis)


def _bounds(labels: pd.Index, name: str) -> list[int] | Float[np.ndarray, " bound"]:
    if name in _COUNTED:
        return labels.tolist()
    return cell_bounds(labels.to_numpy(dtype=np.float64))


def _cell_axis(labels: pd.Index, name: str) -> dict[str, Any]:
    """How an axis of cells looks."""
    if name not in _COUNTED:
        return {"showgrid": False}
    last = int(labels.to_numpy().max())
    # Few layers would get ticks between them, with the labels of their neighbours.
    ticks = {"tick0": 0, "dtick": 1} if last < 8 else {}
    return {"showgrid": False, "range": [-0.5, last + 0.5], "tickformat": "d", **ticks}


def log_shares(shares: Float[np.ndarray, "row column"]) -> Float[np.ndarray, "row column"]:
    """Logarithms of shares to base ten; NaN, which a heat map leaves blank, for none."""
    return np.log10(shares, out=np.full_like(shares, np.nan), where=shares > 0)


def share_colours(lowest: float | int, cut: bool = False) -> dict[str, Any]:
    """The axis of colours of `log_shares`, with the ticks of its bar.

    Args:
        lowest: logarithm of the share at which the colours start.
        cut: whether lower shares have the first colour too, which the bar then says.
    """
    ticks = list(range(math.ceil(lowest), 1))
    texts = [("≤ " if cut and t == ticks[0] else "") + percent(10.0**t) for t in ticks]
    bar = {"title": {"text": "share of<br>the layer"}, "tickvals": ticks, "ticktext": texts}
    return {"colorscale": SCALE, "cmin": lowest, "cmax": 0, "colorbar": bar}
