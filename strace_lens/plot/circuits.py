"""Discovery methods side by side: faithfulness by size, cost, and how far their circuits agree."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from strace_lens.compare.comparison import Comparison, MethodResult, chance_level
from strace_lens.component_graph.agreement import agreement
from strace_lens.component_graph.circuit import Circuit
from strace_lens.component_graph.evaluate import FAITHFUL
from strace_lens.plot.labels import add_labels
from strace_lens.plot.methods import (
    add_matrix,
    label_matrix,
    line_of,
    marker_of,
    matrix_height,
    text_of,
)
from strace_lens.plot.style import INK, SCALE, figure, percent, remark

_LOWEST, _HIGHEST = -0.5, 2.0  # faithfulness beyond is cut off, and said so
# Blue above zero, vermilion below, both told apart under every common colour blindness.
_DIVERGING = [[0.0, "#D55E00"], [0.5, "#f7f7f7"], [1.0, "#0072B2"]]


def plot_faithfulness(comparison: Comparison) -> go.Figure:
    """Faithfulness by fraction of edges, a line a method; the legend ranks them by CMD.

    1 is the full model, 0 the model with every edge ablated, the dashed line 0.85. Where CPR is
    taken from edges ranked by sign, that curve is a thin line with open dots.

    Raises:
        ValueError: no method ran.
    """
    results = _results(comparison)
    fig = figure(
        f"Faithfulness by size of the circuit ({comparison.ablation})",
        height=560,
        legend={"title": {"text": "method, CMD"}, "y": 1, "yanchor": "top"},
    )
    for result in sorted(results, key=lambda r: r.faithfulness.cmd):
        curve = result.faithfulness
        _add_curve(fig, result, curve.values, f"{text_of(result.method)}  {curve.cmd:.3f}")
        if curve.cpr_values != curve.values:
            _add_curve(fig, result, curve.cpr_values, None)
    fig.add_hline(y=1, line={"color": INK, "width": 1})
    fig.add_hline(y=FAITHFUL, line={"color": INK, "width": 1, "dash": "dash"})
    curves = [r.faithfulness for r in results]
    values = np.concatenate([y for c in curves for y in {c.values, c.cpr_values}])
    low, high = max(_LOWEST, values.min()), min(_HIGHEST, max(1.0, values.max()))
    fig.update_yaxes(range=[min(0.0, low) - 0.05, high + 0.05], title_text="faithfulness")
    beyond = int(((values < _LOWEST) | (values > _HIGHEST)).sum())
    if beyond:
        remark(fig, f"{beyond} values lie beyond {_LOWEST} to {_HIGHEST} and are cut off")
    first = max(results, key=lambda r: len(r.faithfulness.fractions)).faithfulness
    fig.update_xaxes(
        type="log",
        tickmode="array",
        tickvals=first.fractions,
        ticktext=[
            f"{percent(f)}<br>{_short(edges)}"
            for f, edges in zip(first.fractions, first.edges, strict=True)
        ],
        tickfont={"size": 11},
        tickangle=0,
        title_text="fraction of all edges kept (log), and how many those are",
    )
    return fig


def _add_curve(
    fig: go.Figure, result: MethodResult, values: tuple[float, ...], name: str | None
) -> None:
    """A curve under a name of the legend; without one it is that of the ranking by sign."""
    curve, method = result.faithfulness, text_of(result.method)
    line, marker = line_of(result.method), marker_of(result.method, 6)
    by_sign = name is None
    if by_sign:
        line, marker = line | {"width": 1}, marker | {"symbol": f"{marker['symbol']}-open"}
    fig.add_scatter(
        x=curve.fractions,
        y=values,
        name=name or f"{method} by sign",
        showlegend=not by_sign,
        legendgroup=method,
        mode="lines+markers",
        line=line,
        marker=marker,
        hoverinfo="text",
        hovertext=[
            f"<b>{method}</b>{', by sign' * by_sign}, {percent(fraction)}: {edges:,} edges"
            f"<br>faithfulness {value:.4g}"
            for fraction, edges, value in zip(curve.fractions, curve.edges, values, strict=True)
        ],
    )


def plot_quality(comparison: Comparison) -> go.Figure:
    """CMD against seconds of discovery; a method beats random below the grey line.

    Raises:
        ValueError: no method ran.
    """
    results = _results(comparison)
    fig = figure("Quality against cost", height=480)
    # A logarithm has no zero: what took no measurable time stands at a tenth of a millisecond.
    seconds = np.maximum([r.scores.seconds for r in results], 1e-4)
    cmd = np.array([r.faithfulness.cmd for r in results])
    fig.add_scatter(
        x=seconds,
        y=cmd,
        name="methods",
        showlegend=False,
        mode="markers",
        marker={
            "color": [marker_of(r.method)["color"] for r in results],
            "symbol": [marker_of(r.method)["symbol"] for r in results],
            "size": 11,
        },
        hoverinfo="text",
        hovertext=[
            f"<b>{text_of(r.method)}</b><br>{r.scores.seconds:.3g} s, {r.scores.forwards:.4g} "
            f"forward and {r.scores.backwards:.4g} backward passes<br>CPR "
            f"{r.faithfulness.cpr:.4g}, CMD {r.faithfulness.cmd:.4g}"
            for r in results
        ],
    )
    if comparison.random_cmd:
        level = -chance_level([-drawn for drawn in comparison.random_cmd])
        fig.add_hline(y=level, line={"color": "#808080", "width": 1.5, "dash": "dot"})
    x = np.log10(seconds)
    across, up = _range(x, 1.0), _range(cmd, 0.05)
    add_labels(fig, x, cmd, [text_of(r.method) for r in results], across, up)
    fig.update_xaxes(type="log", range=across, title_text="seconds of discovery (log)")
    fig.update_xaxes(dtick=1 if across[1] - across[0] > 2.5 else "D2")
    fig.update_yaxes(range=up, title_text="CMD: area between faithfulness and 1 (less is better)")
    return fig


def plot_overlap(comparison: Comparison) -> go.Figure:
    """Jaccard index of every two methods' circuits: those of 85 %, or of one size from a menu.

    Raises:
        ValueError: no method ran.
    """
    results = _results(comparison)
    names = [r.method for r in results]
    fig = figure("Overlap of the circuits (Jaccard)", matrix_height(names), margin={"t": 96})
    own = {"each its 85 % circuit": [r.circuit for r in results]}
    graph = max(results, key=lambda r: r.scores.edges)
    for fraction in graph.faithfulness.fractions:
        if int(fraction * graph.scores.edges) >= 1 and fraction < 1:
            own[f"best {percent(fraction)} of each"] = [
                _best(r, max(1, int(fraction * r.scores.edges))) for r in results
            ]
    for circuits in own.values():
        values = _pairs(circuits, _jaccard)
        texts = [
            [
                f"<b>{text_of(names[i])}</b>, {len(circuits[i]):,} edges"
                f"<br><b>{text_of(names[j])}</b>, {len(circuits[j]):,} edges"
                f"<br>Jaccard {values[i, j]:.4f}"
                for j in range(len(names))
            ]
            for i in range(len(names))
        ]
        bar = {"title": {"text": "Jaccard"}, "thickness": 14}
        look = {"colorscale": SCALE, "zmin": 0, "zmax": 1, "colorbar": bar}
        add_matrix(fig, names, values, texts, **look)
    _menu(fig, list(own))
    label_matrix(fig, names)
    return fig


def plot_agreement(comparison: Comparison) -> go.Figure:
    """How alike every two methods rank all edges: Spearman, or rank-biased overlap from a menu.

    Raises:
        ValueError: no method ran.
    """
    results = _results(comparison)
    names = [r.method for r in results]
    fig = figure("Agreement of the rankings", matrix_height(names), margin={"t": 96})
    found = {
        (i, j): agreement(a.scores, b.scores, absolute=_absolute(a))
        for (i, a), (j, b) in itertools.combinations(enumerate(results), 2)
        if a.scores.values.shape == b.scores.values.shape
    }
    kinds = {
        "spearman": ("Spearman's rank correlation", "Spearman", _DIVERGING, -1),
        "rbo": ("rank-biased overlap", "RBO", SCALE, 0),
    }
    for key, (what, short, colours, least) in kinds.items():
        values = np.full((len(names), len(names)), np.nan)
        for (i, j), both in found.items():
            values[i, j] = values[j, i] = both[key]
        texts = [
            [
                f"<b>{text_of(a)}</b><br><b>{text_of(b)}</b><br>{what} {values[i, j]:.4f}"
                for j, b in enumerate(names)
            ]
            for i, a in enumerate(names)
        ]
        bar = {"title": {"text": short}, "thickness": 14}
        look = {"colorscale": colours, "zmin": least, "zmax": 1, "colorbar": bar}
        add_matrix(fig, names, values, texts, **look)
    _menu(fig, [what for what, *_ in kinds.values()])
    label_matrix(fig, names)
    return fig


def _short(count: int) -> str:
    """A number in at most five letters, up to 9,999 M."""
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if count >= 10 * unit:
            return f"{count / unit:.{1 if count < 100 * unit else 0}f}{name}"
    return f"{count:,}"


def _results(comparison: Comparison) -> tuple[MethodResult, ...]:
    if not comparison.results:
        raise ValueError(f"there is no method to draw: none ran on {comparison.task!r}")
    return comparison.results


def _absolute(result: MethodResult) -> bool:
    """Whether edges were ranked by magnitude."""
    return bool(result.circuit.made.get("absolute", False))


def _best(result: MethodResult, edges: int) -> Circuit:
    return result.scores.top(edges, absolute=_absolute(result))


def _jaccard(a: Circuit, b: Circuit) -> float:
    return a.jaccard(b) if a.keep.shape == b.keep.shape else float("nan")


def _pairs(
    circuits: list[Circuit], measure: Callable[[Circuit, Circuit], float]
) -> Float[np.ndarray, "row column"]:
    """A symmetric measure of every two; 1 on the diagonal."""
    values = np.eye(len(circuits))
    for (i, a), (j, b) in itertools.combinations(enumerate(circuits), 2):
        values[i, j] = values[j, i] = measure(a, b)
    return values


def _range(values: Float[np.ndarray, " dot"], least: float) -> tuple[float, float]:
    """The range of an axis with room for names around the dots."""
    middle, half = (values.min() + values.max()) / 2, max(least, np.ptp(values)) * 0.62
    return float(middle - half), float(middle + half)


def _menu(fig: go.Figure, labels: list[str]) -> None:
    """A menu that shows one plotly trace at a time, the first one first."""
    buttons = []
    for i, label in enumerate(labels):
        fig.update_traces({"visible": i == 0}, selector=i)
        shows = [j == i for j in range(len(labels))]
        buttons.append({"label": label, "method": "restyle", "args": [{"visible": shows}]})
    place = {"x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom", "pad": {"b": 6}}
    fig.update_layout(updatemenus=[{"type": "dropdown", "buttons": buttons, **place}])
