"""What an intervention acts on: edges, nodes and head inputs by name, at token positions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import pandas as pd
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from strace_lens.circuits.graph import EMBED, LOGITS, ComponentGraph, node_of
from strace_lens.circuits.run_circuits import check_positions
from strace_lens.circuits.task import Task

Positions = Literal["each"] | int | slice | Sequence[Any] | None
"""Where to intervene: at all positions together (None), at each alone ("each"), or at those of a
sequence, each item one intervention: a position, a slice, or a sequence of positions together."""


class Target(NamedTuple):
    """Edges that are ablated or patched together.

    Attributes:
        name: of the edges or nodes, joined by " + ".
        cells: the edges' (destination, source), and the token position where it is given.
        layer: of the nodes or head inputs, where all are of one layer.
        head: of the head or head input, where there is but one.
        position: where it acts, for tables; None for everywhere.
        at: the token positions where it acts; None for everywhere.
    """

    name: str
    cells: Int64[Tensor, "edge axis"]
    layer: int | None = None
    head: int | None = None
    position: int | str | None = None
    at: Int64[Tensor, " pos"] | None = None


def node_target(graph: ComponentGraph, names: str | Sequence[str]) -> Target:
    """All edges out of the nodes, and all edges into the head inputs, that are named.

    Raises:
        ValueError: no name, or one of no node and no head input.
    """
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        raise ValueError("an ablation without a node changes nothing; name at least one")
    chosen = torch.zeros_like(graph.exists)
    layers, heads = set(), []
    for name in names:
        if is_input(name):
            number = graph.destination_index(name)
            chosen[number] = graph.exists[number]
            name, layer = graph.destination_names[number], graph.destination_layers[number]
        else:
            number = graph.source_index(name)
            chosen[:, number] = graph.exists[:, number]
            layer = graph.source_layers[number]
        layers.add(int(layer))
        node = node_of(name)
        heads.append(int(node.partition(".")[2].lstrip("khv")) if "." in node else None)
    shown = [_shown(graph, name) for name in names]
    return Target(
        " + ".join(shown),
        chosen.nonzero(),
        layers.pop() if len(layers) == 1 else None,
        heads[0] if len(heads) == 1 else None,
    )


def edge_target(graph: ComponentGraph, names: str | Sequence[str]) -> Target:
    """The edges that are named.

    Raises:
        ValueError: no name, or one of no edge.
    """
    cells = [graph.parse_edge(n) for n in ([names] if isinstance(names, str) else names)]
    if not cells:
        raise ValueError("an ablation without an edge changes nothing; name at least one")
    return Target(" + ".join(graph.edge_name(*cell) for cell in cells), torch.tensor(cells))


def mask_target(
    graph: ComponentGraph, mask: Bool[Tensor, "destination source *pos"], number: int
) -> Target:
    """The edges that a mask marks.

    Raises:
        ValueError: a mask of another shape, or one that marks no edge.
    """
    wanted = (graph.destinations, graph.sources)
    if mask.dtype != torch.bool or tuple(mask.shape[:2]) != wanted or mask.ndim > 3:
        raise ValueError(
            f"a mask of {graph.model} is boolean, [destination, source] of {wanted}, with token "
            f"positions behind if they differ; mask {number} is {mask.dtype} of "
            f"{tuple(mask.shape)}"
        )
    cells = (mask & graph.exists_like(mask)).cpu().nonzero()
    if not len(cells):
        raise ValueError(f"mask {number} marks no edge of {graph.model}")
    return Target(f"mask {number}", cells)


def is_input(name: str) -> bool:
    """Whether a name is that of a head's input: `a2.h0<q>` or `a2.h0.q`."""
    return name.endswith(">") or name.endswith((".q", ".k", ".v"))


def input_cells(graph: ComponentGraph, name: str) -> list[int]:
    """Destinations that a receiver's name means: one input, all of a node's, or the logits."""
    if name == LOGITS or is_input(name):
        return [graph.destination_index(name)]
    if name == EMBED:
        raise ValueError(f"{EMBED!r} reads nothing, so nothing can be patched into it")
    return graph.feeds[:, graph.source_index(name)].nonzero()[:, 0].tolist()


def _shown(graph: ComponentGraph, name: str) -> str:
    """The one way in which a name is printed."""
    return graph.destination_names[graph.destination_index(name)] if is_input(name) else name


# ------------------------------------------------------------------ kinds of activations


def _nodes(graph: ComponentGraph, wanted: Callable[[str], bool]) -> list[Target]:
    names = (*graph.source_names, *(n for n in graph.destination_names if n.endswith(">")))
    return [node_target(graph, name) for name in names if wanted(name)]


def _attention(graph: ComponentGraph) -> list[Target]:
    found = []
    for layer in range(graph.layers):
        heads = node_target(graph, graph.source_names[graph.heads_of(layer)])
        found.append(heads._replace(name=f"blocks.{layer}.hook_attn_out"))
    return found


def _streams(graph: ComponentGraph) -> list[Target]:
    """What all that has been written before a block carries to all that reads in it or later."""
    found = []
    for layer in range(graph.layers):
        before, after = graph.source_layers < layer, graph.destination_layers >= layer
        cells = (graph.exists & before & after[:, None]).nonzero()
        found.append(Target(f"blocks.{layer}.hook_resid_pre", cells, layer))
    return found


def _inputs(kind: str) -> Callable[[ComponentGraph], list[Target]]:
    return lambda graph: _nodes(graph, lambda name: name.endswith(f"<{kind}>"))


KINDS: dict[str, Callable[[ComponentGraph], list[Target]]] = {
    "head": lambda graph: _nodes(graph, lambda name: ".h" in name and not is_input(name)),
    "q": _inputs("q"),
    "k": _inputs("k"),
    "v": _inputs("v"),
    "attn_out": _attention,
    "mlp_out": lambda graph: _nodes(graph, lambda name: name.startswith("m")),
    "resid_pre": _streams,
}
"""Kinds of activations, named as TransformerLens names their hook points: the output of each head,
its query, key or value, the outputs of attention and of the MLP, and the stream before each
block."""


def node_targets(graph: ComponentGraph, nodes: str | Sequence[str | Sequence[str]]) -> list[Target]:
    """One target for each item, which is a name or names taken together; or one of each of a kind.

    Raises:
        ValueError: an unknown name, or a kind that this model has none of.
    """
    if isinstance(nodes, str) and nodes in KINDS:
        found = KINDS[nodes](graph)
        if not found:
            raise ValueError(f"{graph.model} has no {nodes}")
        return found
    return [node_target(graph, one) for one in ([nodes] if isinstance(nodes, str) else nodes)]


# ------------------------------------------------------------------ positions


def at_positions(targets: list[Target], task: Task, positions: Positions) -> list[Target]:
    """Every target at every position asked for, target by target.

    Raises:
        ValueError: a position outside the prompts, none at all, or prompts of unequal lengths.
    """
    if positions is None:
        return targets
    check_positions(task)
    width = task.positions
    places = _places(positions, width)
    if not places:
        raise ValueError("positions names no token position; give at least one, or None for all")
    return [t._replace(position=label, at=at) for t in targets for label, at in places]


def _places(positions: Any, width: int) -> list[tuple[int | str, Int64[Tensor, " pos"]]]:
    if isinstance(positions, str):
        if positions != "each":
            raise ValueError(f"unknown positions {positions!r}; give 'each' or token positions")
        positions = range(width)
    single = isinstance(positions, (int, slice))
    return [_place(item, width) for item in ([positions] if single else positions)]


def _place(item: Any, width: int) -> tuple[int | str, Int64[Tensor, " pos"]]:
    """What tables call a place, and its token positions; those below 0 count from the end."""
    numbers = range(width)[item] if isinstance(item, slice) else item
    numbers = list(numbers) if isinstance(numbers, Iterable) else [numbers]
    wrong = [n for n in numbers if not isinstance(n, int) or not -width <= n < width]
    if wrong or not numbers:
        what = f"position {wrong[0]!r}" if wrong else f"the empty place {item!r}"
        raise ValueError(f"{what} lies outside the prompts of {width} tokens")
    found = sorted({n % width for n in numbers})
    if len(found) == 1:
        return found[0], torch.tensor(found)
    in_a_row = found == list(range(found[0], found[-1] + 1))
    label = f"{found[0]}:{found[-1] + 1}" if in_a_row else ",".join(map(str, found))
    return label, torch.tensor(found)


def masks_of(
    graph: ComponentGraph, targets: Sequence[Target], width: int, at_once: int
) -> Iterator[Bool[Tensor, "target destination source *pos"]]:
    """Masks that mark each target's edges, so many cells at a time, by position if any target is.

    Args:
        graph: of the targets.
        targets: each with the same kind of cells.
        width: token positions of the prompts.
        at_once: cells that are held together, if a target has no more.
    """
    by_position = any(t.at is not None or t.cells.shape[1] == 3 for t in targets)
    shape = (*graph.exists.shape, width) if by_position else tuple(graph.exists.shape)
    step = max(1, at_once // torch.Size(shape).numel())
    for start in range(0, len(targets), step):
        part = targets[start : start + step]
        masks = torch.zeros(len(part), *shape, dtype=torch.bool)
        for mask, target in zip(masks, part, strict=True):
            cells = tuple(target.cells.T)
            if target.at is None:
                mask[cells] = True
            else:
                mask[(*(c[:, None] for c in cells), target.at)] = True
        yield masks


def target_columns(targets: Sequence[Target]) -> dict[str, Any]:
    """Columns `name`, `layer`, `head` and, where targets have one, `position`."""
    columns: dict[str, Any] = {"name": [t.name for t in targets]}
    for column in ("layer", "head"):
        columns[column] = pd.array([getattr(t, column) for t in targets], dtype="Int64")
    places = [t.position for t in targets]
    if any(place is not None for place in places):
        texts = any(isinstance(place, str) for place in places)
        columns["position"] = [str(p) for p in places] if texts else pd.array(places, dtype="Int64")
    return columns
