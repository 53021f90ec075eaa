"""The causal check of the layer phases: do early layers build the head, late ones refine the tail?

The paper shows which layers the edges of a phase lie in; here those edges are taken away. Source:
s-Trace (arXiv 2605.27033), claims 2 and 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from strace_lens import measures
from strace_lens.ablation import ZERO, Replacement
from strace_lens.architecture import Model
from strace_lens.contract import architecture_of
from strace_lens.density import DensityCurve
from strace_lens.hold import verb
from strace_lens.phases import LayerPhase, find_phases
from strace_lens.run import MEMORY_BUDGET, last_logits
from strace_lens.token_graph.edges import EdgeTensors
from strace_lens.token_graph.masked_run import masked_logits
from strace_lens.token_graph.rows import MaskedRows
from strace_lens.token_graph.trace import Trace

DRAWS = 5
"""Random sets of edges that each mean is taken over."""

DESTROYED = 0.9
"""Share of the total variation without any edge from which on an output is destroyed."""

ERRORS = ("tv", "head_error", "tail_error")
HALVES = ("early", "late")
Row = dict[Any, Any]
COLUMNS = (
    *("ablated", "of", "edges", *ERRORS),
    *(f"random_{name}" for name in ERRORS),
    *(f"{name}_spread" for name in ERRORS),
)


@dataclass(frozen=True)
class _Claim:
    """What the paper says of a phase: the layers that matter, and the error that shows it."""

    name: str
    part: str
    half: str
    words: str


_CLAIMS = {
    "refinement": _Claim("refinement", "tail", "late", "late layers refine the tail"),
    "head": _Claim("head subgraph", "head", "early", "early layers build the head"),
}


@dataclass(frozen=True, eq=False)
class _Ablation:
    """Edges of a phase from which equal numbers are drawn.

    Attributes:
        phase: "refinement" or "head".
        half: "early", "late", or "" for edges of any layer.
        pool: the edges, as places in the flat graph.
        count: how many of them are ablated at a time.
    """

    phase: str
    half: str
    pool: Int64[Tensor, " edge"]
    count: int

    def draws(self, generator: torch.Generator) -> list[Int64[Tensor, " drawn"]]:
        """The sets to ablate: five, or a single one where there is no choice."""
        if self.count in (0, len(self.pool)):
            return [self.pool[: self.count]]
        return [
            self.pool[torch.randperm(len(self.pool), generator=generator)[: self.count]]
            for _ in range(DRAWS)
        ]


@verb
def phase_ablation(
    model: Model,
    curve: DensityCurve,
    *,
    replacement: Replacement = ZERO,
    seed: int = 0,
    memory_budget: int = MEMORY_BUDGET,
    allow_other_model: bool = False,
) -> pd.DataFrame:
    """Do early layers build the head and late layers refine the tail? Ablate each part and see.

    From the trace at the end of refinement, ablates edges that the refinement added, in the early
    half of the layers and then in the late half, and likewise edges of the head subgraph. Both
    halves of a phase lose equally many edges, as many as the smaller half has: in the larger one
    they are drawn at random, and its row is the mean of five draws. The control draws as many
    edges of the same phase from all layers, five times. `read_ablation` says what follows.

    Args:
        model: the model that the trace was extracted from.
        curve: of the trace.
        replacement: what an ablated edge carries.
        seed: of the draws.
        memory_budget: bytes that one forward pass may take.
        allow_other_model: accept a trace and a replacement that were made with other weights, as
            of another checkpoint; the graph must still have the shape of this model's.

    Returns:
        One row an ablation, with the columns `ablated`; `of`, how many edges that part has;
        `edges`, how many of them are ablated; `tv`, `head_error`, `tail_error`, means over the
        draws; `random_tv`, `random_head_error`, `random_tail_error`, the same of the control;
        `tv_spread`, `head_error_spread`, `tail_error_spread`, the widest range (greatest less
        least) that the draws of either half or of the control have. The first row ablates nothing
        and the last one everything; neither has a control. Empty where the curve has no head
        subgraph or no tail refinement.

    Raises:
        ValueError: a trace of another model, or a trace or replacement of other weights.
    """
    curve.trace.expect_model(model, allow_other_model=allow_other_model)
    replacement.expect_model(model, allow_other_model=allow_other_model)
    phases = find_phases(curve)
    if phases.head is None or phases.tail is None:
        return pd.DataFrame(columns=list(COLUMNS))
    trace, architecture = curve.trace, architecture_of(model)
    end = phases.tail.last
    whole = trace.ranks.map(lambda r: r < end)
    generator = torch.Generator().manual_seed(seed)
    parts = [*_parts(trace, "refinement", phases.tail), *_parts(trace, "head", phases.head)]
    drawn = [part.draws(generator) for part in parts]
    keep = curve.keep
    masks = [whole, *(_without(trace, whole, gone) for sets in drawn for gone in sets)]
    masks.append(whole.map(torch.zeros_like))
    logits = masked_logits(
        model,
        architecture,
        [_mask_rows(trace, kept, keep, replacement) for kept in masks],
        memory_budget=memory_budget,
        allow_other_model=allow_other_model,
    )
    untouched = last_logits(model, architecture, trace.prompt.tensor[None]).cpu()
    full, ours = untouched.double().log_softmax(-1), logits.double().log_softmax(-1)
    head, tail = measures.head_tail_error(full, ours, curve.head)
    nothing, *of_parts, everything = torch.stack([head + tail, head, tail], 1).split(
        [1, *(len(sets) for sets in drawn), 1]
    )
    rows = [_row("nothing", 0, 0, nothing)]
    for first in range(0, len(parts), 3):
        rows += _phase_rows(parts[first : first + 2], of_parts[first : first + 3])
    rows.append(_row("everything", end, end, everything))
    return pd.DataFrame(rows).reindex(columns=list(COLUMNS))


def read_ablation(table: pd.DataFrame) -> list[str]:
    """What follows from a table of `phase_ablation`, in one sentence a phase.

    The refinement is judged by the error of the tail, the head subgraph by that of the head. Two
    errors differ if they are further apart than the spread of the draws. Nothing can be told where
    the control, or each half, leaves at least nine tenths of the total variation that ablating
    everything leaves: the loss of that many edges destroys the output, whichever they are.

    Args:
        table: what `phase_ablation` returned.

    Returns:
        The sentence on the refinement and the one on the head subgraph; none for an empty table.
    """
    if table.empty:
        return []
    rows = {str(row["ablated"]): row for row in table.to_dict("records")}
    everything = rows["everything"]["tv"]
    sentences = []
    for phase, claim in _CLAIMS.items():
        early, late = (rows[f"{phase}, {half} layers"] for half in HALVES)
        sentences.append(_unresolved(claim, early, late, everything) or _told(claim, early, late))
    return sentences


def _unresolved(claim: _Claim, early: Row, late: Row, everything: float) -> str | None:
    """Why the rows of a phase tell nothing, if they do not."""
    count = early["edges"]
    if count == 0:
        empty = [half for half, row in zip(HALVES, (early, late), strict=True) if row["of"] == 0]
        return f"The {claim.name} has no edges in the {' and '.join(empty)} layers to be compared."
    for tv, gone in (
        (early["random_tv"], f"{count:,} of its edges from all layers"),
        (min(early["tv"], late["tv"]), f"{count:,} of its early or as many of its late edges"),
    ):
        if tv >= DESTROYED * everything:
            return (
                f"Ablation of the {claim.name} resolves nothing: without {gone} the output is "
                f"destroyed (TV {tv:.3f}, {everything:.3f} without any edge), which leaves open "
                f"whether {claim.words}."
            )
    return None


def _told(claim: _Claim, early: Row, late: Row) -> str:
    column = f"{claim.part}_error"
    errors, random = (early[column], late[column]), early[f"random_{column}"]
    spread = early[f"{column}_spread"]
    if abs(errors[0] - errors[1]) <= spread:
        verdict = "early and late edges cannot be told apart, which leaves open whether"
    else:
        more = HALVES[errors[1] > errors[0]]
        verb = "supports" if more == claim.half else "contradicts"
        verdict = f"the {more} edges matter more, which {verb}, on this prompt, that"
    early_beside, late_beside = (_beside(error, random, spread) for error in errors)
    beside = f"the early ones {early_beside} and the late ones {late_beside}"
    if early_beside == late_beside:
        beside = f"both {early_beside}"
    return (
        f"Without {early['edges']:,} early edges of the {claim.name} the {claim.part} error is "
        f"{errors[0]:.2g}, without as many late ones {errors[1]:.2g}, without as many from all "
        f"layers {random:.2g} (draws spread over {spread:.2g}): {verdict} {claim.words}; compared "
        f"with edges from all layers, {beside}."
    )


def _beside(error: float, random: float, spread: float) -> str:
    if abs(error - random) <= spread:
        return "cannot be told apart"
    return "matter more" if error > random else "matter less"


def _phase_rows(parts: Sequence[_Ablation], errors: Sequence[Float[Tensor, "_ 3"]]) -> list[Row]:
    """The rows of both halves of a phase, from their errors and, last, those of the control."""
    spread = torch.stack([e.amax(0) - e.amin(0) for e in errors]).amax(0)
    control = _named("random_{}", errors[-1].mean(0)) | _named("{}_spread", spread)
    return [
        _row(f"{part.phase}, {part.half} layers", len(part.pool), part.count, e) | control
        for part, e in zip(parts, errors, strict=False)
    ]


def _parts(trace: Trace, name: str, phase: LayerPhase) -> Iterator[_Ablation]:
    """The early half of a phase, its late half, and all of it for the control."""
    ranks, layers = trace.ranks.flat(), trace.shape.layer_of().flat()
    inside = (ranks >= phase.first) & (ranks < phase.last)
    early: Bool[Tensor, " edge"] = layers < trace.shape.layers // 2
    pools = [_places(inside & early), _places(inside & ~early)]
    count = min(len(pool) for pool in pools)
    for half, pool in (*zip(HALVES, pools, strict=True), ("", _places(inside))):
        yield _Ablation(name, half, pool, count)


def _places(inside: Bool[Tensor, " edge"]) -> Tensor:
    return inside.nonzero().flatten()


def _without(trace: Trace, kept: EdgeTensors, gone: Tensor) -> EdgeTensors:
    flat = kept.flat()
    flat[gone] = False
    return trace.shape.split(flat)


def _row(name: str, of: int, edges: int, errors: Float[Tensor, "draw 3"]) -> Row:
    return {"ablated": name, "of": of, "edges": edges, **_named("{}", errors.mean(0))}


def _named(pattern: str, errors: Float[Tensor, "3"]) -> dict[str, float]:
    return {pattern.format(name): float(e) for name, e in zip(ERRORS, errors, strict=True)}


def _mask_rows(
    trace: Trace, kept: EdgeTensors, keep: tuple[str, ...], replacement: Replacement
) -> MaskedRows:
    """One row that keeps the edges marked: rank 0 is kept, rank 1 is not."""
    return MaskedRows(
        tokens=trace.prompt.tensor,
        shape=trace.shape,
        ranks=kept.map(lambda k: (~k).to(torch.int8)),
        start=torch.zeros(1, dtype=torch.int32),
        stop=torch.ones(1, dtype=torch.int32),
        keep=keep,
        replacement=replacement,
    )
