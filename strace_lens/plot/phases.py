"""What a trace is made of at each size: kinds of edges, layers, and its phases along the layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from strace_lens.density.curve import DensityCurve
from strace_lens.density.phases import LayerPhase, Phases
from strace_lens.plot.charts import ABOVE, add_points
from strace_lens.plot.heat_map import add_heat
from strace_lens.plot.style import (
    COLOURS,
    LABELS,
    PARTS,
    SCALE,
    dressed,
    figure,
    note,
    percent,
    remark,
    size_axis,
    size_text,
)
from strace_lens.utils.choices import KINDS

_EMPTY = "no size measured has an edge"


def plot_kinds(curve: DensityCurve) -> go.Figure:
    """Share of residual, attention and MLP edges among the edges of the trace of each size.

    Sizes too small to hold an edge are left out.
    """
    table = curve.table.query("edges > 0")
    fig = figure("Composition of the trace by kind of edge", height=420)
    fig.update_layout(legend={**ABOVE, "traceorder": "normal"})
    for kind in KINDS:
        add_points(
            fig,
            table,
            "size",
            kind,
            lambda r, kind=kind: (
                f"{size_text(r['size'], r['edges'])}<br>{LABELS[kind]}: {percent(r[kind])} of its "
                "edges"
            ),
            name=LABELS[kind],
            stackgroup="kind",
            mode="lines+markers",
            line={"color": COLOURS[kind], "width": 1},
            marker={"size": 4},
        )
    fig.update_xaxes(size_axis(curve.table["size"].to_numpy()))
    fig.update_yaxes(range=[0, 1], tickformat=".0%", title_text="share of the trace's edges")
    if table.empty:
        note(fig, _EMPTY)
    return fig


def plot_layers(curve: DensityCurve) -> go.Figure:
    """Share of the trace's edges that each layer holds, at each size; blank cells hold none.

    The line is the mean layer. Small traces hold few edges, so their shares are coarse.
    """
    table, cells = curve.table, layer_table(curve)
    layers = curve.trace.shape.layers
    top = min(1.0, 3 / layers)  # where the colours end: three times an even share
    fig = figure("Composition of the trace by layer", height=max(380, min(620, 14 * layers + 140)))
    add_heat(
        fig,
        cells,
        "of_trace",
        lambda r: (
            f"{size_text(r['size'], r['kept'])}<br>layer {r['layer']}: {r['edges']:,} edges, "
            f"{percent(r['of_trace'])}"
        ),
        lambda shares: np.where(shares > 0, shares, np.nan),
        zmin=0,
        zmax=top,
        colorscale=SCALE,
        colorbar={
            "title": {"text": "share of<br>the trace"},
            "thickness": 14,
            "tickvals": [0, top / 3, 2 * top / 3, top],
            "ticktext": [percent(t) for t in (0.0, top / 3, 2 * top / 3)]
            + [("≥ " if top < 1 else "") + percent(top)],
        },
    )
    some = table.query("edges > 0")
    for colour, width in (("black", 5), ("white", 2.5)):  # an outline, legible on any ground
        add_points(
            fig,
            some,
            "size",
            "mean_layer",
            lambda r: f"{size_text(r['size'], r['edges'])}<br>mean layer {r['mean_layer']:.2f}",
            name="mean layer",
            mode="lines+markers" if len(some) == 1 else "lines",
            line={"color": colour, "width": width},
            showlegend=False,
        )
    fig.update_xaxes(size_axis(table["size"].to_numpy()), showgrid=False)
    fig.update_yaxes(title_text="layer (line: mean layer)")
    if some.empty:
        note(fig, _EMPTY)
    return fig


def layer_table(curve: DensityCurve) -> pd.DataFrame:
    """Edges that each layer holds at each size, and their shares of the layer and of the trace."""
    table = curve.table
    sizes = [*table["edges"].tolist(), curve.trace.edges]
    *rows, reachable = curve.trace.counts_by_size(sizes).sum(1).numpy()
    counts = np.array(rows)
    layers = len(reachable)
    return pd.DataFrame(
        {
            "size": np.repeat(table["size"].to_numpy(), layers),
            "kept": np.repeat(table["edges"].to_numpy(), layers),
            "layer": np.tile(np.arange(layers), len(counts)),
            "edges": counts.ravel(),
            "reachable": np.tile(reachable, len(counts)),
            "of_layer": (counts / reachable).ravel(),
            "of_trace": (counts / np.maximum(counts.sum(1, keepdims=True), 1)).ravel(),
        }
    )


def missing(phases: Phases) -> dict[str, str]:
    """Why a curve has no head subgraph or no tail refinement to draw: reasons by "head", "tail"."""
    reasons = {}
    if phases.head is None:
        reasons["head"] = (
            "no head subgraph: at no measured size does the head error stay under its threshold"
        )
        reasons["tail"] = "no tail refinement: it starts where a head subgraph is complete"
    elif phases.tail is None:
        reasons["tail"] = (
            "no tail refinement: at no measured size does the tail error stay under its threshold"
        )
    for part, phase in (("head", phases.head), ("tail", phases.tail)):
        if phase is not None and phase.edges == 0:
            reasons[part] = f"the {phase.name} has no edges: it ends where it starts"
    return reasons


def plot_layer_profiles(phases: Phases) -> go.Figure:
    """Where the edges of the head subgraph and those that the tail refinement adds lie.

    Above: share of each set by layer, with its mean layer as a vertical line. Below: share of each
    layer.
    """
    fig = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08)
    dressed(
        fig,
        "Head subgraph and tail refinement by layer",
        height=580,
        margin={"t": 80},
        legend={**ABOVE, "y": 1},
    )
    reasons = missing(phases)
    if len(reasons) == 2:
        note(fig, *reasons.values())
        return fig.update_layout(height=200).update_xaxes(visible=False).update_yaxes(visible=False)
    for reason in reasons.values():
        remark(fig, reason)
    for part, phase in (("head", phases.head), ("tail", phases.tail)):
        if phase is not None and part not in reasons:
            _add_profile(fig, part, phase)
    fig.update_xaxes(title_text="layer", tickformat="d", row=2)
    fig.update_yaxes(title_text="share of the subgraph", tickformat=".3~%", rangemode="tozero")
    fig.update_yaxes(title_text="share of the layer", row=2)
    return fig


def _add_profile(fig: go.Figure, part: str, phase: LayerPhase) -> None:
    dash, symbol = PARTS[part]
    layers = pd.DataFrame(
        {
            "layer": range(len(phase.reachable)),
            "edges": phase.counts.sum(0).numpy(),
            "of_all": phase.share_by_layer.numpy(),
            "of_layer": phase.share_of_layer.numpy(),
        }
    )
    for row, share in enumerate(("of_all", "of_layer"), start=1):
        add_points(
            fig,
            layers,
            "layer",
            share,
            lambda r: (
                f"<b>{phase.name}</b>, layer {r['layer']}: {r['edges']:,} edges<br>"
                f"{percent(r['of_all'])} of the subgraph, {percent(r['of_layer'])} of the layer"
            ),
            name=phase.name,
            mode="lines+markers",
            line={"color": COLOURS[part], "dash": dash, "width": 2.5},
            marker={"symbol": symbol, "size": 8},
            row=row,
            col=1,
        )
    line = {"color": COLOURS[part], "dash": dash, "width": 1.5}
    upper: dict[str, Any] = {"row": 1, "col": 1}
    fig.add_vline(x=phase.mean_layer, line=line, **upper)
