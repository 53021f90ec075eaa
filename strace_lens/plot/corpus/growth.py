"""Density along texts that the model wrote on."""

from __future__ import annotations

import math

import pandas as pd
import plotly.graph_objects as go

from strace_lens.plot.corpus.panels import add_mean, by_run, empty, run_panels
from strace_lens.plot.style import COLOURS, quoted

_TITLE = "Density as the model writes on"
_PALE = "#bbbbbb"


def plot_growth(growth: pd.DataFrame, growth_lines: pd.DataFrame) -> go.Figure:
    """Density after each generated token: every text pale, the mean of the texts that got so far.

    Args:
        growth: of `analyse`.
        growth_lines: of `analyse`, of the same runs.
    """
    if growth.empty:
        return empty(_TITLE, "no run wrote on: a sweep with --generate does")
    fig = run_panels(growth, _TITLE, [""], ["density"])
    lines = {name: own for name, own, _ in by_run(growth_lines)}
    for name, own, row in by_run(growth):
        place = {"row": row, "col": 1}
        for i, (of, text) in enumerate(lines[name].groupby("of")):
            fig.add_scatter(
                x=text["step"],
                y=text["density"],
                name="one text",
                legendgroup="text",
                showlegend=row == 1 and i == 0,
                mode="lines" if len(text) > 1 else "markers",
                line={"color": _PALE, "width": 1},
                hoverinfo="text",
                hovertext=[
                    f"text of prompt {of}, {r['step']} tokens written<br>"
                    f"density {r['density']:.3f}, writes {_written(r['next'])}"
                    for r in text.to_dict("records")
                ],
                **place,
            )
        add_mean(
            fig,
            own,
            ("step", "density", "low", "high"),
            {"color": COLOURS["trace"]},
            lambda r, value: (
                f"<b>{r['step']} tokens written</b>, {r['prompts']} texts<br>density {value}"
                f"<br>{r['tokens']:.1f} tokens, entropy {r['entropy']:.2f} nats"
            ),
            name="mean",
            legendgroup="mean",
            showlegend=row == 1,
            **place,
        )
    step = max(1, math.ceil(int(growth["step"].to_numpy().max()) / 12))
    return fig.update_xaxes(title_text="tokens written so far", tick0=0, dtick=step)


def _written(token: object) -> str:
    return quoted(token) if isinstance(token, str) else "nothing more"
