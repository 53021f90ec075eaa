"""What the traces of a corpus are made of by size: kinds, and quarters of the depth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from strace_lens.plot.corpus.panels import (
    add_mean,
    by_run,
    empty,
    run_panels,
    size_colours,
)
from strace_lens.plot.style import (
    COLOURS,
    LABELS,
    size_axis,
)

_SHARES = {"share": "all edges of the trace", "marginal": "edges that the size adds"}


def plot_kinds(kinds_by_size: pd.DataFrame) -> go.Figure:
    """Share of each kind of edge by size: of the trace, and of what each size adds.

    Means over the prompts with such edges, with 95 % bootstrap intervals; a row of panels a run.

    Args:
        kinds_by_size: of `analyse`.
    """
    looks = {kind: (LABELS[kind], COLOURS[kind]) for kind in LABELS}
    return _shares("Composition by kind of edge", kinds_by_size, "kind", looks)


def plot_quarters(quarters_by_size: pd.DataFrame) -> go.Figure:
    """Share of each quarter of the layers by size, as `plot_kinds`; the later, the darker.

    Args:
        quarters_by_size: of `analyse`.
    """
    last = 0 if quarters_by_size.empty else int(quarters_by_size["quarter"].to_numpy().max())
    colours = size_colours(last)
    looks = {q: (f"quarter {q}", colours[q - 1]) for q in range(1, last + 1)}
    return _shares("Composition by quarter of the depth", quarters_by_size, "quarter", looks)


def _shares(
    title: str, table: pd.DataFrame, part: str, looks: Mapping[Any, tuple[str, str]]
) -> go.Figure:
    if table.empty:
        return empty(title, "no size measured has an edge")
    fig = run_panels(table, title, list(_SHARES.values()), ["share of edges"])
    named: set[Any] = set()
    for _, own, row in by_run(table):
        for col, (column, of) in enumerate(_SHARES.items(), start=1):
            place: dict[str, Any] = {"row": row, "col": col}
            start = "" if column == "share" else f"{column}_"
            counted = f"{start}prompts"
            for key, curve in own.groupby(part, sort=False):
                called, colour = looks[key]
                add_mean(
                    fig,
                    curve.dropna(subset=column),
                    ("size", column, f"{start}low", f"{start}high"),
                    {"color": colour},
                    lambda r, value, called=called, of=of, counted=counted: (
                        f"<b>s = {r['size']:.4g}</b>, {r[counted]} prompts<br>"
                        f"{called}{_layers(r)}: {value} of {of}"
                    ),
                    name=called,
                    legendgroup=str(key),
                    showlegend=key not in named,
                    **place,
                )
                named.add(key)
            sizes = own["size"].to_numpy(dtype=np.float64)
            fig.update_xaxes(size_axis(sizes), title_text="relative size s (log)", **place)
    return fig.update_yaxes(range=[-0.02, 1.02], tickformat=".0%")


def _layers(row: dict[str, Any]) -> str:
    return f" (layers {row['first']} to {row['last']})" if "first" in row else ""
