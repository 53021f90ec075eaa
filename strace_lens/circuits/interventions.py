"""Ablation and activation patching of named parts: many interventions in few passes, one table.

Every intervention is a set of edges that carry other values. A node is all edges that leave it, an
input of a head all edges that enter it, a residual stream all edges that pass it, so each of them
is exact: whatever reads the node, input or stream reads the same as if it had been overwritten.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from strace_lens.circuits.experiment import Experiment, make_experiment
from strace_lens.circuits.metrics import Logits
from strace_lens.circuits.names import (
    KINDS,
    Positions,
    Target,
    at_positions,
    edge_target,
    mask_target,
    masks_of,
    node_targets,
    target_columns,
)
from strace_lens.circuits.run_circuits import Direction, circuit_logits
from strace_lens.circuits.task import Task
from strace_lens.circuits.tasks.accuracy import right_answers
from strace_lens.measures.intervals import interval
from strace_lens.model.architecture import Model, device_of
from strace_lens.model.hold import verb


@verb
def ablate(
    model: Model,
    task: Task,
    *,
    nodes: str | Sequence[str | Sequence[str]] = (),
    edges: Sequence[str | Sequence[str]] = (),
    masks: Iterable[Bool[Tensor, "destination source *pos"]] = (),
    positions: Positions = None,
    ablation: str = "resample",
    metric: str | None = None,
    memory_budget: int | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Ablate named nodes, head inputs and edges in the clean run, many sets in few passes.

    The parameters `ablation`, `metric` and `memory_budget` are as for `run_circuits`.

    Args:
        model: the model.
        task: pairs of clean and corrupted prompts.
        nodes: one ablation per item: a name, or names that are ablated together. `a3.h2` and `m4`
            are outputs of a head and an MLP, `a3.h2<q>` (or `a3.h2.q`) is an input of a head. One
            of the strings "head", "q", "k", "v", "attn_out", "mlp_out" and "resid_pre" ablates all
            parts of that kind, one at a time.
        edges: one ablation per item, as for `nodes`, with names such as `a0.h1->a2.h0<q>`.
        masks: one ablation per mask, which is True where an edge is ablated, by position or not.
        positions: where nodes and edges are ablated: everywhere (None), at each token position
            separately ("each"), or at the items of a sequence, each of which is an ablation: a
            position (from the end if negative), a slice, or a sequence of positions. If the task
            has spans (`Task.with_spans`), these are numbers of spans.
        seed: seed of the bootstrap over pairs.

    Returns:
        One row per ablation: `name`; `layer` and `head`, if there is only one; `position`, if any
        are given; `edges`, the number of ablated edges (counted at each position); `metric`, the
        mean over pairs; `effect`, the clean run's metric minus that, so that it is positive if the
        ablation hurts, with `effect_low` and `effect_high`, its 95 % interval over pairs;
        `fraction`, the effect over the difference of clean and corrupted metrics (NaN if the two
        are equal); `accuracy`, the share of pairs that are still right (NaN without answers).

    Raises:
        ValueError: nothing to ablate, an unknown name (the message gives the nearest one), a
            position outside the prompts, or as for `make_experiment`.
        UnsupportedModelError: the model cannot be patched.
        FloatingPointError: a logit is NaN or infinite.

    Example:
        >>> sl.ablate(model, task, nodes=[["a3.h2", "a7.h5"], ["m4"]])[["name", "effect"]]
    """
    experiment = make_experiment(
        model, task, metric=metric, ablation=ablation, memory_budget=memory_budget
    )
    graph = experiment.graph
    named = node_targets(graph, nodes) + [edge_target(graph, one) for one in edges]
    targets = at_positions(named, task, positions)
    targets += [mask_target(graph, mask, number) for number, mask in enumerate(masks)]
    return intervene(experiment, targets, "noise", seed)


@verb
def activation_patch(
    model: Model,
    task: Task,
    points: str | Sequence[str | Sequence[str]] = "head",
    *,
    positions: Positions = None,
    direction: Direction = "denoise",
    metric: str | None = None,
    memory_budget: int | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Patch activations of one run into the other, one node or position at a time.

    Meng et al. (2022), "Locating and Editing Factual Associations in GPT", section 2 (causal
    tracing, by position); Zhang and Nanda (2023), "Towards Best Practices of Activation Patching
    in Language Models", for the directions. The kinds are those of TransformerLens' `patching`.

    The parameters `metric`, `memory_budget` and `seed` are as for `ablate`.

    Args:
        model: the model.
        task: pairs of clean and corrupted prompts.
        points: "head" (the output of each head); "q", "k" or "v" (that input of each head, or of
            each key-value head if queries are grouped); "attn_out", "mlp_out" or "resid_pre" of
            each layer; or names, as for `nodes` of `ablate`.
        positions: as for `ablate`; "each" gives a row for every point and token position.
        direction: "denoise" runs the corrupted prompt and patches clean activations into it;
            "noise" runs the clean prompt and patches corrupted activations into it.

    Returns:
        The table of `ablate`. Under "denoise", `effect` is the metric minus that of the corrupted
        run, so `fraction` is 1 if a point restores the clean metric; under "noise", it is the clean
        run's metric minus the metric, so 1 if it does as much damage as the corrupted prompt.

    Raises:
        ValueError, UnsupportedModelError, FloatingPointError: as for `ablate`.

    Example:
        >>> table = sl.activation_patch(model, task, "head")  # columns layer, head, fraction
        >>> table.pivot(index="layer", columns="head", values="fraction")
    """
    experiment = make_experiment(model, task, metric=metric, memory_budget=memory_budget)
    if isinstance(points, str) and points not in KINDS:
        points = [points]
    targets = at_positions(node_targets(experiment.graph, points), task, positions)
    return intervene(experiment, targets, direction, seed)


class Measured(NamedTuple):
    """What came of interventions on every pair."""

    values: Float[Tensor, "target pair"]  # the metric
    right: Bool[Tensor, "target pair"] | None  # None for a task without answers


def intervene(
    experiment: Experiment, targets: Sequence[Target], direction: Direction, seed: int
) -> pd.DataFrame:
    """The table of `ablate` for targets that are cut ("noise") or restored ("denoise") alone.

    Raises:
        ValueError: no target.
    """
    if not targets:
        raise ValueError("nothing to ablate or patch; name nodes, edges or masks")
    width = experiment.task.positions
    parts = []
    for masks in masks_of(experiment.graph, targets, width, experiment.memory_budget):
        keep = (masks if direction == "denoise" else ~masks).to(device_of(experiment.model))
        runs = circuit_logits(experiment, keep, direction)
        parts.append(measured(experiment, runs))
    return effects_table(experiment, targets, joined(parts), direction, seed)


def measured(
    experiment: Experiment, runs: Iterable[tuple[Logits, Int[Tensor, " row"]]]
) -> Measured:
    """Metric and right answers of logits, a pass at a time with the pair of each row."""
    values, right = [], []
    for logits, pairs in runs:
        reference = experiment.reference_rows(pairs)
        values.append(experiment.score(logits, reference).double().cpu())
        found = right_answers(logits, reference, experiment.metric)
        right += [] if found is None else [found.cpu()]
    pairs = len(experiment.task)
    return Measured(
        torch.cat(values).view(-1, pairs), torch.cat(right).view(-1, pairs) if right else None
    )


def joined(parts: Sequence[Measured]) -> Measured:
    """One after another, the targets of several parts."""
    right = [part.right for part in parts if part.right is not None]
    return Measured(torch.cat([p.values for p in parts]), torch.cat(right) if right else None)


def effects_table(
    experiment: Experiment,
    targets: Sequence[Target],
    found: Measured,
    direction: Direction,
    seed: int,
) -> pd.DataFrame:
    """The table of `ablate` from what was measured of each target."""
    clean, corrupted = (
        experiment.score(logits, experiment.reference).double().cpu()
        for logits in (experiment.clean[1], experiment.corrupted[1])
    )
    effects = clean - found.values if direction == "noise" else found.values - corrupted
    low, high = interval(effects.T.numpy(), seed)
    between, largest = (clean - corrupted).mean(), torch.maximum(clean.abs(), corrupted.abs())
    alike = bool(between.abs() <= 1e-6 * largest.max())
    mean = effects.mean(1).numpy()
    columns: dict[str, Any] = {
        **target_columns(targets),
        "edges": [len(t.cells) * (1 if t.at is None else len(t.at)) for t in targets],
        "metric": found.values.mean(1).numpy(),
        "effect": mean,
        "effect_low": low,
        "effect_high": high,
        "fraction": np.full(len(mean), np.nan) if alike else mean / float(between),
        "accuracy": np.nan if found.right is None else found.right.double().mean(1).numpy(),
    }
    return pd.DataFrame(columns)
