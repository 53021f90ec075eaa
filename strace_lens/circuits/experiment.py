"""A task on a model: its runs, what replaces ablated edges, and what metrics compare with."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from strace_lens.circuits.circuit import Circuit
from strace_lens.circuits.cost import (
    gradient_budget,
    gradient_row_bytes,
    patched_row_bytes,
)
from strace_lens.circuits.graph import ComponentGraph
from strace_lens.circuits.metrics import METRICS, Metric, Reference
from strace_lens.circuits.optimal import (
    ROWS,
    Learner,
    by_position,
    optimal_constants,
    pooled,
    spread,
)
from strace_lens.circuits.outputs import (
    Outputs,
    Run,
    Streams,
    join_outputs,
    join_runs,
    read_outputs,
    rows_of,
)
from strace_lens.circuits.scores import Scores
from strace_lens.circuits.task import Task
from strace_lens.circuits.wiring import Wiring, wiring_of
from strace_lens.model.architecture import Architecture, Model, device_of
from strace_lens.model.forward import byte_budget, even_chunks, expect_one_class
from strace_lens.model.hold import verb
from strace_lens.model.weights import expect_same_weights
from strace_lens.utils.choices import EDGE_ABLATIONS as ABLATIONS


@dataclass
class Passes:
    """Rows run forward and backward so far."""

    forward_rows: int = 0
    backward_rows: int = 0


@dataclass(frozen=True, eq=False)
class Experiment:
    """A task on a model; its runs are made when they are first asked for, and kept.

    Attributes:
        model, wiring, task: what is run.
        metric: key of `METRICS`.
        ablation: one of `ABLATIONS`.
        memory_budget: bytes that one forward pass may take.
        passes: counted as they are made.
        allow_other_model: take circuits and scores of other weights, or of a model of another name,
            if their graph has the same shape.
    """

    model: Model
    wiring: Wiring
    task: Task
    metric: str
    ablation: str
    memory_budget: int
    passes: Passes
    allow_other_model: bool

    @property
    def graph(self) -> ComponentGraph:
        """The component graph of the model."""
        return self.wiring.graph

    @property
    def score(self) -> Metric:
        """The metric as a function."""
        return METRICS[self.metric]

    @functools.cached_property
    def clean(self) -> Run:
        """The untouched model on the clean prompts."""
        return self._run(self.task.clean)

    @functools.cached_property
    def corrupted(self) -> Run:
        """The untouched model on the corrupted prompts."""
        return self._run(self.task.corrupted)

    @functools.cached_property
    @verb
    def replaced(self) -> Outputs:
        """What ablated edges carry, pair by pair.

        The mean is taken over all clean and corrupted prompts of the task, position by position or
        over positions too; the optimal constants are learned on the clean prompts.
        """
        corrupted = self.corrupted[0]
        if self.ablation == "resample":
            return corrupted
        if self.ablation == "zero":
            return corrupted.map(lambda x: x.new_zeros(()).expand(x.shape))
        both = join_outputs([self.clean[0], corrupted])
        if self.ablation == "mean":
            constant = by_position(both)
        elif self.ablation == "optimal":
            constant = self._optimal(both)
        else:
            constant = pooled(both, self._read.repeat(2, 1))
        rows = self.task.clean.shape
        return constant.map(lambda x: x.expand(*rows, *x.shape[2:]))

    def _optimal(self, both: Outputs) -> Outputs:
        """Constants learned from the best mean; the passes are no method's, and are not counted."""
        row = next(self.gradient_chunks(len(self.task) * ROWS, patched=True))
        clean, read = self.clean, self._read
        learner = Learner(self.model, self.wiring, self.task, clean, row.stop)
        starts = [pooled(clean.outputs, read), pooled(both, read.repeat(2, 1))]
        if self.task.equal_lengths:
            means = by_position(both)
            starts = [
                start.map(lambda x, mean: x.expand_as(mean).clone(), means) for start in starts
            ]
            starts += [by_position(clean.outputs), means]
        return optimal_constants(learner, starts, spread(clean.outputs, read))

    @property
    def _read(self) -> Bool[Tensor, "pair pos"]:
        """Tokens that are no padding, on the model's device."""
        read = torch.arange(self.task.clean.shape[1]) < self.task.lengths[:, None]
        return read.to(device_of(self.model))

    @functools.cached_property
    def replaced_streams(self) -> Streams | None:
        """What a run in which every edge is ablated reads; None where that is not known.

        A stream is a sum of outputs and constants, so the mean of streams belongs to mean outputs,
        save where a norm follows attention. Where heads are not separate, what a head reads may
        matter even if nothing of what it writes is kept.
        """
        separate = self.wiring.separate_heads and not self.wiring.architecture.post_norm
        if self.ablation in ("zero", "optimal") or not separate:
            return None
        if self.ablation == "resample":
            return self.corrupted.streams
        clean, corrupted = self.clean.streams, self.corrupted.streams
        both = {name: torch.cat([clean[name], corrupted[name]]) for name in clean}
        shape = self.task.clean.shape
        if self.ablation == "mean":
            means = {name: stream.mean(0) for name, stream in both.items()}
        else:
            read = self._read.repeat(2, 1)
            share = read / read.sum()
            means = {n: torch.einsum("rp,rpm->m", share.to(x), x) for n, x in both.items()}
        return {name: mean.expand(*shape, mean.shape[-1]) for name, mean in means.items()}

    @functools.cached_property
    def differs(self) -> Bool[Tensor, "pair pos"]:
        """Tokens that are read and at which the two runs may differ: none before the first change.

        Where attention looks ahead, that is any token.
        """
        task, read = self.task, self._read.cpu()
        cfg: Any = self.model.cfg
        if getattr(cfg, "attention_dir", "causal") != "causal":
            return read
        return read & (task.clean != task.corrupted).cumsum(1).bool()

    @functools.cached_property
    def reference(self) -> Reference:
        """What rows are measured against, pair by pair."""
        device = device_of(self.model)
        return Reference(
            clean=self.clean[1],
            corrupted=self.corrupted[1],
            answers=self.task.answers.to(device),
            incorrect=self.task.incorrect.to(device),
        )

    def reference_rows(self, pairs: Int[Tensor, " row"]) -> Reference:
        """The reference of some pairs, in the order given."""
        return Reference(*(part[pairs] for part in self.reference))

    def take(self, pairs: Sequence[int]) -> Experiment:
        """The experiment of some pairs, with the runs of all.

        What ablated edges carry stays what it is for all pairs: their mean is not that of a few.
        """
        part = replace(self, task=self.task.take(pairs))
        index = torch.tensor(pairs, device=device_of(self.model))
        streams = self.replaced_streams
        # What a cached property holds is an entry of the instance's dictionary.
        part.__dict__.update(
            clean=self.clean.rows(index),
            corrupted=self.corrupted.rows(index),
            replaced=self.replaced.rows(index),
            replaced_streams=None if streams is None else rows_of(streams, index),
        )
        return part

    def expect_own(self, made: Circuit | Scores) -> None:
        """Refuse a circuit or scores of another model, unless `allow_other_model`.

        Raises:
            ValueError: the graphs differ, or the weights, where the circuit or scores name them.
        """
        expect_own(self.graph, made, self.model, self.allow_other_model)

    def expect_unchanged(self) -> None:
        """Refuse to go on after the model's weights have changed, since the runs are kept.

        Raises:
            ValueError: they have.
        """
        if wiring_of(self.model) is not self.wiring:
            raise ValueError(
                f"the weights of {self.graph.model} have changed since task {self.task.name!r} was "
                "prepared: call make_experiment again"
            )

    def chunks(self, rows: int) -> Iterator[slice]:
        """Cut rows into patched passes that fit the budget."""
        row = patched_row_bytes(*self._shape)
        yield from even_chunks(rows, max(1, self.memory_budget // row))

    def gradient_chunks(self, rows: int, *, patched: bool = False) -> Iterator[slice]:
        """Cut rows into passes forward and backward that fit their budget: `gradient_budget`."""
        row = gradient_row_bytes(*self._shape, patched=patched)
        yield from even_chunks(rows, max(1, gradient_budget(self.memory_budget) // row))

    @property
    def _shape(self) -> tuple[Architecture, ComponentGraph, int]:
        """What the bytes of a row depend on."""
        return self.wiring.architecture, self.graph, self.task.clean.shape[1]

    @verb
    def _run(self, tokens: Int[Tensor, "pair pos"]) -> Run:
        parts = [
            read_outputs(
                self.model,
                self.wiring,
                tokens[rows],
                self.task.lengths[rows],
                every_position=self.task.every_position,
            )
            for rows in self.chunks(len(self.task))
        ]
        self.passes.forward_rows += len(self.task)
        return join_runs(parts)


def expect_own(
    graph: ComponentGraph, made: Circuit | Scores, model: Model, allow_other_model: bool
) -> None:
    """Refuse a circuit or scores of another model than that of the graph: `Experiment.expect_own`.

    Raises:
        ValueError: the graphs differ, or the weights, where the circuit or scores name them.
    """
    if allow_other_model:
        graph.check_same(replace(made.graph, model=graph.model))
    else:
        graph.check_same(made.graph)
        expect_same_weights(f"{made!r}", made.metadata, model)


@verb
def make_experiment(
    model: Model,
    task: Task,
    *,
    metric: str | None = None,
    ablation: str = "resample",
    memory_budget: int | None = None,
    allow_other_model: bool = False,
) -> Experiment:
    """Check that a task can be run on a model, and bind the two.

    The parameters `metric`, `ablation`, `memory_budget` and `allow_other_model` are as for
    `run_circuits`.

    Args:
        model: a HookedTransformer or a TransformerBridge.
        task: pairs of clean and corrupted prompts, tokenized for this model.

    Raises:
        ValueError: an unknown metric or ablation, a memory budget that is not positive, a token
            outside the vocabulary, a prompt longer than the context, or prompts of unequal length
            under mean ablation or bidirectional attention, or where padding changes the model.
        UnsupportedModelError: the model cannot be patched.
    """
    metric = task.metric if metric is None else metric
    for what, name, known in (("ablation", ablation, ABLATIONS), ("metric", metric, METRICS)):
        if name not in known:
            raise ValueError(f"unknown {what} {name!r}; choose from {', '.join(known)}")
    if ablation == "mean" and not task.equal_lengths:
        raise ValueError(
            "mean ablation averages position by position, so it needs prompts of one length; "
            f"task {task.name!r} has {int(task.lengths.min())} to {int(task.lengths.max())} tokens"
        )
    budget = byte_budget(memory_budget, device_of(model))
    wiring = wiring_of(model)
    arch = wiring.architecture
    cfg: Any = model.cfg
    if getattr(cfg, "attention_dir", "causal") != "causal" and not task.equal_lengths:
        raise ValueError(
            f"{arch.name} attends in both directions, so it would read the padding of task "
            f"{task.name!r}; give it prompts of one length"
        )
    highest = max(int(task.clean.max()), int(task.corrupted.max()))
    if highest >= arch.d_vocab:
        raise ValueError(
            f"token id {highest} lies outside the vocabulary of {arch.d_vocab}; task {task.name!r} "
            f"was not tokenized for {arch.name}"
        )
    if task.clean.shape[1] > arch.context:
        raise ValueError(
            f"task {task.name!r} has prompts of {task.clean.shape[1]} tokens, but {arch.name} "
            f"reads at most {arch.context}"
        )
    expect_one_class(arch, task.lengths, f"task {task.name!r}")
    passes = Passes()
    return Experiment(model, wiring, task, metric, ablation, budget, passes, allow_other_model)


def objective_of(experiment: Experiment, objective: str | None) -> str:
    """The metric that a search tries to keep, a key of `METRICS`.

    Args:
        experiment: from `make_experiment`.
        objective: a key of `METRICS`, or "task" for the experiment's own metric. By default the KL
            divergence to the full model's output, as in the papers, or the experiment's own metric
            where the output is a single number, which has no distribution.

    Raises:
        ValueError: an unknown objective.
    """
    if objective is None:
        objective = "kl_divergence" if experiment.reference.clean.shape[-1] > 1 else "task"
    if objective == "task":
        return experiment.metric
    if objective not in METRICS:
        raise ValueError(f"unknown objective {objective!r}; choose from task, {', '.join(METRICS)}")
    return objective
