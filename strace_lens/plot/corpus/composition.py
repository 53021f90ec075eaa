"""What the traces of a corpus are made of by size: kinds, layers, phases and components.

Each parameter is the table of that name that `analyse` returns; figures have a row of panels a run.
Pages show the docstring of a figure as its caption.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from strace_lens.measures.intervals import row_text
from strace_lens.plot.charts import (
    SIZE_TITLE,
    Looks,
    add_level,
    add_means,
    add_points,
    at_size,
    by_run,
    error_bars,
    of_run,
    run_panels,
    shown_sizes,
    size_colours,
)
from strace_lens.plot.heat_map import add_heat, log_shares, share_colours
from strace_lens.plot.style import COLOURS, INK, LABELS, PARTS, SCALE, measured_axis, percent

_KINDS: Looks = {kind: (LABELS[kind], {"color": COLOURS[kind]}) for kind in LABELS}
_SHARES = {"share": "all edges of the trace", "marginal": "edges that the size adds"}
_DECADES = 4  # of the colours of what is present
_RISES = COLOURS["inverse"]  # where an error rises instead of falling
_DEPTHS = {"": "all edges", "block_": "attention and MLP edges", "ablatable_": "ablatable edges"}
_PRESENT = {"present": "edges present", "ablatable_present": "ablatable edges present"}
_PHASES = {"head": "head subgraph", "tail": "tail refinement"}
_COMPONENTS = {"residual": "joins of the residual stream", "attention": "heads", "mlp": "MLPs"}


def plot_kinds(kinds_by_size: pd.DataFrame) -> go.Figure:
    """Share of each kind among the edges of the trace, and among those that each size adds.

    Means over the prompts that have such edges.
    """
    return _plot_shares("Composition by kind of edge", kinds_by_size, "kind", _KINDS)


def plot_quarters(quarters_by_size: pd.DataFrame) -> go.Figure:
    """The same by quarters of the depth, first layers to last; the later, the darker."""
    quarters = np.unique(quarters_by_size["quarter"].to_numpy()).tolist()
    looks = {
        quarter: (f"quarter {quarter}", {"color": colour})
        for quarter, colour in zip(quarters, size_colours(len(quarters)), strict=True)
    }
    return _plot_shares("Composition by quarter of the depth", quarters_by_size, "quarter", looks)


def _plot_shares(title: str, table: pd.DataFrame, part: str, looks: Looks) -> go.Figure:
    def hover(row: dict[Any, Any], value: str, column: str) -> str:
        layers = f" (layers {row['first']} to {row['last']})" if "first" in row else ""
        start = at_size(row, "prompts" if column == "share" else f"{column}_prompts")
        return f"{start}{looks[row[part]][0]}{layers}: {value} of {_SHARES[column]}"

    fig = run_panels(table, title, list(_SHARES.values()), ["share of edges"])
    add_means(fig, table, list(_SHARES), looks, hover, by=part, gaps=False)
    return fig.update_yaxes(range=[-0.02, 1.02], tickformat=".0%")


def plot_phase_diagram(phase_diagram: pd.DataFrame, head_and_tail_means: pd.DataFrame) -> go.Figure:
    """Layer by size: the share of a layer's edges present, and the fall in head and tail error.

    Of runs that keep kinds of edges, the ablatable edges are shown, since the others are there at
    every size. The falls are shared out over layers by the ablatable edges that a size adds there:
    an attribution by composition, not an intervention. Blank is nothing. Lines stand at the
    geometric means of where the head subgraph is complete (solid) and the tail refined (dashed).
    """
    present_in = {name: _present_column(own) for name, own, _ in by_run(phase_diagram)}
    fig = run_panels(
        phase_diagram,
        "Layer phases: what is present, and what falls with it",
        lambda name: (_PRESENT[present_in[name]], "fall in head error", "fall in tail error"),
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
                log_shares if present else lambda gains: np.where(gains == 0, np.nan, gains),
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
        coloraxis2=_gain_colours(gains.min(initial=0.0), gains.max(initial=1e-9)),
        coloraxis2_colorbar={**bar, "y": -0.05, "title": {"text": "fall in<br>error (TV)"}},
    )


def _add_ends(fig: go.Figure, means: pd.DataFrame, place: dict[str, Any]) -> None:
    sizes = dict(zip(means["quantity"], means["mean"], strict=True))
    for part, (dash, _) in PARTS.items():
        at = sizes.get(f"{part}_size", np.nan)
        if not np.isnan(at):
            for line in ({"color": "white", "width": 5}, {"color": INK, "width": 2, "dash": dash}):
                fig.add_vline(x=at, line=line, **place)


def _gain_colours(low: float, high: float) -> dict[str, Any]:
    """The one hue upwards from zero; below it, where an error rises, another."""
    if low == 0:
        return {"colorscale": SCALE, "cmin": 0, "cmax": high}
    zero = -low / (high - low)
    up = [[zero + (1 - zero) * at, colour] for at, colour in SCALE]
    return {"colorscale": [[0, _RISES], [zero, "#fbf3f8"], *up], "cmin": low, "cmax": high}


def _present_column(own: pd.DataFrame) -> str:
    """What is drawn as present: ablatable edges, where they are not all edges and not none."""
    none = own["ablatable_present"].isna().to_numpy().all()
    return "present" if none or _alike(own, *_PRESENT) else "ablatable_present"


def _alike(table: pd.DataFrame, one: str, other: str) -> bool:
    """Whether two columns hold the same, NaN in the same places."""
    return np.array_equal(table[one].to_numpy(), table[other].to_numpy(), equal_nan=True)


def _present_text(row: dict[Any, Any], column: str) -> str:
    return (
        f"<b>s = {row['size']:.4g}</b>, layer {row['layer']}<br>{percent(row[column])} of its "
        f"{_PRESENT[column]}"
    )


def _gain_text(row: dict[Any, Any], column: str) -> str:
    added = "no edge" if np.isnan(row["added"]) else f"{percent(row['added'])} of the edges"
    return (
        f"<b>s = {row['size']:.4g}</b>, layer {row['layer']}<br>{column.split('_')[0]} error falls "
        f"by {row[column]:.3g}<br>{added} added ({row['prompts']} prompts)"
    )


def plot_head_and_tail(head_and_tail: pd.DataFrame, head_and_tail_means: pd.DataFrame) -> go.Figure:
    """Relative depth of the head subgraph's edges and of those that the tail refinement adds.

    0 is the first layer and 1 the last; over all edges, over those of attention and MLPs alone,
    and, if a run keeps kinds of edges, over those that it ablates. A thin line is a prompt that has
    both; large marks are means over the prompts that have the phase; dotted, the whole graph.
    """
    depths = dict(_DEPTHS)
    if _alike(head_and_tail, "graph_depth", "graph_ablatable_depth"):
        del depths["ablatable_"]
    title = "Depth of head subgraph and tail refinement"
    fig = run_panels(head_and_tail, title, list(depths.values()), ["relative depth"], 280)
    for name, own, row in by_run(head_and_tail):
        means = of_run(head_and_tail_means, name).set_index("quantity")
        for col, kinds in enumerate(depths, start=1):
            place: dict[str, Any] = {"row": row, "col": col}
            columns = [f"{part}_{kinds}depth" for part in _PHASES]
            _add_prompts(fig, own, columns, place)
            for at, (part, column) in enumerate(zip(_PHASES, columns, strict=True)):
                _add_mean_depth(fig, part, means.loc[[column]].assign(at=at), len(own), place)
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
    ends = rows[["prompt", *columns]].set_axis(["prompt", "head", "tail"], axis=1)
    parts = [ends.assign(x=0, y=ends["head"]), ends.assign(x=1, y=ends["tail"]), ends.assign(x=2)]
    add_points(
        fig,
        pd.concat(parts).sort_index(kind="stable"),
        "x",
        "y",
        lambda r: f"<b>prompt {r['prompt']}</b><br>head {r['head']:.3f}, tail {r['tail']:.3f}",
        name="one prompt",
        mode="lines+markers",
        line={"color": "rgba(0,0,0,0.15)", "width": 1},
        marker={"size": 4, "color": "rgba(0,0,0,0.3)"},
        **place,
    )


def _add_mean_depth(
    fig: go.Figure, part: str, mean: pd.DataFrame, prompts: int, place: dict[str, Any]
) -> None:
    look = {"symbol": PARTS[part][1], "color": COLOURS[part], "size": 12}
    add_points(
        fig,
        mean,
        "at",
        "mean",
        lambda r: (
            f"<b>{_PHASES[part]}</b>, {r['prompts']:.0f} of {prompts} prompts<br>"
            f"depth {row_text(r)}"
        ),
        name=f"mean, {_PHASES[part]}",
        mode="markers",
        marker={**look, "line": {"width": 1.5, "color": INK}},
        error_y=error_bars(*(mean[c].to_numpy() for c in ("mean", "low", "high"))),
        **place,
    )


def plot_lorenz(lorenz: pd.DataFrame) -> go.Figure:
    """Lorenz curves: share of all edges that the least used components hold, at a few sizes."""
    kinds = [kind for kind in _COMPONENTS if (lorenz["kind"] == kind).to_numpy().any()]
    heads = [_COMPONENTS[kind] for kind in kinds]
    title = "How evenly components are used: Lorenz curves"
    fig = run_panels(lorenz, title, heads, ["share of their edges"], 280)
    even = pd.DataFrame({"x": [0, 1], "y": [0, 1]})
    for _, own, row in by_run(lorenz):
        sizes = shown_sizes(own["size"].to_numpy(dtype=np.float64))
        for col, kind in enumerate(kinds, start=1):
            place: dict[str, Any] = {"row": row, "col": col, "mode": "lines"}
            line = {"color": INK, "dash": "dot", "width": 1}
            add_points(fig, even, "x", "y", lambda _: "", name="evenly", line=line, **place)
            for size, colour in zip(sizes, size_colours(len(sizes)), strict=True):
                add_points(
                    fig,
                    own.loc[own["kind"].eq(kind) & own["size"].eq(size)],
                    "components",
                    "use",
                    lambda r, kind=kind: (
                        f"<b>s = {r['size']:.4g}</b><br>the least used {percent(r['components'])} "
                        f"of the {_COMPONENTS[kind]}<br>have {percent(r['use'])} of their edges"
                    ),
                    name=f"s = {size:.3g}",
                    line={"color": colour, "width": 2.5},
                    **place,
                )
            fig.update_xaxes(title_text=f"share of the {_COMPONENTS[kind]}", row=row, col=col)
    axis = {"range": [-0.02, 1.02], "tickformat": ".0%"}
    return fig.update_xaxes(axis).update_yaxes(axis)


def plot_gini(gini: pd.DataFrame) -> go.Figure:
    """Gini coefficient of the use of components by size; dotted: of the whole graphs.

    Its intervals are moved so that resamples have the value as their mean.
    """

    def hover(row: dict[Any, Any], value: str, _: str) -> str:
        return f"<b>s = {row['size']:.4g}</b>, {_COMPONENTS[row['kind']]}<br>Gini {value}"

    title = "How evenly components are used: Gini coefficient"
    fig = run_panels(gini, title, [""], ["Gini coefficient"])
    add_means(fig, gini, ["gini"], _KINDS, hover, by="kind")
    for _, own, row in by_run(gini):
        for kind, graph in own.groupby("kind", sort=False)["graph"].first().to_dict().items():
            called = _COMPONENTS[str(kind)]
            add_level(
                fig,
                own["size"].to_numpy(dtype=np.float64),
                graph,
                COLOURS[str(kind)],
                f"<b>whole graphs</b>, {called}: {graph:.3f}",
                name=f"graph, {called}",
                legendgroup=kind,
                row=row,
                col=1,
            )
    return fig.update_yaxes(range=[-0.02, 1.02])


def plot_core(core: pd.DataFrame) -> go.Figure:
    """Share of components that at least 90 % of the prompts' traces hold an edge of, by size."""

    def hover(row: dict[Any, Any], *_: str) -> str:
        return (
            f"<b>s = {row['size']:.4g}</b><br>{row['core']} of {row['components']} "
            f"{_COMPONENTS[row['kind']]}, {percent(row['share'])}"
        )

    fig = run_panels(core, "What nearly all traces share", [""], ["share of components"])
    add_means(fig, core, ["share"], _KINDS, hover, by="kind")
    return fig.update_yaxes(range=[-0.02, 1.02], tickformat=".0%")
