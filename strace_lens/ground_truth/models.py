"""Every model whose circuit is known, by name, with its task and its true circuits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from strace_lens.component_graph.circuit import Circuit, full_circuit
from strace_lens.component_graph.task import Task
from strace_lens.component_graph.wiring import component_graph
from strace_lens.ground_truth.induction import induction_task, induction_weights
from strace_lens.ground_truth.linear import exact_effects, linear_task, linear_weights
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

_PARTNERS = 8
"""Other inputs that resampling takes from, for each input of a program."""

_COST = 0.2
"""Share of the metric that a true edge of the trained model costs: its edges cost 0.7 of it and
more or, where an edge's job is done already, below 0.07."""


@dataclass(frozen=True, eq=False)
class Known:
    """A model, a task that it does, and the edges that do it.

    Attributes:
        model: a TransformerLens model on the CPU.
        task: what to compare methods on.
        truths: true circuits by name.
        ablation_truth: the name of the true circuit of each ablation ("resample", "mean", "zero").
        effects: where every edge's effect on the task's metric is known exactly, that by ablation,
            the mean over the task's pairs: metric(full) - metric(edge ablated).
    """

    model: Model
    task: Task
    truths: Mapping[str, Circuit]
    ablation_truth: Mapping[str, str]
    effects: Mapping[str, Float[Tensor, "destination source"]] | None = None

    def truth(self, ablation: str) -> Circuit:
        """The true circuit of an ablation.

        Raises:
            ValueError: no truth is known of that ablation.
        """
        if ablation not in self.ablation_truth:
            names = ", ".join(self.ablation_truth)
            raise ValueError(f"no truth is known of ablation {ablation!r}; choose from {names}")
        return self.truths[self.ablation_truth[ablation]]


def known(name: str, seed: int = 0, pairs: int = 32) -> Known:
    """A model whose circuit is known.

    Args:
        name: key of `KNOWN`.
        seed: of the task's pairs, and of the weights where they are random or trained.
        pairs: of the task.

    Raises:
        ValueError: an unknown name, or fewer than one pair.
        MissingTracrError: a Tracr program, and Tracr is not installed.
    """
    if name not in KNOWN:
        raise ValueError(f"no known circuit {name!r}; choose from {', '.join(KNOWN)}")
    return KNOWN[name](seed, pairs)


def tracr_known(program: str, seed: int = 0, pairs: int = 32) -> Known:
    """A compiled program; its truths do not depend on the pairs: they are taken on every input."""
    compiled = compile_program(program)
    task = tracr_task(compiled, pairs, seed)
    model = model_of(compiled.weights, task.name)
    written = written_and_read(model)
    each = all_inputs_task(compiled)
    alone = each.take(range(len(each) // _PARTNERS))
    truths = {
        "written and read": written,
        "zero": changing(model, alone, written, "zero", first=1),
        "resample": changing(model, each, written, "resample", first=1),
    }
    return Known(model, task, truths, {"resample": "resample", "mean": "resample", "zero": "zero"})


def all_inputs_task(compiled: Compiled, partners: int = _PARTNERS) -> Task:
    """Every input of a program's length beside as many random others each, partner by partner."""
    inputs = every_input(compiled.program)
    generator = torch.Generator().manual_seed(0)
    pairs: list[tuple[Sequence[Token], Sequence[Token]]] = []
    for _ in range(partners):
        order = torch.randperm(len(inputs), generator=generator).tolist()
        pairs += [(inputs[i], inputs[j]) for i, j in enumerate(order)]
    return paired_task(compiled, f"tracr-{compiled.name}-every-input", pairs)


def induction_known(seed: int = 0, pairs: int = 32) -> Known:
    """The trained induction model; an edge is true where its ablation alone costs a fifth."""
    task = induction_task(pairs, seed)
    model = model_of(induction_weights(seed), task.name)
    many = induction_task(128, seed=1000 + seed)
    everything = full_circuit(component_graph(model))
    ablations = ("resample", "mean", "zero")
    truths = {a: costly(model, many, everything, a, share=_COST) for a in ablations}
    return Known(model, task, truths, {a: a for a in ablations})


def linear_known(seed: int = 0, pairs: int = 32) -> Known:
    """The linear model; its one truth is what is written and read, the same by any ablation."""
    weights, task = linear_weights(seed), linear_task(pairs, seed)
    model = model_of(weights, task.name)
    ablations = ("resample", "mean", "zero")
    return Known(
        model,
        task,
        truths={"written and read": written_and_read(model)},
        ablation_truth=dict.fromkeys(ablations, "written and read"),
        effects={a: exact_effects(weights, task, a).mean(0) for a in ablations},
    )


KNOWN: dict[str, Callable[[int, int], Known]] = {
    **{f"tracr-{program}": partial(tracr_known, program) for program in PROGRAMS},
    "induction-trained": induction_known,
    "linear": linear_known,
}
"""Functions (seed, pairs) -> Known by the name of the task."""
