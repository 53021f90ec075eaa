"""A circuit as hooks, for runs of a user's own: what `Circuit.hooks` returns."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from strace_lens.circuits.circuit import Circuit
from strace_lens.circuits.experiment import expect_own, make_experiment
from strace_lens.circuits.outputs import Outputs
from strace_lens.circuits.patching import plan_pass
from strace_lens.circuits.run_circuits import stack
from strace_lens.circuits.task import Task
from strace_lens.circuits.wiring import Wiring, wiring_of
from strace_lens.model.architecture import Model, device_of
from strace_lens.model.forward import Hook, hooks_of_each_run
from strace_lens.model.hold import verb
from strace_lens.utils.choices import EDGE_ABLATIONS as ABLATIONS


@verb
def circuit_hooks(
    model: Model,
    circuit: Circuit,
    task: Task | None = None,
    *,
    ablation: str | None = None,
    allow_other_model: bool = False,
) -> list[Hook]:
    """`Circuit.hooks`, which see for arguments and errors."""
    wiring = wiring_of(model)
    expect_own(wiring.graph, circuit, model, allow_other_model)
    ablation = ablation or ("zero" if task is None else "resample")
    carried = _carried(model, circuit, task, ablation, allow_other_model)
    cut = (1 - circuit.keep.float()) * circuit.exists
    cut = cut.to(device_of(model))[None]

    def make(first: Float[Tensor, "row pos d_model"]) -> list[Hook]:
        rows, tokens = first.shape[:2]
        _check_run(model, wiring, circuit, carried, ablation, rows, tokens)
        replaced = _zeros(wiring, first) if carried is None else carried
        if len(replaced.embed) != rows:
            replaced = replaced.map(lambda x: x.expand(rows, *x.shape[1:]))
        own = cut.expand(rows, *cut.shape[1:])
        gradient = torch.is_grad_enabled()
        return plan_pass(model, wiring, own, replaced, tokens, gradient=gradient).hooks

    tokens = cut.shape[3] if cut.ndim == 4 else 1
    nothing = cut.new_zeros(1, tokens, wiring.architecture.d_model)
    hooks = plan_pass(model, wiring, cut, _zeros(wiring, nothing), tokens).hooks
    return hooks_of_each_run(make, [point for point, _ in hooks])


def _carried(
    model: Model, circuit: Circuit, task: Task | None, ablation: str, allow_other_model: bool
) -> Outputs | None:
    """What ablated edges carry: a row for each pair, one row for all, or None for zero."""
    if ablation not in ABLATIONS:
        raise ValueError(f"unknown ablation {ablation!r}; choose from {', '.join(ABLATIONS)}")
    if ablation == "zero":
        return None
    if task is None:
        raise ValueError(
            f"{ablation} ablation takes its values from the prompts of a task: pass one, or use "
            "ablation='zero'"
        )
    if not task.equal_lengths:
        raise ValueError(
            f"these hooks run prompts of one length; task {task.name!r} has "
            f"{int(task.lengths.min())} to {int(task.lengths.max())} tokens: take pairs of one "
            "length"
        )
    if circuit.keep.ndim == 3 and task.spans is not None:
        raise ValueError(
            f"the positions of this circuit are spans of task {task.name!r}, which differ from "
            "pair to pair; these hooks do not know of which pair a run is: use sl.run_circuits"
        )
    experiment = make_experiment(
        model, task, ablation=ablation, allow_other_model=allow_other_model
    )
    stack(experiment, [circuit])  # refuses token positions that the task does not have
    replaced = experiment.replaced
    return replaced if ablation == "resample" else replaced.rows(slice(0, 1))


def _zeros(wiring: Wiring, like: Float[Tensor, "row pos d_model"]) -> Outputs:
    """Outputs of zero, which broadcast over the heads."""
    embed, layers = torch.zeros_like(like), wiring.graph.layers
    z = embed.new_zeros(len(like), 1, 1, 1)
    return Outputs(embed, (z,) * layers, (z[..., 0],) * (layers * wiring.graph.mlp))


def _check_run(
    model: Model,
    wiring: Wiring,
    circuit: Circuit,
    carried: Outputs | None,
    ablation: str,
    rows: int,
    tokens: int,
) -> None:
    """Refuse a run that the hooks would not patch, or not with what belongs to its rows."""
    pairs, width = (None, None) if carried is None else carried.embed.shape[:2]
    if width is None and circuit.keep.ndim == 3:
        width = circuit.keep.shape[2]
    if width is not None and tokens != width:
        raise ValueError(
            f"these hooks patch prompts of {width} tokens, but the run has {tokens}; run token "
            f"ids [batch, {width}]"
        )
    if ablation == "resample" and rows != pairs:
        raise ValueError(
            f"these hooks patch {pairs} pairs, row by row, but the run has {rows} rows; run the "
            "clean prompts of the whole task, or make the hooks of `task.take` of some pairs"
        )
    cfg: Any = model.cfg
    if wiring.mlp_point == "hook_mlp_in" and wiring.graph.mlp and not cfg.use_hook_mlp_in:
        raise RuntimeError(
            f"{wiring.graph.model} does not run hook_mlp_in, where inputs of MLPs are patched; "
            "call model.set_use_hook_mlp_in(True) before the run"
        )
