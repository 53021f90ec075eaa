"""Subgraphs and circuits as GraphML or JSON graphs, for Gephi, Cytoscape, networkx and the web.

Nodes are text (`blocks.3.hook_resid_mid@5`, `a0.h1`) and attributes scalars, as these formats want
them. One graph attribute, `strace_lens`, holds what it takes to read a file back.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError

import networkx as nx

from strace_lens.component_graph.circuit import Circuit
from strace_lens.component_graph.exchange import circuit_from_networkx
from strace_lens.component_graph.graph import graph_from_facts
from strace_lens.files.result_files import ResultFileError, facts_text
from strace_lens.files.traces import prompt_from_facts
from strace_lens.token_graph.edges import GraphShape
from strace_lens.token_graph.exchange import subgraph_from_networkx
from strace_lens.token_graph.trace import Subgraph
from strace_lens.utils.disk import write_whole

_OURS = "strace_lens"
# What parsers and constructors make of a file that is torn, foreign or edited by hand.
_INCONSISTENT = (
    *(ParseError, nx.NetworkXException, LookupError, TypeError, ValueError, AttributeError),
    *(ArithmeticError, RuntimeError, MemoryError),
)


def write_graph(found: Subgraph | Circuit, path: str | Path) -> None:
    """Write a subgraph of a trace or a circuit as `.graphml` or `.json` (networkx' node-link form).

    Raises:
        ValueError: another suffix, or `made` says what no JSON can hold.
    """
    form = _form(path)
    graph = _plain_subgraph(found) if isinstance(found, Subgraph) else _plain_circuit(found)
    write_whole(path, form.write(graph))


def read_graph(path: str | Path) -> Subgraph | Circuit:
    """Read what `write_graph` wrote, edges removed by other tools or not.

    Of a subgraph, the ranks of edges that are not in the file are unknown (`UNREACHABLE`).

    Raises:
        FileNotFoundError: there is no such file.
        ResultFileError: it is truncated, foreign or inconsistent.
        ValueError: another suffix.
    """
    form = _form(path)
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        graph = form.read(Path(path).read_bytes())
        facts = json.loads(graph.graph[_OURS])
        back = _subgraph(graph, facts) if facts["kind"] == "subgraph" else _circuit(graph, facts)
    except _INCONSISTENT as error:
        raise ResultFileError(f"{path} is no whole graph of strace_lens: {error!r}") from error
    return back


@dataclasses.dataclass(frozen=True)
class _Form:
    write: Callable[[nx.MultiDiGraph], bytes]
    read: Callable[[bytes], nx.MultiDiGraph]


def _write_graphml(graph: nx.MultiDiGraph) -> bytes:
    return "\n".join(nx.generate_graphml(graph)).encode()


def _read_graphml(content: bytes) -> nx.MultiDiGraph:
    return nx.read_graphml(io.BytesIO(content), force_multigraph=True)


def _write_json(graph: nx.MultiDiGraph) -> bytes:
    return json.dumps(nx.node_link_data(graph, edges="edges")).encode()


def _read_json(content: bytes) -> nx.MultiDiGraph:
    return nx.node_link_graph(json.loads(content), edges="edges")


_FORMS = {
    ".graphml": _Form(_write_graphml, _read_graphml),
    ".json": _Form(_write_json, _read_json),
}


def _form(path: str | Path) -> _Form:
    suffix = Path(path).suffix
    if suffix not in _FORMS:
        raise ValueError(f"a graph file ends in {' or '.join(_FORMS)}; got {str(path)!r}")
    return _FORMS[suffix]


def _plain(kind: str, facts: Mapping[str, Any]) -> nx.MultiDiGraph:
    """A graph without edges that holds what it takes to read it back."""
    graph = nx.MultiDiGraph()
    graph.graph[_OURS] = facts_text(kind, {"kind": kind, **facts})
    return graph


def _plain_subgraph(found: Subgraph) -> nx.MultiDiGraph:
    facts = {
        "shape": dataclasses.asdict(found.shape),
        "prompt": dataclasses.asdict(found.prompt),
        "made": dict(found.made),
    }
    graph = _plain("subgraph", facts)
    rich = found.to_networkx()
    for (hook, position), data in rich.nodes(data=True):
        label = _printable(data["token"])
        graph.add_node(f"{hook}@{position}", label=label, hook_point=hook, position=position)
    for (hook, position), (to_hook, to_position), data in rich.edges(data=True):
        ends = f"{hook}@{position}", f"{to_hook}@{to_position}"
        graph.add_edge(*ends, **{k: v for k, v in data.items() if v is not None})
    return graph


def _subgraph(graph: nx.MultiDiGraph, facts: Mapping[str, Any]) -> Subgraph:
    rich = nx.MultiDiGraph(
        shape=GraphShape(**facts["shape"]),
        prompt=prompt_from_facts(facts["prompt"]),
        made=facts["made"],
    )
    for source, target, data in graph.edges(data=True):
        attributes = {"head": None, **{k: v for k, v in data.items() if k != "id"}}
        rich.add_edge(_hook_node(source), _hook_node(target), **attributes)
    return subgraph_from_networkx(rich)


def _hook_node(name: str) -> tuple[str, int]:
    hook, _, position = name.rpartition("@")
    return hook, int(position)


def _plain_circuit(found: Circuit) -> nx.MultiDiGraph:
    rich = found.to_networkx()
    about = {k: rich.graph[k] for k in ("positions", "dtype", "made")}
    facts = {"component_graph": dataclasses.asdict(found.graph), **about}
    graph = _plain("circuit", facts)
    for node in rich.nodes:
        graph.add_node(node, label=node)
    graph.add_edges_from((s, t, data) for s, t, data in rich.edges(data=True))
    return graph


def _circuit(graph: nx.MultiDiGraph, facts: Mapping[str, Any]) -> Circuit:
    rich = nx.MultiDiGraph(
        component_graph=graph_from_facts(facts["component_graph"]),
        **{k: facts[k] for k in ("positions", "dtype", "made")},
    )
    for source, target, data in graph.edges(data=True):
        rich.add_edge(source, target, **{k: v for k, v in data.items() if k != "id"})
    return circuit_from_networkx(rich)


def _printable(token: str) -> str:
    """A token as XML can hold it: control characters escaped."""
    return token if token.isprintable() else repr(token)[1:-1]
