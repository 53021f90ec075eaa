"""Circuits drawn as layers of heads and MLPs, joined by their strongest edges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Float

from strace_lens.circuits.circuit import Circuit
from strace_lens.circuits.graph import EMBED, LOGITS, ComponentGraph, node_of
from strace_lens.circuits.scores import Scores
from strace_lens.plot.charts import ABOVE, add_menu
from strace_lens.plot.style import INK, figure, text_of

# An edge's hue says which input it enters; q and k, which make the pattern, are both blue.
COLOUR: dict[str, str] = {
    "q": "#0072B2",
    "k": "#56B4E9",
    "v": "#D55E00",
    "MLP": "#009E73",
    "logits": "#777777",
}
"""The inputs that an edge can enter, and their colours."""

_ASIDE = {"q": -1.0, "v": 1.0}  # left or right of its reader; all others in the middle
_CURVE = np.linspace(0.0, 1.0, 9)
# Strongest first: at least so many edges, and up to which share of those drawn; width, opacity.
_BANDS = ((8, 0.1, 3.0, 0.95), (24, 0.35, 1.8, 0.75), (0, 1.0, 1.0, 0.45))
_MOST_NAMES = 30


Places = dict[str, tuple[float, float]]
"""Where each node lies, by its name."""


def plot_circuits(
    circuits: Mapping[str, tuple[Circuit, Scores | None]], most: int = 200
) -> go.Figure:
    """Each circuit, the one by which a method reaches 85 % faithfulness, up to 200 edges.

    The menu changes the method. Layers upwards, heads and MLPs across. Colour is the input that an
    edge enters; the stronger an edge, the thicker; dotted edges have a negative score. Hover over
    an edge for its name, score and rank, over a node for its edges in the whole circuit.

    Args:
        circuits: of one graph, by name, boolean or weighted; edges at several token positions are
            drawn once. Scores say which edges are strongest; without them the weights do.
        most: edges drawn of each, the strongest first; the title says how many are left out.

    Raises:
        ValueError: no circuit, `most` is less than 1, or circuits or scores of different models.
    """
    if not circuits:
        raise ValueError("there is no circuit to draw")
    if most < 1:
        raise ValueError(f"most must be at least 1; got {most}")
    graph = next(iter(circuits.values()))[0].graph
    fig = figure(
        " ",
        height=max(440, min(1150, 30 * graph.layers + 260)),
        margin={"t": 108},
        hovermode="closest",
        legend={**ABOVE, "x": 0, "xanchor": "left", "y": 1},
    )
    places = places_of(graph)
    _add_ground(fig, graph, places)
    owners: list[str | None] = [None] * _count(fig)
    titles = {}
    for name, (circuit, scores) in circuits.items():
        graph.check_same(circuit.graph)
        edges = strongest(circuit, scores, most)
        _add_edges(fig, edges, _paths(graph, edges, places))
        _add_nodes(fig, circuit, edges, places)
        owners += [name] * (_count(fig) - len(owners))
        titles[name] = _title(name, circuit, len(edges))
    shows = {name: [owner in (None, name) for owner in owners] for name in circuits}
    _label_axes(fig, graph)
    return add_menu(fig.update_layout(title_text=next(iter(titles.values()))), shows, titles)


def _count(fig: go.Figure) -> int:
    return sum(1 for _ in fig.select_traces())


def _add_ground(fig: go.Figure, graph: ComponentGraph, places: Places) -> None:
    """Every node as a faint dot, and one legend entry for each input that the graph has."""
    spots = [places[name] for name in (*graph.source_names, LOGITS)]
    fig.add_scatter(
        x=[x for x, _ in spots],
        y=[y for _, y in spots],
        mode="markers",
        marker={"size": 4, "color": "#d0d0d0"},
        hoverinfo="skip",
        showlegend=False,
    )
    for kind, colour in COLOUR.items():
        if kind != "MLP" or graph.mlp:
            line = {"color": colour, "width": 3}
            name = f"into {kind}"
            fig.add_scatter(
                x=[None], y=[None], name=name, legendgroup=kind, mode="lines", line=line
            )


def _add_edges(
    fig: go.Figure, edges: pd.DataFrame, paths: Float[np.ndarray, "edge point 2"]
) -> None:
    """Lines by band, input and sign, the weakest below; unseen markers carry the hover text."""
    count = len(edges)
    stops = [min(count, max(least, round(share * count))) for least, share, *_ in _BANDS]
    weakness = np.searchsorted(stops, np.arange(count), side="right")
    looks = list(zip(weakness.tolist(), edges["enters"], edges["helps"], strict=True))
    for look in sorted(set(looks), reverse=True):
        band, kind, helps = look
        ids = [place for place, other in enumerate(looks) if other == look]
        *_, width, opacity = _BANDS[band]
        gap = np.full((len(ids), 1, 2), np.nan)
        x, y = np.concatenate([paths[ids], gap], 1).reshape(-1, 2).T
        dash = "solid" if helps else "dot"
        fig.add_scatter(
            x=x.astype(np.float32),
            y=y.astype(np.float32),
            name=f"into {kind}",
            legendgroup=kind,
            showlegend=False,
            mode="lines",
            line={"color": COLOUR[kind], "width": width, "dash": dash, "shape": "spline"},
            opacity=opacity,
            hoverinfo="skip",
        )
    at = [2, 4, 6]
    x, y = paths[:, at].reshape(-1, 2).T
    colours = [COLOUR[kind] for kind in edges["enters"].repeat(len(at))]
    fig.add_scatter(
        x=x.astype(np.float32),
        y=y.astype(np.float32),
        name="edge",
        showlegend=False,
        mode="markers",
        marker={"size": 9, "opacity": 0, "color": colours},
        hoverinfo="text",
        hovertext=edges["text"].repeat(len(at)).tolist(),
    )


def _add_nodes(fig: go.Figure, circuit: Circuit, edges: pd.DataFrame, places: Places) -> None:
    """The nodes that a drawn edge touches, by name where they are few."""
    graph, kept = circuit.graph, circuit.kept.cpu()
    kept = kept if kept.ndim == 2 else kept.any(-1)
    touched = {*edges["start"], *edges["stop"]}
    names = [name for name in places if name in touched]
    leaving = dict(zip(graph.source_names, kept.sum(0).tolist(), strict=True))
    entering: Counter[str] = Counter()
    for name, count in zip(graph.destination_names, kept.sum(1).tolist(), strict=True):
        entering[node_of(name)] += count
    few = len(names) <= _MOST_NAMES
    symbols = ["diamond" if ".kv" in name else "circle" for name in names]
    fig.add_scatter(
        x=[places[name][0] for name in names],
        y=[places[name][1] for name in names],
        name="node",
        showlegend=False,
        mode="markers+text" if few else "markers",
        marker={"size": 8 if few else 6, "color": INK, "symbol": symbols},
        text=[f" <b>{name}</b>" for name in names],
        textposition=["bottom center" if ".kv" in name else "middle right" for name in names],
        textfont={"size": 11},
        hoverinfo="text",
        hovertext=[
            f"<b>{name}</b><br>{entering[name]:,} edges in, {leaving.get(name, 0):,} out"
            for name in names
        ],
    )


def strongest(circuit: Circuit, scores: Scores | None, most: int) -> pd.DataFrame:
    """The edges to draw, of the highest score in magnitude where the circuit was ranked by it.

    Returns:
        `start` and `stop` (nodes by name), `enters` (one of the inputs), `helps` (no negative
        score) and `text`, a row an edge, the strongest first.
    """
    graph, kept = circuit.graph, circuit.kept
    values = circuit.keep if scores is None else scores.values
    if scores is not None:
        graph.check_same(scores.graph)
        if values.shape != kept.shape:
            raise ValueError(
                f"scores of shape {tuple(values.shape)} do not fit a circuit of {tuple(kept.shape)}"
            )
    worth = torch.where(kept, values.detach().float(), 0.0).cpu()
    positions = kept.cpu()
    if kept.ndim == 3:
        worth, positions = worth.sum(-1), positions.sum(-1)
    cells = positions.nonzero()
    order_by = worth.abs() if circuit.metadata.get("absolute") else worth
    order = order_by[cells[:, 0], cells[:, 1]].argsort(descending=True, stable=True)[:most]
    what = "weight" if scores is None else "score"
    rows = []
    for rank, (d, s) in enumerate(cells[order].tolist(), start=1):
        value, reader = float(worth[d, s]), graph.destination_names[d]
        at = f", at {int(positions[d, s])} token positions" if kept.ndim == 3 else ""
        text = f"<b>{text_of(graph.edge_name(d, s))}</b><br>{what} {value:.4g}, rank {rank:,}{at}"
        start, stop = graph.source_names[s], node_of(reader)
        rows.append((start, stop, input_of(reader), value >= 0, text))
    return pd.DataFrame(rows, columns=["start", "stop", "enters", "helps", "text"])


def input_of(destination: str) -> str:
    """Which of the inputs a destination is: `a0.h1<q>` to `q`."""
    if destination == LOGITS:
        return LOGITS
    return destination[-2] if destination.endswith(">") else "MLP"


def places_of(graph: ComponentGraph) -> Places:
    """Where each node lies; a key-value head in the middle of the heads that share it."""
    places = {EMBED: ((graph.heads - 1) / 2, -0.9), LOGITS: ((graph.heads - 1) / 2, graph.layers)}
    group = graph.heads // graph.kv_heads
    aside = 0.0 if graph.parallel else 0.5
    for layer in range(graph.layers):
        places |= {f"a{layer}.h{h}": (h, layer) for h in range(graph.heads)}
        if group > 1:
            for kv in range(graph.kv_heads):
                places[f"a{layer}.kv{kv}"] = (kv * group + (group - 1) / 2, layer - 0.12)
        places[f"m{layer}"] = (graph.heads + 0.3, layer + aside)
    return places


def _paths(
    graph: ComponentGraph, edges: pd.DataFrame, places: Places
) -> Float[np.ndarray, "edge point 2"]:
    """Bézier curves that leave and arrive upwards; within a column they bow out of the way."""
    start, stop = (
        np.array([places[name] for name in edges[end]]).reshape(-1, 1, 2)
        for end in ("start", "stop")
    )
    aside = np.array([_ASIDE.get(kind, 0.0) for kind in edges["enters"]]).reshape(-1, 1)
    across, up = (stop - start)[..., 0], (stop - start)[..., 1]
    side = np.where((start[..., 0] > graph.heads) | (aside > 0), 1.0, -1.0)
    bow = np.where(np.abs(across) < 0.5, side * (0.2 + 0.6 * up / (graph.layers + 1)), 0.0)
    lift = np.stack([bow, 0.45 * up], -1)
    sink = np.stack([bow, -0.45 * up], -1)
    close = 0.006 * (graph.heads + 2)  # some pixels, however many heads there are
    stop = stop + np.stack([close * aside, np.zeros_like(aside)], -1)
    t = _CURVE[None, :, None]
    return (
        (1 - t) ** 3 * start
        + 3 * (1 - t) ** 2 * t * (start + lift)
        + 3 * (1 - t) * t**2 * (stop + sink)
        + t**3 * stop
    )


def _title(name: str, circuit: Circuit, drawn: int) -> str:
    count, total = len(circuit), int(circuit.exists.sum())
    what = text_of(name) or "Circuit"
    left = "" if drawn >= count else f", the {drawn:,} strongest drawn"
    # On a second line, or it would run into the tools on a narrow page.
    return f"{what}<br><span style='font-size:13px'>{count:,} of {total:,} edges{left}</span>"


def _label_axes(fig: go.Figure, graph: ComponentGraph) -> None:
    every = -(-graph.heads // 16)
    heads = list(range(0, graph.heads, every))
    mlp = [graph.heads + 0.3] * graph.mlp
    fig.update_xaxes(
        tickmode="array",
        tickvals=[*heads, *mlp],
        ticktext=[*map(str, heads), *["MLP"] * graph.mlp],
        range=[-0.9, graph.heads + (1.3 if graph.mlp else 0.3)],
        title_text="head",
        showgrid=False,
    )
    layers = list(range(0, graph.layers, -(-graph.layers // 20)))
    fig.update_yaxes(
        tickmode="array",
        tickvals=[-0.9, *layers, graph.layers],
        ticktext=[EMBED, *[f"layer {layer}" for layer in layers], LOGITS],
        range=[-1.25, graph.layers + 0.4],
        showgrid=False,
    )
