"""Which layers' edges come in as a trace grows, and what that gains: of one curve or of several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

from strace_lens.density.curve import DensityCurve
from strace_lens.density.phases import Phases, find_phases
from strace_lens.plot.charts import BELOW, SIZE_TITLE, add_points
from strace_lens.plot.heat_map import add_heat, log_shares, share_colours
from strace_lens.plot.phases import layer_table, missing
from strace_lens.plot.style import (
    COLOURS,
    INK,
    LINE,
    PARTS,
    dressed,
    note,
    percent,
    remark,
    size_axis,
    size_text,
    text_of,
)
from strace_lens.traces.edges import keep_text
from strace_lens.utils.html_repr import isolated, short

_ABREAST = 3
"""Curves that stand side by side."""

_HEAT, _GAINS = 280, 130
"""Pixels of the two parts of one of several panels."""

_LONGEST = 44
"""Characters of a prompt over its panel."""

_STEP = "one size was measured: no step has a gain"


class _Panel(NamedTuple):
    """A curve and where it stands: its heat map, with its gains in the row below."""

    curve: DensityCurve
    phases: Phases
    row: int = 1
    col: int = 1


def plot_layer_phases(
    curves: DensityCurve | Sequence[DensityCurve],
    phases: Phases | Sequence[Phases] | None = None,
) -> go.Figure:
    """Share of each layer's edges that the trace of each size holds, and what each step gains.

    Above, the shares on a logarithmic colour scale; blank cells hold none. Below, by how much the
    head error and the tail error fall from one measured size to the next. Lines mark where the head
    subgraph and the tail refinement end: at the smallest measured size from which on the error
    stays under a tenth of its mass.

    Args:
        curves: one curve, or several for panels with a common scale in one figure.
        phases: the phases of each curve; by default those of `find_phases`.

    Raises:
        ValueError: no curves, or a number of phases other than that of the curves.

    Example:
        >>> attention = sl.density_curve(model, trace, keep=("attention",), controls=False)
        >>> fig = sl.plot_layer_phases([curve, attention])
    """
    if isinstance(curves, DensityCurve):
        one = find_phases(curves) if phases is None else phases
        if not isinstance(one, Phases):
            raise ValueError(f"{len(one)} phases for one curve; give those of the curve")
        return _alone(_Panel(curves, one))
    if not curves:
        raise ValueError("no curves to draw; give at least one")
    each = [find_phases(curve) for curve in curves] if phases is None else phases
    if isinstance(each, Phases) or len(each) != len(curves):
        many = 1 if isinstance(each, Phases) else len(each)
        raise ValueError(f"{many} phases for {len(curves)} curves; give those of each curve")
    return _together(
        [
            _Panel(curve, found, 1 + 2 * (number // _ABREAST), 1 + number % _ABREAST)
            for number, (curve, found) in enumerate(zip(curves, each, strict=True))
        ]
    )


def _alone(panel: _Panel) -> go.Figure:
    """The figure of one curve."""
    curve = panel.curve
    fig = make_subplots(
        rows=2, cols=1, shared_xaxes=True, row_heights=[0.66, 0.34], vertical_spacing=0.06
    )
    dressed(
        fig,
        "Layer phases",
        height=max(560, min(820, 14 * curve.trace.shape.layers + 340)),
        margin={"t": 92},
        legend=BELOW,
    )
    bar = {"thickness": 14, "len": 0.66, "y": 1, "yanchor": "top"}
    fig.update_layout(coloraxis=share_colours(_lowest([panel])), coloraxis_colorbar=bar)
    _add_panel(fig, panel)
    for row, line in enumerate(_ends(panel.phases)):
        remark(fig, line, row)
    fig.update_xaxes(size_axis(curve.table["size"].to_numpy()))
    fig.update_xaxes(title_text="", row=1)
    fig.update_yaxes(title_text="layer", row=1)
    fig.update_yaxes(title_text="fall of the error", zeroline=True, zerolinecolor=INK, row=2)
    if len(curve.table) < 2:
        note(fig, _STEP, y=0.16)
    return fig


def _together(panels: Sequence[_Panel]) -> go.Figure:
    """The figure of several curves: one scale of colours, of sizes and of falls for all."""
    columns, bands = min(len(panels), _ABREAST), math.ceil(len(panels) / _ABREAST)
    names = _names([panel.curve for panel in panels])
    # From one row to the next: the lines that name a panel and, above them, the axis of another.
    gap = LINE * (len(names[0]) + 2) + (30 if bands == 1 else 58)
    inner = bands * (_HEAT + _GAINS) + (2 * bands - 1) * gap
    fig = make_subplots(
        rows=2 * bands,
        cols=columns,
        row_heights=[_HEAT, _GAINS] * bands,
        vertical_spacing=gap / inner,
        horizontal_spacing=0.04,
    )
    above, below = 34 + gap, 110
    legend = {**BELOW, "y": -60 / inner}
    dressed(fig, "Layer phases", inner + above + below, legend=legend)
    fig.update_layout(margin={"t": above, "b": below})
    bar = {"thickness": 14, "len": _HEAT / inner, "y": 1, "yanchor": "top"}
    fig.update_layout(coloraxis=share_colours(_lowest(panels)), coloraxis_colorbar=bar)
    sizes = np.concatenate([panel.curve.table["size"].to_numpy() for panel in panels])
    falls = np.concatenate([_falls(panel.curve, part) for panel in panels for part in PARTS])
    room = 0.05 * max(float(np.ptp(falls)), 0.01)
    axis = {**size_axis(sizes), "title": None}
    for panel, name in zip(panels, names, strict=True):
        place: dict[str, Any] = {"row": panel.row, "col": panel.col}
        under: dict[str, Any] = {"row": panel.row + 1, "col": panel.col}
        _add_panel(fig, panel)
        ends = "<br>".join(text_of(line) for line in reversed(_ends(panel.phases)))
        box: Any = fig.get_subplot(**place)
        fig.add_annotation(
            text="<br>".join([f"<b>{name[0]}</b>", *name[1:], ends]),
            x=box.xaxis.domain[0],
            y=box.yaxis.domain[1],
            xref="paper",
            yref="paper",
            xanchor="left",
            yanchor="bottom",
            align="left",
            showarrow=False,
            font={"size": 12},
        )
        for where in (place, under):
            fig.update_xaxes(axis, **where)
        fig.update_yaxes(title_text="layer" if panel.col == 1 else None, **place)
        fig.update_yaxes(
            title_text="fall of the error" if panel.col == 1 else None,
            range=[float(falls.min()) - room, float(falls.max()) + room],
            zeroline=True,
            zerolinecolor=INK,
            **under,
        )
        fig.update_xaxes(title_text=SIZE_TITLE, **under)
    return fig


def _names(curves: Sequence[DensityCurve]) -> list[list[str]]:
    """The lines of each curve's title: its prompt and, where they differ, how it was measured."""
    facts = {
        "model": [str(curve.trace.metadata.get("model", "?")) for curve in curves],
        "edges by": [
            " ".join(str(curve.trace.metadata.get(k, "?")) for k in ("importance", "order"))
            for curve in curves
        ],
        "never ablated": [keep_text(curve.keep) for curve in curves],
        "ablated edges carry": [curve.ablation for curve in curves],
    }
    differ = {key: values for key, values in facts.items() if len(set(values)) > 1}
    names = []
    for number, curve in enumerate(curves):
        prompt = curve.trace.prompt
        words = " ".join((prompt.text or " ".join(prompt.strings)).split())
        lines = [text_of(isolated(short(words, _LONGEST)))]
        names.append(lines + [text_of(f"{k}: {v[number]}") for k, v in differ.items()])
    return names


def _lowest(panels: Sequence[_Panel]) -> float:
    """The logarithm of the least share of a layer: where the colours start."""
    cells = [layer_table(panel.curve)["of_layer"].to_numpy() for panel in panels]
    positive = np.concatenate([shares[shares > 0] for shares in cells])
    return min(-1.0, float(np.log10(positive.min()))) if positive.size else -3.0


def _add_panel(fig: go.Figure, panel: _Panel) -> None:
    """The heat map of a curve, the gains below it, and lines where the phases end."""
    curve, row, col = panel.curve, panel.row, panel.col
    add_heat(
        fig,
        layer_table(curve),
        "of_layer",
        lambda r: (
            f"{size_text(r['size'], r['kept'])}<br>layer {r['layer']}: {r['edges']:,} of "
            f"{r['reachable']:,} edges, {percent(r['of_layer'])}"
        ),
        log_shares,
        row=row,
        col=col,
        coloraxis="coloraxis",
    )
    before = curve.table["size"].shift()
    for part, (dash, _) in PARTS.items():
        add_points(
            fig,
            curve.table.assign(fall=_falls(curve, part), before=before),
            "size",
            "fall",
            lambda r, part=part: (
                f"{size_text(r['size'], r['edges'])}<br>"
                + (
                    "the smallest size measured: no step before it"
                    if np.isnan(r["before"])
                    else f"{part} error falls by {r['fall']:.4g} since s = {r['before']:.10g}"
                )
            ),
            name=f"{part} error",
            mode="lines",
            line={"color": COLOURS[part], "dash": dash, "width": 2.5, "shape": "vh"},
            row=row + 1,
            col=col,
        )
    for part, phase in (("tail", panel.phases.tail), ("head", panel.phases.head)):
        if phase is None:
            continue
        # Over the heat map on a white ground, legible in any colour.
        places: list[dict[str, Any]] = [{"row": row + below, "col": col} for below in (0, 1)]
        fig.add_vline(x=phase.stop, line={"color": "white", "width": 5}, **places[0])
        for place in places:
            look = {"color": INK, "width": 2, "dash": PARTS[part][0]}
            fig.add_vline(x=phase.stop, line=look, **place)


def _falls(curve: DensityCurve, part: str) -> Float[np.ndarray, " size"]:
    """Fall of an error at each step; the first size has no step and stands at 0."""
    return -curve.table[f"{part}_error"].diff().fillna(0.0).to_numpy()


def _ends(phases: Phases) -> list[str]:
    """Where the tail refinement ends and where the head subgraph is complete, or why neither is."""
    reasons = missing(phases)
    said = {"tail": "tail refinement ends at", "head": "head subgraph complete at"}
    found = {"tail": phases.tail, "head": phases.head}
    return [
        reasons[part] if phase is None else f"{said[part]} s = {phase.stop:.3g}"
        for part, phase in found.items()
    ]
