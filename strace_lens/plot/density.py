"""Density curves: how far the output of a trace is from the model's, by relative size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from strace_lens.density.curve import DensityCurve
from strace_lens.density.phases import Phases, find_phases
from strace_lens.density.ways import Way, dense_share, top_size
from strace_lens.plot.charts import BELOW, add_points
from strace_lens.plot.style import (
    BANDS,
    COLOURS,
    INK,
    LINE,
    figure,
    percent,
    quoted,
    remark,
    size_axis,
    size_text,
)

_WAY_COLOURS = {
    "definition": INK,
    "attention-kept": COLOURS["attention"],
    "tight": COLOURS["residual"],
}
_OTHER_WAY = COLOURS["mlp"]
_CONSTRUCTION = 9  # width in pixels of the stroke under a curve where it is constructed
_CONTROLS = {
    "random": ("random subgraph", "dash"),
    "inverse": ("inverse of the trace", "dot"),
    "random_inverse": ("inverse of the random subgraph", "dashdot"),
}
_BRACKET = "#555555"
_LABEL = np.array([0.05, 0.06])  # width and height of a dot's label, as shares of the axes
_GAP = np.array([0.012, 0.012])  # between a dot and its label
_SIDES = ((1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1), (-1, 0))  # the first of equals is taken
_TV = "total variation from the model's output"

Sized = Float[np.ndarray, " size"]
Place = Float[np.ndarray, "2"]
Places = Float[np.ndarray, "points 2"]


def plot_density(curve: DensityCurve, phases: Phases | None = None) -> go.Figure:
    """Distance of the trace's output from the model's, at each size.

    The shaded areas under the curve are the two parts of its total variation: over the head (the
    model's top-p nucleus) and over the tail. A filled marker is a size at which the trace has the
    model's top-1 token. Controls, if they were run, are a random subgraph of as many edges
    (dashed), all edges except the trace's (dotted), or all except the random subgraph's; each keeps
    every residual edge. Vertical bands are the phases found in the curve; a bar across it spans the
    measured sizes between which construction starts or ends. The axis begins a decade before
    construction; a double click shows every size.

    Args:
        curve: the result of `density_curve`.
        phases: the phases of the same curve; computed if not given.

    Example:
        >>> sl.plot_density(curve).write_html("density.html")
    """
    phases = find_phases(curve) if phases is None else phases
    table = curve.table
    named = "" if math.isnan(curve.density) else f" (density {curve.density:.3f})"
    margin = {"t": 92, "b": 60}
    fig = figure(f"Density curve{named}", 520, margin=margin, legend={**BELOW, "y": -0.18})
    _add_bands(fig, phases, _left_end(table["size"].to_numpy(), [phases]))
    for part in ("head", "tail"):  # stacked, they reach up to the curve
        fig.add_scatter(
            x=table["size"],
            y=table[f"{part}_error"],
            name=f"{part} error",
            stackgroup="error",
            mode="lines" if len(table) > 1 else "lines+markers",
            line={"width": 0.5, "color": COLOURS[part]},
            legendrank=1001,  # after the curves, though drawn beneath them
            hoverinfo="skip",
        )
    for control, (name, dash) in _CONTROLS.items():
        there = table.dropna(subset=[f"{control}_tv"])  # refined sizes have no controls
        if len(there):
            add_points(
                fig,
                there,
                "size",
                f"{control}_tv",
                lambda r, name=name, of=f"{control}_tv": f"{_size(r)}<br>{name}: TV {r[of]:.4g}",
                name=name,
                mode="lines",
                line={"color": COLOURS[control], "dash": dash, "width": 2},
            )
    look: dict[str, Any] = {"legendrank": 999, "mode": "lines"}
    look["line"] = {"color": COLOURS["trace"], "width": 2.5}
    tops = table.assign(top=[top for top, *_ in curve.tops])
    add_points(fig, tops, "size", "tv", _measures, name="trace", **look)
    for agrees, name, fill in (
        (True, "same top-1 token", INK),
        (False, "another top-1 token", "white"),
    ):
        ring = {"width": 1.5, "color": COLOURS["trace"]}
        marker = {"symbol": "circle", "size": 8, "color": fill, "line": ring}
        rows = table[table["top1"] == agrees]
        fig.add_scatter(
            x=rows["size"],
            y=rows["tv"],
            name=name,
            legendrank=999,
            mode="markers",
            marker=marker,
            hoverinfo="skip",
        )
    _add_brackets(fig, phases)
    fig.update_xaxes(_cropped_axis(table["size"].to_numpy(), [phases]))
    return fig.update_yaxes(range=[-0.02, 1.04], title_text=_TV)


def _left_end(sizes: Sized, phases: Sequence[Phases]) -> float:
    """Where an axis begins: a decade before the first construction, or at the least size."""
    starts = [p.start for each in phases if (p := each.get("construction")) is not None]
    least = float(np.min(sizes))
    return max(least, min(starts) / 10) if len(starts) == len(phases) else least


def _cropped_axis(sizes: Sized, phases: Sequence[Phases]) -> dict[str, object]:
    """The axis of sizes without the flat part before construction, marked at 1, 2 and 5."""
    left, axis = _left_end(sizes, phases), size_axis(sizes)
    if left <= float(np.min(sizes)):
        return axis
    exponents = np.arange(math.floor(math.log10(np.min(sizes))), 1)
    values = [f"{digit}e{int(e)}" for e in exponents for digit in (1, 2, 5)]
    marks = [float(value) for value in values if float(value) <= 1]
    return {
        **axis,
        "range": [math.log10(left) - 0.02, 0.04],
        "tickvals": marks,
        "ticktext": [f"{mark:g}" for mark in marks],
    }


def _add_brackets(fig: go.Figure, phases: Phases) -> None:
    """The measured sizes between which each end of construction lies, as a bar across the curve."""
    construction = phases.get("construction")
    if construction is None:
        return
    ends = (
        (construction.start_between, construction.tv_start),
        (construction.stop_between, construction.tv_stop),
    )
    x, y = [], []
    for between, tv in ends:
        if between is not None:
            x += [*between, None]
            y += [tv, tv, None]
    if x:
        fig.add_scatter(
            x=x,
            y=y,
            name="a boundary lies between",
            mode="lines+markers",
            line={"color": _BRACKET, "width": 2},
            marker={"symbol": "line-ns", "size": 11, "line": {"width": 2, "color": _BRACKET}},
            legendrank=1000,
            hoverinfo="skip",
        )


def _size(row: dict[Any, Any]) -> str:
    return size_text(row["size"], row["edges"])


def _measures(row: dict[Any, Any]) -> str:
    """Exact size, edges and every measure of a row."""
    token, probability = row["top"]
    return (
        f"{_size(row)}<br>TV {row['tv']:.4g} = head {row['head_error']:.4g} + tail "
        f"{row['tail_error']:.4g}<br>KL {row['kl']:.4g} nats<br>top-1 {quoted(token)}, "
        f"p = {probability:.3g}, {'the same as' if row['top1'] else 'another than'} the model's"
        f"<br>shared nucleus {100 * row['nucleus']:.0f} %"
    )


def _add_bands(fig: go.Figure, phases: Phases, left: float) -> None:
    """Shade plateau, construction and refinement, each under its name.

    The names of narrow bands would meet: the first starts at its left end, the last ends at its
    right end, and construction has a row of its own above them. `left` is where the axis begins.
    """
    for phase in phases.along_sizes:
        fig.add_vrect(
            x0=phase.start,
            x1=phase.stop,
            fillcolor=BANDS[phase.name],
            line={"width": 1, "color": "#aaaaaa"},
            layer="below",
        )
        at, anchor, row = {
            "plateau": (max(left, phase.start), "left", 0),
            "construction": (math.sqrt(phase.start * phase.stop), "center", 1),
            "refinement": (phase.stop, "right", 0),
        }[phase.name]
        fig.add_annotation(
            text=f"<b>{phase.name}</b>",
            x=math.log10(at),
            y=1,
            yref="paper",
            xanchor=anchor,
            yanchor="bottom",
            yshift=LINE * row,
            showarrow=False,
            font={"size": 12},
        )
    if not phases.along_sizes:
        remark(fig, "no phases along the sizes were found")


def plot_ways(curves: Mapping[Way, DensityCurve]) -> go.Figure:
    """Total variation from the model's output at each size, in several ways of measuring a prompt.

    By default the trace of the paper's search with every other edge ablated (the definition), the
    same trace with attention edges left in place (what the authors' released evaluation computes),
    and a tighter ranking. The wide pale stroke is construction, what follows is refinement. A dot
    marks the size from which on the trace has the model's top token. The upright line is the share
    of the graph that residual and MLP edges make up. The axis begins a decade before the first
    construction; a double click shows every size.

    Args:
        curves: of `ways.measure_ways`, at least one.
    """
    (first, *_) = curves.values()
    token, probability = first.top[0]
    fig = figure(
        f"How much of the graph predicts {quoted(token)} (p = {probability:.2f})",
        height=460,
        margin={"t": 60, "b": 60},
        legend={**BELOW, "y": -0.2},
    )
    share = dense_share(first)
    fig.add_vline(x=share, line={"color": "#777777", "width": 1.5, "dash": "dot"})
    fig.add_annotation(
        x=math.log10(share),
        y=0.02,
        xanchor="right",
        yanchor="bottom",
        xshift=-6,
        text=f"residual and MLP edges:<br>{percent(share)} of the graph",
        align="right",
        showarrow=False,
        font={"size": 12, "color": "#555555"},
    )
    for number, (way, curve) in enumerate(curves.items()):
        _add_way(fig, way, curve, number)
    sizes = np.concatenate([curve.table["size"].to_numpy() for curve in curves.values()])
    phases = [find_phases(curve) for curve in curves.values()]
    fig.update_xaxes(_cropped_axis(sizes, phases))
    _label_tops(fig, curves, _left_end(sizes, phases), share)
    return fig.update_yaxes(range=[-0.02, 1.04], title_text=_TV)


def _add_way(fig: go.Figure, way: Way, curve: DensityCurve, number: int) -> None:
    table, colour = curve.to_pandas(), _WAY_COLOURS.get(way.name, _OTHER_WAY)
    sizes, tv = table["size"].to_numpy(), table["tv"].to_numpy()
    construction = find_phases(curve).get("construction")
    if construction is not None:
        inside = (sizes > construction.start) & (sizes < construction.stop)
        fig.add_scatter(
            x=[construction.start, *sizes[inside], construction.stop],
            y=[construction.tv_start, *tv[inside], construction.tv_stop],
            mode="lines",
            line={"color": colour, "width": _CONSTRUCTION},
            opacity=0.25,
            name="construction",
            legendgroup="construction",
            showlegend=number == 0,
            legendrank=1001,
            hoverinfo="skip",
        )
    add_points(
        fig,
        table,
        "size",
        "tv",
        lambda row: (
            f"{way.title}<br>{_size(row)}<br>TV {row['tv']:.3g} = head {row['head_error']:.3g} + "
            f"tail {row['tail_error']:.3g}<br>{percent(row['ablatable_size'])} of the edges that "
            f"can be ablated<br>top-1 {quoted(row['top'])}"
        ),
        name=way.title,
        mode="lines",
        line={"color": colour, "width": 2.5},
    )
    size = top_size(curve)
    if not math.isnan(size):
        height = float(tv[sizes == size][0])
        fig.add_scatter(
            x=[size],
            y=[height],
            mode="markers",
            marker={"size": 11, "color": colour, "line": {"width": 1.5, "color": "white"}},
            showlegend=False,
            hoverinfo="skip",
        )
    if number == 0:  # one entry of the legend for the dots of all ways
        fig.add_scatter(
            x=[None],
            y=[None],
            mode="markers",
            marker={"size": 10, "color": "#777777"},
            name="from here on the model's top token",
            legendrank=1002,
        )


def _label_tops(
    fig: go.Figure, curves: Mapping[Way, DensityCurve], left: float, share: float
) -> None:
    """Write each way's size beside its dot, on the side where it crosses least of what is drawn.

    Args:
        fig: the figure.
        curves: that are drawn in it.
        left: where the axis of sizes begins.
        share: where an upright line stands.
    """

    def across(sizes: Sized) -> Sized:
        """Sizes as places along the axis, from 0 to 1."""
        return 1 - np.log10(np.maximum(sizes, left)) / min(math.log10(left), -0.1)

    even = np.linspace(0, 1, 400)
    lines = [np.stack([across(np.full(400, share)), even], axis=1)]
    for curve in curves.values():
        x, tv = across(curve.table["size"].to_numpy()), curve.table["tv"].to_numpy()
        walked = np.r_[0, np.hypot(np.diff(x), np.diff(tv)).cumsum()]
        at = even * walked[-1]  # as dense where the curve falls as where it is flat
        lines.append(np.stack([np.interp(at, walked, x), np.interp(at, walked, tv)], axis=1))
    points = np.concatenate(lines)
    for way, curve in curves.items():
        size = top_size(curve)
        if math.isnan(size):
            continue
        tv = float(curve.table.loc[curve.table["size"] == size, "tv"].iloc[0])
        dot = np.array([*across(np.array([size])), tv])
        crossed = [_within_label(points, dot, each) for each in _SIDES]
        side = _SIDES[int(np.argmin(crossed))]
        points = np.concatenate([points, np.repeat(_label_middle(dot, side)[None], 400, axis=0)])
        fig.add_annotation(
            x=math.log10(size),
            y=tv,
            text=f"{size:.2g}",
            xanchor="left" if side[0] > 0 else "right",
            yanchor="middle" if side[1] == 0 else "bottom" if side[1] > 0 else "top",
            xshift=8 * side[0],
            yshift=6 * side[1],
            showarrow=False,
            font={"color": _WAY_COLOURS.get(way.name, _OTHER_WAY)},
        )


def _label_middle(dot: Place, side: tuple[int, int]) -> Place:
    """The middle of a label on one side of a dot; places are shares of the axes."""
    return dot + np.array(side) * (_GAP + _LABEL / 2)


def _within_label(points: Places, dot: Place, side: tuple[int, int]) -> int:
    """How many points lie under a label on one side of a dot."""
    return int((np.abs(points - _label_middle(dot, side)) < _LABEL / 2).all(axis=1).sum())
