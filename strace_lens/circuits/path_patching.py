"""Path patching: the effect of a node through only its direct paths to some receivers.

Wang et al. (2023), "Interpretability in the Wild", section 3.1 and appendix B, in the form of edges
of Goldowsky-Dill et al. (2023), "Localizing Model Behavior with Path Patching".

A receiver reads the sum of what every source wrote. So the run in which everything but the senders
is frozen is not needed: its sums are given to the receivers of one run, as replacements of every
edge that enters them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from strace_lens.circuits.experiment import Experiment, make_experiment
from strace_lens.circuits.graph import LOGITS
from strace_lens.circuits.interventions import effects_table, measured
from strace_lens.circuits.metrics import Logits
from strace_lens.circuits.names import (
    Positions,
    Target,
    at_positions,
    input_cells,
    node_targets,
)
from strace_lens.circuits.outputs import Outputs
from strace_lens.circuits.run_circuits import Direction, patched_pairs
from strace_lens.circuits.task import Task
from strace_lens.circuits.wiring import keep_hooks
from strace_lens.model.architecture import Model, device_of
from strace_lens.model.hold import verb


@verb
def path_patch(
    model: Model,
    task: Task,
    senders: str | Sequence[str | Sequence[str]] = "head",
    receivers: str | Sequence[str] = LOGITS,
    *,
    freeze_mlps: bool = False,
    positions: Positions = None,
    direction: Direction = "noise",
    ablation: str = "resample",
    metric: str | None = None,
    memory_budget: int | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Patch only the direct paths from senders to receivers.

    Under "noise", one sender at a time is patched into the clean run, in these steps:

    1. The clean run gives the output of every node, the other run that of the sender.
    2. The sender's output is replaced. All other heads and the embedding are frozen to their clean
       outputs. MLPs are recomputed from what then reaches them, as in Wang et al., where a path
       through MLPs counts as direct; with `freeze_mlps` they are frozen too, so that the only path
       is the edge from sender to receiver. Norms are always recomputed. What the receivers would
       read is stored.
    3. In a clean run, all receivers at once read what was stored, whatever the others change;
       everything after them, heads and MLPs, is recomputed.

    The parameters `metric`, `memory_budget` and `seed` are as for `ablate`.

    Args:
        model: the model.
        task: pairs of clean and corrupted prompts.
        senders: one row of the table per item: a name such as `a5.h5`, `m3` or `embed`, or names
            that are patched together; or "head" or "mlp_out" for every node of that kind that
            writes before a receiver reads.
        receivers: inputs of heads (`a7.h3<q>` or `a7.h3.q`; `a7.kv1<k>` if queries are grouped),
            nodes for all of their inputs, or `logits`; all are patched together.
        freeze_mlps: freeze MLPs in step 2 as well.
        positions: where the sender's output is replaced, as for `ablate`.
        direction: "noise" patches into the clean run; "denoise" patches the sender's clean output
            into the corrupted run, to which everything else is frozen.
        ablation: what replaces a sender's output under "noise", as for `run_circuits`.

    Returns:
        The table of `ablate`, one row per sender (and position); signs and `fraction` are those of
        `activation_patch`. `edges` counts those from the sender to the receivers.

    Raises:
        ValueError: an unknown name, a sender that writes after every receiver has read, or as for
            `ablate`.
        UnsupportedModelError: the model cannot be patched.
        FloatingPointError: a logit is NaN or infinite.

    Example:
        >>> sl.path_patch(model, task, senders=["a5.h5", "a6.h8"], receivers=["a7.h3.q"])
    """
    experiment = make_experiment(
        model, task, metric=metric, ablation=ablation, memory_budget=memory_budget
    )
    if direction == "denoise" and ablation != "resample":
        raise ValueError("denoising patches clean values into the corrupted run: use resample")
    if direction not in ("noise", "denoise"):
        raise ValueError(f"unknown direction {direction!r}; choose from noise, denoise")
    reads = _receiving(experiment, receivers)
    targets = at_positions(_senders(experiment, senders, reads), task, positions)
    runs = _patched(experiment, targets, reads, direction, freeze_mlps=freeze_mlps)
    return effects_table(experiment, targets, measured(experiment, runs), direction, seed)


def _receiving(
    experiment: Experiment, receivers: str | Sequence[str]
) -> Bool[Tensor, " destination"]:
    """Which destinations are receivers."""
    graph, names = experiment.graph, [receivers] if isinstance(receivers, str) else receivers
    reads = torch.zeros(graph.destinations, dtype=torch.bool)
    for name in names:
        reads[input_cells(graph, name)] = True
    if not bool(reads.any()):
        raise ValueError("path patching without a receiver changes nothing; name at least one")
    return reads


def _senders(
    experiment: Experiment,
    senders: str | Sequence[str | Sequence[str]],
    reads: Bool[Tensor, " destination"],
) -> list[Target]:
    """Every sender with its edges to the receivers; of a kind, those that have some."""
    graph = experiment.graph
    if isinstance(senders, str) and senders not in ("head", "mlp_out"):
        senders = [senders]
    reaches = graph.exists[reads].any(0)
    found = []
    for target in node_targets(graph, senders):
        if ">" in target.name:
            raise ValueError(f"{target.name!r} cannot be a sender: it reads, and only nodes write")
        sources = [graph.source_index(name) for name in target.name.split(" + ")]
        late = [n for n in sources if not bool(reaches[n])]
        if late and not isinstance(senders, str):
            raise ValueError(
                f"{graph.source_names[late[0]]} writes after every receiver has read, so it has "
                "no path to one; name an earlier sender or a later receiver"
            )
        if not late:
            edges = target.cells[reads[target.cells[:, 0]]]
            found.append(target._replace(cells=edges))
    if not found:
        raise ValueError("no sender writes before a receiver reads; name a sender to patch")
    return found


def _patched(
    experiment: Experiment,
    targets: Sequence[Target],
    reads: Bool[Tensor, " destination"],
    direction: Direction,
    *,
    freeze_mlps: bool,
) -> Iterator[tuple[Logits, Int[Tensor, " row"]]]:
    """Logits of every (sender, pair), a pass at a time, and the pair of each row."""
    task, graph, device = experiment.task, experiment.graph, device_of(experiment.model)
    noise = direction == "noise"
    tokens = task.clean if noise else task.corrupted
    own = (experiment.clean if noise else experiment.corrupted)[0]
    other = experiment.replaced if noise else experiment.clean[0]
    sent = _sent(graph.sources, targets, task.positions)
    cut = (reads[:, None] & graph.exists).float().to(device)
    for rows in experiment.chunks(len(targets) * len(task)):
        index = torch.arange(rows.start, rows.stop)
        pairs, here = index % len(task), sent[index // len(task)]
        if task.spans is not None and here.shape[1] > 1:
            here = here[torch.arange(len(here))[:, None], task.spans[pairs]]
        mine, here = pairs.to(device), here.to(device)
        frozen = _exchanged(experiment, own.rows(mine), other.rows(mine), here)
        if graph.mlp and not freeze_mlps:
            frozen = _with_mlps_again(experiment, tokens, pairs, frozen, here)
        with torch.no_grad():
            cuts = cut.expand(len(index), *cut.shape)
            logits = patched_pairs(experiment, tokens, pairs, cuts, frozen)
        yield logits, mine


def _sent(sources: int, targets: Sequence[Target], width: int) -> Bool[Tensor, "target pos source"]:
    """Which sources each target sends, at which positions or spans (one place for all alike)."""
    by_position = any(target.at is not None for target in targets)
    sent = torch.zeros(len(targets), width if by_position else 1, sources, dtype=torch.bool)
    for own, target in zip(sent, targets, strict=True):
        at = torch.arange(len(own)) if target.at is None else target.at
        own[at[:, None], target.cells[:, 1].unique()] = True
    return sent


def _exchanged(
    experiment: Experiment, own: Outputs, other: Outputs, sent: Bool[Tensor, "row _ source"]
) -> Outputs:
    """The outputs of a run, those of the senders from another run."""
    graph = experiment.graph
    heads = [graph.heads_of(layer) for layer in range(graph.layers)]
    return Outputs(
        torch.where(sent[..., :1], other.embed, own.embed),
        tuple(
            torch.where(sent[..., numbers, None], theirs, mine)
            for numbers, theirs, mine in zip(heads, other.z, own.z, strict=True)
        ),
        tuple(
            torch.where(sent[..., numbers.stop, None], theirs, mine)
            for numbers, theirs, mine in zip(heads, other.mlp, own.mlp, strict=False)
        ),
    )


def _with_mlps_again(
    experiment: Experiment,
    tokens: Int[Tensor, "pair pos"],
    pairs: Int[Tensor, " row"],
    frozen: Outputs,
    sent: Bool[Tensor, "row _ source"],
) -> Outputs:
    """The outputs with every MLP that does not send worked out from what then reaches it."""
    graph = experiment.graph
    mlps = torch.tensor([graph.heads_of(layer).stop for layer in range(graph.layers)])
    is_frozen = torch.ones(graph.sources, dtype=torch.bool)
    is_frozen[mlps] = False
    reads = torch.zeros(graph.destinations, dtype=torch.bool)
    for layer in range(graph.layers):
        reads[graph.inputs_of(layer)["mlp"]] = True
    edges = (reads[:, None] & graph.exists).to(sent.device)
    replaced = is_frozen.to(sent.device) | sent
    cut = (edges[:, :, None] & replaced.transpose(1, 2)[:, None]).float()
    cut = cut[..., 0] if sent.shape[1] == 1 else cut
    points = [f"blocks.{layer}.hook_mlp_out" for layer in range(graph.layers)]
    kept: dict[str, Tensor] = {}
    with torch.no_grad():
        patched_pairs(experiment, tokens, pairs, cut, frozen, keep_hooks(points, kept))
    sends = sent[..., mlps.to(sent.device)]
    again = [
        torch.where(sends[..., layer, None], theirs, kept[point])
        for layer, (theirs, point) in enumerate(zip(frozen.mlp, points, strict=True))
    ]
    return frozen._replace(mlp=tuple(again))
