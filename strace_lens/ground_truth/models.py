"""Every model whose circuit is known, by name, with its task and its true circuits."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from strace_lens.circuits.circuit import Circuit, full_circuit
from strace_lens.circuits.task import Task
from strace_lens.circuits.wiring import component_graph
from strace_lens.ground_truth import siit
from strace_lens.ground_truth.induction import induction_task, induction_weights
from strace_lens.ground_truth.linear import linear_task, linear_weights
from strace_lens.ground_truth.tracr import (
    PROGRAMS,
    Compiled,
    Token,
    compile_program,
    every_input,
    paired_task,
    tracr_task,
)
from strace_lens.ground_truth.truth import changing, costly, written_and_read
from strace_lens.ground_truth.weights import model_of
from strace_lens.model.architecture import Model
from strace_lens.utils.choices import EDGE_ABLATIONS as ABLATIONS

_PARTNERS = 8
"""Other inputs that resampling takes from, for each input of a program."""

_COST = 0.2
"""Share of the metric that a true edge of the trained model costs: its edges cost 0.7 of it and
more or, where an edge's job is done already, below 0.07."""


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """A model, a task that it does, and the edges that do it, known from how the model was made.

    Attributes:
        model: a TransformerLens model on the CPU.
        task: what to compare methods on.
        truths: true circuits by name.
        ablation_truth: the name of the true circuit of each ablation ("resample", "mean", "zero").
    """

    model: Model
    task: Task
    truths: Mapping[str, Circuit]
    ablation_truth: Mapping[str, str]

    def truth(self, ablation: str) -> Circuit:
        """The true circuit of an ablation.

        Raises:
            ValueError: no truth is known of that ablation.
        """
        if ablation not in self.ablation_truth:
            names = ", ".join(self.ablation_truth)
            raise ValueError(f"no truth is known of ablation {ablation!r}; choose from {names}")
        return self.truths[self.ablation_truth[ablation]]


def ground_truth(name: str, seed: int = 0, pairs: int = 32) -> GroundTruth:
    """Build a model whose circuit is known, with its task.

    Args:
        name: key of `GROUND_TRUTHS`.
        seed: of the task's pairs, and of the weights where they are random or trained.
        pairs: of the task.

    Raises:
        ValueError: an unknown name, or fewer than one pair.
        MissingTracrError: a Tracr program, and Tracr is not installed.
        TrainingError: with this seed a semi-synthetic model was not trained well enough.
    """
    if name not in GROUND_TRUTHS:
        raise ValueError(f"no known circuit {name!r}; choose from {', '.join(GROUND_TRUTHS)}")
    if pairs < 1:
        raise ValueError(f"a task needs at least one pair; got pairs={pairs}")
    return GROUND_TRUTHS[name](seed, pairs)


def tracr_ground_truth(program: str, seed: int = 0, pairs: int = 32) -> GroundTruth:
    """A compiled program; its truths do not depend on the pairs: they are taken on every input."""
    compiled = compile_program(program)
    task = tracr_task(compiled, pairs, seed)
    model = model_of(compiled.weights, task.name)
    written = written_and_read(compiled.weights, component_graph(model))
    each = all_inputs_task(compiled)
    alone = each.take(range(len(each) // _PARTNERS))
    truths = {
        "written and read": written,
        "zero": changing(model, alone, written, "zero", first=1),
        "resample": changing(model, each, written, "resample", first=1),
    }
    return GroundTruth(
        model, task, truths, {"resample": "resample", "mean": "resample", "zero": "zero"}
    )


def all_inputs_task(compiled: Compiled, partners: int = _PARTNERS) -> Task:
    """Every input of a program's length beside as many random others each, partner by partner."""
    inputs = every_input(compiled.program)
    generator = torch.Generator().manual_seed(0)
    pairs: list[tuple[Sequence[Token], Sequence[Token]]] = []
    for _ in range(partners):
        order = torch.randperm(len(inputs), generator=generator).tolist()
        pairs += [(inputs[i], inputs[j]) for i, j in enumerate(order)]
    return paired_task(compiled, f"tracr-{compiled.name}-every-input", pairs)


def induction_ground_truth(seed: int = 0, pairs: int = 32) -> GroundTruth:
    """The trained induction model; an edge is true where its ablation alone costs a fifth."""
    task = induction_task(pairs, seed)
    model = model_of(induction_weights(seed), task.name)
    many = induction_task(128, seed=1000 + seed)
    everything = full_circuit(component_graph(model))
    ablations = ("resample", "mean", "zero")
    truths = {a: costly(model, many, everything, a, share=_COST) for a in ablations}
    return GroundTruth(model, task, truths, {a: a for a in ablations})


def siit_ground_truth(program: str, seed: int = 0, pairs: int = 32) -> GroundTruth:
    """A model trained to a compiled program's circuit; true edges are the counterparts of its own.

    Resampling is what it was trained and proved for; of mean and zero ablation no truth is known.
    """
    trained = _trained(program, seed)
    name = trained.truth.graph.model
    task = dataclasses.replace(tracr_task(compile_program(program), pairs, seed), name=name)
    model = model_of(trained.weights, name)
    return GroundTruth(model, task, {"counterparts": trained.truth}, {"resample": "counterparts"})


@functools.lru_cache(maxsize=8)
def _trained(program: str, seed: int) -> siit.Semisynthetic:
    circuit = tracr_ground_truth(program).truth("resample")
    return siit.train_semisynthetic(compile_program(program), circuit, seed)


def linear_ground_truth(seed: int = 0, pairs: int = 32) -> GroundTruth:
    """The linear model; its one truth is what is written and read, the same by any ablation."""
    task = linear_task(pairs, seed)
    weights = linear_weights(seed)
    model = model_of(weights, task.name)
    truths = {"written and read": written_and_read(weights, component_graph(model))}
    return GroundTruth(model, task, truths, dict.fromkeys(ABLATIONS, "written and read"))


GROUND_TRUTHS: dict[str, Callable[[int, int], GroundTruth]] = {
    **{f"tracr-{program}": partial(tracr_ground_truth, program) for program in PROGRAMS},
    **{f"siit-{program}": partial(siit_ground_truth, program) for program in siit.PROGRAMS},
    "induction-trained": induction_ground_truth,
    "linear": linear_ground_truth,
}
"""Functions (seed, pairs) -> GroundTruth by the name of the task."""
