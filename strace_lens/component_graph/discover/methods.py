"""Every way of finding a circuit, by name, with one signature; and the verb that runs one."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from torch import Tensor

from strace_lens.architecture import Model
from strace_lens.component_graph.discover import (
    acdc,
    activation,
    attribution,
    baselines,
    edge_pruning,
    flow,
)
from strace_lens.component_graph.problem import Problem, prepare
from strace_lens.component_graph.scores import Scores
from strace_lens.component_graph.task import Task
from strace_lens.hold import verb
from strace_lens.run import MEMORY_BUDGET

Method = Callable[..., Float[Tensor, "destination source *pos"]]
"""From a `Problem`, a seed and options of its own to one score an edge."""

METHODS: dict[str, Method] = {
    "edge-patching": activation.edge_patching,
    "node-patching": activation.node_patching,
    "attribution-patching": attribution.attribution_patching,
    "eap": attribution.eap,
    "eap-ig": attribution.eap_ig,
    "eap-ig-activations": attribution.eap_ig_activations,
    "clean-corrupted": attribution.clean_corrupted,
    "eap-ig-kl": attribution.eap_ig_kl,
    "acdc": acdc.acdc,
    "edge-pruning": edge_pruning.edge_pruning,
    "node-pruning": edge_pruning.node_pruning,
    "ifr": flow.ifr,
    "strace": flow.strace,
    "weight-magnitude": baselines.weight_magnitude,
    "random": baselines.random,
}
"""Methods by name."""

RANKINGS = frozenset(
    {"acdc", "edge-pruning", "node-pruning", "ifr", "strace", "weight-magnitude", "random"}
)
"""Methods whose scores only rank: theirs estimate no effect that could be negative."""


@verb
def discover(
    model: Model,
    task: Task,
    method: str = "eap-ig",
    *,
    metric: str | None = None,
    ablation: str = "resample",
    seed: int = 0,
    memory_budget: int = MEMORY_BUDGET,
    **options: Any,
) -> Scores:
    """Score every edge of a model for a task.

    Args:
        model: the model.
        task: pairs of clean and corrupted prompts.
        method: a key of `METHODS`, whose docstrings hold their sources.
        metric: what is to be explained; the task's own by default.
        ablation: what an ablated edge carries: "resample", "mean" or "zero".
        seed: of methods that draw.
        memory_budget: bytes that one pass may take.
        options: of the method, as `steps` of "eap-ig".

    Raises:
        ValueError: an unknown method or option, a task that does not fit the model, a method that
            would take too many passes.
        UnsupportedModelError: the model cannot be patched, or gives no gradients.
        FloatingPointError: NaN or infinite logits, or gradients.
    """
    problem = prepare(model, task, metric=metric, ablation=ablation, memory_budget=memory_budget)
    return discover_in(problem, method, seed=seed, **options)


@verb
def discover_in(problem: Problem, method: str, *, seed: int = 0, **options: Any) -> Scores:
    """Score every edge for a task made ready; passes count from here on."""
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; choose from {', '.join(METHODS)}")
    known = [p for p in inspect.signature(METHODS[method]).parameters if p not in _SHARED]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(
            f"{method} has no option {unknown[0]!r}; "
            + (f"it has {', '.join(known)}" if known else "it has none")
        )
    before = problem.passes.forward_rows, problem.passes.backward_rows
    began = time.perf_counter()
    values = METHODS[method](problem, seed=seed, **options)
    seconds = time.perf_counter() - began
    pairs = len(problem.task)
    return Scores(
        graph=problem.graph,
        values=values.float(),
        method=method,
        task=problem.task.name,
        forwards=(problem.passes.forward_rows - before[0]) / pairs,
        backwards=(problem.passes.backward_rows - before[1]) / pairs,
        seconds=seconds,
        effects=method not in RANKINGS,
        made={
            "metric": problem.metric,
            "ablation": problem.ablation,
            "pairs": pairs,
            "seed": seed,
            **options,
        },
    )


_SHARED = ("problem", "seed")
