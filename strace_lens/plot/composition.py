"""What a trace is made of at each size: kinds of edges, and layers."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from strace_lens.density.curve import DensityCurve
from strace_lens.plot.style import (
    COLOURS,
    LABELS,
    SCALE,
    cell_bounds,
    figure,
    note,
    percent,
    size_axis,
    size_texts,
)
from strace_lens.token_graph.edges import KINDS

_EMPTY = "no size measured has an edge"


def plot_kinds(curve: DensityCurve) -> go.Figure:
    """Share of residual, attention and MLP edges by size; sizes without an edge are left out."""
    table = curve.table.query("edges > 0")
    fig = figure("Composition of the trace by kind of edge", height=420)
    fig.update_layout(legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1.02})
    fig.update_layout(legend={"yanchor": "bottom", "traceorder": "normal"})
    below = np.zeros(len(table))
    for kind in KINDS:
        shares = table[kind].to_numpy()
        fig.add_scatter(
            x=table["size"],
            y=shares,
            name=LABELS[kind],
            stackgroup="kind",
            mode="lines+markers",
            line={"color": COLOURS[kind], "width": 1},
            marker={"size": 4},
            hoverinfo="text",
            hovertext=[
                f"{text}<br>{LABELS[kind]}: {percent(share)} of its edges"
                for text, share in zip(size_texts(table), shares, strict=True)
            ],
        )
        if len(table) > 1 and shares.max() > 0.15:
            _label_area(fig, LABELS[kind], table["size"].to_numpy(), below, shares)
        below = below + shares
    fig.update_xaxes(size_axis(curve.table["size"].to_numpy()))
    fig.update_yaxes(range=[0, 1], tickformat=".0%", title_text="share of the trace's edges")
    if table.empty:
        note(fig, _EMPTY)
    return fig


def _label_area(
    fig: go.Figure, label: str, sizes: np.ndarray, below: np.ndarray, shares: np.ndarray
) -> None:
    """Write a name into an area where it is thickest, away from its two ends."""
    inner = slice(1, -1) if len(sizes) > 2 else slice(None)
    i = int(np.argmax(shares[inner])) + (inner.start or 0)
    fig.add_annotation(
        text=f"<b>{label}</b>",
        x=float(np.log10(sizes[i])),
        y=float(below[i] + shares[i] / 2),
        xanchor="left" if i < len(sizes) / 3 else "right" if i > 2 * len(sizes) / 3 else "center",
        showarrow=False,
        bgcolor="rgba(255,255,255,0.75)",
    )


def plot_layers(curve: DensityCurve) -> go.Figure:
    """Share of the trace's edges that each layer holds, by size (blank for none); the mean layer.

    The colours end at three times an even share; the hover text has the exact one.
    """
    table = curve.table
    counts = curve.trace.counts_by_size(table["edges"].tolist()).sum(1).numpy()
    layers = counts.shape[1]
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    top = min(1.0, 3 / layers)
    fig = figure("Composition of the trace by layer", height=max(380, min(620, 14 * layers + 140)))
    fig.add_heatmap(
        x=cell_bounds(table["size"].to_numpy()),
        y=list(range(layers)),
        z=np.where(counts > 0, shares, np.nan).T,
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
        hoverinfo="text",
        text=[
            [
                f"{text}<br>layer {layer}: {counts[i, layer]:,} edges, {percent(shares[i, layer])}"
                for i, text in enumerate(size_texts(table))
            ]
            for layer in range(layers)
        ],
    )
    some = table.query("edges > 0")
    for colour, width in (("black", 5), ("white", 2.5)):  # an outline, legible on any ground
        fig.add_scatter(
            x=some["size"],
            y=some["mean_layer"],
            name="mean layer",
            mode="lines+markers" if len(some) == 1 else "lines",
            line={"color": colour, "width": width},
            showlegend=False,
            hoverinfo="skip" if colour == "black" else "text",
            hovertext=[
                f"{text}<br>mean layer {mean:.2f}"
                for text, mean in zip(size_texts(some), some["mean_layer"], strict=True)
            ],
        )
    fig.update_xaxes(size_axis(table["size"].to_numpy()), showgrid=False)
    fig.update_yaxes(title_text="layer (line: mean layer)", showgrid=False)
    fig.update_yaxes(range=[-0.5, layers - 0.5], tickformat="d")
    if some.empty:
        note(fig, _EMPTY)
    return fig
