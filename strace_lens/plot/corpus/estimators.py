"""Estimators side by side, means over prompts: fidelity, compute, phases and depth by size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from strace_lens.measures.intervals import row_text
from strace_lens.plot.charts import ABOVE, SIZE_TITLE, add_mean, by_run, error_bars
from strace_lens.plot.style import (
    COLOURS,
    ESTIMATOR_COLOURS,
    ESTIMATOR_DASHES,
    INK,
    PARTS,
    dressed,
    figure,
    measured_axis,
    text_of,
)

_ENDS = {"head": "head subgraph complete", "tail": "tail refined"}
_DEPTHS = {"depth": "all edges", "block_depth": "attention and MLP edges"}


def plot_fidelity(estimator_curves: pd.DataFrame) -> go.Figure:
    """Total variation by size: from the model's own output, and from a wrong target's.

    Below, the same estimators are aimed at the output of another prompt. A line is the mean over
    prompts, its band the 95 % bootstrap interval.

    Args:
        estimator_curves: of `analyse`.
    """
    panels = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06)
    fig = dressed(panels, "Total variation by size", 760, margin={"t": 80}, legend=ABOVE)
    panel_of = {"tv": "the model's output", "wrong_tv": "a wrong target"}
    for row, (quantity, target) in enumerate(panel_of.items(), start=1):
        _add_curves(fig, estimator_curves, quantity, "TV", row=row, col=1)
        fig.update_yaxes(title_text=f"TV from {target}", range=[-0.02, 1.04], row=row)
    fig.update_xaxes(measured_axis(estimator_curves["size"].to_numpy()))
    return fig.update_xaxes(title_text=SIZE_TITLE, row=2)


def plot_compute(estimator_curves: pd.DataFrame) -> go.Figure:
    """Compute share by size, and total variation by compute share.

    Left, the multiply-adds that a sparse run of the trace would need over those of the full pass,
    mean over prompts with its 95 % bootstrap interval. Right, mean TV at the mean compute share of
    the same size.

    Args:
        estimator_curves: of `analyse`.
    """
    panels = make_subplots(rows=1, cols=2, horizontal_spacing=0.1)
    fig = dressed(panels, "Share of the full pass's compute", 460, margin={"t": 80}, legend=ABOVE)
    _add_curves(fig, estimator_curves, "compute", "compute share", row=1, col=1)
    for run, own, number in by_run(estimator_curves):
        name = text_of(run)
        compute, tv = (own.loc[own["quantity"].eq(q)] for q in ("compute", "tv"))
        both = compute.merge(tv, on="size", suffixes=("", "_tv"))
        fig.add_scatter(
            x=both["mean"],
            y=both["mean_tv"],
            name=name,
            legendgroup=name,
            showlegend=False,
            mode="lines",
            line=_line_of(number, run),
            hoverinfo="text",
            hovertext=[
                f"<b>{name}</b>, s = {row['size']:.4g}<br>compute share {row['mean']:.3f}, "
                f"TV {row['mean_tv']:.3f}"
                for row in both.to_dict("records")
            ],
            row=1,
            col=2,
        )
    share = {"title_text": "compute share", "range": [-0.02, 1.04]}
    fig.update_xaxes(
        measured_axis(estimator_curves["size"].to_numpy()), title_text=SIZE_TITLE, col=1
    )
    fig.update_yaxes(**share, col=1)
    fig.update_xaxes(**share, col=2)
    return fig.update_yaxes(title_text="TV from the model's output", col=2)


def plot_depth_curves(estimator_curves: pd.DataFrame, estimator_phases: pd.DataFrame) -> go.Figure:
    """Mean depth of the trace's edges by size, a line a run: equal sizes side by side.

    Left all edges, right those of attention and MLPs alone; means over prompts with 95 % bootstrap
    intervals, and the whole graph of the first run as a dotted line.

    Args:
        estimator_curves: of `analyse`.
        estimator_phases: of `analyse`, for the same runs.
    """
    panels = make_subplots(
        rows=1,
        cols=2,
        shared_yaxes=True,
        subplot_titles=[f"<b>{kinds}</b>" for kinds in _DEPTHS.values()],
        horizontal_spacing=0.04,
    )
    legend = {**ABOVE, "y": 1.08}
    fig = dressed(panels, "Depth of the trace by size", 480, margin={"t": 110}, legend=legend)
    for col, quantity in enumerate(_DEPTHS, start=1):
        _add_curves(fig, estimator_curves, quantity, "depth", row=1, col=col)
        graph = estimator_phases.loc[
            estimator_phases["quantity"].eq(f"graph_{quantity}"), "mean"
        ].iloc[0]
        if not np.isnan(graph):
            line = {"color": INK, "dash": "dot", "width": 1.5}
            place: dict[str, Any] = {"row": 1, "col": col}
            fig.add_hline(y=graph, line=line, layer="below", **place)
    fig.update_yaxes(title_text="relative depth (0: first layer, 1: last)", col=1)
    return fig.update_xaxes(
        measured_axis(estimator_curves["size"].to_numpy()), title_text=SIZE_TITLE
    )


def plot_phase_ends(estimator_phases: pd.DataFrame) -> go.Figure:
    """Along the sizes: construction as a bar, the ends of head subgraph and tail refinement below.

    Marks are geometric means over the prompts that have the phase, with 95 % bootstrap intervals.

    Args:
        estimator_phases: of `analyse`.
    """
    names = [text_of(name) for name, _, _ in by_run(estimator_phases)]
    fig = figure(
        "Construction, head subgraph and tail refinement along the sizes",
        height=70 * len(names) + 170,
        margin={"t": 90},
        legend={**ABOVE, "x": 0, "xanchor": "left"},
    )
    smallest = 1e-2
    for run, own, number in by_run(estimator_phases):
        name, at = text_of(run), number - 1
        rows = own.set_index("quantity").to_dict("index")
        ends = [rows["construction_start"], rows["construction_stop"]]
        texts = [row_text(end) for end in ends]
        _add_marks(
            fig,
            ends,
            at,
            f"<b>{name}</b>, {ends[0]['prompts']} prompts<br>construction from s = {texts[0]}<br>"
            f"to s = {texts[1]}",
            name="construction",
            legendgroup="construction",
            showlegend=at == 0,
            mode="lines",
            line={"color": _line_of(number, run)["color"], "width": 12},
        )
        for part, below in (("head", 0.2), ("tail", 0.38)):
            end = rows[f"{part}_size"]
            _add_marks(
                fig,
                [end],
                at + below,
                f"<b>{name}</b>, {end['prompts']} prompts<br>{_ENDS[part]} at s = {row_text(end)}",
                name=_ENDS[part],
                legendgroup=part,
                showlegend=at == 0,
                mode="markers",
                marker={
                    "symbol": PARTS[part][1],
                    "color": COLOURS[part],
                    "size": 11,
                    "line": {"width": 1.5, "color": INK},
                },
            )
        lows = [rows[q]["mean"] for q in ("construction_start", "head_size", "tail_size")]
        smallest = float(np.nanmin([smallest, *lows]))
    fig.update_xaxes(measured_axis([smallest]), title_text=SIZE_TITLE)
    ticks = {"tickmode": "array", "tickvals": list(range(len(names))), "ticktext": names}
    return fig.update_yaxes(range=[len(names) - 0.4, -0.5], showgrid=False, **ticks)


def _add_marks(
    fig: go.Figure, rows: list[dict[Any, Any]], at: float | int, text: str, **look: Any
) -> None:
    """Means with their intervals, at one height."""
    means, lows, highs = (np.array([row[c] for row in rows]) for c in ("mean", "low", "high"))
    fig.add_scatter(
        x=means,
        y=[at] * len(rows),
        error_x=error_bars(means, lows, highs),
        hoverinfo="text",
        hovertext=[text] * len(rows),
        **look,
    )


def _add_curves(
    fig: go.Figure, curves: pd.DataFrame, quantity: str, what: str, *, row: int, col: int
) -> None:
    """A line a run over the band of its interval; the first panel has the legend."""
    for run, own, number in by_run(curves):
        name = text_of(run)
        add_mean(
            fig,
            own.loc[own["quantity"].eq(quantity)],
            ("size", "mean", "low", "high"),
            _line_of(number, run),
            lambda at, value, name=name: f"<b>{name}</b>, s = {at['size']:.4g}<br>{what} {value}",
            name=name,
            legendgroup=name,
            showlegend=row == col == 1,
            row=row,
            col=col,
        )


def _line_of(number: int, name: str) -> dict[str, Any]:
    """How the line of a run looks: as its estimator's if it has its name, else by its number."""
    if name not in ESTIMATOR_COLOURS:
        name = list(ESTIMATOR_COLOURS)[(number - 1) % len(ESTIMATOR_COLOURS)]
    return {"color": ESTIMATOR_COLOURS[name], "dash": ESTIMATOR_DASHES[name]}
