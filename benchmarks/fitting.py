"""Pruning and learning against the plain passes that they use.

Both sides do the same forward and backward passes in the weights of the edges, at traces of the
same sizes; the bare side does nothing between them: no scheduling, no averaging, no ranking. The
excess is what the estimators cost beside the model. Also printed: the error of Fisher scores
against the number of probes, a score of 1,024 probes taken as the truth.
Run: python -m benchmarks.fitting
"""

from __future__ import annotations

from statistics import median

import pandas as pd
import torch

import strace_lens as sl
from benchmarks.common import info, interleaved_seconds, real_prompt, report, show, smollm2
from strace_lens.model.hold import fixed_weights
from strace_lens.traces.ablation import ZERO
from strace_lens.traces.fisher import fisher_scores
from strace_lens.traces.fit import (
    GRADIENT_BUDGET,
    Fit,
    fit_to,
    gradients,
    weighted_log_probs,
)
from strace_lens.traces.learn import ROWS
from strace_lens.traces.prune import FACTOR, prune_steps

GOAL = 1.3
TOKENS = 24
PROBES = 3
STEPS = 10
REPEATS = 3
TRUTH = 1024


def pruning_passes(fit: Fit, ranks: sl.Trace) -> None:
    """The passes of a pruning: at each size one forward and three backward."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(PROBES, len(fit.target), generator=generator)
    for step in range(prune_steps()):
        rows = fit.rows(ranks.ranks, [int(ranks.edges * FACTOR**step)])
        log_probs = weighted_log_probs(fit.model, fit.graph.architecture, rows)[0]
        gradients(log_probs, rows, grad_outputs=vectors, is_grads_batched=True)


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


def main() -> None:
    """Compare on a real prompt of SmolLM2."""
    model = smollm2()
    graph = sl.token_graph(model, real_prompt(model, TOKENS))
    start = sl.extract(graph, "l2", order="scheduled")
    fit = fit_to(model, graph, None, ZERO, GRADIENT_BUDGET)
    with fixed_weights(model):
        pairs = {
            "pruning": (lambda: sl.prune(model, graph), lambda: pruning_passes(fit, start)),
            "learning": (
                lambda: sl.learn(model, graph, start=start, steps=STEPS),
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
        show(probe_errors(fit, start))


if __name__ == "__main__":
    main()
