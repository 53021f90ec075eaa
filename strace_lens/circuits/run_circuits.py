"""Many circuits on many prompts in few forward passes, each row measured by the task's metric."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from strace_lens.circuits.circuit import Circuit
from strace_lens.circuits.experiment import Experiment, make_experiment
from strace_lens.circuits.metrics import METRICS
from strace_lens.circuits.outputs import Outputs
from strace_lens.circuits.patching import patched_logits
from strace_lens.circuits.task import Task
from strace_lens.model.architecture import Model, device_of
from strace_lens.model.forward import MEMORY_BUDGET
from strace_lens.model.hold import verb

Direction = Literal["noise", "denoise"]


@verb
def run_circuits(
    model: Model,
    task: Task,
    circuits: Sequence[Circuit],
    *,
    ablation: str = "resample",
    direction: Direction = "noise",
    metric: str | None = None,
    memory_budget: int = MEMORY_BUDGET,
    allow_other_model: bool = False,
) -> Float[Tensor, "circuit pair"]:
    """The metric of every circuit on every pair of a task.

    Args:
        model: the model.
        task: pairs of prompts.
        circuits: of this model; masks may be boolean or weights, with token positions or without.
        ablation: what an edge outside a circuit carries: its value on the corrupted prompt
            ("resample"), the mean over all prompts of the task at that position ("mean"), or zero
            ("zero").
        direction: "noise" runs the clean prompt and corrupts what is outside the circuit;
            "denoise" runs the corrupted prompt and gives the circuit's edges their clean values
            (patching clean into corrupted), which only "resample" defines.
        metric: key of `METRICS`; the task's own by default.
        memory_budget: bytes that one pass may take.
        allow_other_model: run circuits that were found with other weights, as on another
            checkpoint, or on a model of another name; the graphs must still have one shape.

    Raises:
        ValueError: no circuit, a circuit of another model or of other weights, token positions that
            do not fit the task, an unknown option.
        FloatingPointError: a logit is NaN or infinite.

    Example:
        >>> circuit = sl.discover(model, task, "eap").top(0.2)
        >>> sl.run_circuits(model, task, [circuit, ~circuit]).mean(1)
    """
    experiment = make_experiment(
        model,
        task,
        metric=metric,
        ablation=ablation,
        memory_budget=memory_budget,
        allow_other_model=allow_other_model,
    )
    return circuit_metric(experiment, stack(experiment, circuits), direction=direction)


def stack(
    experiment: Experiment, circuits: Sequence[Circuit]
) -> Shaped[Tensor, "circuit destination source *pos"]:
    """The masks of circuits as one tensor.

    Raises:
        ValueError: no circuit, a circuit of another model, or token positions that do not fit.
    """
    if not circuits:
        raise ValueError("no circuits to run; give at least one")
    width = experiment.task.clean.shape[1]
    for circuit in circuits:
        experiment.expect_own(circuit)
        if circuit.keep.ndim == 3:
            check_positions(experiment.task)
            if circuit.keep.shape[2] != width:
                raise ValueError(
                    f"the circuit has {circuit.keep.shape[2]} token positions, "
                    f"but the prompts of task {experiment.task.name!r} have {width}"
                )
    masks = [circuit.keep.to(device_of(experiment.model)) for circuit in circuits]
    if any(mask.ndim == 3 for mask in masks):
        masks = [m if m.ndim == 3 else m[..., None].expand(*m.shape, width) for m in masks]
    if any(mask.dtype != torch.bool for mask in masks):
        masks = [mask.float() for mask in masks]
    return torch.stack(masks)


def check_positions(task: Task) -> None:
    """Token positions mean the same in every pair only where all prompts have one length.

    Raises:
        ValueError: they have not.
    """
    if not task.equal_lengths:
        raise ValueError(
            f"edges by token position need prompts of one length; task {task.name!r} has "
            f"{int(task.lengths.min())} to {int(task.lengths.max())} tokens"
        )


@verb
def circuit_metric(
    experiment: Experiment,
    keep: Shaped[Tensor, "circuit destination source *pos"],
    *,
    direction: Direction = "noise",
    metric: str | None = None,
) -> Float[Tensor, "circuit pair"]:
    """The metric of every mask on every pair, in float32 on the model's device, without gradients.

    Args:
        experiment: from `make_experiment`.
        keep: boolean masks or weights in [0, 1].
        direction: as for `run_circuits`.
        metric: key of `METRICS`; the experiment's own by default.
    """
    experiment.expect_unchanged()
    score = METRICS[metric or experiment.metric]
    found = [
        score(logits, experiment.reference_rows(pairs))
        for logits, pairs in circuit_logits(experiment, keep, direction)
    ]
    return torch.cat(found).float().view(len(keep), len(experiment.task))


def circuit_logits(
    experiment: Experiment,
    keep: Shaped[Tensor, "circuit destination source *pos"],
    direction: Direction = "noise",
) -> Iterator[tuple[Float[Tensor, "row read vocab"], Int[Tensor, " row"]]]:
    """Logits of every (circuit, pair), a pass at a time, and the pair of each row."""
    task, device = experiment.task, device_of(experiment.model)
    if direction not in ("noise", "denoise"):
        raise ValueError(f"unknown direction {direction!r}; choose from noise, denoise")
    if direction == "denoise" and experiment.ablation != "resample":
        raise ValueError("denoising patches clean values into the corrupted run: use resample")
    exists = experiment.graph.exists.to(device)
    exists = exists[..., None] if keep.ndim == 4 else exists
    tokens = task.clean if direction == "noise" else task.corrupted
    replaced = experiment.replaced if direction == "noise" else experiment.clean[0]
    for rows in experiment.chunks(len(keep) * len(task)):
        index = torch.arange(rows.start, rows.stop)
        circuits, pairs = index // len(task), index % len(task)
        kept = keep[circuits.to(keep.device)].to(device)
        out = kept if direction == "denoise" else ~kept if kept.dtype == torch.bool else 1 - kept
        with torch.no_grad():
            own = replaced.rows(pairs.to(device))
            logits = patched_pairs(experiment, tokens, pairs, (out * exists).float(), own)
        yield logits, pairs.to(device)


def patched_pairs(
    experiment: Experiment,
    tokens: Int[Tensor, "pair pos"],
    pairs: Int[Tensor, " row"],
    cut: Float[Tensor, "row destination source *pos"],
    replaced: Outputs,
) -> Float[Tensor, "row read vocab"]:
    """Logits of rows that are prompts of some pairs with edges cut, counted as a pass over them.

    Args:
        experiment: whose model runs and whose passes are counted.
        tokens: of all pairs: the clean prompts or the corrupted ones.
        pairs: of each row, on the CPU.
        cut, replaced: of each row, as for `patched_logits`.
    """
    experiment.passes.forward_rows += len(pairs)
    return patched_logits(
        experiment.model,
        experiment.wiring,
        tokens[pairs],
        experiment.task.lengths[pairs],
        cut,
        replaced,
        every_position=experiment.task.every_position,
    )
