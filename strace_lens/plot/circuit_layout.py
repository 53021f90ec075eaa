"""Where the nodes and edges of a circuit lie when it is drawn, and what each is called."""

from __future__ import annotations

import html
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from strace_lens.component_graph.circuit import Circuit
from strace_lens.component_graph.graph import EMBED, LOGITS, ComponentGraph, node_of
from strace_lens.component_graph.scores import Scores

INPUTS: tuple[str, ...] = ("q", "k", "v", "MLP", "logits")
"""What an edge can enter."""

_ASIDE = {"q": -1.0, "v": 1.0}  # left or right of its reader; all others in the middle
_CURVE = np.linspace(0.0, 1.0, 9)


class DrawnEdges(NamedTuple):
    """Edges, strongest first: their ends as numbers, what they enter, their path and name."""

    source: Int[np.ndarray, " edge"]
    destination: Int[np.ndarray, " edge"]
    enters: list[str]
    helps: Bool[np.ndarray, " edge"]
    path: Float[np.ndarray, "edge point 2"]
    texts: list[str]


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
    order_by = worth.abs() if circuit.made.get("absolute") else worth
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
