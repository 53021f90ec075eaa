"""Forward passes under edge masks: many circuits at once, and what masks cost.

Rows are random circuits, each edge kept with probability a half, on one pair of random tokens. One
line compares 64 of them run as one batch with the same run one at a time; the others an edge-masked
run with the plain forward of the same rows as one batch, which unembeds the last position too. Both
corrupted and clean outputs are worked out beforehand. Where few edges are cut, those are half of
the edges between a fifth of the sources and a fifth of the destinations. Functions take turns and
ratios are those of their fastest runs.
Run: python -m benchmarks.circuits_masked
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool
from torch import Tensor

from benchmarks.circuits_models import TOKENS, gpt2_shape, random_task
from benchmarks.common import fastest, info, report, smollm2
from strace_lens.circuits.experiment import Experiment, make_experiment
from strace_lens.circuits.graph import ComponentGraph
from strace_lens.circuits.run_circuits import circuit_metric
from strace_lens.model.architecture import Model
from strace_lens.model.forward import last_logits

MANY, SOME = 64, 8
BATCH_GOAL = 5
GOALS = {SOME: 1.6, MANY: 2.0}
GOALS_SMOLLM2 = {SOME: 2.2, MANY: 2.4}
REPEATS = {SOME: 5, MANY: 3}

Masks = Bool[Tensor, "circuit destination source *pos"]


def ready(model: Model, tokens: int = TOKENS) -> Experiment:
    """One pair of random tokens, its clean and corrupted runs made."""
    experiment = make_experiment(model, random_task(model, 1, tokens))
    experiment.replaced, experiment.reference  # noqa: B018
    return experiment


def random_masks(graph: ComponentGraph, rows: int, positions: int = 0) -> Masks:
    """Half of all edges, by token position or not."""
    shape = (rows, *graph.exists.shape, *([positions] if positions else []))
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.5


def few_cut(graph: ComponentGraph, rows: int) -> Masks:
    """All edges but half of those between a fifth of the sources and of the destinations."""
    generator = torch.Generator().manual_seed(1)
    cut = torch.zeros(graph.exists.shape, dtype=torch.bool)
    readers = torch.randperm(graph.destinations, generator=generator)[: graph.destinations // 5]
    writers = torch.randperm(graph.sources, generator=generator)[: graph.sources // 5]
    cut[readers[:, None], writers] = True
    return random_masks(graph, rows) | ~cut


def plain_forward(experiment: Experiment, rows: int) -> Callable[[], Tensor]:
    """The clean prompt in so many rows."""
    tokens = experiment.task.clean.expand(rows, -1)
    return lambda: last_logits(experiment.model, experiment.wiring.architecture, tokens)


def masked(experiment: Experiment, keep: Masks) -> Callable[[], Tensor]:
    """The metric of every mask."""
    return lambda: circuit_metric(experiment, keep)


def one_at_a_time(experiment: Experiment, keep: Masks) -> Callable[[], Tensor]:
    """The same, a run for each."""
    return lambda: torch.cat([circuit_metric(experiment, mask[None]) for mask in keep])


def check(experiment: Experiment, rows: int) -> None:
    """The full mask must give the plain forward's metric; an error otherwise."""
    full = experiment.graph.exists.expand(rows, -1, -1)
    logits = plain_forward(experiment, rows)()
    reference = experiment.reference_rows(torch.zeros(rows, dtype=torch.int64))
    plain = experiment.score(logits[:, None], reference)
    plain = plain.cpu()
    gap = float((masked(experiment, full)()[:, 0].cpu() - plain).abs().max())
    if not gap < 1e-3 * max(1.0, float(plain.abs().max())):
        raise RuntimeError(f"the full mask and the plain forward differ by {gap:.1e}")


def batch_against_single(name: str, experiment: Experiment, rows: int, repeats: int) -> None:
    """Many circuits as one batch against one at a time."""
    keep = random_masks(experiment.graph, rows)
    both = masked(experiment, keep), one_at_a_time(experiment, keep)
    batch, single = (run() for run in both)
    if not torch.allclose(batch, single, rtol=1e-3, atol=1e-3):
        raise RuntimeError(f"one at a time differs by {float((batch - single).abs().max()):.1e}")
    together, alone = fastest(both, repeats)
    report(f"{rows} circuits as one batch, {name}", alone / together, BATCH_GOAL)


def against_plain(name: str, experiment: Experiment, rows: int, goal: float, repeats: int) -> None:
    """Masked runs against the plain forward of as many rows."""
    graph = experiment.graph
    check(experiment, rows)
    runs = [
        plain_forward(experiment, rows),
        masked(experiment, random_masks(graph, rows)),
        masked(experiment, random_masks(graph, rows, TOKENS)),
        masked(experiment, few_cut(graph, rows)),
    ]
    plain, shared, by_position, few = fastest(runs, repeats)
    text = f"masked forward, {rows} rows, {name}"
    report(text, shared / plain, goal, at_most=True)
    report(f"{text}, by position", by_position / plain, goal, at_most=True)
    report(f"{text}, a fifth cut", few / plain, shared / plain, at_most=True)


def main() -> None:
    """Compare on GPT-2 small's shape and on SmolLM2."""
    models = (("GPT-2 small's shape", gpt2_shape, GOALS), ("SmolLM2", smollm2, GOALS_SMOLLM2))
    for name, build, goals in models:
        experiment = ready(build())
        info(f"{name}: {experiment.graph.edges} edges, {TOKENS} tokens")
        for rows, goal in goals.items():
            against_plain(name, experiment, rows, goal, REPEATS[rows])
        batch_against_single(name, experiment, MANY, 2)


if __name__ == "__main__":
    main()
