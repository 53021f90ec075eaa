"""Final states of the traces of any two sizes: matrices of how alike they are, and their path."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from strace_lens.plot.corpus.panels import add_mean, by_run, empty, run_panels
from strace_lens.plot.style import COLOURS, SCALE, cell_bounds, measured_axis

_ALIKE = {"cosine": "cosine", "cka": "linear CKA", "cka_debiased": "linear CKA without bias"}
_APART = {"l2": "L2 distance", "information_imbalance": "information imbalance, from y to x"}
_PATH = {
    "step": ("length of the step", "step"),
    "curvature": ("angle to the step before", "radians"),
}
_NONE = "no run kept hidden states"
_HEIGHT = 340  # of a matrix, in pixels
_BAR = {"thickness": 14}


def plot_states_alike(state_matrices: pd.DataFrame) -> go.Figure:
    """Size by size, a row a run: cosine, linear CKA and its estimate without bias.

    All in one scale from 0 to 1, values below 0 as 0; blank where there is none.

    Args:
        state_matrices: of `analyse`.
    """
    title = "Final states of any two sizes: how alike"
    bar = {**_BAR, "tickvals": [0, 0.25, 0.5, 0.75, 1]}
    scale = {"colorscale": SCALE, "cmin": 0, "cmax": 1, "colorbar": bar}
    axes = dict.fromkeys(range(1, len(_ALIKE) + 1), "coloraxis")
    return _matrices(state_matrices, title, _ALIKE, axes).update_layout(coloraxis=scale)


def plot_states_apart(state_matrices: pd.DataFrame) -> go.Figure:
    """Size by size, a row a run: distance, and information imbalance, above 1 as 1.

    Args:
        state_matrices: of `analyse`.
    """
    title = "Final states of any two sizes: how far apart"
    axes = {1: "coloraxis", 2: "coloraxis2"}
    fig = _matrices(state_matrices, title, _APART, axes)
    far = {"colorscale": SCALE, "cmin": 0, "colorbar": {**_BAR, "x": 0.455}}
    ticks = {"tickvals": [0, 0.5, 1], "ticktext": ["0", "0.5", "≥ 1"]}
    imbalance = {"colorscale": SCALE, "cmin": 0, "cmax": 1, "colorbar": {**_BAR, **ticks, "x": 1.0}}
    if state_matrices.empty:
        return fig
    fig.update_xaxes(domain=[0, 0.45], col=1).update_xaxes(domain=[0.55, 1], col=2)
    return fig.update_layout(coloraxis=far, coloraxis2=imbalance)


def plot_state_path(state_curvature: pd.DataFrame) -> go.Figure:
    """Length of each step from size to size, and the angle between successive steps.

    Means over prompts with 95 % bootstrap intervals.

    Args:
        state_curvature: of `analyse`.
    """
    title = "Path of the final state from size to size"
    if state_curvature.empty:
        return empty(title, _NONE)
    panels, units = ([value[i] for value in _PATH.values()] for i in (0, 1))
    fig = run_panels(state_curvature, title, panels, units)
    for _, own, row in by_run(state_curvature):
        for col, name in enumerate(_PATH, start=1):
            place: dict[str, Any] = {"row": row, "col": col}
            add_mean(
                fig,
                own,
                ("size", name, f"{name}_low", f"{name}_high"),
                {"color": COLOURS["trace"]},
                lambda r, value, name=name: (
                    f"<b>to s = {r['size']:.4g}</b><br>{_PATH[name][0]} {value}<br>"
                    f"{r[f'{name}_prompts']} prompts"
                ),
                name="mean",
                legendgroup="mean",
                showlegend=False,
                **place,
            )
            fig.update_xaxes(measured_axis(own["size"].to_numpy(dtype=np.float64)), **place)
    # Half a turn is straight back.
    fig.update_yaxes(
        range=[-0.1, np.pi + 0.1],
        tickvals=[0, np.pi / 2, np.pi],
        ticktext=["0", "π/2", "π"],
        col=2,
    )
    fig.update_yaxes(rangemode="tozero", col=1)
    return fig.update_xaxes(title_text="relative size s that the step leads to (log)")


def _matrices(
    table: pd.DataFrame, title: str, measures: dict[str, str], coloraxes: dict[int, str]
) -> go.Figure:
    """A heat map for each run and measure; the first size upwards, the second to the right."""
    if table.empty:
        return empty(title, _NONE)
    fig = run_panels(table, title, list(measures.values()), ["relative size s (log)"], _HEIGHT)
    for _, own, row in by_run(table):
        sizes = np.unique(own["size_a"].to_numpy(dtype=np.float64))
        axis = measured_axis(sizes)
        for col, (measure, called) in enumerate(measures.items(), start=1):
            rows = own.loc[own["measure"].eq(measure)]
            said = rows.assign(said=[_hover(r, called) for r in rows.to_dict("records")])
            values, texts = (
                said.pivot(index="size_a", columns="size_b", values=column).to_numpy()
                for column in ("value", "said")
            )
            fig.add_heatmap(
                x=cell_bounds(sizes),
                y=cell_bounds(sizes),
                z=values.astype(np.float64),
                name=measure,
                coloraxis=coloraxes[col],
                hoverinfo="text",
                text=texts.tolist(),
                row=row,
                col=col,
            )
            fig.update_xaxes(axis, showgrid=False, row=row, col=col)
            fig.update_yaxes({**axis, "title": None}, showgrid=False, row=row, col=col)
    fig.update_yaxes(title_text="relative size s (log)", col=1)
    return fig.update_xaxes(title_text="relative size s (log)")


def _hover(row: dict[str, Any], called: str) -> str:
    value = "none" if np.isnan(row["value"]) else f"{row['value']:.4g}"
    return (
        f"<b>s = {row['size_a']:.4g} (y) and {row['size_b']:.4g} (x)</b><br>{called}: {value}<br>"
        f"{row['prompts']} prompt{'s' * (row['prompts'] != 1)}"
    )
