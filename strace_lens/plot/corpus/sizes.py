"""Sizes of many prompts: what each needs, and where the phases of its curve meet."""

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

from strace_lens.measures.intervals import interval_text
from strace_lens.plot.corpus.panels import empty
from strace_lens.plot.corpus.runs import (
    by_run,
    make_room,
    name_runs,
    names_of,
    symbol_of,
)
from strace_lens.plot.style import COLOURS, INK, dressed, figure, percent, size_axis

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


def plot_sizes_needed(size_needed: pd.DataFrame) -> go.Figure:
    """From which size on prompts share the nucleus, the top token, the head and the tail.

    Markers are medians over prompts, bars go from the first to the third quartile; a quartile that
    no measured size reaches puts the end of its bar beyond s = 1, a median leaves the marker out.
    Filled markers are sizes from which on it holds; hollow ones below them, with thin bars, are the
    first sizes at which it does.

    Args:
        size_needed: of `analyse`; several runs are told apart by markers.
    """
    title = "Size needed: median and quartiles over prompts"
    if size_needed.empty:
        return empty(title, "no prompt was measured")
    names = names_of(size_needed)
    asked = _asked(size_needed)
    fig = figure(title, height=240)
    for number, run, own in by_run(size_needed):
        at = {key: i + _offset(number, len(names)) for i, key in enumerate(asked)}
        below = _FIRST / (1 if len(names) == 1 else len(names))
        rows = own.assign(at=[at[key] for key in _keys(own)])
        rows["at"] += below * (rows["rule"] == "first")
        for what, rule in dict.fromkeys(zip(rows["what"], rows["rule"], strict=True)):
            asked_for = (rows["what"] == what) & (rows["rule"] == rule)
            _add_needed(fig, rows[asked_for], run, number)
    name_runs(fig, names, markers=True)
    _name_rules(fig, size_needed["rule"].unique())
    sizes = size_needed[["median", "q1", "q3"]].to_numpy(dtype=np.float64)
    there = sizes[~np.isnan(sizes)]
    fig.update_xaxes(size_axis(there if len(there) else [1.0]))
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
    return 0.0 if runs == 1 else _SPREAD * (number / (runs - 1) - 0.5)


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
        prompt_boundaries: of `analyse`.
    """
    title = "Construction of each prompt, sorted by where it stops"
    if prompt_boundaries.empty:
        return empty(title, "no prompt was measured")
    names = names_of(prompt_boundaries)
    several = len(names) > 1
    fig = make_subplots(
        rows=1,
        cols=len(names),
        horizontal_spacing=0.12 / len(names),
        subplot_titles=[
            f"<b>{run}</b><br>{_counted(own, '<br>')}" if several else _counted(own, ", ")
            for _, run, own in by_run(prompt_boundaries)
        ],
    )
    fig.update_annotations(font_size=12)
    dressed(fig, title, height=240)
    for number, run, own in by_run(prompt_boundaries):
        ranked = own.sort_values(list(reversed(_ENDS)), kind="stable").assign(
            rank=range(1, len(own) + 1)
        )
        for end in _ENDS:
            _add_boundary(fig, ranked, run, end, row=1, col=number + 1, showlegend=number == 0)
        fig.update_yaxes(
            range=[len(own) + 0.7, 0.3],
            dtick=max(1, len(own) // 10),
            tick0=0,
            showgrid=False,
            col=number + 1,
        )
    fig.update_xaxes(size_axis(_sizes(prompt_boundaries)))
    if several:
        fig.update_xaxes(title_text="relative size s (log)")
    fig.update_yaxes(title_text="prompts, sorted (rank)", col=1)
    longest = int(prompt_boundaries["run"].value_counts().max())
    return make_room(fig, int(np.clip(8 * longest, 200, 1200)), lines=4 if several else 2)


def _counted(rows: pd.DataFrame, between: str) -> str:
    """How many prompts have each boundary."""
    return between.join(
        f"{called} in {int(rows[end].notna().sum())} of {len(rows)} prompts"
        for end, (called, *_) in _ENDS.items()
    )


def _sizes(table: pd.DataFrame) -> np.ndarray:
    found = table[[f"{end}{part}" for end in _ENDS for part in ("", "_low")]]
    values = found.to_numpy(dtype=np.float64)
    values = values[~np.isnan(values)]
    return values if len(values) else np.ones(1)


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
    value = interval_text(row[end], row[f"{end}_low"], row[f"{end}_high"], shown="{:.4g}")
    found = row[f"{end}_found"]
    often = "" if math.isnan(found) else f"<br>found in {percent(found)} of resamples"
    return f"<b>{run}</b>, prompt {row['prompt']}<br>{_ENDS[end][0]} at s = {value}{often}"
