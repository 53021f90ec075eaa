"""What the methods that search for a circuit hold it to: the full model's output, or the metric."""

from __future__ import annotations

from strace_lens.component_graph.experiment import Experiment
from strace_lens.component_graph.metrics import METRICS

KL, TASK = "kl_divergence", "task"


def objective_of(experiment: Experiment, objective: str | None) -> str:
    """The metric that a search tries to keep, a key of `METRICS`.

    Args:
        experiment: a task on a model.
        objective: a key of `METRICS`, or "task" for the experiment's own metric. By default the KL
            divergence to the full model's output, as in the papers, or the experiment's own metric
            where the output is a single number, which has no distribution.

    Raises:
        ValueError: an unknown objective.
    """
    if objective is None:
        objective = KL if experiment.reference.clean.shape[-1] > 1 else TASK
    if objective == TASK:
        return experiment.metric
    if objective not in METRICS:
        raise ValueError(
            f"unknown objective {objective!r}; choose from {TASK}, {', '.join(METRICS)}"
        )
    return objective
