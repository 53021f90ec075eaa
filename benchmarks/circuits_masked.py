"""Edge-masked forward passes: many circuits as one batch, and what a mask costs beside no mask.

Random circuits of half of all edges on random tokens. "A fifth" cuts the out-edges of every fifth
source alone, into every fifth destination.
Run: python -m benchmarks.circuits_masked
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from benchmarks.circuits_models import TOKENS, gpt2_shape, random_task
from benchmarks.common import info, interleaved_seconds, report, smollm2
from strace_lens.architecture import Model
from strace_lens.component_graph.circuit import Circuit
from strace_lens.component_graph.patching import patched_logits
from strace_lens.component_graph.problem import Problem, prepare
from strace_lens.component_graph.run_circuits import circuit_metric, run_circuits
from strace_lens.run import last_logits

CIRCUITS = 64
BATCH_GOAL = 5.0
AT_ONCE = 8
REPEATS = 5


def random_keep(problem: Problem, circuits: int) -> Tensor:
    """Masks of half of the edges."""
    generator = torch.Generator().manual_seed(0)
    exists = problem.graph.exists
    return (torch.rand(circuits, *exists.shape, generator=generator) < 0.5) & exists


def in_passes(problem: Problem, cut: Tensor) -> Callable[[], None]:
    """Rows of a task under masks, a few at a time, as a memory budget would have them."""
    task = problem.task

    def run() -> None:
        with torch.no_grad():
            for first in range(0, len(task), AT_ONCE):
                rows = torch.arange(first, min(first + AT_ONCE, len(task)))
                patched_logits(
                    problem.model,
                    problem.wiring,
                    task.clean[rows],
                    task.lengths[rows],
                    cut[rows],
                    problem.replaced.rows(rows),
                )

    return run


def compare_forward(name: str, model: Model, rows: int, goal: float) -> None:
    """A masked forward against the plain forward of the same rows."""
    problem = prepare(model, random_task(model, pairs=rows))
    task, graph = problem.task, problem.graph
    cut = (~random_keep(problem, rows) & graph.exists).float()
    fifth = cut.clone()
    fifth[:, :, torch.arange(graph.sources) % 5 > 0] = 0
    fifth[:, torch.arange(graph.destinations) % 5 > 0] = 0
    by_position = cut[..., None].expand(*cut.shape, TOKENS)

    def plain() -> None:
        last_logits(model, problem.wiring.architecture, task.clean, task.lengths)

    masked = [in_passes(problem, mask) for mask in (cut, by_position, fifth)]
    for run in masked:
        run()
    base, *seconds = map(median, interleaved_seconds((plain, *masked), REPEATS))
    ratios = [s / base for s in seconds]
    report(f"edge-masked forward, {rows} rows of {name}", ratios[0], goal, at_most=True)
    info(
        f"plain {base:.3f} s; a mask a position {ratios[1]:.2f}x; "
        f"a fifth of sources and destinations cut {ratios[2]:.2f}x"
    )


def compare_batch(name: str, model: Model) -> None:
    """64 circuits in shared passes against one call a circuit, on one pair."""
    task = random_task(model, pairs=1)
    problem = prepare(model, task)
    keep = random_keep(problem, CIRCUITS)
    circuits = [Circuit(problem.graph, mask) for mask in keep]
    alone = prepare(model, task)

    def together() -> Tensor:
        return run_circuits(model, task, circuits)

    def one_by_one() -> Tensor:
        return torch.cat([circuit_metric(alone, mask[None]) for mask in keep])

    gap = float((together() - one_by_one()).abs().max())
    batch, single = map(median, interleaved_seconds((together, one_by_one), 3))
    report(f"{CIRCUITS} circuits as one batch, {name}", single / batch, BATCH_GOAL)
    info(f"{batch:.2f} s against {single:.2f} s; largest difference of the metric {gap:.1e}")


def main() -> None:
    """Compare on GPT-2 small's shape and on SmolLM2."""
    shapes = (("GPT-2 small's shape", gpt2_shape(), 1.6, 2.0), ("SmolLM2", smollm2(), 2.2, 2.4))
    for name, model, few, many in shapes:
        compare_batch(name, model)
        compare_forward(name, model, 8, few)
        compare_forward(name, model, 64, many)


if __name__ == "__main__":
    main()
