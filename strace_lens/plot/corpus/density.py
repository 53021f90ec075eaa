"""What a prompt's density goes with, shallow statistics, and density along generated texts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from strace_lens.measures.intervals import interval_text, row_text
from strace_lens.plot.charts import (
    Looks,
    add_level,
    add_means,
    at_size,
    by_run,
    empty,
    error_bars,
    of_run,
    run_panels,
)
from strace_lens.plot.style import COLOURS, INK, SCALE, SYMBOLS, figure, percent, quoted, text_of

AGAINST = {
    "entropy": "entropy of the full output (nats)",
    "tokens": "tokens of the prompt",
    "loss": "loss of the true next token (nats)",
}
"""What density is drawn against, with the titles of the axes."""

PARTS = {"plateau": "TV at the smallest size", "half_size": "size of half the plateau (log)"}
"""The parts of a density, with the titles of the axes."""

LABEL_COLOURS = (
    *("#332288", "#CC6677", "#117733", "#88CCEE", "#AA4499", "#DDCC77", "#44AA99", "#882255"),
    *("#999933", "#666666", "#0077BB", "#EE7733"),
)
"""Of the values of a label, in order; more values than these are left uncoloured."""

TARGETS: Looks = {
    "full": ("the model's output", {"color": COLOURS["trace"], "dash": "solid"}),
    "unigram": ("unigram distribution", {"color": "#882255", "dash": "dash"}),
    "no_context": ("output without context", {"color": "#999933", "dash": "dashdot"}),
}
"""What each target is called, and its look: hues of no other thing."""

_TO_TARGETS: Looks = {key: (f"to {name}", line) for key, (name, line) in TARGETS.items()}
_NEAR = {"nearer": "nearer than the full model is", "nearest": "nearest of all"}
_TICKS = [m * 10.0**n for n in range(-5, 1) for m in (1, 2, 5)]
_PALE = "#bbbbbb"


def plot_density_against(prompts: pd.DataFrame, density_correlations: pd.DataFrame) -> go.Figure:
    """Density of each prompt against entropy, length and loss, coloured by label; a row a run.

    Above each panel Spearman's rho with its 95 % bootstrap interval and the prompts it is of.

    Args:
        prompts: `run`, `prompt`, `density`, `entropy`, `tokens`, `loss`, `label` (text, empty for
            none).
        density_correlations: the table of `analyse`, for the same runs.
    """
    title = "Density against uncertainty, length and loss"
    if prompts.empty:
        return empty(title, "no prompt was measured")
    plain = density_correlations[density_correlations["given"] == ""].set_index(["run", "what"])

    def heads(run: str) -> list[str]:
        return [_rho(plain, run, what) for what in AGAINST]

    values = sorted(prompts["label"].unique())
    looks = {value: _look(i, len(values)) for i, value in enumerate(values)}
    fig = run_panels(prompts, title, heads, ["density"], 260)
    named: set[str] = set()
    for _, own, row in by_run(prompts):
        for col, (what, called) in enumerate(AGAINST.items(), start=1):
            for value, rows in own.groupby("label", sort=True):
                there = rows.dropna(subset=[what])
                fig.add_scatter(
                    x=there[what],
                    y=there["density"],
                    name=text_of(str(value)) or "no label",
                    legendgroup=str(value),
                    showlegend=str(value) not in named and 1 < len(values) <= len(LABEL_COLOURS),
                    mode="markers",
                    marker=looks[value],
                    hoverinfo="text",
                    hovertext=[_prompt_text(r, what, called) for r in there.to_dict("records")],
                    row=row,
                    col=col,
                )
                named.add(str(value))
            fig.update_xaxes(title_text=called, row=row, col=col)
    return fig


def _rho(plain: pd.DataFrame, run: str, what: str) -> str:
    if (run, what) not in plain.index:
        return f"{what}: no correlation"
    row: Any = plain.loc[(run, what)]
    if np.isnan(row["rho"]):
        return f"{what}: too few or all alike (n = {row['prompts']})"
    return f"ρ = {_of(row)}, n = {row['prompts']}"


def _of(row: Any) -> str:
    return interval_text(row["rho"], row["low"], row["high"], "{:.2f}")


def _look(place: int, values: int) -> dict[str, Any]:
    if not 1 < values <= len(LABEL_COLOURS):
        return {"color": INK, "size": 7, "opacity": 0.7}
    return {
        "color": LABEL_COLOURS[place],
        "symbol": SYMBOLS[place % len(SYMBOLS)],
        "size": 7,
        "opacity": 0.85,
    }


def _prompt_text(row: dict[str, Any], what: str, called: str) -> str:
    label = f", {text_of(str(row['label']))}" if row["label"] else ""
    return (
        f"<b>prompt {row['prompt']}</b>{label}<br>density {row['density']:.4g}<br>"
        f"{called}: {row[what]:.4g}"
    )


def plot_density_by_label(density_by_label: pd.DataFrame) -> go.Figure:
    """Mean density of the prompts of each value of a label, a panel a run and label.

    With 95 % bootstrap intervals; above, the Kruskal-Wallis test of whether the values differ.

    Args:
        density_by_label: the table of `analyse`.
    """
    title = "Density by label"
    if density_by_label.empty:
        return empty(title, "no label has two to twelve values")
    panels = density_by_label.assign(
        run=[f"{run}, {label}" for run, label in _pairs(density_by_label)]
    )
    tests = panels.drop_duplicates("run").set_index("run")
    most = int(panels.groupby("run").size().to_numpy().max())
    fig = run_panels(panels, title, lambda run: [_test_text(tests.loc[run])], [""], 24 * most + 30)
    for _, own, row in by_run(panels):
        rows = own.sort_values("mean", kind="stable")
        fig.add_scatter(
            x=rows["mean"],
            y=[text_of(str(value)) for value in rows["value"]],
            showlegend=False,
            mode="markers",
            marker={"color": COLOURS["trace"], "size": 9},
            error_x=error_bars(*(rows[c].to_numpy(dtype=np.float64) for c in _ENDS)),
            hoverinfo="text",
            hovertext=[
                f"<b>{text_of(str(r['value']))}</b>, {r['prompts']} prompts<br>"
                f"density {row_text(r)}"
                for r in rows.to_dict("records")
            ],
            row=row,
            col=1,
        )
        fig.update_yaxes(type="category", range=[-0.6, len(rows) - 0.4], row=row, col=1)
    return fig.update_xaxes(title_text="mean density", matches="x")


_ENDS = ("mean", "low", "high")


def _pairs(table: pd.DataFrame) -> zip[tuple[str, str]]:
    return zip(table["run"], table["label"], strict=True)


def _test_text(row: Any) -> str:
    if np.isnan(row["p"]):
        return "too few prompts, or all alike, for a test"
    return f"Kruskal-Wallis H = {row['h']:.3g}, p = {row['p']:.2g}, η² = {row['eta_squared']:.2f}"


def plot_between_runs(between_runs: pd.DataFrame) -> go.Figure:
    """Spearman correlation of per-prompt density between runs, with its interval in the cell.

    Args:
        between_runs: the table of `analyse`.
    """
    title = "Density of a prompt between runs: Spearman's rho"
    if between_runs.empty:
        return empty(title, "there is one run alone")
    names = between_runs["a"].unique().tolist()
    wide = between_runs.pivot(index="a", columns="b", values="rho").loc[names, names]
    said = between_runs.assign(
        cell=[
            _of(r) if r["a"] != r["b"] else f"{r['rho']:.2f}"
            for r in between_runs.to_dict("records")
        ],
        hover=[_pair_text(r) for r in between_runs.to_dict("records")],
    )
    cells, hovers = (
        said.pivot(index="a", columns="b", values=column).loc[names, names].to_numpy().tolist()
        for column in ("cell", "hover")
    )
    shown = [text_of(name) for name in names]
    fig = figure(title, height=120 + max(60 * len(names), 160))
    fig.add_heatmap(
        x=shown,
        y=shown,
        z=wide.to_numpy(dtype=np.float64),
        text=cells,
        texttemplate="%{text}",
        hovertext=hovers,
        hoverinfo="text",
        colorscale="RdBu",
        reversescale=True,
        zmin=-1,
        zmax=1,
        colorbar={"thickness": 14, "title": {"text": "rho"}},
    )
    fig.update_xaxes(type="category", showgrid=False)
    return fig.update_yaxes(type="category", showgrid=False, autorange="reversed")


def _pair_text(row: dict[str, Any]) -> str:
    a, b = (text_of(row[name]) for name in ("a", "b"))
    difference = interval_text(
        row["mean_difference"], row["difference_low"], row["difference_high"]
    )
    return (
        f"<b>{a} and {b}</b>, {row['prompts']} prompts<br>rho {_of(row)}<br>"
        f"density of the first less that of the second: {difference}"
    )


def plot_density_of_prompts(prompts: pd.DataFrame) -> go.Figure:
    """Density of every prompt in every run, prompts by their mean density.

    Args:
        prompts: `run`, `prompt` (the same number for the same text), `density`.
    """
    title = "Density of every prompt in every run"
    if prompts.empty:
        return empty(title, "no prompt was measured")
    wide = prompts.pivot(index="run", columns="prompt", values="density")
    wide = wide.loc[prompts["run"].unique()]
    wide = wide[wide.mean().sort_values(kind="stable").index]
    shown = [text_of(str(name)) for name in wide.index]
    fig = figure(title, height=130 + max(40 * len(wide), 90))
    fig.add_heatmap(
        x=list(range(wide.shape[1])),
        y=shown,
        z=wide.to_numpy(dtype=np.float64),
        colorscale=SCALE,
        colorbar={"thickness": 14, "title": {"text": "density"}},
        hoverinfo="text",
        text=[
            [
                f"<b>{name}</b>, prompt {prompt}<br>density {value:.4g}"
                for prompt, value in zip(wide.columns, row, strict=True)
            ]
            for name, row in zip(shown, wide.to_numpy(), strict=True)
        ],
    )
    fig.update_xaxes(title_text="prompts, from the least dense on average", showgrid=False)
    fig.update_xaxes(showticklabels=False, ticks="")
    return fig.update_yaxes(type="category", showgrid=False, autorange="reversed")


def plot_density_parts(density_parts: pd.DataFrame, part_correlations: pd.DataFrame) -> go.Figure:
    """Plateau and half size of each prompt against entropy, a row a run.

    Args:
        density_parts: the table of `analyse`.
        part_correlations: the table of `analyse`, for the same runs; rho stands above each panel.
    """
    title = "The parts of density against uncertainty"
    if density_parts.empty:
        return empty(title, "no prompt was measured")
    plain = part_correlations[part_correlations["what"] == "entropy"].set_index(["run", "part"])

    def heads(run: str) -> list[str]:
        return [_rho_of_part(plain.loc[(run, part)]) for part in PARTS]

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


def _rho_of_part(row: Any) -> str:
    n = f"n = {row['prompts']:.0f}"
    return f"no ρ, {n}" if np.isnan(row["rho"]) else f"ρ = {_of(row)}, {n}"


def plot_shallow(shallow: pd.DataFrame, shallow_full_model: pd.DataFrame) -> go.Figure:
    """TV of the traces' output to each target by size; dotted, that of the full model's output.

    Means over prompts with 95 % bootstrap intervals, a panel a run.

    Args:
        shallow: the table of `analyse`.
        shallow_full_model: the table of `analyse`, for the same runs.
    """
    title = "Traces' output against shallow statistics"
    if shallow.empty:
        return empty(title, "no target was measured")

    def hover(row: dict[str, Any], value: str, _: str) -> str:
        return f"{at_size(row)}TV to the {TARGETS[row['target']][0].removeprefix('the ')} {value}"

    fig = run_panels(shallow, title, [""], ["total variation"])
    add_means(fig, shallow, ["tv"], _TO_TARGETS, hover, by="target")
    for run, own, number in by_run(shallow):
        for row in of_run(shallow_full_model, run).to_dict("records"):
            called, line = TARGETS[row["target"]]
            value = interval_text(row["tv"], row["low"], row["high"])
            add_level(
                fig,
                own["size"].to_numpy(dtype=np.float64),
                row["tv"],
                line["color"],
                f"<b>full model</b>, {row['prompts']} prompts<br>TV to {called} {value}",
                name=f"full model to {called}",
                legendgroup=row["target"],
                row=number,
                col=1,
            )
    return fig.update_yaxes(range=[-0.02, 1.02])


def plot_nearest(nearest: pd.DataFrame) -> go.Figure:
    """How many prompts' traces are nearer to a target than the full model is, or nearest to it.

    Shares of prompts with Wilson's 95 % intervals, a row of panels a run.

    Args:
        nearest: the table of `analyse`.
    """
    title = "How many traces are near to shallow statistics"
    if nearest.empty:
        return empty(title, "no target was measured")

    def hover(row: dict[str, Any], _: str, column: str) -> str:
        name = TARGETS[row["target"]][0]
        return f"{at_size(row)}to {name}, {_NEAR[column]}: {_share_text(row, column)}"

    fig = run_panels(nearest, title, list(_NEAR.values()), ["share of prompts"])
    # The full model is never nearer to itself than it is: that line is NaN, and left out.
    add_means(fig, nearest, list(_NEAR), _TO_TARGETS, hover, by="target")
    return fig.update_yaxes(range=[-0.03, 1.03], tickformat=".0%")


def _share_text(row: dict[str, Any], column: str) -> str:
    low, high = row[f"{column}_low"], row[f"{column}_high"]
    text = percent(row[column])
    return text if np.isnan(low) else f"{text} [{percent(low)}, {percent(high)}]"


def plot_growth(growth: pd.DataFrame, growth_lines: pd.DataFrame) -> go.Figure:
    """Density after each generated token: every text pale, the mean of the texts that got so far.

    Args:
        growth: the table of `analyse`.
        growth_lines: the table of `analyse`, for the same runs.
    """
    title = "Density as the model writes on"
    if growth.empty:
        return empty(title, "no run wrote on: a sweep with --generate does")
    fig = run_panels(growth, title, [""], ["density"])
    for run, _, row in by_run(growth):
        for i, (of, text) in enumerate(of_run(growth_lines, run).groupby("of")):
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
                row=row,
                col=1,
            )

    def hover(row: dict[str, Any], value: str, _: str) -> str:
        return (
            f"<b>{row['step']} tokens written</b>, {row['prompts']} texts<br>density {value}"
            f"<br>{row['tokens']:.1f} tokens, entropy {row['entropy']:.2f} nats"
        )

    mean: Looks = {"": ("mean", {"color": COLOURS["trace"]})}
    add_means(fig, growth, ["density"], mean, hover, along="step")
    step = max(1, math.ceil(int(growth["step"].to_numpy().max()) / 12))
    return fig.update_xaxes(title_text="tokens written so far", tick0=0, dtick=step)


def _written(token: object) -> str:
    return quoted(token) if isinstance(token, str) else "nothing more"
