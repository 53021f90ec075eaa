"""Fisher scores, pruning and learning against the plain passes that they use.

Both sides do the same forward and backward passes in the weights of the edges, as many at a time,
at traces of like sizes; the bare side does nothing between them: no scheduling, no averaging, no
ranking. The excess is what the estimators cost beside the model. The line of the regularized
estimator is of its learning steps: it starts from a pruned ranking, which has a line of its own.

Also printed: how many passes pruning takes and the density that it reaches, by the default schedule
with two seeds and by a shorter one; and the error of Fisher scores against the number of probes, a
score of 1,024 probes taken as the truth.
Run: python -m benchmarks.fitting
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from statistics import median
from typing import Any

import pandas as pd
import torch

import strace_lens as sl
from benchmarks.common import info, interleaved_seconds, real_prompt, report, show, smollm2
from strace_lens.model.architecture import Model
from strace_lens.model.hold import fixed_weights
from strace_lens.traces.ablation import ZERO
from strace_lens.traces.fisher import FISHER_PROBES, fisher_scores
from strace_lens.traces.fit import Fit, fit_to, gradients, weighted_log_probs
from strace_lens.traces.learn import REGULARIZED, ROWS
from strace_lens.traces.prune import PROBES, SMALLEST
from strace_lens.utils.choices import GRADIENT_BUDGET

GOAL = 1.1
PASSES_GOAL = 40
TOKENS = 24
STEPS = 10
REPEATS = 3
TRUTH = 1024


SHORTER: dict[str, Any] = {"factor": 0.5, "smallest": 1e-3}
"""Options of the shorter pruning, those of docs/estimators.md."""


def probed(fit: Fit, ranks: sl.Trace, edges: int, probes: int) -> None:
    """One forward pass of a trace, and backward passes of so many random vectors."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(probes, len(fit.target), generator=generator)
    rows = fit.rows(ranks.ranks, [edges])
    log_probs = weighted_log_probs(fit.model, fit.graph.architecture, rows)[0]
    for chunk in fit.chunks(probes):
        gradients(
            log_probs,
            rows,
            grad_outputs=vectors[chunk],
            is_grads_batched=True,
            retain_graph=chunk.stop < probes,
        )


def pruning_passes(fit: Fit, ranks: sl.Trace, steps: int) -> None:
    """The passes of a pruning of so many steps, from all edges to the smallest trace."""
    for step in range(steps):
        edges = int(ranks.edges * SMALLEST ** (step / (steps - 1)))
        probed(fit, ranks, edges, PROBES)


def learning_passes(fit: Fit, ranks: sl.Trace) -> None:
    """The passes of a learned ranking: at each step four rows forward and backward."""
    counts = [int(ranks.edges * s) for s in (0.004, 0.01, 0.04, 0.1)]
    for _ in range(STEPS):
        rows = fit.rows(ranks.ranks, counts[:ROWS])
        gradients(weighted_log_probs(fit.model, fit.graph.architecture, rows)[:, 0].sum(), rows)


def probe_errors(fit: Fit, ranks: sl.Trace) -> pd.DataFrame:
    """Relative error of Fisher scores by number of probes."""

    def scores(probes: int, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        found = fisher_scores(fit, ranks.ranks, ranks.edges, probes=probes, generator=generator)
        return found.flat()

    truth = scores(TRUTH, seed=1)
    errors = {
        k: float((scores(k, seed=0) - truth).norm() / truth.norm()) for k in (1, 3, 8, 32, 128)
    }
    return pd.DataFrame({"probes": errors.keys(), "relative_error": errors.values()})


def schedules(model: Model, graph: sl.TokenGraph) -> pd.DataFrame:
    """Passes of pruning and the density reached, by schedule and seed."""
    found = []
    for options, seed in itertools.product(({}, SHORTER), (0, 1)):
        trace = sl.prune(model, graph, seed=seed, **options)
        curve = sl.density_curve(model, trace, controls=False, refine=0)
        made = trace.metadata
        names = ("probes", "factor", "smallest", "seed")
        row = {name: made[name] for name in names} | made["passes"]
        found.append({**row, "passes": sum(made["passes"].values()), "density": curve.density})
    return pd.DataFrame(found)


def main() -> None:
    """Compare on a real prompt of SmolLM2."""
    model = smollm2()
    graph = sl.token_graph(model, real_prompt(model, TOKENS))
    start = sl.extract(graph, "l2", order="scheduled")
    fit = fit_to(model, graph, None, ZERO, GRADIENT_BUDGET)
    table = schedules(model, graph)
    steps = int(table["forward"].iloc[0])
    learning = {"start": start, "steps": STEPS}
    regularized = {**REGULARIZED, **learning}
    with fixed_weights(model):
        pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "fisher": (
                lambda: sl.fisher(model, graph),
                lambda: probed(fit, start, start.edges, FISHER_PROBES),
            ),
            "pruning": (
                lambda: sl.prune(model, graph),
                lambda: pruning_passes(fit, start, steps),
            ),
            "learning": (
                lambda: sl.learn(model, graph, **learning),
                lambda: learning_passes(fit, start),
            ),
            "regularized learning": (
                lambda: sl.learn(model, graph, **regularized),
                lambda: learning_passes(fit, start),
            ),
        }
        for name, (ours, bare) in pairs.items():
            bare()
            our_seconds, bare_seconds = map(median, interleaved_seconds((ours, bare), REPEATS))
            report(
                f"{name} against its passes, {TOKENS} tokens",
                our_seconds / bare_seconds,
                GOAL,
                at_most=True,
            )
            info(f"{our_seconds:.2f} s, the passes alone {bare_seconds:.2f} s")
        report(
            f"rows of passes of pruned by its default schedule, {TOKENS} tokens",
            float(table["passes"].iloc[0]),
            PASSES_GOAL,
            at_most=True,
            unit="",
        )
        show(table)
        show(probe_errors(fit, start))


if __name__ == "__main__":
    main()
