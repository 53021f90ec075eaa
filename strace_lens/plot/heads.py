"""Heads of a model as a grid of layers by heads, coloured by any column of a table of heads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from strace_lens.plot.charts import empty
from strace_lens.plot.heat_map import add_heat
from strace_lens.plot.style import DIVERGING, SCALE, figure, remark, text_of

USUAL = ("effect", "contribution", "score", "edges")
"""Columns drawn unless one is named: the first of them that a table has."""

_SIDE = 22  # pixels of a cell
_PLACE = ("layer", "head")


def plot_heads(
    table: pd.DataFrame, column: str | None = None, *, title: str | None = None
) -> go.Figure:
    """Draw one column of a table of heads, layer by head.

    A column with negative values is coloured from orange (below zero) through pale grey to blue
    (above), symmetrically; any other from pale (zero) to dark. A head without a value is blank. A
    head's hover text is its row of the table.

    Args:
        table: a table with columns `layer` and `head`, counted from 0, and at most one row per
            head: from `heads()` of a trace, subgraph, circuit or scores; from `sl.ablate`,
            `sl.activation_patch` or `sl.path_patch` of "head"; or from `sl.logit_attribution`. Rows
            that belong to no single head are left out, and the figure says how many.
        column: the numeric column to draw; by default the first of `effect`, `contribution`,
            `score` and `edges` that the table has.
        title: title of the figure, as text; by default the column's name.

    Raises:
        ValueError: the table lacks a column, the column is not numeric or holds infinity, or a
            head has several rows.

    Example:
        >>> fig = sl.plot_heads(trace.heads(0.02), "share_of_importance")
    """
    column = _column_of(table, column)
    heads = _checked(table, column)
    label = column.replace("_", " ")
    title = text_of(f"{label[:1].upper()}{label[1:]} by head" if title is None else title)
    if heads.empty:
        return empty(title)
    layers = int(heads["layer"].to_numpy().max()) + 1
    fig = figure(title, height=max(300, min(760, _SIDE * layers + 150)))
    bar = {"title": {"text": text_of(column).replace("_", "<br>")}, "thickness": 14}
    look = _look(heads[column].to_numpy())
    add_heat(fig, heads, column, _hover, across="head", xgap=1, ygap=1, colorbar=bar, **look)
    fig.update_xaxes(title_text="head").update_yaxes(title_text="layer")
    left_out = len(table) - len(heads)
    if left_out:
        remark(fig, f"{left_out} row{'s' * (left_out != 1)} of no single head left out")
    return fig


def _column_of(table: pd.DataFrame, column: str | None) -> str:
    """The column to draw.

    Raises:
        ValueError: the table lacks it, or does not place its rows.
    """
    listed = ", ".join(map(str, table.columns)) or "none"
    missing = [name for name in _PLACE if name not in table]
    if missing:
        raise ValueError(
            f"a table of heads has the columns layer and head; this one lacks "
            f"{' and '.join(missing)}, it has {listed}"
        )
    if column is None:
        column = next((name for name in USUAL if name in table), None)
        if column is None:
            raise ValueError(f"name the column to draw; this table has {listed}")
    if column not in table:
        raise ValueError(f"no column {column!r} to draw; this table has {listed}")
    return column


def _checked(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """The rows of single heads, with plain numbers.

    Raises:
        ValueError: the values are no numbers, or infinite; a head has several rows; a place is no
            whole number from 0.
    """
    heads = table.loc[table["layer"].notna() & table["head"].notna()]
    if not pd.api.types.is_numeric_dtype(table[column]):
        raise ValueError(f"column {column!r} holds no numbers: {table[column].dtype}")
    values = heads[column].to_numpy(dtype=np.float64, na_value=np.nan)
    if np.isinf(values).any():
        raise ValueError(
            f"column {column!r} holds {values[np.isinf(values)][0]}, which has no colour"
        )
    places = heads[list(_PLACE)].to_numpy(dtype=np.float64)
    wrong = (places < 0) | (places != np.floor(places))
    if wrong.any():
        raise ValueError(f"layers and heads are counted from 0; got {places[wrong][0]:g}")
    several = heads.duplicated(list(_PLACE), keep=False)
    if several.any():
        layer, head = heads.loc[several, list(_PLACE)].iloc[0]
        count = int((heads["layer"].eq(layer) & heads["head"].eq(head)).sum())
        raise ValueError(
            f"head a{layer:.0f}.h{head:.0f} has {count} rows; keep one, as of a single position or "
            "input, or sum them"
        )
    return heads.assign(**{column: values} | {place: heads[place].astype(int) for place in _PLACE})


def _hover(row: dict[Any, Any]) -> str:
    """The head's name and all that the table says of it."""
    name = str(row.get("name", f"a{row['layer']}.h{row['head']}"))
    said = {key: value for key, value in row.items() if key not in (*_PLACE, "name")}
    lines = [f"{key}: {_said(value)}" for key, value in said.items() if not pd.isna(value)]
    return "<br>".join([f"<b>{text_of(name)}</b>", *map(text_of, lines)]).replace("_", " ")


def _said(value: Any) -> str:
    if isinstance(value, str | bool | np.bool_):
        return str(value)
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"


def _look(values: np.ndarray) -> dict[str, Any]:
    """Colours, and the values at which they end."""
    known = values[~np.isnan(values)]
    most = float(np.abs(known).max()) if len(known) else 0.0
    most = most or 1.0  # a grid of zeros has the palest colour
    if len(known) and known.min() < 0:
        return {"colorscale": DIVERGING, "zmin": -most, "zmax": most}
    return {"colorscale": SCALE, "zmin": 0, "zmax": most}
