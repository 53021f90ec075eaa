"""Estimators of a trace by name: from best-first search to rankings fitted to the output.

Each gives an upper bound on how much of the graph a prediction needs; a tighter one needs more
passes. How a fitted trace may be interpreted depends on its controls, which a sweep with
`controls="all"` measures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from strace_lens.model.architecture import Model
from strace_lens.model.hold import verb
from strace_lens.model.targets import TargetLike
from strace_lens.traces.ablation import ZERO, Replacement
from strace_lens.traces.extract import extract
from strace_lens.traces.fisher import FISHER_PROBES, fisher
from strace_lens.traces.graph import TokenGraph
from strace_lens.traces.learn import REGULARIZED, ROWS, STEPS, learn
from strace_lens.traces.prune import PROBES, prune, prune_steps
from strace_lens.traces.trace import Trace
from strace_lens.utils.choices import GRADIENT_BUDGET, estimator_name, kinds_to_keep
from strace_lens.utils.progress import Progress


class Estimator(NamedTuple):
    """A way to rank the edges of a token graph."""

    # From a model and its graph to a trace. One that takes steps is given `keep`, `target`,
    # `replacement`, `seed`, `memory_budget`, `progress` and `allow_other_model` by name, and
    # `start` too if it starts from another estimator's trace.
    rank: Callable[..., Trace]
    steps: int = 0  # how often it calls `progress` at the most; 0 where nothing is fitted
    start: str | None = None  # name of the estimator whose trace it starts from
    passes: tuple[int, int] = (0, 0)  # rows of forward and of backward passes that a step takes


def _fisher(model: Model, graph: TokenGraph, *, progress: Progress | None, **options: Any) -> Trace:
    trace = fisher(model, graph, **options)
    if progress is not None:
        progress(1, 1, "fisher")
    return trace


ESTIMATORS: dict[str, Estimator] = {
    "greedy": Estimator(lambda model, graph: extract(graph, "l1")),
    "scheduled": Estimator(lambda model, graph: extract(graph, "l2", order="scheduled")),
    "fisher": Estimator(_fisher, steps=1, passes=(1, FISHER_PROBES)),
    "pruned": Estimator(prune, steps=prune_steps(), passes=(1, PROBES)),
    "regularized": Estimator(
        partial(learn, **REGULARIZED),
        steps=REGULARIZED["steps"],
        start="pruned",
        passes=(ROWS, ROWS),
    ),
    "learned": Estimator(learn, steps=STEPS, start="pruned", passes=(ROWS, ROWS)),
}
"""Estimators by name, the cheapest first."""


def estimator_of(name: str) -> Estimator:
    """The estimator of a name.

    Raises:
        ValueError: there is none.
    """
    return ESTIMATORS[estimator_name(name)]


def steps(estimator: str) -> int:
    """Steps of fitting that `estimate` takes at the most, those of the start included."""
    found = estimator_of(estimator)
    return found.steps + (0 if found.start is None else steps(found.start))


def fitting_passes(estimator: str) -> tuple[int, int]:
    """Rows of forward and of backward passes that `estimate` fits with at the most.

    `Trace.metadata["passes"]` tells how many it was.
    """
    found = estimator_of(estimator)
    forward, backward = (0, 0) if found.start is None else fitting_passes(found.start)
    return forward + found.steps * found.passes[0], backward + found.steps * found.passes[1]


@verb
def estimate(
    model: Model,
    graph: TokenGraph,
    estimator: str = "greedy",
    *,
    keep: Sequence[str] = (),
    target: Float[Tensor, " vocab"] | TargetLike | None = None,
    replacement: Replacement = ZERO,
    seed: int = 0,
    start: Trace | None = None,
    memory_budget: int = GRADIENT_BUDGET,
    progress: Progress | None = None,
    allow_other_model: bool = False,
) -> Trace:
    """Rank the edges of a token graph by an estimator, with the options of the published table.

    Args:
        model: the model from which the graph was read.
        graph: the token graph of a prompt.
        estimator: a key of `ESTIMATORS`.
        keep: kinds of edges that are never ablated; only the order of the others is fitted. It has
            no effect on estimators that are not fitted.
        target: what to reproduce: by default the model's own output; probabilities; one token, such
            as " Rome" or its id, whose log-probability in the full model is reproduced; or a pair,
            such as (" Rome", " Paris") or ([" Rome", " Milan"], " Paris"), whose logit difference
            is (mean logit of the first minus that of the second). No effect without fitting.
        replacement: what an ablated edge carries while fitting.
        seed: seed of all random draws.
        start: the trace to start from, made by the estimator that this one builds on; computed if
            not given. It has no effect on estimators that need no start.
        memory_budget: bytes of a forward and backward pass.
        progress: called at each step of fitting, including the start's; by default a progress bar.
        allow_other_model: accept a start or a replacement made with other weights, such as those of
            another checkpoint.

    Raises:
        ValueError: an unknown estimator or kind of edges to keep, a graph to fit of one token or of
            other weights, a target that is no distribution and names no tokens of the
            vocabulary, or a start of another graph.
        UnsupportedModelError: the estimator needs gradients, and the weights are quantised.

    Example:
        >>> tight = sl.estimate(model, graph, "fisher")
        >>> sl.density_curve(model, tight, controls=False).density
    """
    estimator, kinds = estimator_name(estimator), kinds_to_keep(keep)
    found = ESTIMATORS[estimator]
    if not found.steps:
        trace = found.rank(model, graph)
        return replace(trace, metadata={"estimator": estimator, **trace.metadata})
    options: dict[str, Any] = {
        "keep": kinds,
        "target": target,
        "replacement": replacement,
        "seed": seed,
        "memory_budget": memory_budget,
        "progress": progress,
        "allow_other_model": allow_other_model,
    }
    if found.start is not None:
        options["start"] = start or estimate(model, graph, found.start, **options)
    trace = found.rank(model, graph, **options)
    return replace(trace, metadata={"estimator": estimator, **trace.metadata})
