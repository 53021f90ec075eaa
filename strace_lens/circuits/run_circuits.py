"""Many circuits run on many prompts in few forward passes, each measured by the task's metric."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from strace_lens.circuits.circuit import Circuit
from strace_lens.circuits.experiment import Experiment, make_experiment
from strace_lens.circuits.metrics import METRICS
from strace_lens.circuits.outputs import (
    Outputs,
    Run,
    join_runs,
    output_hooks,
    outputs_of,
    patched_streams,
    rows_of,
)
from strace_lens.circuits.patch_hooks import KnownRun
from strace_lens.circuits.patching import PatchPlan, plan_pass, run_plan
from strace_lens.circuits.task import Task
from strace_lens.circuits.wiring import keep_hooks
from strace_lens.model.architecture import Model, device_of
from strace_lens.model.forward import Hook
from strace_lens.model.hold import verb
from strace_lens.model.sparse import has_hooks

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
    memory_budget: int | None = None,
    allow_other_model: bool = False,
) -> Float[Tensor, "circuit pair"]:
    """Run every circuit on every pair of a task and return the metric.

    Args:
        model: the model.
        task: pairs of prompts.
        circuits: circuits of this model; boolean or weighted, with or without token positions.
        ablation: what an edge outside a circuit carries: its value on the corrupted prompt
            ("resample"), the mean over all prompts of the task at that position ("mean") or also
            over positions ("mean-over-positions"), zero ("zero"), or for each source the constant
            that costs the model least ("optimal"), learned on the task's clean prompts: see
            `strace_lens.circuits.optimal`.
        direction: "noise" runs the clean prompt and corrupts what is outside the circuit;
            "denoise" runs the corrupted prompt and gives the circuit's edges their clean values
            (patching clean into corrupted), which is defined only for "resample".
        metric: key of `METRICS`; by default the task's metric.
        memory_budget: bytes that one forward pass may take; by default it depends on the device
            (`byte_budget`).
        allow_other_model: run circuits that were found with other weights, such as those of another
            checkpoint, or on a model of another name; the graphs must still have the same shape.

    Raises:
        ValueError: no circuit, a circuit of another model or of other weights, token positions that
            do not fit the task, or an unknown option.
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
    width = experiment.task.positions
    for circuit in circuits:
        experiment.expect_own(circuit)
        if circuit.keep.ndim == 3:
            check_positions(experiment.task)
            if "task_spans" in circuit.metadata and experiment.task.spans is None:
                raise ValueError(
                    f"the positions of the circuit are spans of task "
                    f"{circuit.metadata.get('task')!r}, and task {experiment.task.name!r} has "
                    "none: give it spans by task.with_spans"
                )
            if circuit.keep.shape[2] != width:
                raise ValueError(
                    f"the circuit has {circuit.keep.shape[2]} token positions, "
                    f"but the prompts of task {experiment.task.name!r} have {width}"
                    + " spans"
                    * (experiment.task.spans is not None)
                )
    masks = [circuit.keep.to(device_of(experiment.model)) for circuit in circuits]
    if any(mask.ndim == 3 for mask in masks):
        masks = [m if m.ndim == 3 else m[..., None].expand(*m.shape, width) for m in masks]
    if any(mask.dtype != torch.bool for mask in masks):
        masks = [mask.float() for mask in masks]
    return torch.stack(masks)


def check_positions(task: Task) -> None:
    """Token positions mean the same in every pair only if prompts have one length, or spans.

    Raises:
        ValueError: they have not.
    """
    if not task.equal_lengths and task.spans is None:
        raise ValueError(
            f"edges by token position need prompts of one length; task {task.name!r} has "
            f"{int(task.lengths.min())} to {int(task.lengths.max())} tokens: divide them into "
            "spans by task.with_spans"
        )


@verb
def circuit_metric(
    experiment: Experiment,
    keep: Shaped[Tensor, "circuit destination source *pos"],
    *,
    direction: Direction = "noise",
    metric: str | None = None,
    known: KnownRun | None = None,
) -> Float[Tensor, "circuit pair"]:
    """The metric of every mask on every pair, in float32 on the model's device, without gradients.

    Args:
        experiment: from `make_experiment`.
        keep: boolean masks or weights in [0, 1].
        direction: as for `run_circuits`.
        metric: key of `METRICS`; the experiment's own by default.
        known: a run of every pair, from `run_known`, of a circuit that these are like in the first
            blocks; the untouched run unless given.
    """
    experiment.expect_unchanged()
    score = METRICS[metric or experiment.metric]
    found = [
        score(logits, experiment.reference_rows(pairs))
        for logits, pairs in circuit_logits(experiment, keep, direction, known)
    ]
    return torch.cat(found).float().view(len(keep), len(experiment.task))


def circuit_logits(
    experiment: Experiment,
    keep: Shaped[Tensor, "circuit destination source *pos"],
    direction: Direction = "noise",
    known: KnownRun | None = None,
) -> Iterator[tuple[Float[Tensor, "row read vocab"], Int[Tensor, " row"]]]:
    """Logits of every (circuit, pair), a pass at a time, and the pair of each row."""
    task, device = experiment.task, device_of(experiment.model)
    if direction not in ("noise", "denoise"):
        raise ValueError(f"unknown direction {direction!r}; choose from noise, denoise")
    if direction == "denoise" and experiment.ablation != "resample":
        raise ValueError("denoising patches clean values into the corrupted run: use resample")
    tokens = task.clean if direction == "noise" else task.corrupted
    for rows in experiment.chunks(len(keep) * len(task)):
        index = torch.arange(rows.start, rows.stop)
        circuits, pairs = index // len(task), index % len(task)
        plan = _plan(experiment, keep[circuits.to(keep.device)], pairs, direction, known)
        with torch.no_grad():
            logits = _run(experiment, tokens, pairs, plan)
        yield logits, pairs.to(device)


@verb
def run_known(experiment: Experiment, keep: Shaped[Tensor, "destination source *pos"]) -> KnownRun:
    """Run a circuit on every pair, for `circuit_metric` of others that are like it in some blocks.

    Blocks before the first that holds a difference do not run again.
    """
    experiment.expect_unchanged()
    wiring, device = experiment.wiring, device_of(experiment.model)
    clean = experiment.clean
    runs: list[Run] = []
    from_replaced = None
    for rows in experiment.chunks(len(experiment.task)):
        pairs = torch.arange(rows.start, rows.stop)
        keeps = keep.expand(len(pairs), *keep.shape)
        plan = _plan(experiment, keeps, pairs, "noise", from_replaced=from_replaced)
        from_replaced = plan.from_replaced
        kept: dict[str, Tensor] = {}
        streams: dict[str, Tensor] = {}
        hooks = [*output_hooks(wiring, kept), *keep_hooks(patched_streams(wiring), streams)]
        with torch.no_grad():
            logits = _run(experiment, experiment.task.clean, pairs, plan, hooks)
        # Of blocks that were skipped nothing is read that is not replaced.
        on_device = pairs.to(device)
        own = clean.rows(on_device)
        outputs = outputs_of(wiring, kept, missing=own.outputs)
        runs.append(Run(outputs, logits, {} if from_replaced else {**own.streams, **streams}))
    whole = join_runs(runs)
    cut = _cut(experiment, keep[None], torch.zeros(1, dtype=torch.int64), "noise")[0]
    return KnownRun(cut, whole.outputs, None if from_replaced else whole.streams)


def _plan(
    experiment: Experiment,
    keep: Shaped[Tensor, "row destination source *pos"],
    pairs: Int[Tensor, " row"],
    direction: Direction,
    known: KnownRun | None = None,
    *,
    from_replaced: bool | None = None,
) -> PatchPlan:
    """One pass of circuits, each on its pair."""
    wiring, on_device = experiment.wiring, pairs.to(device_of(experiment.model))
    cut = _cut(experiment, keep, pairs, direction)
    own, other = experiment.clean, experiment.replaced
    streams = experiment.replaced_streams
    if direction == "denoise":
        own, other = experiment.corrupted, own.outputs
        streams = None if streams is None else experiment.clean.streams
    if known is None:
        known = KnownRun(torch.zeros_like(cut[0]), own.outputs, own.streams)
    # Hooks may have come after the runs that are known, whose cut is that of one pair's spans.
    if has_hooks(experiment.model) or (keep.ndim == 4 and experiment.task.spans is not None):
        known = None
    return plan_pass(
        experiment.model,
        wiring,
        cut,
        other.rows(on_device),
        experiment.task.clean.shape[1],
        streams=None if streams is None else rows_of(streams, on_device),
        is_run=experiment.ablation == "resample",
        differs=experiment.differs[pairs],
        known=None if known is None else known._replace(pairs=on_device),
        from_replaced=from_replaced,
    )


def patched_pairs(
    experiment: Experiment,
    tokens: Int[Tensor, "pair pos"],
    pairs: Int[Tensor, " row"],
    cut: Float[Tensor, "row destination source *pos"],
    replaced: Outputs,
    hooks: Sequence[Hook] = (),
) -> Float[Tensor, "row read vocab"]:
    """Logits of rows that are prompts of some pairs with edges cut, counted as a pass over them.

    Args:
        experiment: whose model runs and whose passes are counted.
        tokens: of all pairs: the clean prompts or the corrupted ones.
        pairs: of each row, on the CPU.
        cut, replaced: of each row, as for `plan_pass`.
        hooks: more of them, behind those that patch.
    """
    plan = plan_pass(experiment.model, experiment.wiring, cut, replaced, tokens.shape[1])
    return _run(experiment, tokens, pairs, plan, hooks, gradient=cut.requires_grad)


def _run(
    experiment: Experiment,
    tokens: Int[Tensor, "pair pos"],
    pairs: Int[Tensor, " row"],
    plan: PatchPlan,
    hooks: Sequence[Hook] = (),
    *,
    gradient: bool = False,
) -> Float[Tensor, "row read vocab"]:
    """Logits of a planned pass, counted, as for `patched_pairs`."""
    experiment.passes.forward_rows += len(pairs)
    return run_plan(
        experiment.model,
        experiment.wiring,
        tokens[pairs],
        experiment.task.lengths[pairs],
        plan,
        hooks,
        every_position=experiment.task.every_position,
        gradient=gradient,
    )


def _cut(
    experiment: Experiment,
    keep: Shaped[Tensor, "row destination source *at"],
    pairs: Int[Tensor, " row"],
    direction: Direction,
) -> Float[Tensor, "row destination source *pos"]:
    """What is replaced of every edge: of those kept when denoising, of the others else."""
    kept = keep.detach().to(device_of(experiment.model))
    out = kept if direction == "denoise" else ~kept if kept.dtype == torch.bool else 1 - kept
    exists = experiment.graph.exists.to(kept.device)
    cut = (out * (exists[..., None] if keep.ndim == 4 else exists)).float()
    if keep.ndim == 3 or experiment.task.spans is None:
        return cut
    spans = experiment.task.spans[pairs].to(cut.device)
    return cut.gather(3, spans[:, None, None].expand(-1, *cut.shape[1:3], -1))
