"""The parts of a density against the model's uncertainty: plateau, and where the curve falls."""

# pandas' types are wider than what it returns here.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from strace_lens.measures.intervals import interval_text
from strace_lens.plot.corpus.panels import by_run, empty, run_panels
from strace_lens.plot.style import COLOURS

PARTS = {"plateau": "TV at the smallest size", "half_size": "size of half the plateau (log)"}
_TICKS = [m * 10.0**n for n in range(-5, 1) for m in (1, 2, 5)]


def plot_density_parts(density_parts: pd.DataFrame, part_correlations: pd.DataFrame) -> go.Figure:
    """Plateau and half size of each prompt against entropy, a row a run.

    Args:
        density_parts: of `analyse`.
        part_correlations: of `analyse`, of the same runs; rho stands above each panel.
    """
    title = "The parts of density against uncertainty"
    if density_parts.empty:
        return empty(title, "no prompt was measured")
    plain = part_correlations[part_correlations["what"] == "entropy"].set_index(["run", "part"])

    def heads(run: str) -> list[str]:
        return [_rho(plain.loc[(run, part)].to_dict()) for part in PARTS]

    fig = run_panels(density_parts, title, heads, list(PARTS.values()), 260)
    for name, own, row in by_run(density_parts):
        for col, (part, called) in enumerate(PARTS.items(), start=1):
            there = own.dropna(subset=[part])
            fig.add_scatter(
                x=there["entropy"],
                y=there[part],
                name=name,
                showlegend=False,
                mode="markers",
                marker={"color": COLOURS["trace"], "size": 6, "opacity": 0.6},
                hoverinfo="text",
                hovertext=[
                    f"<b>prompt {prompt}</b><br>{called}: {value:.3g}<br>entropy {entropy:.3g} nats"
                    for prompt, value, entropy in zip(
                        there["prompt"], there[part], there["entropy"], strict=True
                    )
                ],
                row=row,
                col=col,
            )
        fig.update_yaxes(type="log", tickvals=_TICKS, row=row, col=2)
    return fig.update_xaxes(title_text="entropy of the full output (nats)")


def _rho(row: Mapping[Any, Any]) -> str:
    if np.isnan(row["rho"]):
        return f"no ρ, n = {row['prompts']:.0f}"
    text = interval_text(row["rho"], row["low"], row["high"], "{:.2f}")
    return f"ρ = {text}, n = {row['prompts']:.0f}"
