"""The trace itself, drawn as layer by token with its first edges."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
import torch
from jaxtyping import Float, Int

from strace_lens.plot.style import COLOURS, INK, LABELS, figure, quoted, visible
from strace_lens.token_graph.edges import KINDS, GraphShape, edge_list, hook_name
from strace_lens.token_graph.trace import Trace

COUNTS = (50, 200, 1000)
_STEPS = (10, 25, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
_MOST_LABELS = 64


class _Drawn(NamedTuple):
    """Edges by rising rank: end points, the point where each is bent, and what each is called."""

    kind: Int[np.ndarray, " edge"]
    source: Int[np.ndarray, "edge 2"]  # (token, level)
    target: Int[np.ndarray, "edge 2"]
    bend: Float[np.ndarray, "edge 2"]
    names: list[str]


def plot_trace(trace: Trace, heaviest: int = 200) -> go.Figure:
    """The trace as a graph: tokens from left to right, hook points of the residual stream upwards.

    Residual edges go straight up, MLP edges bow to the right, attention edges run from key
    to query (to the left of their node where both are the same token). The earlier an edge's rank,
    the thicker it is. Buttons switch between the first 50, 200, 1000 and `heaviest` edges.

    Raises:
        ValueError: `heaviest` is less than 1.
    """
    if heaviest < 1:
        raise ValueError(f"heaviest must be at least 1; got {heaviest}")
    shape, tokens = trace.shape, trace.prompt.strings
    shown = min(heaviest, trace.edges)
    counts = sorted({min(c, trace.edges) for c in (*COUNTS, shown)})
    drawn = _draw(trace, counts[-1])
    fig = figure(
        "The trace: its first edges by rank",
        height=max(460, min(1150, 15 * shape.levels + 230)),
        margin={"t": 130},
        hovermode="closest",
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
    )
    _add_ground(fig, shape)
    always = _traces(fig)
    bounds = sorted({0, *counts, *(s for s in _STEPS if s < counts[-1])})
    ends = [b for b in bounds[1:] for _ in range(_add_band(fig, drawn, bounds, b, shape, tokens))]
    visibility = {c: [True] * always + [end <= c for end in ends] for c in counts}
    shows = iter(visibility[shown])
    fig.for_each_trace(lambda item: item.update(visible=next(shows)))
    _add_buttons(fig, visibility, counts.index(shown))
    _label_axes(fig, shape, tokens)
    return fig


def _draw(trace: Trace, edges: int) -> _Drawn:
    kept = trace.first(edges).kept
    chosen = edge_list(trace.shape, kept)
    ranks = torch.cat([r[k] for r, k in zip(trace.ranks, kept, strict=True)])
    order = ranks.argsort()
    kind, layer, head, source_level, source, target_level, target = (
        column[order].numpy() for column in chosen
    )
    # Parallel attention edges keep apart by where they bend: a place of its own for each head.
    place = (np.maximum(head, 0) + 0.5) / trace.shape.heads
    along = np.where(kind == 1, 0.3 + 0.4 * place, 0.5)
    aside = np.select([kind == 2, (kind == 1) & (source == target)], [0.2, -0.12 - 0.22 * place], 0)
    tokens = trace.prompt.strings
    names = [
        _name(trace.shape, tokens, *row)
        for row in zip(
            *(c.tolist() for c in (kind, layer, head, source_level, source, target)),
            range(len(order)),
            strict=True,
        )
    ]
    return _Drawn(
        kind=kind,
        source=np.stack([source, source_level], 1),
        target=np.stack([target, target_level], 1),
        bend=np.stack([source + along * (target - source) + aside, source_level + along], 1),
        names=names,
    )


def _name(
    shape: GraphShape,
    tokens: tuple[str, ...],
    kind: int,
    layer: int,
    head: int,
    level: int,
    source: int,
    target: int,
    rank: int,
) -> str:
    """An edge by its hook points and tokens, as TransformerLens names them."""
    at = f"{quoted(tokens[source])} ({source})"
    if KINDS[kind] == "attention":
        to = f"{quoted(tokens[target])} ({target})"
        return f"blocks.{layer}.attn.hook_pattern head {head}: {at} -> {to}, rank {rank}"
    if KINDS[kind] == "mlp":
        return f"blocks.{layer}.hook_mlp_out: {at}, rank {rank}"
    names = f"{hook_name(shape, level)} -> {hook_name(shape, level + 1)}"
    return f"residual {names}: {at}, rank {rank}"


def _add_ground(fig: go.Figure, shape: GraphShape) -> None:
    """Every node of the graph as a faint dot, the output, and one legend entry a kind."""
    token, level = np.meshgrid(np.arange(shape.tokens), np.arange(shape.levels))
    ground = {"mode": "markers", "hoverinfo": "skip", "showlegend": False}
    faint = {"size": 3, "color": "#d0d0d0"}
    fig.add_scatter(x=token.ravel(), y=level.ravel(), marker=faint, **ground)
    fig.add_scatter(
        x=[shape.tokens - 1],
        y=[shape.levels - 1],
        name="output",
        mode="markers",
        marker={"symbol": "star", "size": 13, "color": INK},
        hoverinfo="skip",
    )
    for kind in KINDS if shape.mlp else KINDS[:2]:
        fig.add_scatter(
            x=[None],
            y=[None],
            name=LABELS[kind],
            legendgroup=kind,
            mode="lines",
            line={"color": COLOURS[kind], "width": 2.5},
        )


def _add_band(
    fig: go.Figure,
    drawn: _Drawn,
    bounds: list[int],
    stop: int,
    shape: GraphShape,
    tokens: tuple[str, ...],
) -> int:
    """Add edges and new nodes of the ranks of one band; returns how many plotly traces it took."""
    before = _traces(fig)
    start = bounds[bounds.index(stop) - 1]
    fade = (bounds.index(stop) - 1) / max(1, len(bounds) - 2)  # 0 for the first ranks, 1 the last
    for k, kind in enumerate(KINDS):
        ids = start + np.flatnonzero(drawn.kind[start:stop] == k)
        if not len(ids):
            continue
        gap = np.full((len(ids), 2), np.nan)
        path = np.stack([drawn.source[ids], drawn.bend[ids], drawn.target[ids], gap], 1)
        x, y = path.reshape(-1, 2).T
        group = {"legendgroup": kind, "showlegend": False}
        fig.add_scatter(
            x=x,
            y=y,
            mode="lines",
            name=LABELS[kind],
            line={"color": COLOURS[kind], "width": 3.2 - 2.2 * fade, "shape": "spline"},
            opacity=1 - 0.6 * fade,
            hoverinfo="skip",
            **group,
        )
        # A plotly line has no hover text for each of its segments: unseen markers carry it.
        spots, names = _hover_spots(drawn, ids)
        fig.add_scatter(
            x=spots[:, 0],
            y=spots[:, 1],
            mode="markers",
            name=LABELS[kind],
            marker={"size": 8, "color": COLOURS[kind], "opacity": 0},
            hoverinfo="text",
            hovertext=names,
            **group,
        )
    _add_nodes(fig, drawn, start, stop, shape, tokens)
    return _traces(fig) - before


def _traces(fig: go.Figure) -> int:
    return sum(1 for _ in fig.select_traces())


def _hover_spots(
    drawn: _Drawn, ids: Int[np.ndarray, " chosen"]
) -> tuple[Float[np.ndarray, "spot 2"], list[str]]:
    """The bend of each edge, and for edges between tokens half way to both ends as well."""
    spots, names = [drawn.bend[ids]], [drawn.names[i] for i in ids]
    far = ids[drawn.source[ids, 0] != drawn.target[ids, 0]]
    for ends in (drawn.source, drawn.target):
        spots.append((drawn.bend[far] + ends[far]) / 2)
        names += [drawn.names[i] for i in far]
    return np.concatenate(spots), names


def _add_nodes(
    fig: go.Figure,
    drawn: _Drawn,
    start: int,
    stop: int,
    shape: GraphShape,
    tokens: tuple[str, ...],
) -> None:
    """Nodes that edges of these ranks are the first to touch."""
    seen = {tuple(n) for end in (drawn.source, drawn.target) for n in end[:start].tolist()}
    first: dict[tuple[int, int], int] = {}
    for rank in range(start, stop):
        for end in (drawn.target, drawn.source):
            node = (int(end[rank, 0]), int(end[rank, 1]))
            if node not in seen:
                first.setdefault(node, rank)
    fig.add_scatter(
        x=[token for token, _ in first],
        y=[level for _, level in first],
        mode="markers",
        name="node",
        showlegend=False,
        marker={"size": 5 if shape.tokens <= 30 else 4, "color": INK},
        hoverinfo="text",
        hovertext=[
            f"{hook_name(shape, level)} at {quoted(tokens[token])} ({token})"
            f"<br>enters the trace with rank {rank}"
            for (token, level), rank in first.items()
        ],
    )


def _add_buttons(fig: go.Figure, visibility: dict[int, list[bool]], active: int) -> None:
    fig.update_layout(
        updatemenus=[
            {
                "type": "buttons",
                "direction": "right",
                "active": active,
                "x": 0,
                "xanchor": "left",
                "y": 1,
                "yanchor": "bottom",
                "pad": {"b": 38},
                "showactive": True,
                "buttons": [
                    {"label": f"first {count:,}", "method": "restyle", "args": [{"visible": shows}]}
                    for count, shows in visibility.items()
                ],
            }
        ]
    )


def _label_axes(fig: go.Figure, shape: GraphShape, tokens: tuple[str, ...]) -> None:
    every = -(-shape.tokens // _MOST_LABELS)
    # Counted from the last token, so that the output's own is always named.
    at = sorted(range(shape.tokens - 1, -1, -every))
    fig.update_xaxes(
        tickmode="array",
        tickvals=at,
        ticktext=[visible(tokens[t]) for t in at],
        tickangle=-90 if len(at) > 24 else -45 if len(at) > 8 else 0,
        range=[-0.6, shape.tokens - 0.4],
        title_text="token (· is a space)",
        showgrid=False,
    )
    step = shape.joins * -(-shape.layers // 16)
    levels = [0, *range(step, shape.levels, step)]
    if shape.levels - 1 - levels[-1] >= step / 2:
        levels.append(shape.levels - 1)
    else:
        levels[-1] = shape.levels - 1
    fig.update_yaxes(
        tickmode="array",
        tickvals=levels,
        ticktext=[hook_name(shape, level) for level in levels],
        range=[-0.7, shape.levels - 0.2],
        tickfont={"size": 11},
        showgrid=False,
    )
