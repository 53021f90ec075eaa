"""Whether small traces predict shallow statistics: TV of their output to each target by size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from strace_lens.measures.intervals import interval_text
from strace_lens.plot.corpus.panels import add_mean, by_run, empty, of_run, run_panels
from strace_lens.plot.style import COLOURS, percent, size_axis

TARGETS = {
    "full": ("the model's output", COLOURS["trace"], "solid"),
    "unigram": ("unigram distribution", "#882255", "dash"),
    "no_context": ("output without context", "#999933", "dashdot"),
}
"""What each target is called, and its look: hues of no other thing."""

_NEAR = {"nearer": "nearer than the full model is", "nearest": "nearest of all"}


def plot_shallow(shallow: pd.DataFrame, shallow_full_model: pd.DataFrame) -> go.Figure:
    """TV of the traces' output to each target by size; dotted, that of the full model's output.

    Means over prompts with 95 % bootstrap intervals, a panel a run.

    Args:
        shallow: of `analyse`.
        shallow_full_model: of `analyse`, of the same runs.
    """
    title = "Traces' output against shallow statistics"
    if shallow.empty:
        return empty(title, "no target was measured")
    fig = run_panels(shallow, title, [""], ["total variation"])
    named: set[str] = set()
    for name, own, row in by_run(shallow):
        place: dict[str, Any] = {"row": row, "col": 1}
        for target, curve in own.groupby("target", sort=False):
            called, colour, dash = TARGETS[str(target)]
            add_mean(
                fig,
                curve,
                ("size", "tv", "low", "high"),
                {"color": colour, "dash": dash},
                lambda r, value, called=called: (
                    f"<b>s = {r['size']:.4g}</b>, {r['prompts']} prompts<br>"
                    f"TV to the {called.removeprefix('the ')} {value}"
                ),
                name=f"to {called}",
                legendgroup=str(target),
                showlegend=target not in named,
                **place,
            )
            named.add(str(target))
        of_full = of_run(shallow_full_model, name)
        for r in of_full.to_dict("records"):
            _add_full(fig, r, own["size"].to_numpy(dtype=np.float64), place)
        sizes = own["size"].to_numpy(dtype=np.float64)
        fig.update_xaxes(size_axis(sizes), title_text="relative size s (log)", **place)
    return fig.update_yaxes(range=[-0.02, 1.02])


def plot_nearest(nearest: pd.DataFrame) -> go.Figure:
    """How many prompts' traces are nearer to a target than the full model is, or nearest to it.

    Shares of prompts with Wilson's 95 % intervals, a row of panels a run.

    Args:
        nearest: of `analyse`.
    """
    title = "How many traces are near to shallow statistics"
    if nearest.empty:
        return empty(title, "no target was measured")
    fig = run_panels(nearest, title, list(_NEAR.values()), ["share of prompts"])
    named: set[str] = set()
    for _, own, row in by_run(nearest):
        sizes = own["size"].to_numpy(dtype=np.float64)
        for col, (column, said) in enumerate(_NEAR.items(), start=1):
            place: dict[str, Any] = {"row": row, "col": col}
            for target, curve in own.groupby("target", sort=False):
                if curve[column].isna().to_numpy().all():
                    continue  # the full model is never nearer to itself than it is
                called, colour, dash = TARGETS[str(target)]
                add_mean(
                    fig,
                    curve,
                    ("size", column, f"{column}_low", f"{column}_high"),
                    {"color": colour, "dash": dash},
                    lambda r, _, column=column, called=called, said=said: (
                        f"<b>s = {r['size']:.4g}</b>, {r['prompts']} prompts<br>to "
                        f"{called}, {said}: {_share(r, column)}"
                    ),
                    name=f"to {called}",
                    legendgroup=str(target),
                    showlegend=target not in named,
                    **place,
                )
                named.add(str(target))
            fig.update_xaxes(size_axis(sizes), title_text="relative size s (log)", **place)
    return fig.update_yaxes(range=[-0.03, 1.03], tickformat=".0%")


def _add_full(
    fig: go.Figure, row: dict[str, Any], sizes: np.ndarray, place: dict[str, Any]
) -> None:
    called, colour, _ = TARGETS[row["target"]]
    value = interval_text(row["tv"], row["low"], row["high"])
    fig.add_scatter(
        x=[sizes.min(), sizes.max()],
        y=[row["tv"]] * 2,
        name=f"full model to {called}",
        legendgroup=row["target"],
        showlegend=False,
        mode="lines",
        line={"color": colour, "dash": "dot", "width": 1.5},
        hoverinfo="text",
        hovertext=[f"<b>full model</b>, {row['prompts']} prompts<br>TV to {called} {value}"] * 2,
        **place,
    )


def _share(row: dict[str, Any], column: str) -> str:
    low, high = row[f"{column}_low"], row[f"{column}_high"]
    text = percent(row[column])
    return text if np.isnan(low) else f"{text} [{percent(low)}, {percent(high)}]"
