"""How well relevance and attribution patching tell the effect of each MLP's output at each token.

Pearson correlation over (layer, token position) of either with the exact effect of patching that
output, the mean over pairs: the measure of Rezaei Jafari et al. (2025), table 1, here for SmolLM2
and for models of GPT-2's shape with random weights, whose depth and spread of weights set how far
from linear they are.
Run: python -m benchmarks.relevance
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

import strace_lens as sl
from benchmarks.circuits_models import random_gpt2, random_task
from benchmarks.common import info, report, smollm2
from strace_lens.circuits.discover.attribution import eap
from strace_lens.circuits.discover.relp import relp
from strace_lens.circuits.experiment import Experiment, make_experiment
from strace_lens.circuits.run_circuits import circuit_metric
from strace_lens.model.architecture import Model

PAIRS = 4
TASKS = ("ioi", "greater-than", "agreement", "induction")
DEPTHS = (6, 12, 24)


def exact_effects(experiment: Experiment) -> Float[Tensor, "mlp pos"]:
    """Metric lost when an MLP's output at one position is that of the corrupted run."""
    graph, tokens = experiment.graph, experiment.task.clean.shape[1]
    base = experiment.score(experiment.clean[1], experiment.reference).mean()
    effects = []
    for source in mlps(experiment):
        keep = torch.ones(tokens, graph.destinations, graph.sources, tokens, dtype=torch.bool)
        keep[torch.arange(tokens), :, source, torch.arange(tokens)] = False
        effects.append(base - circuit_metric(experiment, keep).mean(1))
    return torch.stack(effects)


def mlps(experiment: Experiment) -> list[int]:
    graph = experiment.graph
    return [graph.source_index(f"m{layer}") for layer in range(graph.layers)]


def correlations(name: str, model: Model, task: sl.Task) -> tuple[float, float]:
    """Of attribution patching and of relevance patching."""
    experiment = make_experiment(model, task)
    exact = exact_effects(experiment)
    both = []
    for method in (eap, relp):
        nodes = method(experiment, positions=True).sum(0)[mlps(experiment)]
        both.append(float(torch.corrcoef(torch.stack([nodes.flatten(), exact.flatten()]))[0, 1]))
    info(f"{name}: attribution patching {both[0]:.3f}, relevance patching {both[1]:.3f}")
    return both[0], both[1]


def measure(name: str, model: Model, task: sl.Task) -> None:
    before, after = correlations(name, model, task)
    report(
        f"Pearson with exact patching of MLPs, relp less attribution, {name}",
        after - before,
        0,
        unit="",
    )


def main() -> None:
    for name in TASKS:
        measure(f"SmolLM2, {name}", smollm2(), sl.make_task(smollm2(), name, pairs=PAIRS, seed=0))
    for layers in DEPTHS:
        model = random_gpt2(layers, heads=8, d_head=32, vocabulary=2048)
        measure(f"random GPT-2, {layers} layers", model, random_task(model, PAIRS))


if __name__ == "__main__":
    main()
