"""Estimators side by side, means over prompts: fidelity, compute, phases and depth by size.

Each parameter is the table of that name that `analyse` returns. Pages show the docstring of a
figure as its caption.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from strace_lens.measures.intervals import row_text
from strace_lens.plot.charts import (
    ABOVE,
    SIZE_TITLE,
    add_mean,
    add_points,
    by_run,
    error_bars,
    run_lines,
)
from strace_lens.plot.style import (
    COLOURS,
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
    """Total variation by relative size: above, from the model's own output.

    Below, the control: every estimator is aimed at the output of another prompt; one that fits
    nothing cannot be aimed, and its own trace is compared with that output. Where a line falls
    below, the estimator has found a subgraph that gives an answer the model does not give.
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
    """Multiply-adds that a sparse run of the trace would need, over those of the full pass.

    Left, by size. Right: mean total variation at the mean compute share of the same size, so that
    estimators are compared by what their traces cost to run.
    """
    panels = make_subplots(rows=1, cols=2, horizontal_spacing=0.1)
    fig = dressed(panels, "Share of the full pass's compute", 460, margin={"t": 80}, legend=ABOVE)
    _add_curves(fig, estimator_curves, "compute", "compute share", row=1, col=1)
    lines = run_lines(estimator_curves)
    for run, own, _ in by_run(estimator_curves):
        name = text_of(run)
        compute, tv = (own.loc[own["quantity"].eq(q)] for q in ("compute", "tv"))
        add_points(
            fig,
            compute.merge(tv, on="size", suffixes=("", "_tv")),
            "mean",
            "mean_tv",
            lambda r, name=name: (
                f"<b>{name}</b>, s = {r['size']:.4g}<br>compute share {r['mean']:.3f}, "
                f"TV {r['mean_tv']:.3f}"
            ),
            name=name,
            mode="lines",
            line=lines[run],
            row=1,
            col=2,
        )
    share = {"title_text": "compute share", "range": [-0.02, 1.04]}
    axis = measured_axis(estimator_curves["size"].to_numpy())
    fig.update_xaxes(axis, title_text=SIZE_TITLE, col=1).update_yaxes(**share, col=1)
    fig.update_xaxes(**share, col=2)
    return fig.update_yaxes(title_text="TV from the model's output", col=2)


def plot_depth_curves(estimator_curves: pd.DataFrame, estimator_phases: pd.DataFrame) -> go.Figure:
    """Relative depth of the edges of the trace of each size: estimators at equal sizes.

    Dotted: the whole graph of the first run, towards which every trace goes as it grows. Sizes at
    which a prompt's trace has no such edge are left out.
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
    graphs = estimator_phases.drop_duplicates("quantity").set_index("quantity")["mean"]
    for col, quantity in enumerate(_DEPTHS, start=1):
        _add_curves(fig, estimator_curves, quantity, "depth", row=1, col=col)
        graph = graphs[f"graph_{quantity}"]
        if not np.isnan(graph):
            line = {"color": INK, "dash": "dot", "width": 1.5}
            place: dict[str, Any] = {"row": 1, "col": col}
            fig.add_hline(y=graph, line=line, layer="below", **place)
    fig.update_yaxes(title_text="relative depth (0: first layer, 1: last)", col=1)
    axis = measured_axis(estimator_curves["size"].to_numpy())
    return fig.update_xaxes(axis, title_text=SIZE_TITLE)


def plot_phase_ends(estimator_phases: pd.DataFrame) -> go.Figure:
    """Where construction lies along the sizes, and where head and tail are restored.

    Bars: the construction phase, the steepest stretch of a prompt's curve. Circles: the size from
    which on the head error stays under a tenth of the head's mass. Squares: the same of the tail
    error, and no sooner than the head. Geometric means over the prompts that have the phase.
    """
    names = [text_of(name) for name, _, _ in by_run(estimator_phases)]
    fig = figure(
        "Construction, head subgraph and tail refinement along the sizes",
        height=70 * len(names) + 170,
        margin={"t": 90},
        legend={**ABOVE, "x": 0, "xanchor": "left"},
    )
    lines = run_lines(estimator_phases)
    for run, own, number in by_run(estimator_phases):
        name, rows = text_of(run), own.set_index("quantity")
        texts = {str(row["quantity"]): row_text(row) for row in own.to_dict("records")}
        prompts = rows["prompts"]
        _add_marks(
            fig,
            rows.loc[["construction_start", "construction_stop"]].assign(at=number - 1),
            f"<b>{name}</b>, {prompts['construction_start']} prompts<br>construction from s = "
            f"{texts['construction_start']}<br>to s = {texts['construction_stop']}",
            name="construction",
            mode="lines",
            line={"color": lines[run]["color"], "width": 12},
        )
        for part, below in (("head", 0.2), ("tail", 0.38)):
            end = f"{part}_size"
            look = {"symbol": PARTS[part][1], "color": COLOURS[part], "size": 11}
            _add_marks(
                fig,
                rows.loc[[end]].assign(at=number - 1 + below),
                f"<b>{name}</b>, {prompts[end]} prompts<br>{_ENDS[part]} at s = {texts[end]}",
                name=_ENDS[part],
                mode="markers",
                marker={**look, "line": {"width": 1.5, "color": INK}},
            )
    left = estimator_phases["quantity"].isin(["construction_start", "head_size", "tail_size"])
    smallest = np.nanmin([1e-2, *estimator_phases.loc[left, "mean"]])
    fig.update_xaxes(measured_axis([smallest]), title_text=SIZE_TITLE)
    ticks = {"tickmode": "array", "tickvals": list(range(len(names))), "ticktext": names}
    return fig.update_yaxes(range=[len(names) - 0.4, -0.5], showgrid=False, **ticks)


def _add_marks(fig: go.Figure, rows: pd.DataFrame, text: str, **look: Any) -> None:
    """Means with their intervals, at one height."""
    bars = error_bars(*(rows[c].to_numpy() for c in ("mean", "low", "high")))
    add_points(fig, rows, "mean", "at", lambda _: text, error_x=bars, **look)


def _add_curves(
    fig: go.Figure, curves: pd.DataFrame, quantity: str, what: str, *, row: int, col: int
) -> None:
    """A line a run over the band of its interval."""
    lines = run_lines(curves)
    for run, own, _ in by_run(curves):
        name = text_of(run)
        add_mean(
            fig,
            own.loc[own["quantity"].eq(quantity)],
            ("size", "mean", "low", "high"),
            lines[run],
            lambda at, value, name=name: f"<b>{name}</b>, s = {at['size']:.4g}<br>{what} {value}",
            name=name,
            row=row,
            col=col,
        )
