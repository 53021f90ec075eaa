"""Between the wings: an s-Trace projected to components, laid against a circuit of the same task.

A head's edges in the token graph are its attention edges, from every token it reads to every token
it writes; an MLP's are its edges at every token. The projection of a trace is the share of each
component's edges that it keeps, so a trace of one prompt and a circuit of a task can be compared
node by node. Residual edges belong to no component, and neither the embedding nor the logits count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from strace_lens.circuits.agreement import share_above
from strace_lens.circuits.circuit import Circuit
from strace_lens.circuits.task import Task
from strace_lens.measures.sizes import SIZES
from strace_lens.model.architecture import Model
from strace_lens.traces.extract import extract
from strace_lens.traces.graph import token_graph
from strace_lens.traces.trace import Trace


def trace_of_task(model: Model, task: Task, pair: int = 0) -> Trace:
    """The s-Trace of one clean prompt of a task.

    Raises:
        UnsupportedModelError: the model has no token graph, as where it reads in both directions.
        IndexError: there is no such pair.
        PromptError: the prompt is a single token.
    """
    ids = task.clean[pair, : int(task.lengths[pair])].tolist()
    return extract(token_graph(model, ids), "l1")


def project(
    trace: Trace, circuits: Mapping[str, Circuit], sizes: Sequence[float] = SIZES
) -> pd.DataFrame:
    """By size, whether a trace contains the components of circuits.

    A component is in the trace if one of its edges is.

    Args:
        trace: of a prompt of the circuits' task, on the same model.
        circuits: by name.
        sizes: relative sizes in (0, 1].

    Returns:
        One row a circuit and size. Columns: `circuit`, `size`, `edges` (of the trace), `components`
        (in the trace), `circuit_components`, `recall` (share of the circuit's components in the
        trace), `precision` (share of the trace's components in the circuit; NaN where the trace has
        none), `auroc` (of the share of its edges kept, as a sign that a component is in the
        circuit; NaN where all or none are), `share_inside` and `share_outside` (mean share of their
        edges kept, of the components in the circuit and of the others; NaN where there are none).

    Raises:
        ValueError: a circuit of a model of another shape, or a size outside (0, 1].
    """
    kept, total = _kept(trace, sizes)
    share, there = kept.double() / total, kept > 0
    frames = []
    for name, circuit in circuits.items():
        inside = _inside(trace, circuit)
        both, own, others = (there & inside).sum(1).double(), share[:, inside], share[:, ~inside]
        both_sides = 0 < int(inside.sum()) < len(inside)
        columns = {
            "circuit": name,
            "size": [float(size) for size in sizes],
            "edges": [trace.edge_count(float(size)) for size in sizes],
            "components": there.sum(1),
            "circuit_components": int(inside.sum()),
            "recall": both / inside.sum(),
            "precision": both / there.sum(1),  # 0 / 0 is NaN
            "auroc": [
                share_above(a, b) if both_sides else math.nan
                for a, b in zip(own.numpy(), others.numpy(), strict=True)
            ],
            "share_inside": own.mean(1),
            "share_outside": others.mean(1),
        }
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def containing_size(projection: pd.DataFrame, circuit: str) -> float:
    """Smallest size measured at which the trace contains every component of a circuit; or NaN."""
    whole = (projection["circuit"] == circuit) & (projection["recall"] == 1)
    return min(projection.loc[whole, "size"].tolist(), default=math.nan)


def _inside(trace: Trace, circuit: Circuit) -> Bool[Tensor, " component"]:
    """Which components of the trace's model are nodes of a circuit."""
    graph, shape, model = circuit.graph, trace.shape, trace.metadata.get("model")
    same = (graph.layers, graph.heads, graph.mlp) == (shape.layers, shape.heads, shape.mlp)
    if not same or model not in (None, graph.model):
        raise ValueError(
            f"the circuit is of {graph.model} ({graph.layers} layers, {graph.heads} heads), the "
            f"trace of {model} ({shape.layers} layers, {shape.heads} heads)"
        )
    nodes = set(circuit.nodes())
    return torch.tensor([name in nodes for name in graph.source_names[1:]])  # without `embed`


def _kept(
    trace: Trace, sizes: Sequence[float]
) -> tuple[Int[Tensor, "size component"], Int[Tensor, " component"]]:
    """How many edges of each component the trace of each size has, and how many there are."""
    rows = []
    for count in (*(trace.edge_count(float(size)) for size in sizes), trace.edges):
        heads = (trace.ranks.attention < count).sum((2, 3))
        mlps = (trace.ranks.mlp < count).sum(1, keepdim=True)
        rows.append(torch.cat([heads, mlps][: 1 + trace.shape.mlp], 1).flatten())
    return torch.stack(rows[:-1]), rows[-1]
