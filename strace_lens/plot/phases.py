"""What a trace is made of at each size: kinds of edges, layers, and its phases along the layers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from strace_lens.density.curve import DensityCurve
from strace_lens.density.phases import LayerPhase, Phases
from strace_lens.plot.charts import add_heat, log_shares, share_colours
from strace_lens.plot.style import (
    COLOURS,
    INK,
    LABELS,
    LINE,
    PARTS,
    SCALE,
    dressed,
    figure,
    note,
    percent,
    remark,
    size_axis,
    size_texts,
)
from strace_lens.traces.edges import KINDS

_EMPTY = "no size measured has an edge"


def plot_kinds(curve: DensityCurve) -> go.Figure:
    """Share of residual, attention and MLP edges by size; sizes without an edge are left out."""
    table = curve.table.query("edges > 0")
    fig = figure("Composition of the trace by kind of edge", height=420)
    fig.update_layout(legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1.02})
    fig.update_layout(legend={"yanchor": "bottom", "traceorder": "normal"})
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
    fig.update_xaxes(size_axis(curve.table["size"].to_numpy()))
    fig.update_yaxes(range=[0, 1], tickformat=".0%", title_text="share of the trace's edges")
    if table.empty:
        note(fig, _EMPTY)
    return fig


def plot_layers(curve: DensityCurve) -> go.Figure:
    """Share of the trace's edges that each layer holds, by size (blank for none); the mean layer.

    The colours end at three times an even share; the hover text has the exact one.
    """
    table, cells = curve.table, _layer_table(curve)
    layers = curve.trace.shape.layers
    top = min(1.0, 3 / layers)
    fig = figure("Composition of the trace by layer", height=max(380, min(620, 14 * layers + 140)))
    add_heat(
        fig,
        cells,
        "of_trace",
        lambda r: (
            f"{r['text']}<br>layer {r['layer']}: {r['edges']:,} edges, {percent(r['of_trace'])}"
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
    fig.update_yaxes(title_text="layer (line: mean layer)")
    if some.empty:
        note(fig, _EMPTY)
    return fig


def _layer_table(curve: DensityCurve) -> pd.DataFrame:
    """Edges that each layer holds at each size, and their shares of the layer and of the trace."""
    table = curve.table
    sizes = [*table["edges"].tolist(), curve.trace.edges]
    *rows, reachable = curve.trace.counts_by_size(sizes).sum(1).numpy()
    counts = np.array(rows)
    layers = len(reachable)
    return pd.DataFrame(
        {
            "size": np.repeat(table["size"].to_numpy(), layers),
            "text": np.repeat(size_texts(table), layers),
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


def plot_layer_phases(curve: DensityCurve, phases: Phases) -> go.Figure:
    """Phase diagram, layer by size, and beneath it what each step of size gains.

    Upper part: share of a layer's edges that the trace of each size holds, in logarithmic colours;
    blank where it holds none. Lower part: by how much head and tail error fall from one measured
    size to the next, drawn over the step from the smaller to the larger (negative: they rise).
    """
    table = curve.table
    fig = make_subplots(
        rows=2, cols=1, shared_xaxes=True, row_heights=[0.66, 0.34], vertical_spacing=0.06
    )
    dressed(
        fig,
        "Layer phases",
        height=max(560, min(820, 14 * curve.trace.shape.layers + 340)),
        margin={"t": 92},
        legend={"orientation": "h", "x": 0, "y": -0.12, "yanchor": "top"},
    )
    _add_filling(fig, curve)
    _add_gains(fig, curve)
    _add_ends(fig, phases)
    fig.update_xaxes(size_axis(table["size"].to_numpy()))
    fig.update_xaxes(title_text="", row=1)
    fig.update_yaxes(title_text="layer", row=1)
    fig.update_yaxes(title_text="fall of the error", zeroline=True, zerolinecolor=INK, row=2)
    if len(table) < 2:
        note(fig, "one size was measured: no step has a gain", y=0.16)
    return fig


def _add_filling(fig: go.Figure, curve: DensityCurve) -> None:
    """The heat map: log10 of the share of each layer's reachable edges that a size holds."""
    cells = _layer_table(curve)
    positive = cells.loc[cells["of_layer"] > 0, "of_layer"].to_numpy()
    lowest = min(-1.0, float(np.log10(positive.min()))) if positive.size else -3.0
    add_heat(
        fig,
        cells,
        "of_layer",
        lambda r: (
            f"{r['text']}<br>layer {r['layer']}: {r['edges']:,} of {r['reachable']:,} edges, "
            f"{percent(r['of_layer'])}"
        ),
        log_shares,
        row=1,
        col=1,
        coloraxis="coloraxis",
    )
    bar = {"thickness": 14, "len": 0.66, "y": 1, "yanchor": "top"}
    fig.update_layout(coloraxis=share_colours(lowest), coloraxis_colorbar=bar)


def _add_gains(fig: go.Figure, curve: DensityCurve) -> None:
    """Fall of head and tail error at each step; the first size has no step and stands at 0."""
    table = curve.table
    texts = size_texts(table)
    for part, (dash, _) in PARTS.items():
        falls = -np.diff(table[f"{part}_error"].to_numpy(), prepend=table[f"{part}_error"].iloc[0])
        befores = [f"{s:.10g}" for s in table["size"]]
        fig.add_scatter(
            x=table["size"],
            y=falls,
            name=f"{part} error",
            mode="lines",
            line={"color": COLOURS[part], "dash": dash, "width": 2.5, "shape": "vh"},
            hoverinfo="text",
            hovertext=[
                f"{texts[0]}<br>the smallest size measured: no step before it",
                *(
                    f"{text}<br>{part} error falls by {fall:.4g} since s = {before}"
                    for text, fall, before in zip(texts[1:], falls[1:], befores, strict=False)
                ),
            ],
            row=2,
            col=1,
        )


def _add_ends(fig: go.Figure, phases: Phases) -> None:
    """Vertical lines where the head subgraph is complete and where the tail refinement ends."""
    reasons = missing(phases)
    for row, (part, phase, end) in enumerate(
        (
            ("tail", phases.tail, "tail refinement ends at"),
            ("head", phases.head, "head subgraph complete at"),
        )
    ):
        if phase is None:
            remark(fig, reasons[part], row)
            continue
        at = float(np.log10(phase.stop))
        # Over the heat map on a white ground, legible in any colour.
        _upper_line(fig, phase.stop, {"color": "white", "width": 5})
        fig.add_vline(x=phase.stop, line={"color": INK, "width": 2, "dash": PARTS[part][0]})
        fig.add_annotation(
            text=f"{end} s = {phase.stop:.3g}",
            x=at,
            y=1,
            yref="paper",
            xanchor="right" if at > -2.5 else "left",
            yanchor="bottom",
            yshift=2 + LINE * row,
            showarrow=False,
            font={"size": 12},
        )


def plot_layer_profiles(phases: Phases) -> go.Figure:
    """Head subgraph and tail refinement over the layers.

    Upper part: share of the subgraph's edges that lie in a layer (its mean layer as a line); lower
    part: share of the layer's edges that belong to the subgraph.
    """
    fig = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08)
    dressed(
        fig,
        "Head subgraph and tail refinement by layer",
        height=580,
        margin={"t": 80},
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom"},
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
    layers = list(range(len(phase.reachable)))
    edges = phase.counts.sum(0).tolist()
    of_all, of_layer = phase.share_by_layer.tolist(), phase.share_of_layer.tolist()
    for row, shares in ((1, of_all), (2, of_layer)):
        fig.add_scatter(
            x=layers,
            y=shares,
            name=phase.name,
            legendgroup=part,
            showlegend=row == 1,
            mode="lines+markers",
            line={"color": COLOURS[part], "dash": dash, "width": 2.5},
            marker={"symbol": symbol, "size": 8},
            hoverinfo="text",
            hovertext=[
                f"<b>{phase.name}</b>, layer {layer}: {edges[layer]:,} edges<br>"
                f"{percent(of_all[layer])} of the subgraph, {percent(of_layer[layer])} of the layer"
                for layer in layers
            ],
            row=row,
            col=1,
        )
    _upper_line(fig, phase.mean_layer, {"color": COLOURS[part], "dash": dash, "width": 1.5})


def _upper_line(fig: go.Figure, x: float, line: dict[str, object]) -> None:
    """A vertical line through the upper of two subplots."""
    fig.add_shape(
        type="line", x0=x, x1=x, xref="x", y0=0, y1=1, yref="y domain", line=line, layer="above"
    )
