"""The slow truth of attribution: the derivative of the metric in each edge's share, by autograd.

On the plain matrices of `oracle_patching`, in float64. At share 1 an edge carries its source's own
output, at 0 a replacement, so the derivative is (own output - replacement) . gradient at the
destination. A replacement that is the own output less some vector makes that any product one likes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from strace_lens.circuits.task import Task
from tests import oracle
from tests.circuits.made import plain_graph, replaced
from tests.circuits.oracle_patching import Outputs, by_name, full_run, patched_run
from tests.oracle_model import Model, Rows

Measure = Callable[[Float[Tensor, "pos vocab"]], Tensor]


def prompts_of(task: Task, pair: int) -> tuple[list[int], list[int]]:
    """The clean and the corrupted prompt of a pair, without padding."""
    length = int(task.lengths[pair])
    return task.clean[pair, :length].tolist(), task.corrupted[pair, :length].tolist()


def difference_of(task: Task, pair: int) -> Measure:
    """The logit difference of a pair at its last token."""
    return lambda logits: (
        logits[-1, task.answers[pair]].mean() - logits[-1, task.incorrect[pair]].mean()
    )


def share_derivatives(
    name: str,
    model: Model,
    tokens: list[int],
    replacement: Outputs,
    measure: Measure,
    keep: Tensor | None = None,
    positions: int = 0,
) -> Tensor:
    """d measure / d share of every edge, `[destination, source]`, at the shares `keep` (all 1)."""
    graph = plain_graph(name)
    keep = torch.ones(graph.exists.shape) if keep is None else keep
    keep = keep.double()
    if positions:
        keep = keep[..., None].expand(*keep.shape, positions)
    keep = keep.clone().requires_grad_()
    with torch.enable_grad():
        run = patched_run(model, tokens, by_name(graph, keep), replacement)
        (found,) = torch.autograd.grad(measure(run.logits), keep)
    return found


def plain_scores(
    name: str, task: Task, ablation: str = "resample", *, positions: bool = False
) -> Tensor:
    """EAP: derivatives at the untouched clean prompts, the mean over pairs."""
    total = 0.0
    for pair in range(len(task)):
        clean, corrupted = prompts_of(task, pair)
        total = total + share_derivatives(
            name,
            oracle.plain(name),
            clean,
            replaced(name, task, corrupted, ablation),
            difference_of(task, pair),
            positions=len(clean) * positions,
        )
    return total / len(task)


def scores_at(name: str, task: Task, pair: int, embedding: Rows, measure: Measure) -> Tensor:
    """(clean - corrupted output) . gradient, in the run that starts from an embedding."""
    clean, corrupted = prompts_of(task, pair)
    model = oracle.plain(name)
    outputs, others = (full_run(model, tokens).outputs for tokens in (clean, corrupted))
    moved = replace(model, embed=lambda tokens: embedding)
    own = full_run(moved, clean).outputs
    away = {source: own[source] - (outputs[source] - others[source]) for source in own}
    return share_derivatives(name, moved, clean, away, measure)


def embeddings(name: str, task: Task, pair: int) -> tuple[Rows, Rows]:
    """The clean and corrupted embeddings of a pair."""
    model = oracle.plain(name)
    clean, corrupted = (model.embed(torch.tensor(t)) for t in prompts_of(task, pair))
    return clean, corrupted


def group_scores(name: str, task: Task, steps: int) -> Tensor:
    """EAP-IG over activations: the edges out of a group at shares k / steps, all others whole."""
    graph, scores = plain_graph(name), None
    groups = [slice(0, 1)]
    for layer in range(graph.layers):
        first = 1 + layer * graph.sources_per_layer
        groups.append(slice(first, first + graph.heads))
        groups += [slice(first + graph.heads, first + graph.heads + 1)] * graph.mlp
    scores = torch.zeros(graph.exists.shape, dtype=torch.float64)
    for pair in range(len(task)):
        clean, corrupted = prompts_of(task, pair)
        replacement = replaced(name, task, corrupted, "resample")
        for group in groups:
            for k in range(1, steps + 1):
                keep = torch.ones(graph.exists.shape)
                keep[:, group] = k / steps
                scores[:, group] += share_derivatives(
                    name,
                    oracle.plain(name),
                    clean,
                    replacement,
                    difference_of(task, pair),
                    keep,
                )[:, group]
    return scores / (len(task) * steps)
