"""Mean curves of many prompts, with their intervals and the boundaries of their phases."""
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from strace_lens.measures.intervals import interval_text
from strace_lens.plot.corpus.panels import empty
from strace_lens.plot.corpus.runs import (
    add_interval,
    by_run,
    dash_of,
    make_room,
    name_runs,
    names_of,
)
from strace_lens.plot.style import (
    BANDS,
    COLOURS,
    INK,
    LINE,
    PARTS,
    figure,
    percent,
    remark,
    size_axis,
)

_INNER = 380  # pixels
_TURN = -2.5  # log10 of the size beyond which a text ends at its place instead of beginning there
_CONTROLS = ("inverse", "random", "random_inverse")
_NAMES = {
    "trace": "trace",
    "inverse": "inverse of the trace",
    "random": "random subgraph",
    "random_inverse": "inverse of the random subgraph",
    "head": "head error",
    "tail": "tail error",
}
_MOST_TOLD = 2  # runs whose boundaries are told in words
_BOUNDARIES = {
    "construction_start": "construction starts",
    "construction_stop": "construction stops",
}


def plot_mean_curves(mean_curves: pd.DataFrame, corpus_boundaries: pd.DataFrame) -> go.Figure:
    """Mean total variation by size of the trace, a random subgraph and the inverses of both.

    Bands are 95 % bootstrap intervals over prompts, the thin line is the trace's median. Upright
    lines stand at the boundaries of the mean curve's phases, over the bands of their intervals.

    Args:
        mean_curves: of `analyse`; several runs are told apart by dashes.
        corpus_boundaries: of `analyse`, of the same runs.
    """
    title = "Total variation by size, mean over prompts"
    curves = mean_curves[mean_curves["curve"].isin(["trace", *_CONTROLS])]
    if curves.empty:
        return empty(title, "no prompt has a curve")
    fig = _by_size(title, curves, "total variation from the full model (0 to 1)")
    said = _add_boundaries(fig, corpus_boundaries)
    _add_curves(fig, curves)
    _add_medians(fig, curves[curves["curve"] == "trace"])
    name_runs(fig, names_of(curves))
    missing = set(_CONTROLS) - set(curves["curve"])
    if missing:
        remark(
            fig, f"not measured: {', '.join(_NAMES[name] for name in sorted(missing))}", row=said
        )
    return make_room(fig, _INNER, said + bool(missing)).update_yaxes(range=[-0.02, 1.02])


def plot_head_tail(mean_curves: pd.DataFrame) -> go.Figure:
    """Mean head error and mean tail error by size, with 95 % bootstrap intervals over prompts.

    Args:
        mean_curves: of `analyse`; several runs are told apart by dashes.
    """
    title = "Head and tail error by size, mean over prompts"
    curves = mean_curves[mean_curves["curve"].isin(list(PARTS))]
    if curves.empty:
        return empty(title, "no prompt has head and tail errors")
    fig = _by_size(title, curves, "error: its part of the total variation")
    names = names_of(curves)
    _add_curves(
        fig, curves, {part: dash for part, (dash, _) in PARTS.items()} if len(names) == 1 else {}
    )
    name_runs(fig, names)
    return make_room(fig, _INNER).update_yaxes(rangemode="tozero")


def _by_size(title: str, curves: pd.DataFrame, y_title: str) -> go.Figure:
    fig = figure(title, height=_INNER)
    fig.update_xaxes(size_axis(curves["size"].to_numpy(dtype=np.float64)))
    return fig.update_yaxes(title_text=y_title)


def _add_curves(
    fig: go.Figure, curves: pd.DataFrame, dashes: Mapping[str, str] | None = None
) -> None:
    """Means over bands; dashes by curve where they are given, else by run."""
    named: set[str] = set()
    order = [name for name in _NAMES if name in set(curves["curve"])]
    for number, run, own in by_run(curves):
        for name in reversed(order):  # the trace over its controls
            curve = own[own["curve"] == name]
            if curve.empty:
                continue
            add_interval(fig, curve, "mean_low", "mean_high", COLOURS[name], legendgroup=name)
            fig.add_scatter(
                x=curve["size"],
                y=curve["mean"],
                name=_NAMES[name],
                legendgroup=name,
                legendrank=1 + order.index(name),
                showlegend=name not in named,
                mode="lines",
                line={
                    "color": COLOURS[name],
                    "dash": (dashes or {}).get(name, dash_of(number)),
                    "width": 2.5,
                },
                hoverinfo="text",
                hovertext=_texts(curve, f"<b>{run}</b>, {_NAMES[name]}", "mean"),
            )
            named.add(name)


def _add_medians(fig: go.Figure, traces: pd.DataFrame) -> None:
    for number, run, curve in by_run(traces):
        fig.add_scatter(
            x=curve["size"],
            y=curve["median"],
            name="median of the trace",
            legendgroup="median",
            legendrank=10,
            showlegend=number == 0,
            mode="lines",
            line={"color": COLOURS["trace"], "dash": dash_of(number), "width": 1},
            hoverinfo="text",
            hovertext=_texts(curve, f"<b>{run}</b>, trace", "median"),
        )


def _texts(curve: pd.DataFrame, start: str, statistic: str) -> list[str]:
    columns = ["size", "prompts", statistic, f"{statistic}_low", f"{statistic}_high"]
    return [
        f"{start}<br>s = {size:.6g}, {prompts} prompt{'s' * (prompts != 1)}<br>"
        f"{statistic} {interval_text(*of, shown='{:.4g}')}"
        for size, prompts, *of in curve[columns].itertuples(index=False)
    ]


def _add_boundaries(fig: go.Figure, boundaries: pd.DataFrame) -> int:
    """Draw where phases meet, with a line of text for each; how many lines there are.

    Of more than two runs lines of text would bury the curves: their boundaries are in the table.
    """
    runs = len(names_of(boundaries))
    several = runs > 1
    said: list[tuple[str, float]] = []
    for number, run, own in by_run(boundaries):
        found = own.set_index("quantity").to_dict("index")
        for quantity, called in _BOUNDARIES.items():
            if quantity in found:
                row = found[quantity]
                _mark(fig, row["value"], row["low"], row["high"], dash_of(number))
                if runs <= _MOST_TOLD:
                    said.append((f"{run}: " * several + _told(called, row), row["value"]))
    for row, (text, at) in enumerate(reversed(said)):
        _say(fig, text, at, row)
    return len(said)


def _told(called: str, row: Mapping[Any, Any]) -> str:
    missing, unsure = np.isnan(row["value"]), np.isnan(row["found"])
    at = f"s = {interval_text(row['value'], row['low'], row['high'])}"
    value = f"{called}: {'not found' if missing else at}"
    share = percent(row["found"])
    return value if unsure else f"{value}{'; there' if missing else ', found'} in {share}"


def _mark(fig: go.Figure, value: float, low: float, high: float, dash: str) -> None:
    if not np.isnan(low):
        fig.add_vrect(x0=low, x1=high, fillcolor=BANDS["refinement"], line_width=0, layer="below")
    if not np.isnan(value):
        fig.add_vline(x=value, line={"color": INK, "width": 1, "dash": dash}, layer="below")


def _say(fig: go.Figure, text: str, at: float, row: int) -> None:
    """A line of text right above the plotting area, ending or beginning at a size, if there is."""
    nowhere = np.isnan(at)
    right = not nowhere and np.log10(at) > _TURN
    fig.add_annotation(
        text=text,
        x=0 if nowhere else np.log10(at),
        xref="paper" if nowhere else "x",
        y=1,
        yref="paper",
        xanchor="right" if right else "left",
        yanchor="bottom",
        yshift=2 + LINE * row,
        showarrow=False,
        font={"size": 12},
    )
