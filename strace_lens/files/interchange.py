"""Files of other programs: importance files of EAP-IG and MIB, and graphs as GraphML or JSON.

Importance files are JSON with a score for each edge. Their graph is ours with other names: `input`
for the embedding (which in EAP-IG, from its second version on, excludes learned positions), and k
and v inputs of every query head. If queries are grouped, an edge into a key-value head corresponds
to one edge into each query head of its group. Gradients of a group's heads add up to that of its
key-value head, so scores are summed when read, and spread evenly over the heads when written.
Source: `Graph.to_json` of github.com/hannamw/EAP-IG, which MIB adopted. (Its `.pt` files hold
pickles, which are never written or read here.)

In graph files, for Gephi, Cytoscape, networkx and the web, nodes are text
(`blocks.3.hook_resid_mid@5`, `a0.h1`) and attributes are scalars, as these formats require. One
graph attribute, `strace_lens`, says which model and prompt the graph was made from.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import reprlib
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import networkx as nx
import torch
from jaxtyping import Int64
from torch import Tensor

from strace_lens.circuits.circuit import Circuit
from strace_lens.circuits.graph import EMBED, LOGITS, ComponentGraph
from strace_lens.circuits.scores import Scores
from strace_lens.circuits.select_edges import node_scores
from strace_lens.files.result_files import ResultFileError, facts_text
from strace_lens.traces.subgraph import Subgraph
from strace_lens.utils.disk import JsonError, TextFileError, parse_json, read_text, write_whole

_INPUT = "input"
_OURS = "strace_lens"  # a key that other programs pass over, which holds our checksum

# Their scores are (corrupted - clean activation) times the gradient of a loss, which is the metric
# negated: about metric(full) - metric(edge ablated), so signs are as ours.


def save_importances(
    found: Scores | Circuit,
    path: str | Path,
    *,
    d_model: int | None = None,
    level: str = "edge",
) -> None:
    """Write scores, or a circuit's weights and kept edges, to a file that EAP-IG and MIB read.

    Args:
        found: scores (no edge is marked as kept), or a circuit.
        path: path of the JSON file.
        d_model: width of the model. Newer versions of EAP-IG and MIB require it in the file; older
            ones do not.
        level: "edge", or "node" for scores of a method that scores nodes: each node then has its
            score, and edges have zero.

    Raises:
        ValueError: the edges differ by token position, which these files cannot represent, or
            `level` is "node" and the out-edges of a node differ in score.
    """
    graph = found.graph
    values = found.values if isinstance(found, Scores) else found.keep
    by_node = dict[str, float]()
    if level == "node" and isinstance(found, Scores):
        scored = node_scores(found).double().tolist()
        by_node = dict(zip(graph.source_names, scored, strict=True))
        values = torch.zeros_like(values)
    if values.ndim == 3:
        raise ValueError(
            "importance files have no token positions; sum the scores, or keep an edge at all "
            "positions, first"
        )
    kept = found.kept if isinstance(found, Circuit) else torch.zeros_like(values).bool()
    nodes = {*found.nodes(), LOGITS} if isinstance(found, Circuit) else set[str]()
    named = _edges(graph)
    copies = Counter(named.values())
    score, inside = values.detach().double().tolist(), kept.tolist()
    edges = {
        name: {"score": score[d][s] / copies[d, s], "in_graph": inside[d][s]}
        for name, (d, s) in named.items()
    }
    config = {
        "n_layers": graph.layers,
        "n_heads": graph.heads,
        "parallel_attn_mlp": graph.parallel,
        **({} if d_model is None else {"d_model": d_model}),
    }
    names = {**{n: _their_source(n) for n in graph.source_names}, LOGITS: LOGITS}
    content = {
        "cfg": config,
        "nodes": {
            theirs: {
                "in_graph": ours in nodes,
                **({"score": by_node[ours]} if ours in by_node else {}),
            }
            for ours, theirs in names.items()
        },
        "edges": edges,
    }
    write_whole(path, json.dumps({**content, _OURS: {"sha256": _sha256(content)}}).encode())


def load_importances(path: str | Path, graph: ComponentGraph, *, method: str = "") -> Scores:
    """Read the scores of an importance file, in the older or the newer format of EAP-IG.

    If it scores every node and no edge, all out-edges of a node get the score of the node.

    Args:
        path: path of the JSON file.
        graph: graph of the model that the file belongs to (`component_graph(model)`).
        method: name for tables; by default the one in the file.

    Raises:
        FileNotFoundError: there is no such file.
        ResultFileError: the file is not an importance file, is of another graph, of single neurons,
            or of some nodes and no edges, or lacks an edge or its score.
    """
    named = _edges(graph)
    by_node = _scores_of_nodes(path, graph)
    if by_node is None:
        scores = _read(path, graph, named, "score", float)
        values = torch.zeros(graph.destinations, graph.sources, dtype=torch.float64)
        for name, cell in named.items():
            values[cell] += scores[name]
    else:
        _read(path, graph, named, "in_graph", bool)
        values = graph.exists * by_node
    if not bool(torch.isfinite(values).all()):
        raise ResultFileError(f"{path}: the scores of a group of heads add up to infinity")
    return Scores(graph, values, method or Path(path).stem, metadata={"file": str(path)})


def _scores_of_nodes(path: str | Path, graph: ComponentGraph) -> Tensor | None:
    """Scores of all nodes of a file that scores these and no edge, else None."""
    _, nodes, edges = _contents(path)
    if any(edge.get("score") for edge in edges.values()):
        return None
    found = [nodes.get(_their_source(name), {}).get("score") for name in graph.source_names]
    if not any(found) or not all(type(x) is float and math.isfinite(x) for x in found):
        return None
    return torch.tensor(found, dtype=torch.float64)


def load_importance_circuit(path: str | Path, graph: ComponentGraph) -> Circuit:
    """Read the circuit that an importance file marks; a group's edge is kept if any of it is.

    Raises:
        FileNotFoundError: there is no such file.
        ResultFileError: the file is not an importance file, is of another graph or of single
            neurons, or lacks an edge.
    """
    named = _edges(graph)
    inside = _read(path, graph, named, "in_graph", bool)
    keep = torch.zeros(graph.destinations, graph.sources, dtype=torch.bool)
    for name, cell in named.items():
        keep[cell] |= inside[name]
    return Circuit(graph, keep, {"file": str(path)})


def _read(
    path: str | Path, graph: ComponentGraph, named: Collection[str], key: str, kind: type
) -> dict[str, Any]:
    """What a file says of each of the edges `named` under a key, if it is of this graph."""
    config, nodes, edges = _contents(path)
    said = tuple(config[name] for name in _CONFIG)
    wanted = (graph.layers, graph.heads, graph.parallel)
    if said != wanted:
        raise ResultFileError(
            f"{path} is of a model with layers, heads, parallel = {said}; "
            f"{graph.model} has {wanted}"
        )
    for name in named:
        if name not in edges:
            raise ResultFileError(f"{path} lacks the edge {name}")
    for name in edges:
        if name not in named:
            raise ResultFileError(f"{path} has an edge {name}, which is not in {graph.model}")
    for name, node in nodes.items():
        neurons = node.get("neurons")
        if not isinstance(neurons, list | None) or not all(n is True for n in neurons or ()):
            raise ResultFileError(f"{path} keeps single neurons of {name}; only nodes can be read")
    scored = [name for name, node in nodes.items() if node.get("score")]
    if key == "score" and scored and not any(edge.get(key) for edge in edges.values()):
        raise ResultFileError(
            f"{path} scores nodes ({scored[0]}, ...) and no edge; read which edges it marks with "
            "load_importance_circuit"
        )
    what = {"score": "the score"}.get(key, key)
    try:
        return {n: _of_kind(edge, key, kind, f"{what} of {n}") for n, edge in edges.items()}
    except ValueError as error:
        raise ResultFileError(f"{path}: {error}") from error


_CONFIG = {"n_layers": int, "n_heads": int, "parallel_attn_mlp": bool}


def _contents(path: str | Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Configuration, nodes and edges of a file, if it is an importance file and a whole one."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        content = parse_json(read_text(path), path, nan=True)
    except (TextFileError, JsonError) as error:
        raise ResultFileError(str(error)) from error
    try:
        _of_kind({"it": content}, "it", dict)
        config, nodes, edges = (_of_kind(content, x, dict) for x in ("cfg", "nodes", "edges"))
        for name, kind in _CONFIG.items():
            _of_kind(config, name, kind)
        for name in edges:
            _of_kind(edges, name, dict, f"the edge {name}")
        _check_sum(content)
    except ValueError as error:
        raise ResultFileError(f"{path} is no whole importance file: {error}") from error
    return config, {n: node for n, node in nodes.items() if isinstance(node, dict)}, edges


_KINDS = {dict: "an object", int: "a whole number", bool: "true or false", float: "a number"}


def _of_kind(parts: Mapping[str, Any], name: str, kind: type, what: str = "") -> Any:
    """A part of a JSON object, which must be of one kind; a number must be finite."""
    value: Any = parts.get(name)
    kinds = (int, float) if kind is float else (kind,)
    if type(value) not in kinds or (kind is float and not math.isfinite(value)):
        raise ValueError(f"{what or name} is {reprlib.repr(value)}, not {_KINDS[kind]}")
    return value


def _check_sum(content: Mapping[str, Any]) -> None:
    """Refuse a file of ours that was changed after it was written; others have no checksum."""
    rest = {name: part for name, part in content.items() if name != _OURS}
    if _OURS in content and content[_OURS] != {"sha256": _sha256(rest)}:
        raise ValueError(
            f"it is damaged, or was edited; to read it as it is now, remove its key {_OURS!r}"
        )


def _sha256(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _edges(graph: ComponentGraph) -> dict[str, tuple[int, int]]:
    """Their name of each edge, and our cell of it; several of theirs may be one of ours."""
    named = {}
    destinations = [_their_destinations(graph, d) for d in range(graph.destinations)]
    sources = [_their_source(name) for name in graph.source_names]
    for destination, source in graph.exists.nonzero().tolist():
        for name in destinations[destination]:
            named[f"{sources[source]}->{name}"] = (destination, source)
    return named


def copies_of(graph: ComponentGraph) -> Int64[Tensor, "destination source"]:
    """How many edges of theirs each of ours stands for: as many as a group has query heads."""
    group = torch.tensor([len(_their_destinations(graph, d)) for d in range(graph.destinations)])
    return group[:, None] * graph.exists


def _their_source(name: str) -> str:
    return _INPUT if name == EMBED else name


def _their_destinations(graph: ComponentGraph, destination: int) -> list[str]:
    name = graph.destination_names[destination]
    if ".kv" not in name:
        return [name]
    layer, _, rest = name.partition(".kv")
    number, _, kind = rest.partition("<")
    group = graph.heads // graph.kv_heads
    first = int(number) * group
    return [f"{layer}.h{head}<{kind}" for head in range(first, first + group)]


# ------------------------------------------------------------------ graphs


def write_graph(found: Subgraph | Circuit, path: str | Path) -> None:
    """Write a subgraph of a trace, or a circuit, to a file for graph programs.

    Args:
        found: the subgraph or circuit.
        path: path ending in `.graphml`, or in `.json` for the node-link format of networkx.

    Raises:
        ValueError: another suffix, or `metadata` with values that JSON cannot represent.
    """
    graph = _plain_subgraph(found) if isinstance(found, Subgraph) else _plain_circuit(found)
    match Path(path).suffix:
        case ".graphml":
            text = "\n".join(nx.generate_graphml(graph))
        case ".json":
            text = json.dumps(nx.node_link_data(graph, edges="edges"))
        case _:
            raise ValueError(f"a graph file ends in .graphml or .json; got {str(path)!r}")
    write_whole(path, text.encode())


def _empty_graph(kind: str, facts: Mapping[str, Any]) -> nx.MultiDiGraph:
    return nx.MultiDiGraph(strace_lens=facts_text(kind, {"kind": kind, **facts}))


def _plain_subgraph(found: Subgraph) -> nx.MultiDiGraph:
    facts = {
        "shape": dataclasses.asdict(found.shape),
        "prompt": dataclasses.asdict(found.prompt),
        "metadata": dict(found.metadata),
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
    about = {k: rich.graph[k] for k in ("positions", "dtype", "metadata")}
    facts = {"component_graph": dataclasses.asdict(found.graph), **about}
    graph = _empty_graph("circuit", facts)
    for node in rich.nodes:
        graph.add_node(node, label=node)
    graph.add_edges_from((s, t, data) for s, t, data in rich.edges(data=True))
    return graph


def _printable(token: str) -> str:
    """A token as XML can hold it: control characters escaped."""
    return token if token.isprintable() else repr(token)[1:-1]
