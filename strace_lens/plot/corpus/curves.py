"""Curves of many prompts: their means, the sizes that they need, and where their phases meet.

Each parameter is the table of that name that `analyse` returns; figures have a row of panels a run.
Pages show the docstring of a figure as its caption.
"""
# pyright: reportArgumentType=false, reportCallIssue=false, reportReturnType=false
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from strace_lens.measures.intervals import interval_text, row_text
from strace_lens.plot.charts import (
    ABOVE,
    SIZE_TITLE,
    Looks,
    add_mean,
    add_means,
    add_points,
    at_size,
    by_run,
    empty,
    of_run,
    run_lines,
    run_panels,
)
from strace_lens.plot.style import (
    BANDS,
    COLOURS,
    INK,
    PARTS,
    figure,
    percent,
    size_axis,
    text_of,
)

_TV = "total variation from the full model (0 to 1)"
_HEIGHT = 380  # of a panel, in pixels
# The trace last, over its controls.
_CURVES: Looks = {
    curve: (name, {"color": COLOURS[curve]})
    for curve, name in (
        ("random_inverse", "inverse of the random subgraph"),
        ("random", "random subgraph"),
        ("inverse", "inverse of the trace"),
        ("trace", "trace"),
    )
}
_ERRORS: Looks = {
    part: (f"{part} error", {"color": COLOURS[part], "dash": dash})
    for part, (dash, _) in PARTS.items()
}
_BEYOND = 1.15  # a size right of 1: where bars end that have no end among the sizes
_PITCH = 24  # pixels a row
_FIRST = 0.3  # of a row, by which what holds first lies below what holds from there on
_RULES = {"stable": "from there on", "first": "for the first time"}
_NEEDED = {
    "nucleus": ("nucleus shared, p = {:.3g}", INK),
    "top1": ("top token is the model's", INK),
    "head_share": ("head error under {} of the head", COLOURS["head"]),
    "tail_share": ("tail error under {} of the tail", COLOURS["tail"]),
    "head_error": ("head error under {:.3g}", COLOURS["head"]),
    "tail_error": ("tail error under {:.3g}", COLOURS["tail"]),
}
# The later, the darker.
_ENDS = {
    "construction_start": ("construction starts", "#7f86bd", "circle-open"),
    "construction_stop": ("construction stops", "#17183f", "square"),
}


def plot_mean_curves(mean_curves: pd.DataFrame, corpus_boundaries: pd.DataFrame) -> go.Figure:
    """Mean total variation of the trace, a random subgraph and the inverses of both, by size.

    The thin line is the trace's median. Upright lines stand where the phases of the mean curve
    meet, over the intervals of these boundaries.
    """
    order = {curve: place for place, curve in enumerate(_CURVES)}
    curves = mean_curves[mean_curves["curve"].isin(list(_CURVES))]
    curves = curves.sort_values("curve", key=lambda names: names.map(order), kind="stable")
    ends = corpus_boundaries[corpus_boundaries["quantity"].isin(list(_ENDS))]

    def head(run: str) -> list[str]:
        return ["<br>".join(map(_boundary_text, of_run(ends, run).to_dict("records")))]

    title = "Total variation by size, mean over prompts"
    fig = run_panels(curves, title, head, [_TV], _HEIGHT)
    for _, own, row in by_run(curves[curves["curve"] == "trace"]):
        add_points(
            fig,
            own,
            "size",
            "median",
            lambda r: f"{at_size(r)}median of the trace {row_text(r, 'median')}",
            name="median of the trace",
            mode="lines",
            line={"color": COLOURS["trace"], "width": 1},
            row=row,
            col=1,
        )
    add_means(fig, curves, ["mean"], _CURVES, _mean_text, by="curve")
    for run, _, row in by_run(curves):  # plotly leaves shapes out of panels without curves
        place: dict[str, Any] = {"row": row, "col": 1, "layer": "below"}
        for end in of_run(ends, run).to_dict("records"):
            if not np.isnan(end["low"]):
                shade = {"fillcolor": BANDS["refinement"], "line_width": 0}
                fig.add_vrect(x0=end["low"], x1=end["high"], **shade, **place)
            if not np.isnan(end["value"]):
                fig.add_vline(x=end["value"], line={"color": INK, "width": 1}, **place)
    return fig.update_layout(legend_traceorder="reversed").update_yaxes(range=[-0.02, 1.02])


def _mean_text(row: dict[Any, Any], value: str, column: str) -> str:
    name, _ = {**_CURVES, **_ERRORS}[row["curve"]]
    return f"{at_size(row)}{column} {name} {value}"


def _boundary_text(row: dict[Any, Any]) -> str:
    """Where a boundary of the mean curve is, and in how many resamples there is one."""
    missing, unsure = np.isnan(row["value"]), np.isnan(row["found"])
    if unsure:
        often = ""
    else:
        often = f"{'; there' if missing else ', found'} in {percent(row['found'])} of resamples"
    at = f"s = {interval_text(row['value'], row['low'], row['high'])}"
    return f"{_ENDS[row['quantity']][0]}: {'not found' if missing else at}{often}"


def plot_shared_curves(shared_curves: pd.DataFrame, shared_boundaries: pd.DataFrame) -> go.Figure:
    """Mean total variation of the traces over the prompts that all runs have, a line a run.

    Upright lines stand where construction of a run's mean curve starts and stops.
    """
    title = "Total variation by size, mean over the prompts that all runs have"
    curves = shared_curves[shared_curves["curve"] == "trace"]
    if curves.empty:
        return empty(title)
    fig = figure(title, 460, margin={"t": 90}, legend=ABOVE)
    lines = run_lines(shared_curves)
    for run, own, _ in by_run(curves):
        name, line = text_of(run), lines[run]
        ends = of_run(shared_boundaries, run)
        for at in ends.loc[ends["quantity"].isin(list(_ENDS)), "value"].dropna():
            fig.add_vline(x=at, line={**line, "width": 1}, layer="below")
        add_mean(
            fig,
            own,
            ("size", "mean", "mean_low", "mean_high"),
            line,
            lambda row, value, name=name: f"{at_size(row)}{name}: {value}",
            name=name,
        )
    fig.update_xaxes(size_axis(curves["size"].to_numpy(dtype=np.float64)))
    return fig.update_yaxes(title_text=_TV, range=[-0.02, 1.02])


def plot_head_tail(mean_curves: pd.DataFrame) -> go.Figure:
    """Mean error over the head (the model's top-p nucleus) and over the tail, by size.

    They add up to the total variation.
    """
    curves = mean_curves[mean_curves["curve"].isin(list(_ERRORS))]
    title = "Head and tail error by size, mean over prompts"
    fig = run_panels(curves, title, [""], ["error: its part of the total variation"])
    add_means(fig, curves, ["mean"], _ERRORS, _mean_text, by="curve")
    return fig.update_yaxes(rangemode="tozero")


def plot_sizes_needed(size_needed: pd.DataFrame) -> go.Figure:
    """Size from which on the trace shares nucleus or top token, or stays under an error.

    Markers are medians over prompts. Bars go from the first to the third quartile, and beyond s = 1
    where no measured size reaches it. Hollow markers, which are what the authors' code reports, are
    the first sizes at which it does; at a larger one it may not.
    """
    # NaN, for no level, would not equal itself.
    asked = list(zip(size_needed["what"], size_needed["level"].fillna(0.0), strict=True))
    keys = list(dict.fromkeys(asked))
    rows = size_needed.assign(key=[keys.index(key) for key in asked])
    title = "Size needed: median and quartiles over prompts"
    fig = run_panels(rows, title, [""], [""], _PITCH * len(keys))
    for _, own, row in by_run(rows):
        place: dict[str, Any] = {"row": row, "col": 1}
        for _, one in own.groupby(["what", "rule"], sort=False):
            _add_needed(fig, one, **place)
        held = own[own["rule"] == "stable"].to_dict("records")
        fig.update_yaxes(
            range=[len(keys) - 0.5, -0.5],
            tickvals=[r["key"] for r in held],
            ticktext=[_label(r) for r in held],
            **place,
        )
    return fig.update_xaxes(_axis_of(size_needed[["median", "q1", "q3"]]), title_text=SIZE_TITLE)


def _asked_text(row: dict[Any, Any]) -> str:
    """What is asked for, at its level."""
    level = percent(row["level"]) if row["what"].endswith("share") else row["level"]
    return _NEEDED[row["what"]][0].format(level)


def _label(row: dict[Any, Any]) -> str:
    """What is asked for, and how many prompts do not have it at the largest size."""
    never = f" ({row['never']} of {row['prompts']} never)" if row["never"] else ""
    return f"{_asked_text(row)}{never}"


def _add_needed(fig: go.Figure, rows: pd.DataFrame, **place: Any) -> None:
    """Medians and quartiles of one thing asked for, at all its levels.

    Markers are filled where a size is enough from there on, hollow where it is the first.
    """
    rule, colour = rows["rule"].iloc[0], _NEEDED[rows["what"].iloc[0]][1]
    hollow = rule == "first"
    rows = rows.assign(at=rows["key"] + _FIRST * hollow)
    bars = rows[rows["q1"].notna()]
    width = 1 if hollow else 3
    _add_bars(fig, bars["q1"], bars["q3"].fillna(_BEYOND), bars["at"], colour, width, **place)
    ring = {"color": colour, "width": 1.5}
    add_points(
        fig,
        rows,
        "median",
        "at",
        lambda r: (
            f"{_asked_text(r)}, {_RULES[rule]}<br>median s = {r['median']:.6g}, quartiles "
            f"{_reached(r['q1'])} to {_reached(r['q3'])}<br>{r['never']} of {r['prompts']} prompts "
            "never"
        ),
        name=_RULES[rule],
        mode="markers",
        marker={"color": "white" if hollow else colour, "size": 8, "line": ring},
        **place,
    )


def _reached(size: float) -> str:
    return "never" if math.isnan(size) else f"{size:.6g}"


def _add_bars(
    fig: go.Figure,
    low: pd.Series,
    high: pd.Series,
    at: pd.Series,
    colour: str,
    width: int,
    **place: object,
) -> None:
    """Level bars as one line with gaps."""
    if len(low):
        fig.add_scatter(
            x=[end for pair in zip(low, high, strict=True) for end in (*pair, None)],
            y=[y for row in at for y in (row, row, None)],
            mode="lines",
            line={"color": colour, "width": width},
            opacity=0.6,
            showlegend=False,
            hoverinfo="skip",
            **place,
        )


def plot_prompt_boundaries(prompt_boundaries: pd.DataFrame) -> go.Figure:
    """Where construction starts and stops on each prompt, sorted by where it stops, then starts.

    Bars are 95 % intervals of residual bootstraps. A boundary is there only between two phases that
    were found; prompts without one lie at the bottom.
    """
    longest = int(prompt_boundaries["run"].value_counts().max()) if len(prompt_boundaries) else 0
    fig = run_panels(
        prompt_boundaries,
        "Construction of each prompt, sorted by where it stops",
        lambda run: [_counted(prompt_boundaries[prompt_boundaries["run"] == run])],
        ["prompts, sorted (rank)"],
        int(np.clip(8 * longest, 200, 600)),
    )
    for run, own, row in by_run(prompt_boundaries):
        ranked = own.sort_values(list(reversed(_ENDS)), kind="stable")
        ranked["rank"] = range(1, len(own) + 1)
        for end in _ENDS:
            _add_boundary(fig, ranked, text_of(run), end, row=row, col=1)
        fig.update_yaxes(
            range=[len(own) + 0.7, 0.3], dtick=max(1, len(own) // 10), tick0=0, row=row
        )
    ends = [f"{end}{part}" for end in _ENDS for part in ("", "_low")]
    fig.update_xaxes(_axis_of(prompt_boundaries[ends]), title_text=SIZE_TITLE)
    return fig.update_yaxes(showgrid=False)


def _counted(rows: pd.DataFrame) -> str:
    """How many prompts have each boundary."""
    return ", ".join(
        f"{called} in {rows[end].notna().sum()} of {len(rows)} prompts"
        for end, (called, *_) in _ENDS.items()
    )


def _axis_of(sizes: pd.DataFrame) -> dict[str, object]:
    """The axis of some sizes, of which any may be missing."""
    return size_axis([np.nanmin(sizes.to_numpy(dtype=np.float64), initial=1.0)])


def _add_boundary(fig: go.Figure, ranked: pd.DataFrame, run: str, end: str, **place: Any) -> None:
    called, colour, symbol = _ENDS[end]
    there = ranked[ranked[end].notna()]
    sure = there[there[f"{end}_low"].notna()]
    _add_bars(fig, sure[f"{end}_low"], sure[f"{end}_high"], sure["rank"], colour, 2, **place)
    if there.empty:  # a legend names only what has points
        return
    add_points(
        fig,
        there,
        end,
        "rank",
        lambda row: (
            f"<b>{run}</b>, prompt {row['prompt']}<br>{called} at s = "
            f"{row_text(row, end, '{:.4g}')}{_often(row[f'{end}_found'])}"
        ),
        name=called,
        mode="markers",
        marker={"color": colour, "symbol": symbol, "size": 7},
        **place,
    )


def _often(found: float) -> str:
    return "" if math.isnan(found) else f"<br>found in {percent(found)} of resamples"
