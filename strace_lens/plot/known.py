"""Methods compared with what is known: the true circuit, and the components of an s-Trace."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from strace_lens.comparison.comparison import Comparison, chance_level
from strace_lens.plot.charts import ABOVE, add_points, named_ticks
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

    AUROC is the chance that a true edge scores above another one; 0.5 is the mean of chance, and
    the dotted line is what a method must exceed to beat random. Precision is the share of true
    edges among as many of the best as there are true ones.

    Raises:
        ValueError: no true circuit is known.
    """
    known = [r for r in comparison.results if r.auroc is not None]
    if not known:
        raise ValueError(f"no true circuit of {comparison.task!r} is known")
    known.sort(key=lambda r: (r.auroc, r.precision or 0.0))
    truth = f" ({text_of(comparison.truth_name)})" if comparison.truth_name else ""
    fig = figure(
        f"Against the true circuit{truth}",
        height=150 + 26 * len(known),
        margin={"t": 84},
        legend={**ABOVE, "x": 0, "xanchor": "left", "y": 1},
        bargap=0.3,
    )
    names, auroc = [text_of(r.method) for r in known], [r.auroc for r in known]
    look: dict[str, Any] = {"y": list(range(len(names))), "hoverinfo": "text"}
    fig.add_bar(
        x=auroc,
        orientation="h",
        name="AUROC",
        marker={"color": [look_of(r.method).colour for r in known], "opacity": 0.75},
        hovertext=[f"<b>{n}</b><br>AUROC {a:.4f}" for n, a in zip(names, auroc, strict=True)],
        showlegend=False,
        **look,
    )
    fig.add_scatter(
        x=[r.precision for r in known],
        name="precision at the true size",
        mode="markers",
        marker={
            "symbol": "diamond",
            "size": 10,
            "color": "white",
            "line": {"color": INK, "width": 2},
        },
        hovertext=[
            f"<b>{n}</b><br>precision {r.precision:.4f}<br>{len(r.missed)} true edges missed"
            for n, r in zip(names, known, strict=True)
        ],
        **look,
    )
    if comparison.random_auroc:
        level = chance_level(comparison.random_auroc)
        fig.add_vline(x=level, line={"color": INK, "width": 1.5, "dash": "dot"})
    fig.update_xaxes(range=[-0.02, 1.03], title_text="AUROC (bars), precision (diamonds)")
    return fig.update_yaxes(named_ticks([f"{r.method}  {r.auroc:.3f}" for r in known]))


def plot_found(comparison: Comparison) -> go.Figure:
    """Which true edges each method has among as many of its best as there are true ones.

    Dark: a true edge that is among them. Pale: one that the method misses.

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
    missed = "missed" if len(edges) <= 12 else "–"
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
        text=np.where(found > 0, "", missed),
        hoverinfo="text",
        hovertext=[
            [
                f"<b>{text_of(r.method)}</b><br>{text_of(edge)}: {'found' if there else 'missed'}"
                for edge, there in zip(edges, row, strict=True)
            ]
            for r, row in zip(results, found, strict=True)
        ],
    )
    fig.update_xaxes(tickangle=-40, **named_ticks(edges))
    methods = named_ticks([r.method for r in results])
    return fig.update_yaxes(range=[len(results) - 0.5, -0.5], **methods)


def plot_projection(comparison: Comparison) -> go.Figure:
    """The s-Traces of a task's first prompts, projected to heads and MLPs.

    Left: traces of the whole output, as the paper defines them; right: of the contrast between
    answers and wrong answers, where the task has both. Above: share of a circuit's components with
    at least one edge in most of the traces of each size. Below: whether the traces keep more of the
    edges of components inside the circuit than of those outside (AUROC; 0.5 is chance, dashed); a
    circuit of all components has none. The number behind a name counts the circuit's components.

    Raises:
        ValueError: the comparison has no projection.
    """
    table = comparison.projection
    if table is None or table.empty:
        raise ValueError(f"{comparison.model} has no token graph, so no trace to project")
    kinds = list(table["trace"].unique())
    panels = make_subplots(
        rows=2,
        cols=len(kinds),
        shared_xaxes=True,
        shared_yaxes=True,
        vertical_spacing=0.07,
        horizontal_spacing=0.04,
        column_titles=[f"traces of the {kind}" for kind in kinds],
    )
    fig = dressed(panels, "s-Traces of the task's prompts against the circuits", 700)
    for of_circuit, rows in table.groupby(["circuit", "trace"], sort=False):
        name, kind = (str(part) for part in cast(tuple[str, str], of_circuit))
        shown, count = text_of(name), int(rows["circuit_components"].iloc[0])
        for panel, column in enumerate(("recall", "auroc"), start=1):
            add_points(
                fig,
                rows,
                "size",
                column,
                lambda row, shown=shown, count=count: (
                    f"<b>{shown}</b>, {count:,} components<br>traces of the {row['trace']}, s = "
                    f"{row['size']:.4g}: {row['edges']:,} edges, {row['components']:,} components"
                    f"<br>recall {row['recall']:.3f}, precision {row['precision']:.3f}, AUROC "
                    f"{row['auroc']:.3f}<br>edges kept: {percent(row['share_inside'])} of those "
                    f"inside, {percent(row['share_outside'])} of those outside"
                ),
                name=f"{shown} ({count:,})",
                legendgroup=shown,
                mode="lines",
                line={"color": INK, "width": 4} if name == TRUTH else method_line(name),
                row=panel,
                col=1 + kinds.index(kind),
            )
    chance: dict[str, Any] = {"row": 2, "col": "all"}  # plotly's stubs want text, plotly numbers
    fig.add_hline(y=0.5, line={"color": INK, "width": 1, "dash": "dash"}, **chance)
    axis = size_axis(table["size"].to_numpy())
    fig.update_xaxes({**axis, "title": None})
    fig.update_xaxes(title="relative size s (log)", row=2)
    fig.update_yaxes(range=[-0.03, 1.03])
    fig.update_yaxes(title_text="share of components in the traces", row=1, col=1)
    fig.update_yaxes(title_text="AUROC of components", row=2, col=1)
    legend = {"title": {"text": "circuit (components)"}, "tracegroupgap": 0}
    return fig.update_layout(legend=legend)
