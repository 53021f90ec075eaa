"""Discovery methods side by side: faithfulness by size, cost, and how far their circuits agree."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from strace_lens.circuits.agreement import agreement
from strace_lens.circuits.circuit import Circuit
from strace_lens.circuits.evaluate import FAITHFUL
from strace_lens.comparison.comparison import Comparison, MethodResult, chance_level
from strace_lens.plot.style import (
    INK,
    SCALE,
    figure,
    method_line,
    method_marker,
    percent,
    remark,
    text_of,
)

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
    line, marker = method_line(result.method), method_marker(result.method, 6)
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

    The legend ranks the methods by CMD.

    Raises:
        ValueError: no method ran.
    """
    results = sorted(_results(comparison), key=lambda r: r.faithfulness.cmd)
    fig = figure(
        "Quality against cost",
        height=480,
        legend={"title": {"text": "method, CMD"}, "y": 1, "yanchor": "top"},
    )
    # A logarithm has no zero: what took no measurable time stands at a tenth of a millisecond.
    seconds = np.maximum([r.scores.seconds for r in results], 1e-4)
    cmd = np.array([r.faithfulness.cmd for r in results])
    for result, x, y in zip(results, seconds.tolist(), cmd.tolist(), strict=True):
        method, scores = text_of(result.method), result.scores
        fig.add_scatter(
            x=[x],
            y=[y],
            name=f"{method}  {y:.3f}",
            showlegend=True,
            mode="markers",
            marker=method_marker(result.method, 11),
            hoverinfo="text",
            hovertext=[
                f"<b>{method}</b><br>{scores.seconds:.3g} s, {scores.forwards:.4g} forward and "
                f"{scores.backwards:.4g} backward passes<br>CPR "
                f"{result.faithfulness.cpr:.4g}, CMD {y:.4g}"
            ],
        )
    if comparison.random_cmd:
        level = -chance_level([-drawn for drawn in comparison.random_cmd])
        fig.add_hline(y=level, line={"color": "#808080", "width": 1.5, "dash": "dot"})
    across, up = _range(np.log10(seconds), 1.0), _range(cmd, 0.05)
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
    fig = _matrix_figure("Overlap of the circuits (Jaccard)", names)
    own = {"each its 85 % circuit": [r.circuit for r in results]}
    graph = max(results, key=lambda r: r.scores.edges)
    for fraction in graph.faithfulness.fractions:
        if int(fraction * graph.scores.edges) >= 1 and fraction < 1:
            own[f"best {percent(fraction)} of each"] = [
                _best(r, max(1, int(fraction * r.scores.edges))) for r in results
            ]
    for circuits in own.values():
        found = {
            (i, j): _jaccard(a, b)
            for (i, a), (j, b) in itertools.combinations(enumerate(circuits), 2)
        }
        said = [f"{text_of(n)}</b>, {len(c):,} edges" for n, c in zip(names, circuits, strict=True)]
        _add_matrix(fig, said, found, "Jaccard", "Jaccard", SCALE, 0)
    _menu(fig, list(own))
    return fig


def plot_agreement(comparison: Comparison) -> go.Figure:
    """How alike every two methods rank all edges: Spearman, or rank-biased overlap from a menu.

    Raises:
        ValueError: no method ran.
    """
    results = _results(comparison)
    names = [r.method for r in results]
    fig = _matrix_figure("Agreement of the rankings", names)
    found = {
        (i, j): agreement(a.scores, b.scores, absolute=_absolute(a))
        for (i, a), (j, b) in itertools.combinations(enumerate(results), 2)
        if a.scores.values.shape == b.scores.values.shape
    }
    kinds = {
        "spearman": ("Spearman's rank correlation", "Spearman", _DIVERGING, -1),
        "rbo": ("rank-biased overlap", "RBO", SCALE, 0),
    }
    said = [f"{text_of(name)}</b>" for name in names]
    for key, look in kinds.items():
        _add_matrix(fig, said, {pair: both[key] for pair, both in found.items()}, *look)
    _menu(fig, [what for what, *_ in kinds.values()])
    return fig


def _matrix_figure(title: str, names: Sequence[str]) -> go.Figure:
    """An empty figure for matrices of methods: rows downwards, in the order given."""
    fig = figure(title, 250 + 27 * len(names), margin={"t": 96})
    ticks = {
        "tickmode": "array",
        "tickvals": list(range(len(names))),
        "ticktext": [text_of(name) for name in names],
        "showgrid": False,
    }
    fig.update_xaxes(tickangle=-40, range=[-0.5, len(names) - 0.5], **ticks)
    return fig.update_yaxes(range=[len(names) - 0.5, -0.5], **ticks)


def _add_matrix(
    fig: go.Figure,
    names: Sequence[str],
    values: Mapping[tuple[int, int], float],
    what: str,
    short: str,
    colours: list[list[Any]],
    least: int,
) -> None:
    """A symmetric matrix as a heat map with its numbers, blank where there is none.

    Args:
        fig: of `_matrix_figure`.
        names: of rows and columns, as the end of bold HTML.
        values: by row and column, of every two once.
        what: the values are, in hover texts.
        short: the same over the bar of colours.
        colours: of the values.
        least: value that the colours start at; they end at 1.
    """
    count = len(names)
    shown = np.full((count, count), np.nan)
    for (i, j), value in values.items():
        shown[i, j] = shown[j, i] = value
    fig.add_heatmap(
        x=list(range(count)),
        y=list(range(count)),
        z=shown,
        texttemplate="%{z:.2f}",
        textfont={"size": 10},
        hoverinfo="text",
        hoverongaps=False,
        hovertext=[
            [f"<b>{a}<br><b>{b}<br>{what} {shown[i, j]:.4f}" for j, b in enumerate(names)]
            for i, a in enumerate(names)
        ],
        xgap=1,
        ygap=1,
        colorscale=colours,
        zmin=least,
        zmax=1,
        colorbar={"title": {"text": short}, "thickness": 14},
    )


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
    return bool(result.circuit.metadata.get("absolute", False))


def _best(result: MethodResult, edges: int) -> Circuit:
    return result.scores.top(edges, absolute=_absolute(result))


def _jaccard(a: Circuit, b: Circuit) -> float:
    return a.jaccard(b) if a.keep.shape == b.keep.shape else float("nan")


def _range(values: Float[np.ndarray, " dot"], least: float) -> tuple[float, float]:
    """The range of an axis with room around the dots, at least `least` wide."""
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
