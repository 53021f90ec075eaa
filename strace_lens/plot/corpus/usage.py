"""How evenly the traces of a corpus use heads, MLPs and the residual stream, and what all share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from strace_lens.plot.corpus.panels import (
    add_mean,
    by_run,
    empty,
    run_panels,
    shown_sizes,
    size_colours,
)
from strace_lens.plot.style import COLOURS, INK, LABELS, percent, size_axis

_COMPONENTS = {"residual": "joins of the residual stream", "attention": "heads", "mlp": "MLPs"}
_NONE = "no size measured has an edge"


def plot_lorenz(lorenz: pd.DataFrame) -> go.Figure:
    """Lorenz curves of the use of components at a few sizes, a row a run and a column a kind.

    Args:
        lorenz: of `analyse`.
    """
    title = "How evenly components are used: Lorenz curves"
    if lorenz.empty:
        return empty(title, _NONE)
    kinds = [kind for kind in _COMPONENTS if (lorenz["kind"] == kind).to_numpy().any()]
    heads = [_COMPONENTS[kind] for kind in kinds]
    fig = run_panels(lorenz, title, heads, ["share of their edges"], 280)
    named: set[float] = set()
    for _, own, row in by_run(lorenz):
        sizes = shown_sizes(own["size"].to_numpy(dtype=np.float64).tolist())
        for col, kind in enumerate(kinds, start=1):
            place: dict[str, Any] = {"row": row, "col": col}
            fig.add_scatter(
                x=[0, 1],
                y=[0, 1],
                name="evenly",
                legendgroup="evenly",
                showlegend=row == col == 1,
                mode="lines",
                line={"color": INK, "dash": "dot", "width": 1},
                hoverinfo="skip",
                **place,
            )
            for size, colour in zip(sizes, size_colours(len(sizes)), strict=True):
                curve = own.loc[own["kind"].eq(kind) & own["size"].eq(size)]
                fig.add_scatter(
                    x=curve["components"],
                    y=curve["use"],
                    name=f"s = {size:.3g}",
                    legendgroup=f"{size:.3g}",
                    showlegend=size not in named,
                    mode="lines",
                    line={"color": colour, "width": 2.5},
                    hoverinfo="text",
                    hovertext=[
                        f"<b>s = {size:.4g}</b><br>the least used {percent(r['components'])} of "
                        f"the {_COMPONENTS[kind]}<br>have {percent(r['use'])} of their edges"
                        for r in curve.to_dict("records")
                    ],
                    **place,
                )
                named.add(size)
            fig.update_xaxes(title_text=f"share of the {_COMPONENTS[kind]}", **place)
    axis = {"range": [-0.02, 1.02], "tickformat": ".0%"}
    return fig.update_xaxes(axis).update_yaxes(axis)


def plot_gini(gini: pd.DataFrame) -> go.Figure:
    """Gini coefficient of the use of components by size, a panel a run; dotted, of the graphs.

    With 95 % bootstrap intervals over prompts.

    Args:
        gini: of `analyse`.
    """
    title = "How evenly components are used: Gini coefficient"
    if gini.empty:
        return empty(title, _NONE)
    fig = run_panels(gini, title, [""], ["Gini coefficient"])
    named: set[str] = set()
    for _, own, row in by_run(gini):
        place: dict[str, Any] = {"row": row, "col": 1}
        sizes = own["size"].to_numpy(dtype=np.float64)
        for kind, curve in own.groupby("kind", sort=False):
            _add_kind(fig, str(kind), curve, ("gini", "low", "high"), _gini_text, named, place)
            graph = float(curve["graph"].iloc[0])
            fig.add_scatter(
                x=[sizes.min(), sizes.max()],
                y=[graph, graph],
                name=f"graph, {_COMPONENTS[str(kind)]}",
                legendgroup=str(kind),
                showlegend=False,
                mode="lines",
                line={"color": COLOURS[str(kind)], "dash": "dot", "width": 1.5},
                hoverinfo="text",
                hovertext=[f"<b>whole graphs</b>, {_COMPONENTS[str(kind)]}: {graph:.3f}"] * 2,
                **place,
            )
        fig.update_xaxes(size_axis(sizes), title_text="relative size s (log)", **place)
    return fig.update_yaxes(range=[-0.02, 1.02])


def plot_core(core: pd.DataFrame) -> go.Figure:
    """Share of the components of a kind that nearly all prompts' traces use, by size.

    Args:
        core: of `analyse`.
    """
    title = "What nearly all traces share"
    if core.empty:
        return empty(title, _NONE)
    fig = run_panels(core, title, [""], ["share of components"])
    named: set[str] = set()
    for _, own, row in by_run(core):
        place: dict[str, Any] = {"row": row, "col": 1}
        for kind, curve in own.groupby("kind", sort=False):
            points = curve.assign(low=np.nan, high=np.nan)
            _add_kind(fig, str(kind), points, ("share", "low", "high"), _core_text, named, place)
        sizes = own["size"].to_numpy(dtype=np.float64)
        fig.update_xaxes(size_axis(sizes), title_text="relative size s (log)", **place)
    return fig.update_yaxes(range=[-0.02, 1.02], tickformat=".0%")


def _add_kind(
    fig: go.Figure,
    kind: str,
    curve: pd.DataFrame,
    columns: tuple[str, str, str],
    hover: Any,
    named: set[str],
    place: dict[str, Any],
) -> None:
    add_mean(
        fig,
        curve,
        ("size", *columns),
        {"color": COLOURS[kind]},
        hover,
        name=LABELS[kind],
        legendgroup=kind,
        showlegend=kind not in named,
        **place,
    )
    named.add(kind)


def _gini_text(row: dict[str, Any], value: str) -> str:
    return f"<b>s = {row['size']:.4g}</b>, {_COMPONENTS[row['kind']]}<br>Gini {value}"


def _core_text(row: dict[str, Any], _: str) -> str:
    return (
        f"<b>s = {row['size']:.4g}</b><br>{row['core']} of {row['components']} "
        f"{_COMPONENTS[row['kind']]}, {percent(row['share'])}"
    )
