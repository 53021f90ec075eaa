"""Methods compared with what is known: the true circuit, and the components of an s-Trace."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from strace_lens.comparison.comparison import Comparison, chance_level
from strace_lens.plot.style import (
    COLOURS,
    INK,
    dressed,
    figure,
    look_of,
    method_line,
    note,
    percent,
    size_axis,
    text_of,
)

TRUTH = "truth"
"""Name of the true circuit in `Comparison.projection`."""

MOST_EDGES = 80
"""True edges that `plot_found` has room for."""


def plot_auroc(comparison: Comparison) -> go.Figure:
    """AUROC of every method against the true circuit as bars, and precision as diamonds.

    The dotted line is what a method must exceed to beat random; 0.5 is the mean of chance.

    Raises:
        ValueError: no true circuit is known.
    """
    known = [r for r in comparison.results if r.auroc is not None]
    if not known:
        raise ValueError(f"no true circuit of {comparison.task!r} is known")
    known.sort(key=lambda r: (r.auroc, r.precision or 0.0))
    fig = figure(
        f"Against the true circuit{_truth_name(comparison)}",
        height=150 + 26 * len(known),
        margin={"t": 84},
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
        bargap=0.3,
    )
    names = [text_of(r.method) for r in known]
    auroc = [r.auroc for r in known]
    fig.add_bar(
        x=auroc,
        y=list(range(len(names))),
        orientation="h",
        name="AUROC",
        marker={"color": [look_of(r.method).colour for r in known], "opacity": 0.75},
        hoverinfo="text",
        hovertext=[f"<b>{n}</b><br>AUROC {a:.4f}" for n, a in zip(names, auroc, strict=True)],
        showlegend=False,
    )
    fig.add_scatter(
        x=[r.precision for r in known],
        y=list(range(len(names))),
        name="precision at the true size",
        mode="markers",
        marker={
            "symbol": "diamond",
            "size": 10,
            "color": "white",
            "line": {"color": INK, "width": 2},
        },
        hoverinfo="text",
        hovertext=[
            f"<b>{n}</b><br>precision {r.precision:.4f}<br>{len(r.missed)} true edges missed"
            for n, r in zip(names, known, strict=True)
        ],
    )
    if comparison.random_auroc:
        level = chance_level(comparison.random_auroc)
        fig.add_vline(x=level, line={"color": INK, "width": 1.5, "dash": "dot"})
    fig.update_xaxes(range=[-0.02, 1.03], title_text="AUROC (bars), precision (diamonds)")
    labels = [f"{n}  {a:.3f}" for n, a in zip(names, auroc, strict=True)]
    fig.update_yaxes(tickmode="array", tickvals=list(range(len(names))), ticktext=labels)
    fig.update_yaxes(showgrid=False)
    return fig


def plot_found(comparison: Comparison) -> go.Figure:
    """Which true edges each method has among as many of its best as there are true ones.

    A truth of more than `MOST_EDGES` edges is not drawn; the figure says so.

    Raises:
        ValueError: no true circuit is known.
    """
    truth = comparison.truth
    if truth is None:
        raise ValueError(f"no true circuit of {comparison.task!r} is known")
    results = [r for r in comparison.results if r.auroc is not None]
    edges = truth.edge_names()[::-1]
    fig = figure("True edges found and missed", height=190 + 24 * len(results))
    if len(edges) > MOST_EDGES:
        note(fig, f"The true circuit has {len(edges):,} edges, too many to draw one by one.")
        return fig
    found = np.array([[edge not in r.missed for edge in edges] for r in results], dtype=np.float64)
    fig.add_heatmap(
        x=list(range(len(edges))),
        y=list(range(len(results))),
        z=found,
        zmin=0,
        zmax=1,
        colorscale=[[0.0, "#f4e3da"], [1.0, COLOURS["mlp"]]],
        showscale=False,
        xgap=2,
        ygap=2,
        texttemplate="%{text}",
        text=[
            ["" if there else "missed" if len(edges) <= 12 else "–" for there in row]
            for row in found
        ],
        hoverinfo="text",
        hovertext=[
            [
                f"<b>{text_of(r.method)}</b><br>{text_of(edge)}: {'found' if there else 'missed'}"
                for edge, there in zip(edges, row, strict=True)
            ]
            for r, row in zip(results, found, strict=True)
        ],
    )
    fig.update_xaxes(
        tickmode="array",
        tickvals=list(range(len(edges))),
        ticktext=[text_of(edge) for edge in edges],
        tickangle=-40,
        showgrid=False,
    )
    fig.update_yaxes(
        tickmode="array",
        tickvals=list(range(len(results))),
        ticktext=[text_of(r.method) for r in results],
        range=[len(results) - 0.5, -0.5],
        showgrid=False,
    )
    return fig


def plot_projection(comparison: Comparison) -> go.Figure:
    """Whether an s-Trace contains the components of the circuits, by the size of the trace.

    Above, the share of each circuit's heads and MLPs that have an edge in the trace. Below, the
    AUROC of the share of its edges that the trace keeps, as a sign that a component is in the
    circuit; 0.5 is chance.

    Raises:
        ValueError: the comparison has no projection.
    """
    table = comparison.projection
    if table is None or table.empty:
        raise ValueError(f"{comparison.model} has no token graph, so no trace to project")
    panels = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.07)
    fig = dressed(panels, "An s-Trace of one prompt against the circuits", 700)
    for name, rows in table.groupby("circuit", sort=False):
        name = str(name)
        count = int(rows["circuit_components"].iloc[0])
        line = {"color": INK, "width": 4} if name == TRUTH else method_line(name)
        texts = [
            f"<b>{text_of(name)}</b>, {count:,} components"
            f"<br>trace of s = {row['size']:.4g}: {row['edges']:,} edges, "
            f"{row['components']:,} components"
            f"<br>recall {row['recall']:.3f}, precision {row['precision']:.3f}, "
            f"AUROC {row['auroc']:.3f}"
            f"<br>edges kept: {percent(row['share_inside'])} of those inside, "
            f"{percent(row['share_outside'])} of those outside"
            for row in rows.to_dict("records")
        ]
        for panel, column in enumerate(("recall", "auroc"), start=1):
            fig.add_scatter(
                x=rows["size"],
                y=rows[column],
                name=f"{text_of(name)} ({count:,})",
                legendgroup=text_of(name),
                showlegend=panel == 1,
                mode="lines",
                line=line,
                hoverinfo="text",
                hovertext=texts,
                row=panel,
                col=1,
            )
    chance: dict[str, Any] = {"row": 2, "col": 1}  # plotly's stubs want text, plotly numbers
    fig.add_hline(y=0.5, line={"color": INK, "width": 1, "dash": "dash"}, **chance)
    axis = size_axis(table["size"].to_numpy())
    fig.update_xaxes({**axis, "title": None})
    fig.update_xaxes(title=axis["title"], row=2)
    fig.update_yaxes(title_text="share of components in the trace", range=[-0.03, 1.03], row=1)
    fig.update_yaxes(title_text="AUROC of components", range=[-0.03, 1.03], row=2)
    fig.update_layout(legend={"title": {"text": "circuit (components)"}, "tracegroupgap": 0})
    return fig


def _truth_name(comparison: Comparison) -> str:
    return f" ({text_of(comparison.truth_name)})" if comparison.truth_name else ""
