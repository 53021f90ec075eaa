"""Hidden states of traces against the full model's: by size and layer, and along the layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from strace_lens.measures.intervals import interval_text
from strace_lens.plot.corpus.panels import (
    add_heat,
    add_mean,
    by_run,
    empty,
    run_panels,
    shown_sizes,
    size_colours,
)
from strace_lens.plot.style import INK, SCALE, measured_axis

_ALIKE = {"cosine": "cosine at the last token", "cka": "linear CKA over all tokens"}
_PATH = {
    "velocity": ("length of the step", "step (log)"),
    "curvature": ("angle to the step before", "radians"),
}
_NONE = "no run kept hidden states"


def plot_geometry(geometry_by_layer: pd.DataFrame) -> go.Figure:
    """Layer by size, a row a run: cosine and CKA of the trace's stream with the full model's.

    Both in one scale from 0 to 1, values below 0 as 0; blank where there is none.

    Args:
        geometry_by_layer: of `analyse`.
    """
    title = "Hidden states of the trace against the full model's"
    if geometry_by_layer.empty:
        return empty(title, _NONE)
    fig = run_panels(geometry_by_layer, title, list(_ALIKE.values()), ["layer"])
    for _, own, row in by_run(geometry_by_layer):
        for col, (name, called) in enumerate(_ALIKE.items(), start=1):
            add_heat(
                fig,
                own,
                name,
                lambda r, name=name, called=called: (
                    f"<b>s = {r['size']:.4g}</b>, layer {r['layer']}<br>"
                    f"{called}: {_value(r, name)}<br>{r[f'{name}_prompts']} prompts"
                ),
                "coloraxis",
                row=row,
                col=col,
            )
            sizes = own["size"].to_numpy(dtype=np.float64)
            fig.update_xaxes(measured_axis(sizes), row=row, col=col)
    ticks = [0.0, 0.25, 0.5, 0.75, 1.0]
    below = bool((geometry_by_layer["cosine"] < 0).to_numpy().any())
    return fig.update_xaxes(title_text="relative size s (log)").update_layout(
        coloraxis={
            "colorscale": SCALE,
            "cmin": 0,
            "cmax": 1,
            "colorbar": {
                "thickness": 14,
                "tickvals": ticks,
                "ticktext": ["≤ 0" if below else "0", *(f"{t:g}" for t in ticks[1:])],
            },
        }
    )


def plot_path(geometry_by_layer: pd.DataFrame) -> go.Figure:
    """Velocity and curvature of the path at the last token, by layer, at a few sizes.

    Means over prompts with 95 % bootstrap intervals; dotted, the full model.

    Args:
        geometry_by_layer: of `analyse`.
    """
    title = "Path of the last token through the layers"
    if geometry_by_layer.empty:
        return empty(title, _NONE)
    fig = run_panels(
        geometry_by_layer, title, [p for p, _ in _PATH.values()], [y for _, y in _PATH.values()]
    )
    for _, own, row in by_run(geometry_by_layer):
        sizes = shown_sizes(own["size"].to_numpy(dtype=np.float64).tolist())
        for col, name in enumerate(_PATH, start=1):
            place: dict[str, Any] = {"row": row, "col": col}
            for size, colour in zip(sizes, size_colours(len(sizes)), strict=True):
                add_mean(
                    fig,
                    own.loc[own["size"].eq(size)],
                    ("layer", name, f"{name}_low", f"{name}_high"),
                    {"color": colour},
                    lambda r, value, name=name: (
                        f"<b>s = {r['size']:.4g}</b>, layer {r['layer']}<br>"
                        f"{name} {value}<br>{r[f'{name}_prompts']} prompts"
                    ),
                    name=f"s = {size:.3g}",
                    legendgroup=f"{size:.3g}",
                    showlegend=row == col == 1,
                    **place,
                )
            full = own.drop_duplicates("layer")
            fig.add_scatter(
                x=full["layer"],
                y=full[f"full_{name}"],
                name="full model",
                legendgroup="full",
                showlegend=row == col == 1,
                mode="lines",
                line={"color": INK, "dash": "dot", "width": 2},
                hoverinfo="text",
                hovertext=[
                    f"<b>full model</b>, layer {r['layer']}<br>{name} "
                    + interval_text(r[f"full_{name}"], np.nan, np.nan)
                    for r in full.to_dict("records")
                ],
                **place,
            )
        last = int(own["layer"].to_numpy().max())
        fig.update_xaxes(range=[-0.5, last + 0.5], row=row)
    fig.update_yaxes(type="log", col=1, dtick=1)
    return fig.update_xaxes(title_text="layer", tickformat="d")


def _value(row: dict[str, Any], name: str) -> str:
    return interval_text(row[name], row[f"{name}_low"], row[f"{name}_high"])
