"""A causal test of the layer phases: do early layers build the head, late ones refine the tail?

The paper shows which layers the edges of a phase lie in; here those edges are ablated. Source:
s-Trace (arXiv 2605.27033), claims 2 and 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from strace_lens.density.causal_draws import (
    DRAWS,
    Control,
    Halves,
    ablatable_edges,
    control_of,
    counts_to_try,
    halves_of,
)
from strace_lens.density.curve import DensityCurve
from strace_lens.density.phases import find_phases
from strace_lens.measures import distributions as measures
from strace_lens.model.architecture import Model
from strace_lens.model.checks import architecture_of
from strace_lens.model.forward import last_logits
from strace_lens.model.hold import verb
from strace_lens.traces.ablation import ZERO, Replacement
from strace_lens.traces.edges import keep_text
from strace_lens.traces.masked_run import masked_logits
from strace_lens.traces.rows import MaskedRows
from strace_lens.utils.in_step import Search, in_step, run_search, translated

DESTROYED = 0.9
"""Share of the total variation without the whole trace from which on an output is destroyed."""

ENOUGH = 0.9
"""Share of the ablated edges that a control must have to be compared with them."""

APART = 0.01
"""Two errors differ if they are at least so far apart and their draws do not overlap."""

ERRORS = ("tv", "head_error", "tail_error")
HALVES = ("early", "late")
Row = dict[Any, Any]
_BOUNDS = ("low", "high")
COLUMNS = (
    *("ablated", "of", "edges", *ERRORS),
    *(f"{name}_{bound}" for name in ERRORS[1:] for bound in _BOUNDS),
    *("matched_edges", *(f"matched_{name}" for name in ERRORS)),
    *(f"matched_{name}_{bound}" for name in ERRORS[1:] for bound in _BOUNDS),
    "keep",
)


class _Claim(NamedTuple):
    """What the paper says of a phase: the layers that matter, and the error that shows it."""

    name: str
    part: str
    half: str
    words: str


_CLAIMS = {
    "refinement": _Claim("refinement", "tail", "late", "late layers refine the tail"),
    "head": _Claim("head subgraph", "head", "early", "early layers build the head"),
}


@verb
def phase_ablation(
    model: Model,
    curve: DensityCurve,
    *,
    replacement: Replacement = ZERO,
    seed: int = 0,
    memory_budget: int | None = None,
    allow_other_model: bool = False,
) -> pd.DataFrame:
    """Test, by ablation, whether early layers build the head and late layers refine the tail.

    From the trace at the end of refinement, edges that the refinement added are ablated, in the
    early half of the layers and then in the late half, and likewise edges of the head subgraph.
    Both halves of a phase lose the same number of edges; if a half has more, they are drawn at
    random, and its row is the mean of five draws. Each half has a control: as many edges of each
    kind in each layer, drawn from all other edges of the trace, five times.

    Each half loses as many edges as the smaller half has, if that does not destroy the output.
    If it does, this number is halved until the output survives, or until another step would ablate
    less than a hundredth of it or fewer than 8 edges. The output is destroyed if the control of a
    half, or both halves themselves, leave at least nine tenths of the total variation that ablating
    the whole trace leaves. Bisection over the numbers, by the first draw of each control, finds the
    largest at which it is not destroyed; the means of all draws must confirm it, or the next number
    is tried. `read_ablation` interprets the table.

    Args:
        model: the model that the trace was extracted from.
        curve: the curve of the trace. Kinds of edges that it keeps are neither ablated nor counted.
        replacement: what an ablated edge carries.
        seed: seed of the draws.
        memory_budget: bytes that one forward pass may take; by default it depends on the device
            (`byte_budget`).
        allow_other_model: accept a trace and a replacement that were made with other weights, such
            as those of another checkpoint; the graph must still have the shape of this model's.

    Returns:
        One row per ablation, with the columns `ablated`; `of`, the number of edges of that part;
        `edges`, the number of them that are ablated; `tv`, `head_error`, `tail_error`, means over
        the draws; `head_error_low`, `head_error_high` and the same for the tail, the lowest and
        highest draw; `matched_edges`, the mean number that the control ablates, which is less than
        `edges` if the trace does not have enough other edges of a kind in a layer; `matched_tv`
        etc., the values of the control; `keep`, the kinds that are never ablated. The first row
        ablates nothing and the last one the whole trace; neither has a control. The table is empty
        if the curve has no head subgraph or no tail refinement.

    Raises:
        ValueError: a trace of another model, or a trace or replacement of other weights.

    Example:
        >>> sl.phase_ablation(model, curve)[["ablated", "edges", "head_error", "tail_error"]]
    """
    (table,) = phase_ablations(
        model,
        [curve],
        replacement=replacement,
        seed=seed,
        memory_budget=memory_budget,
        allow_other_model=allow_other_model,
    )
    return table


@verb
def phase_ablations(
    model: Model,
    curves: Sequence[DensityCurve],
    *,
    replacement: Replacement = ZERO,
    seed: int = 0,
    memory_budget: int | None = None,
    allow_other_model: bool = False,
) -> list[pd.DataFrame]:
    """`phase_ablation` of several curves, whose rows share forward passes.

    The other parameters and the errors are as for `phase_ablation`.

    Args:
        curves: of traces of this model.
    """
    architecture = architecture_of(model)
    full: dict[tuple[int, ...], Tensor] = {}
    for curve in curves:
        curve.trace.expect_model(model, allow_other_model=allow_other_model)
        prompt = curve.trace.prompt
        if tuple(prompt.ids) not in full:
            logits = last_logits(model, architecture, prompt.tensor[None])
            if logits.device.type == "mps":  # which has no float64
                logits = logits.cpu()
            full[tuple(prompt.ids)] = logits.double().log_softmax(-1)
    searches = [
        _table_of(curve, full[tuple(curve.trace.prompt.ids)], replacement, seed) for curve in curves
    ]

    def measure(rows: list[MaskedRows]) -> Float[Tensor, "row vocab"]:
        return masked_logits(
            model,
            architecture,
            rows,
            memory_budget=memory_budget,
            allow_other_model=allow_other_model,
        )

    return run_search(in_step(searches), measure)


def _table_of(
    curve: DensityCurve, full: Float[Tensor, "1 vocab"], replacement: Replacement, seed: int
) -> Search[pd.DataFrame]:
    """The table of a curve, which asks for the logits of rows."""
    phases, trace = find_phases(curve), curve.trace
    if phases.head is None or phases.tail is None:
        return pd.DataFrame(columns=list(COLUMNS))
    end = phases.tail.last
    whole = trace.ranks.map(lambda r: r < end)

    def without(gone: Int64[Tensor, " gone"]) -> MaskedRows:
        """One row that keeps the rest of the trace: rank 0 is kept, rank 1 is not."""
        ranks = (~whole.flat()).to(torch.int8)
        ranks[gone] = 1
        return MaskedRows(
            tokens=trace.prompt.tensor,
            shape=trace.shape,
            ranks=trace.shape.split(ranks),
            start=None,
            stop=torch.ones(1, dtype=torch.int32),
            keep=curve.keep,
            replacement=replacement,
        )

    def errors(logits: Float[Tensor, "row vocab"]) -> Float[Tensor, "row 3"]:
        """`ERRORS` of each row."""
        ours = logits.double().log_softmax(-1)
        head, tail = measures.head_tail_error(full, ours, curve.head)
        return torch.stack([head + tail, head, tail], 1).cpu()

    generator = torch.Generator().manual_seed(seed)
    ablatable = ablatable_edges(whole, curve.keep)
    halves = [
        halves_of(trace, name, phase, ablatable, generator)
        for name, phase in (("refinement", phases.tail), ("head", phases.head))
    ]
    edges = ablatable.nonzero().flatten()
    control = control_of(trace, edges, generator)
    rows = yield from translated(_rows_of(halves, control, edges), without, errors)
    return pd.DataFrame(rows).reindex(columns=list(COLUMNS)).assign(keep=keep_text(curve.keep))


def _rows_of(
    of_phases: Sequence[Halves], control: Control, edges: Int64[Tensor, " edge"]
) -> Search[list[Row]]:
    """The rows of a table, which ask for the errors of the trace without sets of edges."""
    nothing, everything = yield [edges[:0], edges]
    limit = DESTROYED * float(everything[0])
    graded = yield from in_step([_graded(halves, control, limit) for halves in of_phases])
    return [
        {"ablated": "nothing", "of": 0, "edges": 0} | _means("", nothing[None]),
        *(row for rows in graded for row in rows),
        {"ablated": "everything", "of": len(edges), "edges": len(edges)}
        | _means("", everything[None]),
    ]


def read_ablation(table: pd.DataFrame) -> list[str]:
    """Interpret a table of `phase_ablation` in a sentence on each phase.

    The refinement is judged by the error of the tail, the head subgraph by that of the head. Two
    errors differ if every draw of one is greater than every draw of the other (of five draws each,
    equal distributions do that once in 126 times) and their means are at least 0.01 apart. If even
    the smallest number of edges destroys the output, there is no verdict. A control of less than
    nine tenths of the edges is not compared with them.

    Args:
        table: the result of `phase_ablation`.

    Returns:
        A text on the refinement and one on the head subgraph; no text for an empty table.
    """
    if table.empty:
        return []
    rows = {str(row["ablated"]): row for row in table.to_dict("records")}
    everything = rows["everything"]
    texts = []
    for phase, claim in _CLAIMS.items():
        early, late = (rows[f"{phase}, {half} layers"] for half in HALVES)
        text = _unresolved(claim, early, late, everything["tv"]) or _told(claim, early, late)
        if everything["keep"] != "none":
            kinds = str(everything["keep"]).replace("mlp", "MLP").split("+")
            text = f"with {' and '.join(kinds)} edges in place, {text}"
        texts.append(text[0].upper() + text[1:])
    return texts


def _graded(halves: Halves, control: Control, limit: float) -> Search[list[Row]]:
    """A row for each half of a phase, at the greatest number of edges that leaves an output."""
    counts = counts_to_try(min(len(half.edges) for half in halves))
    # The first number at which one draw of each control leaves an output. The last number is not
    # tried here: there is none to fall back on.
    low, high = 0, len(counts) - 1
    while low < high:
        middle = (low + high) // 2
        sets = [control.matching(half.draws(counts[middle])[0], 0) for half in halves]
        if float((yield sets)[:, 0].max()) < limit:
            high = middle
        else:
            low = middle + 1
    while True:
        early, late = yield from _measured(halves, counts[low], control)
        if low == len(counts) - 1 or _destroyed(early, late, limit) is None:
            return [early, late]
        low += 1


def _measured(halves: Halves, count: int, control: Control) -> Search[list[Row]]:
    """One row for each half at a number of edges; all sets are run together."""
    parts: list[list[Tensor]] = []
    for half in halves:
        drawn = half.draws(count)
        parts += [drawn, [control.matching(drawn[i % len(drawn)], i) for i in range(DRAWS)]]
    found = (yield [gone for part in parts for gone in part]).split([len(part) for part in parts])
    return [
        {"ablated": half.name, "of": len(half.edges), "edges": count}
        | _means("", drawn)
        | _ranges("", drawn)
        | {"matched_edges": sum(len(gone) for gone in others) / DRAWS}
        | _means("matched_", matched)
        | _ranges("matched_", matched)
        for half, drawn, matched, others in zip(
            halves, found[::2], found[1::2], parts[1::2], strict=True
        )
    ]


def _destroyed(early: Row, late: Row, limit: float) -> tuple[float, str] | None:
    """A total variation that shows the output to be destroyed, and without which edges."""
    count = early["edges"]
    if count == 0:
        return None
    for half, row in zip(HALVES, (early, late), strict=True):
        if row["matched_tv"] >= limit:
            drawn = _edges(round(row["matched_edges"]), "other")
            of = f"of the trace, of the kinds and layers of its {half} half,"
            return row["matched_tv"], f"{drawn} {of}"
    least = min(early["tv"], late["tv"])
    if least >= limit:
        return least, f"{_edges(count, 'early')} or as many late ones"
    return None


def _unresolved(claim: _Claim, early: Row, late: Row, everything: float) -> str | None:
    """Why the rows of a phase tell nothing, if they do not."""
    if early["edges"] == 0:
        empty = [half for half, row in zip(HALVES, (early, late), strict=True) if row["of"] == 0]
        return f"the {claim.name} has no edges to ablate in the {' and '.join(empty)} layers."
    destroyed = _destroyed(early, late, DESTROYED * everything)
    if destroyed is None:
        return None
    tv, gone = destroyed
    return (
        f"ablation of the {claim.name} resolves nothing: even without {gone} the output is "
        f"destroyed (TV {tv:.3f}; {everything:.3f} without the whole trace), which leaves open "
        f"whether {claim.words}."
    )


def _told(claim: _Claim, early: Row, late: Row) -> str:
    """How the halves differ from each other, and each from its control."""
    error, count = f"{claim.part}_error", early["edges"]
    more = _greater((early, error), (late, error))
    if more is None:
        verdict = "early and late edges cannot be told apart, which leaves open whether"
    else:
        half = HALVES[not more]
        verb = "supports" if half == claim.half else "contradicts"
        verdict = f"the {half} edges matter more, which {verb}, on this prompt, that"
    halved = ""
    if count < min(early["of"], late["of"]):
        halved = " (of twice as many, one draw destroys the output)"
    return (
        f"without {_edges(count, 'early')} of the {claim.name}{halved} the {claim.part} error is "
        f"{_drawn(early, error)}, without as many late ones {_drawn(late, error)}: {verdict} "
        f"{claim.words}. {_beside_control(error, early, late)}"
    )


def _beside_control(error: str, early: Row, late: Row) -> str:
    """How each half compares with its control."""
    count = early["edges"]
    drawn = [round(row["matched_edges"]) for row in (early, late)]
    both = f"{drawn[0]:,} and {drawn[1]:,}"
    if min(drawn) < ENOUGH * count:
        return (
            "The trace has too few other edges of the same kinds in the same layers to compare "
            f"them with: {both}."
        )
    many = "as many" if min(drawn) == count else f"{both} (there are no more)"
    words = {None: "cannot be told apart", True: "matter more", False: "matter less"}
    early_beside, late_beside = (
        words[_greater((row, error), (row, f"matched_{error}"))] for row in (early, late)
    )
    beside = f"the early edges {early_beside} and the late ones {late_beside}"
    if early_beside == late_beside:
        beside = f"both {early_beside}"
    return (
        f"Without other edges of the trace, {many} of the same kinds in the same layers, it is "
        f"{_drawn(early, f'matched_{error}')} and {_drawn(late, f'matched_{error}')}: compared "
        f"with these, {beside}."
    )


def _greater(one: tuple[Row, str], other: tuple[Row, str]) -> bool | None:
    """Whether one error is the greater one; None if they cannot be told apart."""
    (low, mean, high), (other_low, other_mean, other_high) = (
        (row[f"{name}_low"], row[name], row[f"{name}_high"]) for row, name in (one, other)
    )
    if abs(mean - other_mean) < APART or (low <= other_high and other_low <= high):
        return None
    return mean > other_mean


def _drawn(row: Row, name: str) -> str:
    """A mean and, if there is more than one draw, between what the draws lie."""
    low, high = (f"{row[f'{name}_{bound}']:.2g}" for bound in _BOUNDS)
    return f"{row[name]:.2g}" + (f" ({low} to {high})" if low != high else "")


def _edges(count: int, which: str) -> str:
    return f"{count:,} {which} edge{'s' * (count != 1)}"


def _means(prefix: str, errors: Float[Tensor, "draw 3"]) -> dict[str, float]:
    pairs = zip(ERRORS, errors.mean(0).tolist(), strict=True)
    return {f"{prefix}{name}": mean for name, mean in pairs}


def _ranges(prefix: str, errors: Float[Tensor, "draw 3"]) -> dict[str, float]:
    ends = torch.stack([errors.amin(0), errors.amax(0)], 1).tolist()
    return {
        f"{prefix}{name}_{bound}": end
        for name, of_name in zip(ERRORS[1:], ends[1:], strict=True)
        for bound, end in zip(_BOUNDS, of_name, strict=True)
    }
