"""Curves of many prompts: their means, the sizes that they need, and where their phases meet."""
# pyright: reportArgumentType=false, reportCallIssue=false, reportReturnType=false
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from strace_lens.measures.intervals import interval_text, row_text
from strace_lens.plot.charts import (
    SIZE_TITLE,
    add_mean,
    by_run,
    dash_of,
    empty,
    make_room,
    name_runs,
    symbol_of,
)
from strace_lens.plot.style import (
    BANDS,
    COLOURS,
    INK,
    LINE,
    PARTS,
    dressed,
    figure,
    percent,
    remark,
    size_axis,
    text_of,
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
_MOST_IN_WORDS = 2  # runs whose boundaries are said in words
_EDGE = 1.15  # a size right of 1: where bars end that have no end among the sizes
_PITCH = 24  # pixels a row
_SPREAD = 0.4  # of a row, over which the runs are spread
_FIRST = 0.16  # of a row, by which what holds first lies below what holds from there on
_WIDTHS = {"stable": 3, "first": 1}
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
    """Mean total variation by size of the trace, a random subgraph and the inverses of both.

    Bands are 95 % bootstrap intervals over prompts, the thin line is the trace's median. Upright
    lines stand at the boundaries of the mean curve's phases, over the bands of their intervals.

    Args:
        mean_curves: the table of `analyse`; several runs are told apart by dashes.
        corpus_boundaries: the table of `analyse`, for the same runs.
    """
    title = "Total variation by size, mean over prompts"
    curves = mean_curves[mean_curves["curve"].isin(["trace", *_CONTROLS])]
    if curves.empty:
        return empty(title, "no prompt has a curve")
    fig = _by_size(title, curves, "total variation from the full model (0 to 1)")
    said = _add_boundaries(fig, corpus_boundaries)
    _add_curves(fig, curves)
    _add_medians(fig, curves[curves["curve"] == "trace"])
    name_runs(fig, curves["run"].unique().tolist())
    missing = set(_CONTROLS) - set(curves["curve"])
    if missing:
        remark(
            fig, f"not measured: {', '.join(_NAMES[name] for name in sorted(missing))}", row=said
        )
    return make_room(fig, _INNER, said + bool(missing)).update_yaxes(range=[-0.02, 1.02])


def plot_head_tail(mean_curves: pd.DataFrame) -> go.Figure:
    """Mean head error and mean tail error by size, with 95 % bootstrap intervals over prompts.

    Args:
        mean_curves: the table of `analyse`; several runs are told apart by dashes.
    """
    title = "Head and tail error by size, mean over prompts"
    curves = mean_curves[mean_curves["curve"].isin(list(PARTS))]
    if curves.empty:
        return empty(title, "no prompt has head and tail errors")
    fig = _by_size(title, curves, "error: its part of the total variation")
    names = curves["run"].unique().tolist()
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
    for run, own, number in by_run(curves):
        for name in reversed(order):  # the trace over its controls
            curve = own[own["curve"] == name]
            if curve.empty:
                continue
            line = {"color": COLOURS[name], "dash": (dashes or {}).get(name, dash_of(number))}
            start = f"<b>{text_of(run)}</b>, {_NAMES[name]}"
            add_mean(
                fig,
                curve,
                ("size", "mean", "mean_low", "mean_high"),
                line,
                lambda row, _, start=start: _point_text(row, start, "mean"),
                name=_NAMES[name],
                legendgroup=name,
                legendrank=1 + order.index(name),
                showlegend=name not in named,
            )
            named.add(name)


def _add_medians(fig: go.Figure, traces: pd.DataFrame) -> None:
    for run, curve, number in by_run(traces):
        fig.add_scatter(
            x=curve["size"],
            y=curve["median"],
            name="median of the trace",
            legendgroup="median",
            legendrank=10,
            showlegend=number == 1,
            mode="lines",
            line={"color": COLOURS["trace"], "dash": dash_of(number), "width": 1},
            hoverinfo="text",
            hovertext=[
                _point_text(row, f"<b>{text_of(run)}</b>, trace", "median")
                for row in curve.to_dict("records")
            ],
        )


def _point_text(row: Mapping[Hashable, Any], start: str, statistic: str) -> str:
    prompts = row["prompts"]
    values = [row[f"{statistic}{end}"] for end in ("", "_low", "_high")]
    return (
        f"{start}<br>s = {row['size']:.6g}, {prompts} prompt{'s' * (prompts != 1)}<br>"
        f"{statistic} {interval_text(*values, shown='{:.4g}')}"
    )


def _add_boundaries(fig: go.Figure, boundaries: pd.DataFrame) -> int:
    """Draw where phases meet, with a line of text for each; how many lines there are.

    Of more than two runs lines of text would bury the curves: their boundaries are in the table.
    """
    runs = len(boundaries["run"].unique())
    said: list[tuple[str, float]] = []
    for run, own, number in by_run(boundaries):
        start = f"{text_of(run)}: " * (runs > 1)
        found = own.set_index("quantity").to_dict("index")
        for quantity, (called, *_) in _ENDS.items():
            if quantity in found:
                row = found[quantity]
                _mark(fig, row["value"], row["low"], row["high"], dash_of(number))
                if runs <= _MOST_IN_WORDS:
                    said.append((start + _boundary_line(called, row), row["value"]))
    for row, (text, at) in enumerate(reversed(said)):
        _say(fig, text, at, row)
    return len(said)


def _boundary_line(called: str, row: Mapping[Any, Any]) -> str:
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


def plot_sizes_needed(size_needed: pd.DataFrame) -> go.Figure:
    """From which size on prompts share the nucleus, the top token, the head and the tail.

    Markers are medians over prompts, bars go from the first to the third quartile; a quartile that
    no measured size reaches puts the end of its bar beyond s = 1, a median leaves the marker out.
    Filled markers are sizes from which on it holds; hollow ones below them, with thin bars, are the
    first sizes at which it does.

    Args:
        size_needed: the table of `analyse`; several runs are told apart by markers.
    """
    title = "Size needed: median and quartiles over prompts"
    if size_needed.empty:
        return empty(title, "no prompt was measured")
    names = size_needed["run"].unique().tolist()
    asked = _asked(size_needed)
    fig = figure(title, height=240)
    for run, own, number in by_run(size_needed):
        at = {key: i + _offset(number, len(names)) for i, key in enumerate(asked)}
        below = _FIRST / len(names)
        rows = own.assign(at=[at[key] for key in _keys(own)])
        rows["at"] += below * (rows["rule"] == "first")
        for what, rule in dict.fromkeys(zip(rows["what"], rows["rule"], strict=True)):
            asked_for = (rows["what"] == what) & (rows["rule"] == rule)
            _add_needed(fig, rows[asked_for], text_of(run), number)
    name_runs(fig, names, markers=True)
    _name_rules(fig, size_needed["rule"].unique())
    fig.update_xaxes(_axis_of(size_needed[["median", "q1", "q3"]]))
    fig.update_yaxes(
        range=[len(asked) - 0.5, -0.5],
        tickvals=list(range(len(asked))),
        ticktext=[_label(*key, rows) for key, rows in asked.items()],
    )
    return make_room(fig, round(_PITCH * len(asked) * (0.5 + 0.5 * len(names))))


def _keys(table: pd.DataFrame) -> list[tuple[str, float]]:
    """What is asked for and its level, 0 for none: NaN would not equal itself."""
    levels = table["level"].fillna(0.0)
    return list(zip(table["what"], levels, strict=True))


def _asked(table: pd.DataFrame) -> dict[tuple[str, float], pd.DataFrame]:
    """The rows of all runs by what is asked for, in the order in which they come."""
    keyed = table.assign(key=_keys(table))
    return {key: keyed[[k == key for k in keyed["key"]]] for key in dict.fromkeys(keyed["key"])}


def _label(what: str, level: float, rows: pd.DataFrame) -> str:
    """What is asked for, and how many prompts do not have it at the largest size.

    Several runs are counted in the order of the legend; the texts under the pointer name them, and
    say how many prompts have it at no size.
    """
    words, _ = _NEEDED[what]
    text = words.format(percent(level) if what.endswith("share") else level)
    held = rows[rows["rule"] == "stable"]
    never, prompts = held["never"].tolist(), held["prompts"].tolist()
    if not any(never):
        return text
    if len(never) == 1:
        return f"{text} ({never[0]} of {prompts[0]} never)"
    if len(set(prompts)) == 1:
        counted = f"{', '.join(map(str, never))} of {prompts[0]}"
    else:
        counted = ", ".join(f"{n} of {p}" for n, p in zip(never, prompts, strict=True))
    return f"{text}<br>(never: {counted})"


def _offset(number: int, runs: int) -> float:
    return 0.0 if runs == 1 else _SPREAD * ((number - 1) / (runs - 1) - 0.5)


def _add_needed(fig: go.Figure, rows: pd.DataFrame, run: str, number: int) -> None:
    words, colour = _NEEDED[rows["what"].iloc[0]]
    rule = rows["rule"].iloc[0]
    bars = rows[rows["q1"].notna()]
    _add_bars(fig, bars["q1"], bars["q3"].fillna(_EDGE), bars["at"], colour, _WIDTHS[rule])
    fig.add_scatter(
        x=rows["median"],
        y=rows["at"],
        name=run,
        mode="markers",
        marker={"symbol": symbol_of(number), **_marker(rule, colour)},
        showlegend=False,
        hoverinfo="text",
        hovertext=[
            f"<b>{run}</b>, {words.format(percent(r['level']) if '{}' in words else r['level'])}, "
            f"{_RULES[rule]}<br>median s = {r['median']:.6g}, quartiles {_reached(r['q1'])} to "
            f"{_reached(r['q3'])}<br>{r['never']} of {r['prompts']} prompts never"
            for r in rows.to_dict("records")
        ],
    )


def _marker(rule: str, colour: str) -> dict[str, Any]:
    """Filled where a size is enough from there on, hollow where it is the first."""
    if rule == "first":
        return {"color": "white", "size": 8, "line": {"color": colour, "width": 1.5}}
    return {"color": colour, "size": 9, "line": {"color": colour, "width": 0}}


def _name_rules(fig: go.Figure, rules: Iterable[str]) -> None:
    for rule in rules:
        marker = _marker(rule, INK)
        fig.add_scatter(
            x=[None], y=[None], name=_RULES[rule], mode="markers", marker=marker, hoverinfo="skip"
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

    Bars are 95 % intervals of the fit. Prompts without a boundary lie at the bottom; a panel a run,
    which says how many prompts have each.

    Args:
        prompt_boundaries: the table of `analyse`.
    """
    title = "Construction of each prompt, sorted by where it stops"
    if prompt_boundaries.empty:
        return empty(title, "no prompt was measured")
    runs = len(prompt_boundaries["run"].unique())
    several = runs > 1
    fig = make_subplots(
        rows=1,
        cols=runs,
        horizontal_spacing=0.12 / runs,
        subplot_titles=[
            f"<b>{text_of(run)}</b><br>{_counted(own, '<br>')}" if several else _counted(own, ", ")
            for run, own, _ in by_run(prompt_boundaries)
        ],
    )
    fig.update_annotations(font_size=12)
    dressed(fig, title, height=240)
    for run, own, col in by_run(prompt_boundaries):
        ranked = own.sort_values(list(reversed(_ENDS)), kind="stable").assign(
            rank=range(1, len(own) + 1)
        )
        for end in _ENDS:
            _add_boundary(fig, ranked, text_of(run), end, row=1, col=col, showlegend=col == 1)
        fig.update_yaxes(
            range=[len(own) + 0.7, 0.3],
            dtick=max(1, len(own) // 10),
            tick0=0,
            showgrid=False,
            col=col,
        )
    ends = [f"{end}{part}" for end in _ENDS for part in ("", "_low")]
    fig.update_xaxes(_axis_of(prompt_boundaries[ends]))
    if several:
        fig.update_xaxes(title_text=SIZE_TITLE)
    fig.update_yaxes(title_text="prompts, sorted (rank)", col=1)
    longest = int(prompt_boundaries["run"].value_counts().max())
    return make_room(fig, int(np.clip(8 * longest, 200, 1200)), lines=4 if several else 2)


def _counted(rows: pd.DataFrame, between: str) -> str:
    """How many prompts have each boundary."""
    return between.join(
        f"{called} in {int(rows[end].notna().sum())} of {len(rows)} prompts"
        for end, (called, *_) in _ENDS.items()
    )


def _axis_of(sizes: pd.DataFrame) -> dict[str, object]:
    """The axis of some sizes, of which any may be missing."""
    values = sizes.to_numpy(dtype=np.float64)
    return size_axis([*values[~np.isnan(values)], 1.0])


def _add_boundary(
    fig: go.Figure, ranked: pd.DataFrame, run: str, end: str, showlegend: bool, **place: Any
) -> None:
    called, colour, symbol = _ENDS[end]
    there = ranked[ranked[end].notna()]
    sure = there[there[f"{end}_low"].notna()]
    _add_bars(fig, sure[f"{end}_low"], sure[f"{end}_high"], sure["rank"], colour, 2, **place)
    fig.add_scatter(
        x=there[end],
        y=there["rank"],
        name=called,
        legendgroup=end,
        showlegend=showlegend,
        mode="markers",
        marker={"color": colour, "symbol": symbol, "size": 7},
        hoverinfo="text",
        hovertext=[_boundary_text(row, run, end) for row in there.to_dict("records")],
        **place,
    )
    if showlegend and there.empty:  # a legend names only what has points
        fig.data[-1].update(x=[None], y=[None])


def _boundary_text(row: Mapping[Hashable, Any], run: str, end: str) -> str:
    value = row_text(row, end, "{:.4g}")
    found = row[f"{end}_found"]
    often = "" if math.isnan(found) else f"<br>found in {percent(found)} of resamples"
    return f"<b>{run}</b>, prompt {row['prompt']}<br>{_ENDS[end][0]} at s = {value}{often}"
