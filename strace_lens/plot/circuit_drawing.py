"""Circuits drawn as layers of heads and MLPs, joined by their strongest edges."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
import torch
from jaxtyping import Bool, Float, Int

from strace_lens.circuits.circuit import Circuit, Scores
from strace_lens.circuits.graph import EMBED, LOGITS, ComponentGraph, node_of
from strace_lens.plot.style import INK, figure, text_of

INPUTS: tuple[str, ...] = ("q", "k", "v", "MLP", "logits")
"""What an edge can enter."""

_ASIDE = {"q": -1.0, "v": 1.0}  # left or right of its reader; all others in the middle
_CURVE = np.linspace(0.0, 1.0, 9)

# An edge's hue says which input it enters; q and k, which make the pattern, are both blue.
COLOUR: dict[str, str] = dict(
    zip(INPUTS, ("#0072B2", "#56B4E9", "#D55E00", "#009E73", "#777777"), strict=True)
)
# Strongest first: at least so many edges, and up to which share of those drawn; width, opacity.
_BANDS = ((8, 0.1, 3.0, 0.95), (24, 0.35, 1.8, 0.75), (0, 1.0, 1.0, 0.45))
_MOST_NAMES = 30


class DrawnEdges(NamedTuple):
    """Edges, strongest first: their ends as numbers, what they enter, their path and name."""

    source: Int[np.ndarray, " edge"]
    destination: Int[np.ndarray, " edge"]
    enters: list[str]
    helps: Bool[np.ndarray, " edge"]
    path: Float[np.ndarray, "edge point 2"]
    texts: list[str]


def plot_circuit(circuit: Circuit, scores: Scores | None = None, most: int = 300) -> go.Figure:
    """A circuit as layers, from the embedding (bottom) to the logits (top), heads and MLPs across.

    Args:
        circuit: boolean or weighted; edges at several token positions are drawn once.
        scores: say which edges are strongest; without them the circuit's weights do.
        most: edges drawn, the strongest first; the title says how many are left out.

    Raises:
        ValueError: `most` is less than 1, or scores of another model.
    """
    return plot_circuits({str(circuit.metadata.get("method", "")): (circuit, scores)}, most)


def plot_circuits(
    circuits: Mapping[str, tuple[Circuit, Scores | None]], most: int = 200
) -> go.Figure:
    """Circuits of one graph under a menu of their names; each drawn as by `plot_circuit`.

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
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
    )
    _add_ground(fig, graph)
    always = _traces(fig)
    owners, titles = [], {}
    for name, (circuit, scores) in circuits.items():
        graph.check_same(circuit.graph)
        before = _traces(fig)
        drawn = strongest(circuit, scores, most)
        _add_edges(fig, drawn)
        _add_nodes(fig, circuit, drawn)
        owners += [name] * (_traces(fig) - before)
        titles[name] = _title(name, circuit, len(drawn.source))
    shows = {name: [True] * always + [owner == name for owner in owners] for name in circuits}
    _choose(fig, shows, titles)
    _label_axes(fig, graph)
    return fig


def _traces(fig: go.Figure) -> int:
    return sum(1 for _ in fig.select_traces())


def _add_ground(fig: go.Figure, graph: ComponentGraph) -> None:
    """Every node as a faint dot, and one legend entry for each input that the graph has."""
    places = places_of(graph)
    spots = [places[name] for name in (*graph.source_names, LOGITS)]
    fig.add_scatter(
        x=[x for x, _ in spots],
        y=[y for _, y in spots],
        mode="markers",
        marker={"size": 4, "color": "#d0d0d0"},
        hoverinfo="skip",
        showlegend=False,
    )
    for kind in INPUTS if graph.mlp else [k for k in INPUTS if k != "MLP"]:
        fig.add_scatter(
            x=[None],
            y=[None],
            name=f"into {kind}",
            legendgroup=kind,
            mode="lines",
            line={"color": COLOUR[kind], "width": 3},
        )


def _add_edges(fig: go.Figure, drawn: DrawnEdges) -> None:
    """Lines by band, input and sign, the weakest below; unseen markers carry the hover text."""
    count = len(drawn.source)
    place, kinds = np.arange(count), np.array(drawn.enters)
    stops = [min(count, max(least, round(share * count))) for least, share, *_ in _BANDS]
    for band in reversed(range(len(_BANDS))):
        start, stop = stops[band - 1] if band else 0, stops[band]
        *_, width, opacity = _BANDS[band]
        for kind, colour in COLOUR.items():
            for helps in (False, True):
                chosen = (start <= place) & (place < stop) & (kinds == kind)
                ids = np.flatnonzero(chosen & (drawn.helps == helps))
                if not len(ids):
                    continue
                gap = np.full((len(ids), 1, 2), np.nan)
                x, y = np.concatenate([drawn.path[ids], gap], 1).reshape(-1, 2).T
                fig.add_scatter(
                    x=x.astype(np.float32),
                    y=y.astype(np.float32),
                    name=f"into {kind}",
                    legendgroup=kind,
                    showlegend=False,
                    mode="lines",
                    line={
                        "color": colour,
                        "width": width,
                        "dash": "solid" if helps else "dot",
                        "shape": "spline",
                    },
                    opacity=opacity,
                    hoverinfo="skip",
                )
    at = np.array([2, 4, 6])
    spots = drawn.path[:, at].reshape(-1, 2)
    fig.add_scatter(
        x=spots[:, 0].astype(np.float32),
        y=spots[:, 1].astype(np.float32),
        name="edge",
        showlegend=False,
        mode="markers",
        marker={"size": 9, "opacity": 0, "color": [COLOUR[k] for k in kinds.repeat(len(at))]},
        hoverinfo="text",
        hovertext=[text for text in drawn.texts for _ in at],
    )


def _add_nodes(fig: go.Figure, circuit: Circuit, drawn: DrawnEdges) -> None:
    """The nodes that a drawn edge touches, by name where they are few."""
    graph, places = circuit.graph, places_of(circuit.graph)
    kept = circuit.kept.cpu()
    kept = kept if kept.ndim == 2 else kept.any(-1)
    ends = [node_of(graph.destination_names[d]) for d in drawn.destination]
    touched = set(ends) | {graph.source_names[s] for s in drawn.source}
    names = [name for name in places if name in touched]
    leaving = dict(zip(graph.source_names, kept.sum(0).tolist(), strict=True))
    entering: dict[str, int] = {}
    for name, count in zip(graph.destination_names, kept.sum(1).tolist(), strict=True):
        entering[node_of(name)] = entering.get(node_of(name), 0) + count
    fig.add_scatter(
        x=[places[name][0] for name in names],
        y=[places[name][1] for name in names],
        name="node",
        showlegend=False,
        mode="markers+text" if len(names) <= _MOST_NAMES else "markers",
        marker={
            "size": 8 if len(names) <= _MOST_NAMES else 6,
            "color": INK,
            "symbol": ["diamond" if ".kv" in name else "circle" for name in names],
        },
        text=[f" <b>{name}</b>" for name in names],
        textposition=["bottom center" if ".kv" in name else "middle right" for name in names],
        textfont={"size": 11},
        hoverinfo="text",
        hovertext=[
            f"<b>{name}</b><br>{entering.get(name, 0):,} edges in, {leaving.get(name, 0):,} out"
            for name in names
        ],
    )


def strongest(circuit: Circuit, scores: Scores | None, most: int) -> DrawnEdges:
    """The edges to draw, of the highest score in magnitude where the circuit was ranked by it."""
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
    destination, source = cells[order].T.tolist()
    enters = [input_of(graph.destination_names[d]) for d in destination]
    found = worth[destination, source].numpy()
    what = "weight" if scores is None else "score"
    texts = []
    for rank, (d, s, value) in enumerate(zip(destination, source, found, strict=True), start=1):
        text = f"<b>{html.escape(graph.edge_name(d, s))}</b><br>{what} {value:.4g}, rank {rank:,}"
        if kept.ndim == 3:
            text += f", at {int(positions[d, s])} token positions"
        texts.append(text)
    return DrawnEdges(
        source=np.array(source, dtype=np.int64),
        destination=np.array(destination, dtype=np.int64),
        enters=enters,
        helps=found >= 0,
        path=_paths(graph, source, destination, enters),
        texts=texts,
    )


def input_of(destination: str) -> str:
    """Which of `INPUTS` a destination is: `a0.h1<q>` to `q`."""
    if destination == LOGITS:
        return LOGITS
    return destination[-2] if destination.endswith(">") else "MLP"


def places_of(graph: ComponentGraph) -> dict[str, tuple[float, float]]:
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
    graph: ComponentGraph, source: list[int], destination: list[int], enters: list[str]
) -> Float[np.ndarray, "edge point 2"]:
    """Bézier curves that leave and arrive upwards; within a column they bow out of the way."""
    places = places_of(graph)
    names = [node_of(graph.destination_names[d]) for d in destination]
    start = np.array([places[graph.source_names[s]] for s in source]).reshape(-1, 1, 2)
    stop = np.array([places[name] for name in names]).reshape(-1, 1, 2)
    aside = np.array([_ASIDE.get(kind, 0.0) for kind in enters]).reshape(-1, 1)
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


def _choose(fig: go.Figure, shows: dict[str, list[bool]], titles: dict[str, str]) -> None:
    """Show the first circuit, and a menu if there are more."""
    first = next(iter(shows))
    visibility = iter(shows[first])
    fig.for_each_trace(lambda item: item.update(visible=next(visibility)))
    fig.update_layout(title_text=titles[first])
    if len(shows) == 1:
        return
    fig.update_layout(
        updatemenus=[
            {
                "type": "dropdown",
                "x": 1,
                "xanchor": "right",
                "y": 1,
                "yanchor": "bottom",
                "pad": {"b": 4},
                "buttons": [
                    {
                        "label": text_of(name),
                        "method": "update",
                        "args": [{"visible": visible}, {"title.text": titles[name]}],
                    }
                    for name, visible in shows.items()
                ],
            }
        ]
    )


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
