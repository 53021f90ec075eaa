"""Between the wings: s-Traces projected to components, laid against circuits of the same task.

A head's edges in the token graph are its attention edges, from every token it reads to every token
it writes; an MLP's are its edges at every token. The projection of a trace is the share of each
component's edges that it keeps, so traces of prompts and a circuit of a task can be compared node
by node. Residual edges belong to no component, and neither the embedding nor the logits count. A
trace explains the whole output of one prompt, a circuit one contrast over many: `traces_of_task`
traces several prompts, and the contrast in the place of the output where it is asked to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from strace_lens.circuits.agreement import share_above
from strace_lens.circuits.circuit import Circuit
from strace_lens.circuits.task import Task, TaskError
from strace_lens.model.architecture import Model, UnsupportedModelError
from strace_lens.traces.ablation import replacement
from strace_lens.traces.estimators import estimate
from strace_lens.traces.graph import token_graph
from strace_lens.traces.trace import Trace
from strace_lens.utils.choices import SIZES

OUTPUT, CONTRAST = "output", "contrast"
"""What traces rank edges towards, as the column `trace` of `projection_of_task` says it."""

TRACED = 4
"""Clean prompts of a task that are traced."""

AGREE = 0.5
"""Share of the traces, by weight, that must hold a component for their aggregate to hold it."""


def traces_of_task(
    model: Model, task: Task, pairs: Sequence[int] = (0,), *, contrast: bool = False
) -> list[Trace]:
    """The s-Traces of clean prompts of a task.

    Args:
        model: the model.
        task: pairs of prompts.
        pairs: which of them to trace.
        contrast: rank edges by the Fisher scores of the logit difference between answers and wrong
            answers, an ablated edge carrying what it carries on the corrupted prompt; otherwise by
            the definition, L1 norms towards the whole output.

    Raises:
        UnsupportedModelError: the model has no token graph, as where it reads in both directions.
        IndexError: there is no such pair.
        PromptError: a prompt is a single token.
        TaskError: a contrast of a pair without wrong answers.
    """
    return [_trace_of_pair(model, task, pair, contrast) for pair in pairs]


def _trace_of_pair(model: Model, task: Task, pair: int, contrast: bool) -> Trace:
    length = int(task.lengths[pair])
    graph = token_graph(model, task.clean[pair, :length].tolist())
    if not contrast:
        return estimate(model, graph, "greedy")
    right, wrong = ([i for i in x[pair].tolist() if i >= 0] for x in (task.answers, task.incorrect))
    if not (right and wrong):
        raise TaskError(f"pair {pair} of task {task.name!r} has no answers to contrast")
    corrupted = task.corrupted[pair, :length].tolist()
    swap = replacement(model, graph.prompt, "resample", corrupted=corrupted)
    return estimate(model, graph, "fisher", target=(right, wrong), replacement=swap)


def project(
    traces: Trace | Sequence[Trace],
    circuits: Mapping[str, Circuit],
    sizes: Sequence[float] = SIZES,
    *,
    weights: Sequence[float] | None = None,
    agree: float = AGREE,
) -> pd.DataFrame:
    """By size, whether a trace, or an aggregate of traces, contains the components of circuits.

    A component is in a trace if one of its edges is. The aggregate of traces keeps the mean of the
    shares that each of them keeps, and holds the components that most of them hold.

    Args:
        traces: of one or several prompts of the circuits' task, on the same model.
        circuits: by name.
        sizes: relative sizes in (0, 1].
        weights: of the traces, as how well each fits; equal by default.
        agree: share of the weights whose traces must hold a component, in (0, 1]; 1 leaves the
            core, what every trace holds.

    Returns:
        One row a circuit and size. Columns: `circuit`, `size`, `edges` (of the trace, the mean over
        several), `components` (in the trace), `circuit_components`, `recall` (share of the
        circuit's components in the trace), `precision` (share of the trace's components in the
        circuit; NaN where the trace has none), `auroc` (of the share of its edges kept, as a sign
        that a component is in the circuit; NaN where all or none are), `share_inside` and
        `share_outside` (mean share of their edges kept, of the components in the circuit and of the
        others; NaN where there are none).

    Raises:
        ValueError: no trace, a circuit of a model of another shape, a size outside (0, 1], weights
            that are negative, all zero or of another number, or `agree` outside (0, 1].
    """
    several = [traces] if isinstance(traces, Trace) else list(traces)
    weight = _weights(len(several), weights)
    if not 0 < agree <= 1:
        raise ValueError(f"agree must lie in (0, 1]; got {agree}")
    inside_of = {
        name: torch.stack([_inside(trace, circuit) for trace in several])[0]
        for name, circuit in circuits.items()
    }
    kept, total = (torch.stack(x) for x in zip(*(_kept(t, sizes) for t in several), strict=True))
    share = torch.einsum("t,tsc->sc", weight, kept.double() / total[:, None])
    held = torch.einsum("t,tsc->sc", weight, (kept > 0).double())
    there = held > agree - 1e-9  # weights whose sum is the share may add up to less by rounding
    counts = [[trace.edge_count(float(size)) for size in sizes] for trace in several]
    edges = [round(sum(of_size) / len(several)) for of_size in zip(*counts, strict=True)]
    frames = []
    for name, inside in inside_of.items():
        both, own, others = (there & inside).sum(1).double(), share[:, inside], share[:, ~inside]
        both_sides = 0 < int(inside.sum()) < len(inside)
        columns = {
            "circuit": name,
            "size": [float(size) for size in sizes],
            "edges": edges,
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


def projection_of_task(
    model: Model, task: Task, circuits: Mapping[str, Circuit], pairs: int = TRACED
) -> pd.DataFrame | None:
    """Traces of a task's first prompts, of the output and of the contrast, against circuits.

    Args:
        model: the model.
        task: pairs of prompts.
        circuits: by name.
        pairs: how many prompts are traced.

    Returns:
        What `project` returns, with a column `trace` before: "output" or "contrast". The contrast
        is left out of a task without wrong answers. None where the model has no token graph.
    """
    frames, first = [], range(min(pairs, len(task)))
    for kind in (OUTPUT, CONTRAST):
        try:
            traces = traces_of_task(model, task, first, contrast=kind == CONTRAST)
        except UnsupportedModelError:
            return None
        except TaskError:
            continue
        table = project(traces, circuits)
        table.insert(0, "trace", kind)
        frames.append(table)
    return pd.concat(frames, ignore_index=True)


def containing_size(projection: pd.DataFrame, circuit: str) -> float:
    """Smallest size measured at which a trace contains every component of a circuit; or NaN."""
    whole = (projection["circuit"] == circuit) & (projection["recall"] == 1)
    return min(projection.loc[whole, "size"].tolist(), default=math.nan)


def _weights(traces: int, given: Sequence[float] | None) -> Float64[Tensor, " trace"]:
    """Weights of the traces, which add up to one."""
    if traces == 0:
        raise ValueError("no traces to project; give at least one")
    weight = torch.tensor([1.0] * traces if given is None else list(given), dtype=torch.float64)
    sound = bool(((weight >= 0) & weight.isfinite()).all()) and bool(weight.sum() > 0)
    if len(weight) != traces or not sound:
        raise ValueError(
            f"weights must be one number of at least 0 a trace, not all 0; got {weight.tolist()} "
            f"for {traces} traces"
        )
    return weight / weight.sum()


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
