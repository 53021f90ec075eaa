"""Discovery methods side by side: faithfulness by size, cost, and how far their circuits agree."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float

from strace_lens.circuits.agreement import agreement
from strace_lens.circuits.curve import FAITHFUL
from strace_lens.comparison.comparison import Comparison, MethodResult, chance_level
from strace_lens.measures.intervals import interval_text
from strace_lens.plot.charts import add_mean, add_menu, named_ticks
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
_PALE = 1.6  # what 1 is a fraction of, so that black text is read on either hue


def plot_faithfulness(comparison: Comparison) -> go.Figure:
    """Mean metric when each method's best edges are kept and all others ablated.

    On this scale the model with every edge ablated is 0 and the full model 1 (solid line); dashed
    is 0.85, from which edges are counted. CMD, by which the legend ranks, is the area between a
    curve and 1 over the fraction itself, so most of it lies in the right-hand decade. Thin lines
    with open dots rank edges by signed score, as the MIB benchmark does for CPR, the area under a
    curve. Bands are 95 % intervals over pairs; those of two methods may overlap where their
    difference, pair by pair, is beyond doubt.

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
        _add_curve(fig, result)
        if curve.cpr_values != curve.values:
            _add_curve(fig, result, by_sign=True)
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


def _add_curve(fig: go.Figure, result: MethodResult, by_sign: bool = False) -> None:
    """A curve by size with its band, thin where it is that of the ranking by sign."""
    curve, method = result.faithfulness, text_of(result.method)
    line, marker = method_line(result.method), method_marker(result.method, 6)
    if by_sign:
        line, marker = line | {"width": 1}, marker | {"symbol": f"{marker['symbol']}-open"}
    value = "faithfulness_by_sign" if by_sign else "faithfulness"
    add_mean(
        fig,
        curve.to_pandas().rename(columns={f"{curve.level}s": "edges"}),
        ("fraction", value, f"{value}_low", f"{value}_high"),
        line,
        lambda row, text: (
            f"<b>{method}</b>{', by sign' * by_sign}, {percent(row['fraction'])}: "
            f"{row['edges']:,} edges<br>faithfulness {text}"
        ),
        name=f"{method} by sign" if by_sign else f"{method}  {curve.cmd:.3f}",
        showlegend=not by_sign,
        legendgroup=method,
        marker=marker,
        mode="lines+markers",
    )


def plot_differences(comparison: Comparison) -> go.Figure:
    """Every two methods held against each other, pair by pair of the evaluation.

    A cell is the CMD, or by the menu the CPR, of the method of its row less that of its column.
    Blue: the row's method is better, and the 95 % interval of the difference over pairs leaves 0
    out. Orange: it is worse in the same way. Grey: the pairs do not tell the two apart. Each
    interval is of one difference alone: of twenty between equals one is expected to part.

    Raises:
        ValueError: no method ran.
    """
    results = sorted(_results(comparison), key=lambda r: r.faithfulness.cmd)
    names = [r.method for r in results]
    fig = _matrix_figure("Which methods differ", names)
    fig.update_yaxes(title_text="method, lowest CMD first").update_xaxes(title_text="less method")
    shows = {"CMD, less is better": "cmd", "CPR, more is better": "cpr"}
    for measure in shows.values():
        _add_differences(fig, names, comparison.differences(measure))
    return add_menu(fig, {text: [text == other for other in shows] for text in shows})


def _add_differences(fig: go.Figure, names: Sequence[str], table: pd.DataFrame) -> None:
    """The matrix of a table of `Comparison.differences`, in the order of the names."""
    rows = {(row["method"], row["other"]): row for row in table.to_dict("records")}
    verdict = np.full((len(names), len(names)), np.nan)
    text, hover = np.full(verdict.shape, "", object), np.full(verdict.shape, "", object)
    for (i, a), (j, b) in itertools.permutations(enumerate(names), 2):
        row, back = rows[a, b], rows[b, a]
        verdict[i, j] = int(row["better"]) - int(back["better"])
        text[i, j] = f"{row['difference']:+.2f}"
        said = {1: "better", 0: "not told apart", -1: "worse"}[int(verdict[i, j])]
        between = interval_text(row["difference"], row["low"], row["high"], "{:+.3f}")
        hover[i, j] = f"<b>{text_of(a)}</b> less <b>{text_of(b)}</b><br>{between}: {said}"
    fig.add_heatmap(
        x=list(range(len(names))),
        y=list(range(len(names))),
        z=verdict,
        zmin=-_PALE,
        zmax=_PALE,
        colorscale=_DIVERGING,
        showscale=False,
        text=text,
        texttemplate="%{text}",
        textfont={"size": 10},
        hoverinfo="text",
        hoverongaps=False,
        hovertext=hover,
        xgap=1,
        ygap=1,
    )


def plot_quality(comparison: Comparison) -> go.Figure:
    """CMD, on the evaluation pairs, against the wall time that a method took to score all edges.

    Less is better, and a method above the dotted line is no better than chance.

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
                f"{scores.backwards:.4g} backward passes<br>CPR {result.faithfulness.cpr:.4g}, CMD "
                f"{y:.4g}"
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
    """Edges that the circuits of two methods share, over the edges of either.

    The circuits of 85 % differ in size, which bounds their overlap: a circuit of 10 edges inside
    one of 100 has 0.1. The menu compares circuits of equal size.

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
                r.scores.top(max(1, int(fraction * r.scores.edges)), absolute=_absolute(r))
                for r in results
            ]
    for circuits in own.values():
        found = {
            (i, j): a.jaccard(b)
            for (i, a), (j, b) in itertools.combinations(enumerate(circuits), 2)
            if a.keep.shape == b.keep.shape
        }
        said = [f"{text_of(n)}</b>, {len(c):,} edges" for n, c in zip(names, circuits, strict=True)]
        _add_matrix(fig, said, found, "Jaccard", colorscale=SCALE, zmin=0)
    return add_menu(fig, {name: [name == other for other in own] for name in own})


def plot_agreement(comparison: Comparison) -> go.Figure:
    """How alike every two methods rank all edges.

    Spearman's correlation weighs all edges alike, rank-biased overlap (menu) the best edges most.
    Methods that say nothing of most edges tie them, which lowers both. Blank: a method that scores
    all edges the same, or by token position where the other does not.

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
        "Spearman's rank correlation": ("spearman", {"colorscale": _DIVERGING, "zmin": -1}),
        "rank-biased overlap": ("rbo", {"colorscale": SCALE, "zmin": 0}),
    }
    said = [f"{text_of(name)}</b>" for name in names]
    for what, (key, look) in kinds.items():
        _add_matrix(fig, said, {pair: both[key] for pair, both in found.items()}, what, **look)
    return add_menu(fig, {what: [what == other for other in kinds] for what in kinds})


def _matrix_figure(title: str, names: Sequence[str]) -> go.Figure:
    """An empty figure for matrices of methods: rows downwards, in the order given."""
    fig = figure(title, 250 + 27 * len(names), margin={"t": 96})
    ticks = named_ticks(names)
    fig.update_xaxes(tickangle=-40, range=[-0.5, len(names) - 0.5], **ticks)
    return fig.update_yaxes(range=[len(names) - 0.5, -0.5], **ticks)


def _add_matrix(
    fig: go.Figure,
    names: Sequence[str],
    values: Mapping[tuple[int, int], float],
    what: str,
    **look: Any,
) -> None:
    """A symmetric matrix as a heat map with its numbers, blank where there is none.

    Args:
        fig: of `_matrix_figure`.
        names: of rows and columns, as the end of bold HTML.
        values: by row and column, of every two once.
        what: the values are, in hover texts.
        look: of the heat map: its colours, and the value that they start at.
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
        zmax=1,
        colorbar={"thickness": 14},
        **look,
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


def _range(values: Float[np.ndarray, " dot"], least: float) -> tuple[float, float]:
    """The range of an axis with room around the dots, at least `least` wide."""
    middle, half = (values.min() + values.max()) / 2, max(least, np.ptp(values)) * 0.62
    return float(middle - half), float(middle + half)
