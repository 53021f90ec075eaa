"""Estimators side by side, means over prompts: fidelity by size, density by prompt, compute."""

from __future__ import annotations

import html
from typing import cast

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from strace_lens.measures.intervals import interval, interval_text, mean_curve
from strace_lens.plot.charts import ABOVE, error_bars
from strace_lens.plot.means import add_line, by_estimator, line_of, names_of
from strace_lens.plot.style import (
    COLOURS,
    INK,
    SYMBOLS,
    dressed,
    figure,
    measured_axis,
    size_axis,
)


def plot_fidelity(runs: pd.DataFrame) -> go.Figure:
    """Total variation by size, a line an estimator: from the prompt's own output, and its control.

    The lower part is the wrong target: the same estimators aimed at the output of another prompt. A
    line is the mean over prompts, its band the 95 % bootstrap interval.

    Args:
        runs: of `Trials`.
    """
    panels = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06)
    fig = dressed(panels, "Total variation by size", 760, margin={"t": 80}, legend=ABOVE)
    for name, rows in by_estimator(runs):
        for row, role in enumerate(("own", "wrong"), start=1):
            curve = mean_curve(rows.query(f"role == {role!r}"), "tv")
            add_line(fig, name, curve, "TV", row, showlegend=row == 1)
    fig.update_xaxes(measured_axis(runs["size"].to_numpy()))
    fig.update_xaxes(title=size_axis([1.0])["title"], row=2)
    fig.update_yaxes(range=[-0.02, 1.04])
    fig.update_yaxes(title_text="TV from the model's output", row=1)
    fig.update_yaxes(title_text="TV from a wrong target", row=2)
    return fig


def plot_compute(runs: pd.DataFrame) -> go.Figure:
    """Compute share by size, and total variation by compute share.

    Left, the multiply-adds that a sparse run of the trace would need over those of the full pass,
    mean over prompts with its 95 % bootstrap interval. Right, mean TV at the mean compute share of
    the same size.

    Args:
        runs: of `Trials`.
    """
    panels = make_subplots(rows=1, cols=2, horizontal_spacing=0.1)
    fig = dressed(panels, "Share of the full pass's compute", 460, margin={"t": 80}, legend=ABOVE)
    for name, rows in by_estimator(runs.query("role == 'own'")):
        compute, tv = mean_curve(rows, "compute"), mean_curve(rows, "tv")
        add_line(fig, name, compute, "compute share")
        fig.add_scatter(
            x=compute["mean"],
            y=tv["mean"],
            name=name,
            legendgroup=name,
            showlegend=False,
            mode="lines",
            line=line_of(name),
            hoverinfo="text",
            hovertext=[
                f"<b>{name}</b>, s = {size:.4g}<br>compute share {x:.3f}, TV {y:.3f}"
                for size, x, y in zip(compute["size"], compute["mean"], tv["mean"], strict=True)
            ],
            row=1,
            col=2,
        )
    fig.update_xaxes(measured_axis(runs["size"].to_numpy()), title_text="relative size s (log)")
    fig.update_yaxes(title_text="compute share", range=[-0.02, 1.04])
    share = {"title_text": "compute share", "type": "linear", "range": [-0.02, 1.04]}
    fig.update_xaxes(tickmode="auto", minor=None, **share, col=2)
    fig.update_yaxes(title_text="TV from the model's output", col=2)
    return fig


def plot_densities(traces: pd.DataFrame) -> go.Figure:
    """Density of every prompt under every estimator, joined by prompt; kinds of prompts marked.

    Args:
        traces: of `Trials`; a prompt counts by its mean over seeds.
    """
    own = traces.query("target == 'own'").fillna({"kind": ""})
    names = names_of(own)
    wide = own.pivot_table(index=["kind", "prompt"], columns="estimator", values="density")
    wide = wide.reindex(columns=names)
    fig = figure("Density by prompt", height=520, margin={"t": 60})
    kinds = wide.index.unique("kind").tolist()
    hues = [colour for name, colour in COLOURS.items() if name != "trace"]
    for key, row in wide.iterrows():
        kind, prompt = cast(tuple[str, int], key)
        at = kinds.index(kind)
        fig.add_scatter(
            x=list(range(len(names))),
            y=row.to_numpy(),
            name=html.escape(kind, quote=False) or "no kind given",
            legendgroup=f"kind {kind}",
            showlegend=bool(prompt == wide.loc[kind].index[0]),
            mode="lines+markers",
            line={"color": "rgba(0,0,0,0.16)", "width": 1},
            marker={"symbol": SYMBOLS[at % len(SYMBOLS)], "color": hues[at % len(hues)], "size": 8},
            hoverinfo="text",
            hovertext=[
                f"<b>{name}</b>, prompt {prompt} ({html.escape(kind)})<br>density {density:.3f}"
                for name, density in row.items()
            ],
        )
    _add_means(fig, wide)
    ticks = {"tickmode": "array", "tickvals": list(range(len(names))), "ticktext": names}
    fig.update_xaxes(title_text="estimator", range=[-0.4, len(names) - 0.4], **ticks)
    fig.update_yaxes(title_text="density: area under TV over log s, over its range")
    return fig


def _add_means(fig: go.Figure, wide: pd.DataFrame) -> None:
    """Means over prompts, beside the dots of each estimator."""
    values = wide.to_numpy(dtype=np.float64)
    mean, (low, high) = values.mean(0), interval(values)
    fig.add_scatter(
        x=[i + 0.16 for i in range(len(mean))],
        y=mean,
        name="mean and 95 % interval",
        mode="markers",
        marker={"symbol": "line-ew", "size": 16, "line": {"width": 3, "color": INK}},
        error_y=error_bars(mean, low, high),
        hoverinfo="text",
        hovertext=[
            f"<b>{name}</b><br>mean density {interval_text(*of)}"
            for name, *of in zip(wide.columns, mean, low, high, strict=True)
        ],
    )
