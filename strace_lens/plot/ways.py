"""One prompt in several ways: total variation by size, as defined, with attention kept, tight."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go

from strace_lens.density.curve import DensityCurve
from strace_lens.density.phases import find_phases
from strace_lens.density.ways import Way, dense_share, top_size
from strace_lens.plot.style import COLOURS, INK, figure, percent, quoted, size_axis, size_texts

_COLOURS = {"definition": INK, "attention-kept": COLOURS["attention"], "tight": COLOURS["residual"]}
_OTHER = COLOURS["mlp"]
_CONSTRUCTION = 9  # width in pixels of the stroke under a curve where it is constructed


def plot_ways(curves: Mapping[Way, DensityCurve]) -> go.Figure:
    """Total variation by size in several ways of measuring one prompt.

    The wide pale stroke under a curve is its construction, what follows its refinement. A dot is
    the size from which on the trace has the model's top token. The upright line is the share of the
    graph that residual and MLP edges make up.

    Args:
        curves: of `ways.measure_ways`, at least one.
    """
    (first, *_) = curves.values()
    token, probability = first.top[0]
    fig = figure(
        f"How much of the graph predicts {quoted(token)} (p = {probability:.2f})",
        height=460,
        margin={"t": 60, "b": 60},
        legend={"orientation": "h", "x": 0, "y": -0.2, "yanchor": "top"},
    )
    share = dense_share(first)
    fig.add_vline(x=share, line={"color": "#777777", "width": 1.5, "dash": "dot"})
    fig.add_annotation(
        x=math.log10(share),
        y=0.02,
        xanchor="right",
        yanchor="bottom",
        xshift=-6,
        text=f"residual and MLP edges:<br>{percent(share)} of the graph",
        align="right",
        showarrow=False,
        font={"size": 12, "color": "#555555"},
    )
    for number, (way, curve) in enumerate(curves.items()):
        _add_way(fig, way, curve, number)
    sizes = np.concatenate([curve.table["size"].to_numpy() for curve in curves.values()])
    fig.update_xaxes(size_axis(sizes))
    return fig.update_yaxes(
        range=[-0.02, 1.04], title_text="total variation from the model's output"
    )


def _add_way(fig: go.Figure, way: Way, curve: DensityCurve, number: int) -> None:
    table, colour = curve.table, _COLOURS.get(way.name, _OTHER)
    sizes, tv = table["size"].to_numpy(), table["tv"].to_numpy()
    construction = find_phases(curve).get("construction")
    if construction is not None:
        inside = (sizes > construction.start) & (sizes < construction.stop)
        fig.add_scatter(
            x=[construction.start, *sizes[inside], construction.stop],
            y=[construction.tv_start, *tv[inside], construction.tv_stop],
            mode="lines",
            line={"color": colour, "width": _CONSTRUCTION},
            opacity=0.25,
            name="construction",
            legendgroup="construction",
            showlegend=number == 0,
            legendrank=1001,
            hoverinfo="skip",
        )
    fig.add_scatter(
        x=sizes,
        y=tv,
        name=way.title,
        mode="lines",
        line={"color": colour, "width": 2.5},
        hoverinfo="text",
        hovertext=[
            f"{way.title}<br>{text}<br>TV {row['tv']:.3g} = head {row['head_error']:.3g} + tail "
            f"{row['tail_error']:.3g}<br>{percent(row['ablatable_size'])} of the edges that can be "
            f"ablated<br>top-1 {quoted(row['top'][0][0])}"
            for text, row in zip(size_texts(table), table.to_dict("records"), strict=True)
        ],
    )
    size = top_size(curve)
    if not math.isnan(size):
        height = float(tv[sizes == size][0])
        fig.add_scatter(
            x=[size],
            y=[height],
            mode="markers+text",
            marker={"size": 11, "color": colour, "line": {"width": 1.5, "color": "white"}},
            text=[f"  {size:.2g}"],
            textposition="middle right",
            textfont={"color": colour},
            showlegend=False,
            hoverinfo="skip",
        )
    if number == 0:  # one entry of the legend for the dots of all ways
        fig.add_scatter(
            x=[None],
            y=[None],
            mode="markers",
            marker={"size": 10, "color": "#777777"},
            name="from here on the model's top token",
            legendrank=1002,
        )
