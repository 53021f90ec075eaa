"""A panel for each estimator, on shared axes: errors, kinds of edges and layers by size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from strace_lens.measures.intervals import mean_curve
from strace_lens.plot.charts import ABOVE, add_band
from strace_lens.plot.means import by_estimator, curve_texts, names_of, quantity_of
from strace_lens.plot.style import (
    BANDS,
    COLOURS,
    INK,
    LABELS,
    PARTS,
    SCALE,
    cell_bounds,
    dressed,
    measured_axis,
    percent,
)
from strace_lens.token_graph.edges import KINDS

_DECADES = 4  # of the colours of the layers


def plot_errors(runs: pd.DataFrame, table: pd.DataFrame) -> go.Figure:
    """Head and tail error by size, a panel an estimator; the mean construction phase as a band.

    A line is the mean over prompts, its band the 95 % bootstrap interval.

    Args:
        runs: of `Trials`.
        table: of `phase_table`.
    """
    own = runs.query("role == 'own'")
    names = names_of(own)
    highest = 0.0
    fig = _panels(names, "Head and tail error by size", "error: its part of the TV")
    for (name, rows), place in zip(by_estimator(own), _places(names), strict=True):
        for part in ("head", "tail"):
            curve = mean_curve(rows, f"{part}_error")
            highest = max(highest, curve[["mean", "high"]].max(axis=None))
            add_band(fig, curve, COLOURS[part], legendgroup=part, **place)
            fig.add_scatter(
                x=curve["size"],
                y=curve["mean"],
                name=f"{part} error",
                legendgroup=part,
                showlegend=place == {"row": 1, "col": 1},
                mode="lines",
                line={"color": COLOURS[part], "dash": PARTS[part][0], "width": 2.5},
                hoverinfo="text",
                hovertext=curve_texts(curve, f"<b>{name}</b>, ", f"{part} error"),
                **place,
            )
        _add_construction(fig, name, table, place)
    fig.update_xaxes(measured_axis(runs["size"].to_numpy()))
    return fig.update_yaxes(range=[-0.02, 1.05 * highest])


def _add_construction(
    fig: go.Figure, name: str, table: pd.DataFrame, place: dict[str, Any]
) -> None:
    start, stop = (quantity_of(table, name, f"construction_{end}") for end in ("start", "stop"))
    if not np.isnan(start["mean"]):
        fig.add_vrect(
            x0=start["mean"],
            x1=stop["mean"],
            fillcolor=BANDS["construction"],
            line={"width": 0},
            layer="below",
            **place,
        )


def plot_mean_kinds(runs: pd.DataFrame) -> go.Figure:
    """Share of residual, attention and MLP edges by size, a panel an estimator; means over prompts.

    Sizes at which some prompt's trace has no edge are left out.

    Args:
        runs: of `Trials`.
    """
    own = runs.query("role == 'own'")
    names = names_of(own)
    fig = _panels(names, "Composition by kind of edge", "share of the trace's edges")
    for (name, rows), place in zip(by_estimator(own), _places(names), strict=True):
        some = rows.groupby("size").filter(lambda at: at[list(KINDS)].notna().all(axis=None))
        for kind in KINDS:
            curve = mean_curve(some, kind)
            fig.add_scatter(
                x=curve["size"],
                y=curve["mean"],
                name=LABELS[kind],
                legendgroup=kind,
                showlegend=place == {"row": 1, "col": 1},
                stackgroup=name,
                mode="lines",
                line={"color": COLOURS[kind], "width": 1},
                hoverinfo="text",
                hovertext=curve_texts(curve, f"<b>{name}</b>, ", f"{LABELS[kind]} share"),
                **place,
            )
    fig.update_xaxes(measured_axis(runs["size"].to_numpy()))
    return fig.update_yaxes(range=[0, 1], tickformat=".0%")


def plot_mean_layers(layers: pd.DataFrame, table: pd.DataFrame) -> go.Figure:
    """Phase diagram, layer by size, a panel an estimator: share of a layer's edges in the trace.

    Means over prompts in logarithmic colours, one scale for all, blank where no prompt's trace has
    an edge. Lines stand at the geometric means of where the head subgraph is complete (solid) and
    the tail refined (dashed), over the prompts in which they are.

    Args:
        layers: of `TrialPhases`.
        table: of `phase_table`.
    """
    names = names_of(layers)
    fig = _panels(names, "Layer phases: share of a layer's edges by size", "layer")
    share = layers[list(KINDS)].sum(axis=1) / layers["reachable"]
    shares = by_estimator(layers.assign(share=share))
    for (name, rows), place in zip(shares, _places(names), strict=True):
        wide = rows.pivot_table(index="layer", columns="size", values="share")
        _add_heat(fig, name, wide, place)
        for part in ("head", "tail"):
            at = quantity_of(table, name, f"{part}_size")["mean"]
            if not np.isnan(at):
                for line in ({"color": "white", "width": 5}, _ink_line(part)):
                    fig.add_vline(x=at, line=line, **place)
    ticks = list(range(-_DECADES, 1))
    fig.update_layout(
        showlegend=False,
        margin={"t": 76},
        coloraxis={
            "colorscale": SCALE,
            "cmin": -_DECADES,
            "cmax": 0,
            "colorbar": {
                "title": {"text": "share of<br>the layer"},
                "thickness": 14,
                "tickvals": ticks,
                "ticktext": [("≤ " if t == ticks[0] else "") + percent(10.0**t) for t in ticks],
            },
        },
    )
    fig.update_xaxes(measured_axis(layers["size"].to_numpy()), showgrid=False)
    last = int(layers["layer"].to_numpy().max())
    return fig.update_yaxes(range=[-0.5, last + 0.5], tickformat="d", showgrid=False)


def _add_heat(fig: go.Figure, name: str, wide: pd.DataFrame, place: dict[str, Any]) -> None:
    shares = wide.to_numpy()
    with np.errstate(divide="ignore"):
        logs = np.where(shares > 0, np.log10(shares), np.nan)
    sizes = wide.columns.to_numpy(dtype=np.float64)
    fig.add_heatmap(
        x=cell_bounds(sizes),
        y=wide.index.tolist(),
        z=logs,
        name=name,
        coloraxis="coloraxis",
        hoverinfo="text",
        text=[
            [
                f"<b>{name}</b>, s = {size:.4g}<br>layer {layer}: {percent(share)} of its edges"
                for size, share in zip(sizes, row, strict=True)
            ]
            for layer, row in zip(wide.index, shares, strict=True)
        ],
        **place,
    )


def _ink_line(part: str) -> dict[str, object]:
    return {"color": INK, "width": 2, "dash": PARTS[part][0]}


def _panels(names: Sequence[str], title: str, y_title: str) -> go.Figure:
    columns = _columns(names)
    rows = -(-len(names) // columns)
    fig = make_subplots(
        rows=rows,
        cols=columns,
        shared_xaxes=True,
        shared_yaxes=True,
        subplot_titles=[f"<b>{name}</b>" for name in names],
        x_title="relative size s (log)",
        y_title=y_title,
        horizontal_spacing=0.03,
        vertical_spacing=0.24 / rows,
    )
    fig.update_annotations({"xshift": -56}, {"text": y_title})
    return dressed(
        fig,
        title,
        height=260 * rows + 150,
        margin={"t": 100, "b": 70, "l": 90},
        legend={**ABOVE, "y": 1 + 0.14 / rows, "traceorder": "normal"},
    ).update_xaxes(showticklabels=True)


def _columns(names: Sequence[str]) -> int:
    return 2 if len(names) in (2, 4) else min(3, len(names))


def _places(names: Sequence[str]) -> list[dict[str, Any]]:
    """Row and column of each panel."""
    columns = _columns(names)
    return [{"row": i // columns + 1, "col": i % columns + 1} for i in range(len(names))]
