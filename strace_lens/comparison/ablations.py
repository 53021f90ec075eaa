"""How far what is said of methods and edges depends on what an ablated edge carries."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from scipy.stats import spearmanr

from strace_lens.circuits.agreement import agreement
from strace_lens.circuits.discover.methods import METHODS
from strace_lens.circuits.discover.run_method import discover_in
from strace_lens.circuits.evaluate import FRACTIONS, faithfulness_curve
from strace_lens.circuits.experiment import make_experiment
from strace_lens.circuits.task import Task
from strace_lens.comparison.compare import method_options, split
from strace_lens.model.architecture import Model

ALL_METHODS = "all methods"
"""What stands for a method in the rows that compare the order of the methods themselves."""


def across_ablations(
    model: Model,
    task: Task,
    methods: Sequence[str] = ("eap", "eap-ig", "random"),
    *,
    ablations: Sequence[str] = ("resample", "mean", "mean-over-positions", "zero"),
    metric: str | None = None,
    fractions: Sequence[float] = FRACTIONS,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
    memory_budget: int | None = None,
) -> pd.DataFrame:
    """How methods' scores, their faithfulness and their order move with the ablation.

    Miller, Chughtai and Saunders (2024), "Transformer Circuit Faithfulness Metrics are not Robust"
    (arXiv 2407.08734), found that how faithful a circuit is, and which edges are best, depends on
    the ablation. Every method is run under each ablation on one half of the pairs, and its circuits
    are evaluated under each on the other half; fewer than four pairs serve for both.

    The parameters `metric` and `memory_budget` are as for `run_circuits`.

    Args:
        model: the model.
        task: pairs of clean and corrupted prompts.
        methods: keys of `METHODS`.
        ablations: two or more of those of `run_circuits`.
        fractions: of all edges, as for `faithfulness`.
        options: of methods, by name.
        seed: of methods that draw.

    Returns:
        One row for each method and ordered pair of ablations: `method`; `found`, the ablation under
        which it scored edges; `evaluated`, that under which its circuits were run; `cmd`, the area
        between their faithfulness and 1, of edges ranked by magnitude; `spearman` and `rbo`, how
        alike the method ranks edges under the two, see `agreement`. Then rows for "all methods":
        `spearman` is there the rank correlation of the methods' CMDs, each found and evaluated
        under one ablation, between the two. It is NaN for fewer than two methods.

    Raises:
        ValueError: fewer than two ablations, one named twice, no method or an unknown one, or as
            `discover` and `faithfulness`.

    Example:
        >>> from strace_lens.comparison.ablations import across_ablations
        >>> table = across_ablations(model, task, ["eap", "eap-ig"])
        >>> table.pivot(index=["method", "found"], columns="evaluated", values="cmd")
    """
    if len(set(ablations)) < max(2, len(ablations)):
        raise ValueError(f"give two or more different ablations; got {list(ablations)}")
    unknown = [name for name in methods if name not in METHODS]
    if unknown or not methods or len(set(methods)) < len(methods):
        raise ValueError(
            f"methods must be one or more different ones of {', '.join(METHODS)}; got "
            f"{list(methods)}"
        )
    found_on, rest = split(task)
    on: dict[str, Any] = {"metric": metric, "memory_budget": memory_budget}
    scores = {}
    for ablation in ablations:
        experiment = make_experiment(model, found_on, ablation=ablation, **on)
        given = method_options(experiment.graph, options or {})
        for name in methods:
            own = given.get(name, {})
            scores[name, ablation] = discover_in(experiment, name, seed=seed, **own)
    cmd = {}
    for ablation in ablations:
        experiment = make_experiment(model, rest or found_on, ablation=ablation, **on)
        for (name, found), ranking in scores.items():
            curve = faithfulness_curve(experiment, ranking, fractions=fractions, ranking="absolute")
            cmd[name, found, ablation] = curve.cmd
    rows = [
        {
            "method": name,
            "found": a,
            "evaluated": b,
            "cmd": cmd[name, a, b],
            **agreement(scores[name, a], scores[name, b]),
        }
        for name in methods
        for a, b in itertools.product(ablations, repeat=2)
    ]
    for a, b in itertools.product(ablations, repeat=2):
        ours, theirs = ([cmd[name, at, at] for name in methods] for at in (a, b))
        constant = len(set(ours)) < 2 or len(set(theirs)) < 2
        order: Any = None if constant else spearmanr(ours, theirs)
        rows.append(
            {
                "method": ALL_METHODS,
                "found": a,
                "evaluated": b,
                "spearman": float("nan") if constant else float(order.statistic),
            }
        )
    return pd.DataFrame(rows)
