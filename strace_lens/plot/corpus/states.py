"""Final states of a corpus' traces: against the full model's, and those of any two sizes.

Each parameter is the table of that name that `analyse` returns; figures have a row of panels a run.
Pages show the docstring of a figure as its caption.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from strace_lens.measures.intervals import row_text
from strace_lens.plot.charts import (
    SIZE_TITLE,
    Looks,
    add_means,
    add_points,
    by_run,
    run_panels,
    shown_sizes,
    size_colours,
)
from strace_lens.plot.heat_map import add_heat
from strace_lens.plot.style import COLOURS, INK, SCALE, measured_axis

_LIKE_FULL = {"cosine": "cosine at the last token", "cka": "linear CKA over all tokens"}
_PATH = {
    "velocity": ("length of the step", "step (log)"),
    "curvature": ("angle to the step before", "radians"),
}
_ALIKE = {"cosine": "cosine", "cka": "linear CKA", "cka_debiased": "linear CKA without bias"}
_APART = {"l2": "L2 distance", "information_imbalance": "information imbalance, from y to x"}
_STATE_PATH = {
    "step": ("length of the step", "step"),
    "curvature": ("angle to the step before", "radians"),
}
_HEIGHT = 340  # of a matrix, in pixels
_BAR = {"thickness": 14}
_TICKS = [0.0, 0.25, 0.5, 0.75, 1.0]


def plot_geometry(geometry_by_layer: pd.DataFrame) -> go.Figure:
    """The trace's stream after each block against the full model's.

    Cosine at the last token, and linear CKA over all tokens, of which the last layer has none.
    """

    def hover(row: dict[Any, Any], name: str) -> str:
        return (
            f"<b>s = {row['size']:.4g}</b>, layer {row['layer']}<br>"
            f"{_LIKE_FULL[name]}: {row_text(row, name)}<br>{row[f'{name}_prompts']} prompts"
        )

    title = "Hidden states of the trace against the full model's"
    fig = run_panels(geometry_by_layer, title, list(_LIKE_FULL.values()), ["layer"])
    for _, own, row in by_run(geometry_by_layer):
        for col, name in enumerate(_LIKE_FULL, start=1):
            look: dict[str, Any] = {"name": name, "coloraxis": "coloraxis", "row": row, "col": col}
            add_heat(fig, own, name, lambda r, name=name: hover(r, name), **look)
        fig.update_xaxes(measured_axis(own["size"].to_numpy(dtype=np.float64)), row=row)
    below = bool((geometry_by_layer["cosine"] < 0).to_numpy().any())
    texts = ["≤ 0" if below else "0", *(f"{t:g}" for t in _TICKS[1:])]
    return fig.update_xaxes(title_text=SIZE_TITLE).update_layout(
        coloraxis=_unit_scale({"tickvals": _TICKS, "ticktext": texts})
    )


def plot_path(geometry_by_layer: pd.DataFrame) -> go.Figure:
    """The path at the last token, at a few sizes: length of each layer's step, and its turns.

    A turn is the angle between successive steps. Dotted: the full model.
    """

    def hover(row: dict[Any, Any], value: str, name: str) -> str:
        return (
            f"<b>s = {row['size']:.4g}</b>, layer {row['layer']}<br>{name} {value}"
            f"<br>{row[f'{name}_prompts']} prompts"
        )

    panels, units = zip(*_PATH.values(), strict=True)
    fig = run_panels(geometry_by_layer, "Path of the last token through the layers", panels, units)
    few = [
        own.loc[own["size"].isin(shown_sizes(own["size"].to_numpy(dtype=np.float64)))]
        for _, own, _ in by_run(geometry_by_layer)
    ]
    shown = pd.concat(few) if few else geometry_by_layer
    sizes = np.unique(shown["size"]).tolist()
    looks: Looks = {
        size: (f"s = {size:.3g}", {"color": colour})
        for size, colour in zip(sizes, size_colours(len(sizes)), strict=True)
    }
    add_means(fig, shown, list(_PATH), looks, hover, by="size", along="layer")
    for _, own, row in by_run(geometry_by_layer):
        for col, name in enumerate(_PATH, start=1):
            add_points(
                fig,
                own.drop_duplicates("layer"),
                "layer",
                f"full_{name}",
                lambda r, name=name: (
                    f"<b>full model</b>, layer {r['layer']}<br>{name} {r[f'full_{name}']:.3g}"
                ),
                name="full model",
                mode="lines",
                line={"color": INK, "dash": "dot", "width": 2},
                row=row,
                col=col,
            )
        fig.update_xaxes(range=[-0.5, own["layer"].to_numpy().max() + 0.5], row=row)
    fig.update_yaxes(type="log", col=1, dtick=1)
    return fig.update_xaxes(title_text="layer", tickformat="d")


def plot_states_alike(state_matrices: pd.DataFrame) -> go.Figure:
    """The last token's state behind the final norm, in the trace of each size against all others.

    Cosine: mean over prompts. Linear CKA: whether two sizes arrange the prompts alike; with fewer
    prompts than the model is wide it is high for any two sets of states, which its estimate without
    bias is not. Values below 0 are shown as 0; blank where there is none.
    """
    title = "Final states of any two sizes: how alike"
    fig = _plot_matrices(state_matrices, title, _ALIKE, ["coloraxis"] * 3)
    return fig.update_layout(coloraxis=_unit_scale({"tickvals": _TICKS}))


def plot_states_apart(state_matrices: pd.DataFrame) -> go.Figure:
    """The same states: mean distance over prompts, and information imbalance, above 1 as 1.

    The imbalance (Glielmo et al. 2022) is near 0 where the nearest neighbours among prompts at the
    size of the row are neighbours at that of the column too, near 1 where they tell nothing of it.
    """
    title = "Final states of any two sizes: how far apart"
    fig = _plot_matrices(state_matrices, title, _APART, ["coloraxis", "coloraxis2"])
    far = {"colorscale": SCALE, "cmin": 0, "colorbar": {**_BAR, "x": 0.455}}
    ticks = {"tickvals": [0, 0.5, 1], "ticktext": ["0", "0.5", "≥ 1"], "x": 1.0}
    fig.update_xaxes(domain=[0, 0.45], col=1).update_xaxes(domain=[0.55, 1], col=2)
    return fig.update_layout(coloraxis=far, coloraxis2=_unit_scale(ticks))


def _unit_scale(bar: Mapping[str, Any]) -> dict[str, Any]:
    """An axis of colours from 0 to 1."""
    return {"colorscale": SCALE, "cmin": 0, "cmax": 1, "colorbar": {**_BAR, **bar}}


def _plot_matrices(
    table: pd.DataFrame, title: str, measures: Mapping[str, str], coloraxes: list[str]
) -> go.Figure:
    """A heat map for each run and measure; the first size upwards, the second to the right."""
    fig = run_panels(table, title, list(measures.values()), [SIZE_TITLE], _HEIGHT)
    for _, own, row in by_run(table):
        axis = measured_axis(np.unique(own["size_a"].to_numpy(dtype=np.float64)))
        for col, (measure, called) in enumerate(measures.items(), start=1):
            add_heat(
                fig,
                own.loc[own["measure"].eq(measure)],
                "value",
                lambda r, called=called: _matrix_text(r, called),
                across="size_b",
                up="size_a",
                name=measure,
                coloraxis=coloraxes[col - 1],
                row=row,
                col=col,
            )
        fig.update_xaxes(axis, row=row).update_yaxes(axis, row=row)
    fig.update_yaxes(title_text=SIZE_TITLE, col=1)
    return fig.update_xaxes(title_text=SIZE_TITLE)


def _matrix_text(row: dict[Any, Any], called: str) -> str:
    value = "none" if np.isnan(row["value"]) else f"{row['value']:.4g}"
    return (
        f"<b>s = {row['size_a']:.4g} (y) and {row['size_b']:.4g} (x)</b><br>{called}: {value}<br>"
        f"{row['prompts']} prompt{'s' * (row['prompts'] != 1)}"
    )


def plot_state_path(state_curvature: pd.DataFrame) -> go.Figure:
    """The same state's path from size to size: length of each step, and its turns.

    A turn is the angle between successive steps: 0 goes straight on, π straight back.
    """

    def hover(row: dict[Any, Any], value: str, name: str) -> str:
        return (
            f"<b>to s = {row['size']:.4g}</b><br>{_STATE_PATH[name][0]} {value}<br>"
            f"{row[f'{name}_prompts']} prompts"
        )

    panels, units = zip(*_STATE_PATH.values(), strict=True)
    fig = run_panels(state_curvature, "Path of the final state from size to size", panels, units)
    mean: Looks = {"": ("mean", {"color": COLOURS["trace"]})}
    add_means(fig, state_curvature, list(_STATE_PATH), mean, hover)
    for _, own, row in by_run(state_curvature):
        fig.update_xaxes(measured_axis(own["size"].to_numpy(dtype=np.float64)), row=row)
    # Half a turn is straight back.
    turn = {"tickvals": [0, np.pi / 2, np.pi], "ticktext": ["0", "π/2", "π"]}
    fig.update_yaxes(range=[-0.1, np.pi + 0.1], **turn, col=2)
    fig.update_yaxes(rangemode="tozero", col=1)
    fig.update_xaxes(title_text="relative size s that the step leads to (log)")
    return fig.update_layout(showlegend=False)
