"""Where the phases of each estimator lie: along the sizes and along the layers, over prompts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from strace_lens.measures.intervals import mean_curve, row_text
from strace_lens.plot.charts import ABOVE, error_bars
from strace_lens.plot.means import add_line, by_estimator, names_of, quantity_of
from strace_lens.plot.style import (
    COLOURS,
    ESTIMATOR_COLOURS,
    INK,
    PARTS,
    dressed,
    figure,
    measured_axis,
)
from strace_lens.token_graph.edges import KINDS

_ENDS = {"head": "head subgraph complete", "tail": "tail refined"}
_DEPTHS = {"": "all edges", "block_": "attention and MLP edges"}
_DEPTH_TITLE = "relative depth (0: first layer, 1: last)"


def plot_phase_ends(prompts: pd.DataFrame, table: pd.DataFrame) -> go.Figure:
    """Along the sizes: construction as a bar, the ends of head subgraph and tail refinement below.

    Large marks are geometric means over the prompts that have the phase, with 95 % bootstrap
    intervals; small ones are prompts.

    Args:
        prompts: of `TrialPhases`.
        table: of `phase_table`.
    """
    names = names_of(prompts)
    fig = figure(
        "Construction, head subgraph and tail refinement along the sizes",
        height=70 * len(names) + 170,
        margin={"t": 90},
        legend={**ABOVE, "x": 0, "xanchor": "left"},
    )
    for at, (name, rows) in enumerate(by_estimator(prompts)):
        _add_bar(fig, name, rows, table, at)
        for part, below in (("head", 0.2), ("tail", 0.38)):
            _add_end(fig, name, rows, table, part, at + below)
    sizes = prompts[["construction_start", "head_size", "tail_size"]].min(axis=None)
    axis = measured_axis([1e-4 if np.isnan(sizes) else min(sizes, 1e-2)])
    fig.update_xaxes(axis, title_text="relative size s (log)")
    ticks = {"tickmode": "array", "tickvals": list(range(len(names))), "ticktext": names}
    return fig.update_yaxes(range=[len(names) - 0.4, -0.5], showgrid=False, **ticks)


def _add_bar(
    fig: go.Figure, name: str, rows: pd.DataFrame, table: pd.DataFrame, at: float | int
) -> None:
    """Construction from its mean start to its mean stop, with the intervals of both."""
    ends = [quantity_of(table, name, f"construction_{end}") for end in ("start", "stop")]
    found = int(rows["construction_start"].notna().to_numpy().sum())
    means, lows, highs = (np.array([end[c] for end in ends]) for c in ("mean", "low", "high"))
    texts = [row_text(end) for end in ends]
    fig.add_scatter(
        x=means,
        y=[at, at],
        name="construction",
        legendgroup="construction",
        showlegend=at == 0,
        mode="lines",
        line={"color": ESTIMATOR_COLOURS[name], "width": 12},
        error_x=error_bars(means, lows, highs),
        hoverinfo="text",
        hovertext=[
            f"<b>{name}</b>, {found} of {len(rows)} prompts<br>construction from s = {texts[0]}"
            f"<br>to s = {texts[1]}"
        ]
        * 2,
    )


def _add_end(
    fig: go.Figure, name: str, rows: pd.DataFrame, table: pd.DataFrame, part: str, at: float | int
) -> None:
    """Where head or tail is restored: each prompt, and the mean over them."""
    marker = {"symbol": PARTS[part][1], "color": COLOURS[part]}
    there = rows.dropna(subset=f"{part}_size")
    mean = quantity_of(table, name, f"{part}_size")
    look: dict[str, Any] = {"mode": "markers", "hoverinfo": "text"}
    fig.add_scatter(
        x=there[f"{part}_size"],
        y=[at] * len(there),
        showlegend=False,
        marker={**marker, "size": 6, "opacity": 0.6},
        hovertext=[
            f"<b>{name}</b>, prompt {prompt}<br>{_ENDS[part]} at s = {size:.4g}"
            for prompt, size in zip(there["prompt"], there[f"{part}_size"], strict=True)
        ],
        **look,
    )
    fig.add_scatter(
        x=[mean["mean"]],
        y=[at],
        name=_ENDS[part],
        legendgroup=part,
        showlegend=at < 1,
        marker={**marker, "size": 11, "line": {"width": 1.5, "color": INK}},
        error_x=error_bars(mean["mean"], mean["low"], mean["high"]),
        hovertext=[
            f"<b>{name}</b>, {len(there)} of {len(rows)} prompts<br>{_ENDS[part]} at s = "
            + row_text(mean)
        ],
        **look,
    )


def plot_depths(prompts: pd.DataFrame, table: pd.DataFrame) -> go.Figure:
    """Mean depth of the head subgraph and of what the tail refinement adds, by estimator.

    Left all edges, right those of attention and MLP alone. Large marks are means over the prompts
    that have the phase, with 95 % bootstrap intervals; small ones are prompts. The dotted line is
    the mean depth of the whole graph.

    Args:
        prompts: of `TrialPhases`.
        table: of `phase_table`.
    """
    names = names_of(prompts)
    fig = _two("Depth of head subgraph and tail refinement", 500)
    for col, kinds in enumerate(_DEPTHS, start=1):
        for at, (name, rows) in enumerate(by_estimator(prompts)):
            for part, beside in (("head", -0.14), ("tail", 0.14)):
                _add_depth(
                    fig, name, rows, table, f"{part}_{kinds}depth", at + beside, at == 0, col
                )
        _add_graph_depth(fig, prompts, kinds, col)
    ticks = {"tickmode": "array", "tickvals": list(range(len(names))), "ticktext": names}
    fig.update_xaxes(title_text="estimator", range=[-0.5, len(names) - 0.5], **ticks)
    return fig


def _add_depth(
    fig: go.Figure,
    name: str,
    rows: pd.DataFrame,
    table: pd.DataFrame,
    column: str,
    at: float | int,
    first: bool,
    col: int,
) -> None:
    part = column.split("_")[0]
    phase = {"head": "head subgraph", "tail": "tail refinement"}[part]
    marker = {"symbol": PARTS[part][1], "color": COLOURS[part]}
    there, mean = rows.dropna(subset=column), quantity_of(table, name, column)
    place: dict[str, Any] = {"mode": "markers", "hoverinfo": "text", "row": 1, "col": col}
    fig.add_scatter(
        x=[at + 0.09] * len(there),
        y=there[column],
        showlegend=False,
        marker={**marker, "size": 6, "opacity": 0.6},
        hovertext=[
            f"<b>{name}</b>, prompt {prompt}<br>{phase}: depth {depth:.3f}"
            for prompt, depth in zip(there["prompt"], there[column], strict=True)
        ],
        **place,
    )
    fig.add_scatter(
        x=[at],
        y=[mean["mean"]],
        name=phase,
        legendgroup=part,
        showlegend=first and col == 1,
        marker={**marker, "size": 11, "line": {"width": 1.5, "color": INK}},
        error_y=error_bars(mean["mean"], mean["low"], mean["high"]),
        hovertext=[
            f"<b>{name}</b>, {len(there)} of {len(rows)} prompts<br>{phase}: depth "
            + row_text(mean)
        ],
        **place,
    )


def plot_depth_curves(layers: pd.DataFrame, prompts: pd.DataFrame) -> go.Figure:
    """Mean depth of the trace's edges by size, a line an estimator: equal sizes side by side.

    Left all edges, right those of attention and MLP alone; means over prompts with 95 % bootstrap
    intervals, and the whole graph as a dotted line. Sizes at which some prompt's trace has no such
    edge are left out.

    Args:
        layers: of `TrialPhases`.
        prompts: of `TrialPhases`.
    """
    fig = _two("Depth of the trace by size", 480)
    last = layers["layer"].max()
    for col, (kinds, of) in enumerate(((KINDS, ""), (KINDS[1:], "block_")), start=1):
        _add_graph_depth(fig, prompts, of, col)
        edges = layers[list(kinds)].sum(axis=1)
        weighed = layers.assign(edges=edges, depth=edges * layers["layer"] / last)
        keys = ["estimator", "prompt", "size"]
        sums = pd.DataFrame(
            weighed.groupby(keys, sort=False)[["edges", "depth"]].sum()
        ).reset_index()
        rows = sums.assign(depth=sums["depth"] / sums["edges"])
        for name, own in by_estimator(rows):
            some = own.groupby("size").filter(lambda at: (at["edges"] > 0).all())
            add_line(fig, name, mean_curve(some, "depth"), "depth", 1, col, showlegend=col == 1)
    return fig.update_xaxes(
        measured_axis(layers["size"].to_numpy()), title_text="relative size s (log)"
    )


def _two(title: str, height: int) -> go.Figure:
    fig = make_subplots(
        rows=1,
        cols=2,
        shared_yaxes=True,
        subplot_titles=[f"<b>{kinds}</b>" for kinds in _DEPTHS.values()],
        horizontal_spacing=0.04,
    )
    dressed(fig, title, height, margin={"t": 110}, legend={**ABOVE, "y": 1.08})
    return fig.update_yaxes(title_text=_DEPTH_TITLE, col=1)


def _add_graph_depth(fig: go.Figure, prompts: pd.DataFrame, kinds: str, col: int) -> None:
    depth = prompts[f"graph_{kinds}depth"].mean()
    if not np.isnan(depth):
        line = {"color": INK, "dash": "dot", "width": 1.5}
        fig.add_shape(
            type="line",
            x0=0,
            x1=1,
            xref="x domain",
            y0=depth,
            y1=depth,
            line=line,
            layer="below",
            row=1,
            col=col,
        )
