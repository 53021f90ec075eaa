"""MIB's evaluation of a ranking, slowly: sets of named edges, one circuit and one pair at a time.

Independent of the package: nodes and edges go by the names of EAP-IG's graph (`embed` for `input`),
circuits are sets, and each is run by `oracle_patching` on the plain matrices of a Hugging Face
model. After `Graph.apply_topn`, `apply_greedy` and `prune` of EAP-IG and
`evaluate_area_under_curve` of MIB's circuit track.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from strace_lens.circuits.task import Task
from tests import oracle
from tests.circuits.made import replaced, slow_metric
from tests.circuits.oracle_patching import full_run, patched_run

PERCENTAGES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)

Edge = tuple[str, str]  # source, destination


class Areas(NamedTuple):
    """What MIB's evaluation returns, of one ranking."""

    area_under: float
    area_from_1: float
    faithfulnesses: list[float]
    sizes: list[int]  # edges or nodes asked for, before pruning


def edges_of(layers: int, heads: int) -> list[Edge]:
    """All edges of a sequential model whose queries are not grouped."""
    written, found = ["embed"], []
    for layer in range(layers):
        nodes = [f"a{layer}.h{head}" for head in range(heads)]
        found += [(source, f"{node}<{x}>") for source in written for node in nodes for x in "qkv"]
        written += nodes
        found += [(source, f"m{layer}") for source in written]
        written.append(f"m{layer}")
    return found + [(source, "logits") for source in written]


def owner(destination: str) -> str:
    """The node that reads a destination."""
    return destination.partition("<")[0]


def top_edges(scores: Mapping[Edge, float], size: int, *, absolute: bool) -> set[Edge]:
    return set(sorted(scores, key=lambda e: _worth(scores[e], absolute), reverse=True)[:size])


def top_nodes(
    scores: Mapping[str, float], edges: list[Edge], size: int, *, absolute: bool
) -> set[Edge]:
    kept = sorted(scores, key=lambda n: _worth(scores[n], absolute), reverse=True)[:size]
    return {edge for edge in edges if edge[0] in kept and owner(edge[1]) in {*kept, "logits"}}


def greedy_edges(scores: Mapping[Edge, float], size: int, *, absolute: bool) -> set[Edge]:
    taken, reached = set[Edge](), {"logits"}
    while len(taken) < size:
        frontier = [edge for edge in scores if owner(edge[1]) in reached and edge not in taken]
        best = max(frontier, key=lambda e: _worth(scores[e], absolute))
        taken.add(best)
        reached.add(best[0])
    return taken


def pruned(circuit: set[Edge]) -> set[Edge]:
    """Without nodes that nothing enters or nothing leaves, and their edges, until all have both."""
    while True:
        entered = {owner(destination) for _, destination in circuit} | {"embed"}
        left = {source for source, _ in circuit} | {"logits"}
        rest = {e for e in circuit if e[0] in entered and owner(e[1]) in left}
        if rest == circuit:
            return circuit
        circuit = rest


def mean_metric(
    name: str, task: Task, edges: list[Edge], circuit: set[Edge], ablation: str
) -> float:
    """Mean logit difference of a circuit over the pairs."""
    keep = {(d, s): torch.tensor(float((s, d) in circuit)) for s, d in edges}
    found = []
    for pair in range(len(task)):
        others = task.corrupted[pair].tolist()
        values = replaced(name, task, others, ablation)
        run = patched_run(oracle.plain(name), task.clean[pair].tolist(), keep, values)
        found.append(slow_metric(run.logits, task, pair))
    return sum(found) / len(found)


def areas(
    name: str,
    task: Task,
    scores: Mapping[Any, float],
    *,
    absolute: bool,
    level: str = "edge",
    greedy: bool = False,
    prune: bool = True,
    ablation: str = "resample",
) -> Areas:
    """MIB's areas of scores by edge, or by node."""
    model = oracle.plain(name)
    edges = edges_of(len(model.layers), len(model.layers[0].attention.W_O))
    whole = [
        slow_metric(full_run(model, task.clean[pair].tolist()).logits, task, pair)
        for pair in range(len(task))
    ]
    baseline = sum(whole) / len(whole)
    corrupted = mean_metric(name, task, edges, set(), ablation)
    sizes, values, known = [], [], {}
    for percentage in PERCENTAGES:
        size = int(percentage * len(scores))
        if level == "node":
            circuit = top_nodes(scores, edges, size, absolute=absolute)
        else:
            select = greedy_edges if greedy else top_edges
            circuit = select(scores, size, absolute=absolute)
            circuit = pruned(circuit) if prune else circuit
        frozen = frozenset(circuit)
        if frozen not in known:
            known[frozen] = mean_metric(name, task, edges, circuit, ablation)
        sizes.append(size)
        values.append((known[frozen] - corrupted) / (baseline - corrupted))
    under = from_1 = 0.0
    for i in range(len(values) - 1):
        width = PERCENTAGES[i + 1] - PERCENTAGES[i]
        under += width * (values[i] + values[i + 1]) / 2
        from_1 += width * (abs(1 - values[i]) + abs(1 - values[i + 1])) / 2
    return Areas(under, from_1, values, sizes)


def _worth(score: float, absolute: bool) -> float:
    return abs(score) if absolute else score
