"""Subgraphs and circuits as GraphML or JSON graphs, for Gephi, Cytoscape, networkx and the web.

Nodes are text (`blocks.3.hook_resid_mid@5`, `a0.h1`) and attributes are scalars, as these formats
require. One graph attribute, `strace_lens`, says which model and prompt the graph was made from.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import networkx as nx

from strace_lens.component_graph.circuit import Circuit
from strace_lens.files.result_files import facts_text
from strace_lens.token_graph.trace import Subgraph
from strace_lens.utils.disk import write_whole


def write_graph(found: Subgraph | Circuit, path: str | Path) -> None:
    """Write a subgraph of a trace, or a circuit, to a file that graph programs read.

    Args:
        found: the subgraph or circuit.
        path: ends in `.graphml`, or in `.json` for the node-link form of networkx.

    Raises:
        ValueError: another suffix, or `made` holds what JSON cannot.
    """
    suffix = Path(path).suffix
    if suffix not in _WRITERS:
        raise ValueError(f"a graph file ends in {' or '.join(_WRITERS)}; got {str(path)!r}")
    graph = _plain_subgraph(found) if isinstance(found, Subgraph) else _plain_circuit(found)
    write_whole(path, _WRITERS[suffix](graph).encode())


def _graphml(graph: nx.MultiDiGraph) -> str:
    return "\n".join(nx.generate_graphml(graph))


def _node_link_json(graph: nx.MultiDiGraph) -> str:
    return json.dumps(nx.node_link_data(graph, edges="edges"))


_WRITERS: dict[str, Callable[[nx.MultiDiGraph], str]] = {
    ".graphml": _graphml,
    ".json": _node_link_json,
}


def _empty_graph(kind: str, facts: Mapping[str, Any]) -> nx.MultiDiGraph:
    return nx.MultiDiGraph(strace_lens=facts_text(kind, {"kind": kind, **facts}))


def _plain_subgraph(found: Subgraph) -> nx.MultiDiGraph:
    facts = {
        "shape": dataclasses.asdict(found.shape),
        "prompt": dataclasses.asdict(found.prompt),
        "made": dict(found.made),
    }
    graph = _empty_graph("subgraph", facts)
    rich = found.to_networkx()
    for (hook, position), data in rich.nodes(data=True):
        label = _printable(data["token"])
        graph.add_node(f"{hook}@{position}", label=label, hook_point=hook, position=position)
    for (hook, position), (to_hook, to_position), data in rich.edges(data=True):
        ends = f"{hook}@{position}", f"{to_hook}@{to_position}"
        graph.add_edge(*ends, **{k: v for k, v in data.items() if v is not None})
    return graph


def _plain_circuit(found: Circuit) -> nx.MultiDiGraph:
    rich = found.to_networkx()
    about = {k: rich.graph[k] for k in ("positions", "dtype", "made")}
    facts = {"component_graph": dataclasses.asdict(found.graph), **about}
    graph = _empty_graph("circuit", facts)
    for node in rich.nodes:
        graph.add_node(node, label=node)
    graph.add_edges_from((s, t, data) for s, t, data in rich.edges(data=True))
    return graph


def _printable(token: str) -> str:
    """A token as XML can hold it: control characters escaped."""
    return token if token.isprintable() else repr(token)[1:-1]
