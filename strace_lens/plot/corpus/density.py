"""What a prompt's density goes with, shallow statistics, and density along generated texts.

Each parameter is the table of that name that `analyse` returns, but for those of prompts; figures
have a row of panels a run. Pages show the docstring of a figure as its caption.
"""

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
    add_points,
    at_size,
    by_run,
    empty,
    error_bars,
    of_run,
    run_marks,
    run_panels,
)
from strace_lens.plot.style import COLOURS, SCALE, SYMBOLS, figure, quoted, text_of

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
    """Density of each prompt against entropy, length and loss, coloured by its first label.

    Entropy is that of the full model's output, loss that of the true next token. Above each panel
    stands Spearman's rho with its interval; correlations given the other two are in the table
    below.

    Args:
        prompts: `run`, `prompt`, `density`, `entropy`, `tokens`, `loss`, `label` (text, empty for
            none).
        density_correlations: the table of `analyse`, for the same runs.
    """
    plain = density_correlations[density_correlations["given"] == ""].set_index(["run", "what"])

    def heads(run: str) -> list[str]:
        return [_rho(plain, run, what) for what in AGAINST]

    values = sorted(prompts["label"].unique())
    coloured = 1 < len(values) <= len(LABEL_COLOURS)
    fig = run_panels(
        prompts, "Density against uncertainty, length and loss", heads, ["density"], 260
    )
    marks = run_marks(prompts)
    for run, own, row in by_run(prompts):
        for col, (what, called) in enumerate(AGAINST.items(), start=1):
            for value, rows in own.groupby("label", sort=True):
                place = values.index(value)
                add_points(
                    fig,
                    rows.dropna(subset=[what]),
                    what,
                    "density",
                    lambda r, what=what, called=called: (
                        f"<b>prompt {r['prompt']}</b>{', ' * bool(r['label'])}{text_of(r['label'])}"
                        f"<br>density {r['density']:.4g}<br>{called}: {r[what]:.4g}"
                    ),
                    name=text_of(str(value)) or "no label",
                    mode="markers",
                    marker={
                        "color": LABEL_COLOURS[place] if coloured else marks[run],
                        "symbol": SYMBOLS[place % len(SYMBOLS)] if coloured else "circle",
                        "size": 7,
                        "opacity": 0.8,
                    },
                    row=row,
                    col=col,
                )
            fig.update_xaxes(title_text=called, row=row, col=col)
    return fig.update_layout(showlegend=coloured)


def _rho(plain: pd.DataFrame, run: str, what: str) -> str:
    if (run, what) not in plain.index:
        return f"{what}: no correlation"
    row: Any = plain.loc[(run, what)]
    if np.isnan(row["rho"]):
        return f"{what}: too few or all alike (n = {row['prompts']:.0f})"
    return f"ρ = {_of(row)}, n = {row['prompts']:.0f}"


def _of(row: Any) -> str:
    return interval_text(row["rho"], row["low"], row["high"], "{:.2f}")


def plot_density_by_label(density_by_label: pd.DataFrame) -> go.Figure:
    """Mean density of the prompts of each value of a label.

    Above each panel stands the Kruskal-Wallis test of whether the values differ.
    """
    pairs = zip(density_by_label["run"], density_by_label["label"], strict=True)
    marks = run_marks(density_by_label)
    panels = density_by_label.assign(
        of=density_by_label["run"], run=[f"{run}, {label}" for run, label in pairs]
    )
    panels.attrs = {}  # panels are of labels here, and their marks have the colours of the runs
    tests = panels.drop_duplicates("run").set_index("run")
    most = panels["run"].value_counts().to_numpy().max(initial=1)
    fig = run_panels(
        panels,
        "Density by label",
        lambda run: [_test_text(tests.loc[run])],
        [""],
        24 * int(most) + 30,
    )
    for _, own, row in by_run(panels):
        rows = own.sort_values("mean", kind="stable")
        add_points(
            fig,
            rows.assign(value=[text_of(str(value)) for value in rows["value"]]),
            "mean",
            "value",
            lambda r: f"<b>{r['value']}</b>, {r['prompts']} prompts<br>density {row_text(r)}",
            name="mean",
            showlegend=False,
            mode="markers",
            marker={"color": marks[str(rows["of"].iloc[0])], "size": 9},
            error_x=error_bars(*(rows[c].to_numpy() for c in ("mean", "low", "high"))),
            row=row,
            col=1,
        )
        fig.update_yaxes(type="category", range=[-0.6, len(rows) - 0.4], row=row, col=1)
    return fig.update_xaxes(title_text="mean density", matches="x")


def _test_text(row: Any) -> str:
    if np.isnan(row["p"]):
        return "too few prompts, or all alike, for a test"
    return f"Kruskal-Wallis H = {row['h']:.3g}, p = {row['p']:.2g}, η² = {row['eta_squared']:.2f}"


def plot_between_runs(between_runs: pd.DataFrame) -> go.Figure:
    """Spearman correlation of the density of a prompt between runs, with its interval."""
    title = "Density of a prompt between runs: Spearman's rho"
    if between_runs.empty:
        return empty(title)
    names = between_runs["a"].unique().tolist()
    said = between_runs.assign(
        cell=[
            _of(r) if r["a"] != r["b"] else f"{r['rho']:.2f}"
            for r in between_runs.to_dict("records")
        ],
        hover=[_pair_text(r) for r in between_runs.to_dict("records")],
    )
    wide, cells, hovers = (
        said.pivot(index="a", columns="b", values=column).loc[names, names].to_numpy()
        for column in ("rho", "cell", "hover")
    )
    return _add_runs(
        figure(title, height=120 + max(60 * len(names), 160)),
        names,
        x=[text_of(name) for name in names],
        z=wide,
        text=cells,
        texttemplate="%{text}",
        hovertext=hovers,
        colorscale="RdBu",
        reversescale=True,
        zmin=-1,
        zmax=1,
        colorbar={"thickness": 14, "title": {"text": "rho"}},
    ).update_xaxes(type="category")


def _add_runs(fig: go.Figure, names: list[str], **cells: Any) -> go.Figure:
    """A heat map with a row a run, from the top."""
    fig.add_heatmap(y=[text_of(name) for name in names], hoverinfo="text", **cells)
    fig.update_xaxes(showgrid=False)
    return fig.update_yaxes(type="category", showgrid=False, autorange="reversed")


def _pair_text(row: dict[Any, Any]) -> str:
    difference = interval_text(
        row["mean_difference"], row["difference_low"], row["difference_high"]
    )
    return (
        f"<b>{text_of(row['a'])} and {text_of(row['b'])}</b>, {row['prompts']} prompts<br>"
        f"rho {_of(row)}<br>density of the first less that of the second: {difference}"
    )


def plot_density_of_prompts(shared_prompts: pd.DataFrame) -> go.Figure:
    """Density of every shared prompt in every run, prompts sorted by their mean.

    Prompts have the numbers of the first run.

    Args:
        shared_prompts: `run`, `prompt` (the same number for the same text), `density`.
    """
    title = "Density of every prompt in every run"
    if shared_prompts.empty:
        return empty(title)
    wide = shared_prompts.pivot(index="run", columns="prompt", values="density")
    wide = wide.loc[shared_prompts["run"].unique()]
    wide = wide[wide.mean().sort_values(kind="stable").index]
    said = [
        [
            f"<b>{text_of(name)}</b>, prompt {prompt}<br>density {value:.4g}"
            for prompt, value in row.items()
        ]
        for name, row in wide.iterrows()
    ]
    fig = _add_runs(
        figure(title, height=130 + max(40 * len(wide), 90)),
        wide.index.tolist(),
        x=list(range(wide.shape[1])),
        z=wide.to_numpy(dtype=np.float64),
        text=said,
        colorscale=SCALE,
        colorbar={"thickness": 14, "title": {"text": "density"}},
    )
    fig.update_xaxes(title_text="prompts, from the least dense on average")
    return fig.update_xaxes(showticklabels=False, ticks="")


def plot_density_parts(density_parts: pd.DataFrame, part_correlations: pd.DataFrame) -> go.Figure:
    """The two parts of a density against the entropy of the full model's output.

    The plateau (TV at the smallest size) is lower where both outputs are broad whatever is
    computed; the half size is that at which TV falls below half of it. Above each panel stands
    Spearman's rho.
    """
    plain = part_correlations[part_correlations["what"] == "entropy"].set_index(["run", "part"])

    def heads(run: str) -> list[str]:
        return [_rho(plain, run, part) for part in PARTS]

    title = "The parts of density against uncertainty"
    fig = run_panels(density_parts, title, heads, list(PARTS.values()), 260)
    marks = run_marks(density_parts)
    for run, own, row in by_run(density_parts):
        for col, (part, called) in enumerate(PARTS.items(), start=1):
            add_points(
                fig,
                own.dropna(subset=[part]),
                "entropy",
                part,
                lambda r, part=part, called=called: (
                    f"<b>prompt {r['prompt']}</b><br>{called}: {r[part]:.3g}<br>"
                    f"entropy {r['entropy']:.3g} nats"
                ),
                name=part,
                showlegend=False,
                mode="markers",
                marker={"color": marks[run], "size": 6, "opacity": 0.6},
                row=row,
                col=col,
            )
        fig.update_yaxes(type="log", tickvals=_TICKS, row=row, col=2)
    return fig.update_xaxes(title_text="entropy of the full output (nats)")


def plot_shallow(shallow: pd.DataFrame, shallow_full_model: pd.DataFrame) -> go.Figure:
    """Mean total variation of the trace's output to each target, by size.

    Targets are the model's output, the corpus' unigram distribution, and the model's output after a
    BOS alone; dotted: the full model's own distance to the latter two.
    """

    def hover(row: dict[Any, Any], value: str, _: str) -> str:
        return f"{at_size(row)}TV to the {TARGETS[row['target']][0].removeprefix('the ')} {value}"

    title = "Traces' output against shallow statistics"
    fig = run_panels(shallow, title, [""], ["total variation"])
    add_means(fig, shallow, ["tv"], _TO_TARGETS, hover, by="target")
    for run, own, number in by_run(shallow):
        for row in of_run(shallow_full_model, run).to_dict("records"):
            called, line = TARGETS[row["target"]]
            value = row_text({**row, "mean": row["tv"]})
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
    """Share of prompts whose trace is nearer to a target than the full model is, or nearest to it.

    Intervals are Wilson's.
    """

    def hover(row: dict[Any, Any], _: str, column: str) -> str:
        name = TARGETS[row["target"]][0]
        return f"{at_size(row)}to {name}, {_NEAR[column]}: {row_text(row, column, '{:.1%}')}"

    title = "How many traces are near to shallow statistics"
    fig = run_panels(nearest, title, list(_NEAR.values()), ["share of prompts"])
    # The full model is never nearer to itself than it is: that line is NaN, and left out.
    add_means(fig, nearest, list(_NEAR), _TO_TARGETS, hover, by="target")
    return fig.update_yaxes(range=[-0.03, 1.03], tickformat=".0%")


def plot_growth(growth: pd.DataFrame, growth_lines: pd.DataFrame) -> go.Figure:
    """Density of each prompt as the model adds tokens to it, and the mean over the texts."""

    def hover_text(row: dict[Any, Any]) -> str:
        writes = quoted(row["next"]) if isinstance(row["next"], str) else "nothing more"
        return (
            f"text of prompt {row['of']}, {row['step']} tokens written<br>"
            f"density {row['density']:.3f}, writes {writes}"
        )

    def hover(row: dict[Any, Any], value: str, _: str) -> str:
        return (
            f"<b>{row['step']} tokens written</b>, {row['prompts']} texts<br>density {value}"
            f"<br>{row['tokens']:.1f} tokens, entropy {row['entropy']:.2f} nats"
        )

    fig = run_panels(growth, "Density as the model writes on", [""], ["density"])
    for run, _, row in by_run(growth):
        for _, text in of_run(growth_lines, run).groupby("of"):
            add_points(
                fig,
                text,
                "step",
                "density",
                hover_text,
                name="one text",
                mode="lines" if len(text) > 1 else "markers",
                line={"color": _PALE, "width": 1},
                row=row,
                col=1,
            )
    mean: Looks = {"": ("mean", {"color": COLOURS["trace"]})}
    add_means(fig, growth, ["density"], mean, hover, along="step")
    step = max(1, math.ceil(growth["step"].to_numpy().max(initial=0) / 12))
    return fig.update_xaxes(title_text="tokens written so far", tick0=0, dtick=step)
