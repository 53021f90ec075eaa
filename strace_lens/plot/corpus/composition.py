"""What the traces of a corpus are made of by size: kinds, layers, phases and components."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from strace_lens.measures.intervals import row_text
from strace_lens.plot.charts import (
    SIZE_TITLE,
    Looks,
    add_heat,
    add_level,
    add_means,
    at_size,
    by_run,
    empty,
    error_bars,
    log_shares,
    of_run,
    run_panels,
    share_colours,
    shown_sizes,
    size_colours,
)
from strace_lens.plot.style import (
    COLOURS,
    INK,
    LABELS,
    PARTS,
    SCALE,
    measured_axis,
    percent,
)

_KINDS: Looks = {kind: (LABELS[kind], {"color": COLOURS[kind]}) for kind in LABELS}
_SHARES = {"share": "all edges of the trace", "marginal": "edges that the size adds"}
_DECADES = 4  # of the colours of what is present
_RISES = COLOURS["inverse"]  # where an error rises instead of falling
_DEPTHS = {"": "all edges", "block_": "attention and MLP edges", "ablatable_": "ablatable edges"}
_PRESENT = {"present": "edges present", "ablatable_present": "ablatable edges present"}
_PHASES = {"head": "head subgraph", "tail": "tail refinement"}
_COMPONENTS = {"residual": "joins of the residual stream", "attention": "heads", "mlp": "MLPs"}
_NO_EDGE = "no size measured has an edge"


def plot_kinds(kinds_by_size: pd.DataFrame) -> go.Figure:
    """Share of each kind of edge by size: of the trace, and of what each size adds.

    Means over the prompts with such edges, with 95 % bootstrap intervals; a row of panels a run.

    Args:
        kinds_by_size: the table of `analyse`.
    """
    return _plot_shares("Composition by kind of edge", kinds_by_size, "kind", _KINDS)


def plot_quarters(quarters_by_size: pd.DataFrame) -> go.Figure:
    """Share of each quarter of the layers by size, as `plot_kinds`; the later, the darker.

    Args:
        quarters_by_size: the table of `analyse`.
    """
    last = 0 if quarters_by_size.empty else int(quarters_by_size["quarter"].to_numpy().max())
    colours = enumerate(size_colours(last), start=1)
    looks = {q: (f"quarter {q}", {"color": colour}) for q, colour in colours}
    return _plot_shares("Composition by quarter of the depth", quarters_by_size, "quarter", looks)


def _plot_shares(title: str, table: pd.DataFrame, part: str, looks: Looks) -> go.Figure:
    if table.empty:
        return empty(title, _NO_EDGE)

    def hover(row: dict[str, Any], value: str, column: str) -> str:
        layers = f" (layers {row['first']} to {row['last']})" if "first" in row else ""
        start = at_size(row, "prompts" if column == "share" else f"{column}_prompts")
        return f"{start}{looks[row[part]][0]}{layers}: {value} of {_SHARES[column]}"

    fig = run_panels(table, title, list(_SHARES.values()), ["share of edges"])
    add_means(fig, table, list(_SHARES), looks, hover, by=part, gaps=False)
    return fig.update_yaxes(range=[-0.02, 1.02], tickformat=".0%")


def plot_phase_diagram(phase_diagram: pd.DataFrame, head_and_tail_means: pd.DataFrame) -> go.Figure:
    """Layer by size, a row a run: what is present, and the fall in head and in tail error.

    Present is the share of the layer's edges, in logarithmic colours; of its ablatable edges in
    runs that keep kinds of edges, since the others are there at every size. Gains are an
    attribution by composition; head and tail, and all runs, share one scale. Blank is nothing.
    Lines stand at the geometric means of where the head subgraph is complete (solid) and the tail
    refined (dashed).

    Args:
        phase_diagram: the table of `analyse`.
        head_and_tail_means: the table of `analyse`, for the same runs.
    """
    title = "Layer phases: what is present, and what falls with it"
    if phase_diagram.empty:
        return empty(title, "no size was measured")
    present_in = {name: _present_column(own) for name, own, _ in by_run(phase_diagram)}
    fig = run_panels(
        phase_diagram,
        title,
        lambda name: (
            _PRESENT[present_in[name]],
            "fall in head error",
            "fall in tail error",
        ),
        ["layer"],
    )
    for name, own, row in by_run(phase_diagram):
        for col, column in enumerate((present_in[name], "head_gain", "tail_gain"), start=1):
            place: dict[str, Any] = {"row": row, "col": col}
            present = col == 1
            hover = _present_text if present else _gain_text
            add_heat(
                fig,
                own,
                column,
                lambda r, c=column, hover=hover: hover(r, c),
                log_shares if present else _not_zero,
                **place,
                name=column,
                coloraxis="coloraxis" if present else "coloraxis2",
            )
            _add_ends(fig, of_run(head_and_tail_means, name), place)
            sizes = own["size"].to_numpy(dtype=np.float64)
            fig.update_xaxes(measured_axis(sizes), title_text=SIZE_TITLE, **place)
    gains = phase_diagram[["head_gain", "tail_gain"]].to_numpy(dtype=np.float64)
    bar = {"thickness": 12, "len": 0.5, "yanchor": "bottom"}
    return fig.update_layout(
        coloraxis=share_colours(-_DECADES, cut=True),
        coloraxis_colorbar={**bar, "y": 0.5},
        coloraxis2=_gain_colours(float(gains.min()), float(gains.max())),
        coloraxis2_colorbar={**bar, "y": -0.05, "title": {"text": "fall in<br>error (TV)"}},
    )


def _add_ends(fig: go.Figure, means: pd.DataFrame, place: dict[str, Any]) -> None:
    sizes = dict(zip(means["quantity"], means["mean"], strict=True))
    for part in PARTS:
        at = sizes.get(f"{part}_size", np.nan)
        if not np.isnan(at):
            ink = {"color": INK, "width": 2, "dash": PARTS[part][0]}
            for line in ({"color": "white", "width": 5}, ink):
                fig.add_vline(x=at, line=line, **place)


def _gain_colours(low: float, high: float) -> dict[str, Any]:
    """The one hue upwards from zero; below it, where an error rises, another."""
    low, high = min(low, 0.0), max(high, 1e-9)
    if low == 0:
        return {"colorscale": SCALE, "cmin": 0, "cmax": high}
    zero = -low / (high - low)
    up = [[zero + (1 - zero) * at, colour] for at, colour in SCALE]
    return {"colorscale": [[0, _RISES], [zero, "#fbf3f8"], *up], "cmin": low, "cmax": high}


def _present_column(own: pd.DataFrame) -> str:
    """What is drawn as present: ablatable edges, where they are not all edges and not none."""
    none = np.isnan(own["ablatable_present"].to_numpy(dtype=np.float64)).all()
    return "present" if none or _alike(own, *_PRESENT) else "ablatable_present"


def _alike(table: pd.DataFrame, one: str, other: str) -> bool:
    """Whether two columns hold the same, NaN in the same places."""
    return np.array_equal(table[one].to_numpy(), table[other].to_numpy(), equal_nan=True)


def _present_text(row: dict[str, Any], column: str) -> str:
    return (
        f"<b>s = {row['size']:.4g}</b>, layer {row['layer']}<br>{percent(row[column])} of its "
        f"{_PRESENT[column]}"
    )


def _gain_text(row: dict[str, Any], column: str) -> str:
    added = "no edge" if np.isnan(row["added"]) else f"{percent(row['added'])} of the edges"
    return (
        f"<b>s = {row['size']:.4g}</b>, layer {row['layer']}<br>{column.split('_')[0]} error falls "
        f"by {row[column]:.3g}<br>{added} added ({row['prompts']} prompts)"
    )


def _not_zero(gains: np.ndarray) -> np.ndarray:
    return np.where(gains == 0, np.nan, gains)


def plot_head_and_tail(head_and_tail: pd.DataFrame, head_and_tail_means: pd.DataFrame) -> go.Figure:
    """Mean depth of the head subgraph and of what the tail refinement adds; a row a run.

    From left to right all edges, those of attention and MLP alone, and, if a run keeps kinds of
    edges, the ablatable ones. A thin line is a prompt that has both;
    large marks are means with 95 % bootstrap intervals over the prompts that have the phase;
    dotted, the whole graph.

    Args:
        head_and_tail: the table of `analyse`.
        head_and_tail_means: the table of `analyse`, for the same runs.
    """
    title = "Depth of head subgraph and tail refinement"
    if head_and_tail.empty:
        return empty(title, "no prompt was measured")
    depths = dict(_DEPTHS)
    if _alike(head_and_tail, "graph_depth", "graph_ablatable_depth"):
        del depths["ablatable_"]
    fig = run_panels(head_and_tail, title, list(depths.values()), ["relative depth"], 280)
    for name, own, row in by_run(head_and_tail):
        means = of_run(head_and_tail_means, name).set_index("quantity")
        for col, kinds in enumerate(depths, start=1):
            place: dict[str, Any] = {"row": row, "col": col}
            columns = [f"{part}_{kinds}depth" for part in _PHASES]
            _add_prompts(fig, own, columns, place)
            for at, part in enumerate(_PHASES):
                mean = means.loc[columns[at]].to_dict()
                _add_mean_depth(fig, part, at, mean, len(own), place)
            depth = float(means.loc[f"graph_{kinds}depth", "mean"])
            if not np.isnan(depth):
                line = {"color": INK, "dash": "dot", "width": 1.5}
                fig.add_hline(y=depth, line=line, layer="below", **place)
    ticks = {"tickmode": "array", "tickvals": [0, 1], "ticktext": list(_PHASES.values())}
    fig.update_xaxes(range=[-0.5, 1.5], showgrid=False, **ticks)
    return fig.update_yaxes(range=[-0.03, 1.03])


def _add_prompts(
    fig: go.Figure, rows: pd.DataFrame, columns: list[str], place: dict[str, Any]
) -> None:
    """A line a prompt from one phase to the other, in one trace that NaN parts."""
    x: list[float] = []
    y: list[float] = []
    texts: list[str] = []
    for prompt, head, tail in rows[["prompt", *columns]].itertuples(index=False):
        x += [0, 1, np.nan]
        y += [head, tail, np.nan]
        about = f"<b>prompt {prompt}</b><br>head {head:.3f}, tail {tail:.3f}"
        texts += [about, about, ""]
    fig.add_scatter(
        x=x,
        y=y,
        name="one prompt",
        legendgroup="prompt",
        showlegend=place["row"] == place["col"] == 1,
        mode="lines+markers",
        line={"color": "rgba(0,0,0,0.15)", "width": 1},
        marker={"size": 4, "color": "rgba(0,0,0,0.3)"},
        hoverinfo="text",
        hovertext=texts,
        **place,
    )


def _add_mean_depth(
    fig: go.Figure, part: str, at: int, mean: dict[str, Any], prompts: int, place: dict[str, Any]
) -> None:
    fig.add_scatter(
        x=[at],
        y=[mean["mean"]],
        name=f"mean, {_PHASES[part]}",
        legendgroup=part,
        showlegend=place["row"] == place["col"] == 1,
        mode="markers",
        marker={
            "symbol": PARTS[part][1],
            "color": COLOURS[part],
            "size": 12,
            "line": {"width": 1.5, "color": INK},
        },
        error_y=error_bars(mean["mean"], mean["low"], mean["high"]),
        hoverinfo="text",
        hovertext=[
            f"<b>{_PHASES[part]}</b>, {mean['prompts']:.0f} of {prompts} prompts<br>depth "
            + row_text(mean)
        ],
        **place,
    )


def plot_lorenz(lorenz: pd.DataFrame) -> go.Figure:
    """Lorenz curves of the use of components at a few sizes, a row a run and a column a kind.

    Args:
        lorenz: the table of `analyse`.
    """
    title = "How evenly components are used: Lorenz curves"
    if lorenz.empty:
        return empty(title, _NO_EDGE)
    kinds = [kind for kind in _COMPONENTS if (lorenz["kind"] == kind).to_numpy().any()]
    heads = [_COMPONENTS[kind] for kind in kinds]
    fig = run_panels(lorenz, title, heads, ["share of their edges"], 280)
    named: set[float] = set()
    for _, own, row in by_run(lorenz):
        sizes = shown_sizes(own["size"].to_numpy(dtype=np.float64))
        for col, kind in enumerate(kinds, start=1):
            place: dict[str, Any] = {"row": row, "col": col}
            fig.add_scatter(
                x=[0, 1],
                y=[0, 1],
                name="evenly",
                legendgroup="evenly",
                showlegend=row == col == 1,
                mode="lines",
                line={"color": INK, "dash": "dot", "width": 1},
                hoverinfo="skip",
                **place,
            )
            for size, colour in zip(sizes, size_colours(len(sizes)), strict=True):
                curve = own.loc[own["kind"].eq(kind) & own["size"].eq(size)]
                fig.add_scatter(
                    x=curve["components"],
                    y=curve["use"],
                    name=f"s = {size:.3g}",
                    legendgroup=f"{size:.3g}",
                    showlegend=size not in named,
                    mode="lines",
                    line={"color": colour, "width": 2.5},
                    hoverinfo="text",
                    hovertext=[
                        f"<b>s = {size:.4g}</b><br>the least used {percent(r['components'])} of "
                        f"the {_COMPONENTS[kind]}<br>have {percent(r['use'])} of their edges"
                        for r in curve.to_dict("records")
                    ],
                    **place,
                )
                named.add(size)
            fig.update_xaxes(title_text=f"share of the {_COMPONENTS[kind]}", **place)
    axis = {"range": [-0.02, 1.02], "tickformat": ".0%"}
    return fig.update_xaxes(axis).update_yaxes(axis)


def plot_gini(gini: pd.DataFrame) -> go.Figure:
    """Gini coefficient of the use of components by size, a panel a run; dotted, of the graphs.

    With 95 % bootstrap intervals over prompts.

    Args:
        gini: the table of `analyse`.
    """
    title = "How evenly components are used: Gini coefficient"
    if gini.empty:
        return empty(title, _NO_EDGE)

    def hover(row: dict[str, Any], value: str, _: str) -> str:
        return f"<b>s = {row['size']:.4g}</b>, {_COMPONENTS[row['kind']]}<br>Gini {value}"

    fig = run_panels(gini, title, [""], ["Gini coefficient"])
    add_means(fig, gini, ["gini"], _KINDS, hover, by="kind")
    for _, own, row in by_run(gini):
        for kind, graph in own.groupby("kind", sort=False)["graph"].first().to_dict().items():
            add_level(
                fig,
                own["size"].to_numpy(dtype=np.float64),
                graph,
                COLOURS[str(kind)],
                f"<b>whole graphs</b>, {_COMPONENTS[str(kind)]}: {graph:.3f}",
                name=f"graph, {_COMPONENTS[str(kind)]}",
                legendgroup=kind,
                row=row,
                col=1,
            )
    return fig.update_yaxes(range=[-0.02, 1.02])


def plot_core(core: pd.DataFrame) -> go.Figure:
    """Share of the components of a kind that nearly all prompts' traces use, by size.

    Args:
        core: the table of `analyse`.
    """
    title = "What nearly all traces share"
    if core.empty:
        return empty(title, _NO_EDGE)

    def hover(row: dict[str, Any], _: str, __: str) -> str:
        return (
            f"<b>s = {row['size']:.4g}</b><br>{row['core']} of {row['components']} "
            f"{_COMPONENTS[row['kind']]}, {percent(row['share'])}"
        )

    fig = run_panels(core, title, [""], ["share of components"])
    add_means(fig, core, ["share"], _KINDS, hover, by="kind")
    return fig.update_yaxes(range=[-0.02, 1.02], tickformat=".0%")
