"""Density curves: a trace and its controls, run at every size, with all measures in a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from strace_lens.measures import distributions as measures
from strace_lens.measures.sizes import auc_paper, density
from strace_lens.model.architecture import Model
from strace_lens.model.checks import architecture_of
from strace_lens.model.forward import last_logits
from strace_lens.model.hold import verb
from strace_lens.model.predictions import (
    TopToken,
    most_probable,
    paired_top_tokens,
    token_texts,
    top_tokens,
)
from strace_lens.model.targets import Target, TargetLike, make_target, recovered
from strace_lens.traces.ablation import ZERO, Replacement
from strace_lens.traces.curve_rows import CurveRows, ablatable, curve_rows
from strace_lens.traces.masked_run import masked_logits, run_plans
from strace_lens.traces.rows import MaskedRows
from strace_lens.traces.trace import Trace
from strace_lens.utils.choices import KINDS, REFINE, SIZES
from strace_lens.utils.html_repr import facts
from strace_lens.utils.progress import Progress, reporting

HEAD = 0.5
TARGET_COLUMNS = ("target", "target_recovered", "target_tv")
"""Columns that the table of a curve with a target has in addition."""


@dataclass(frozen=True, eq=False)
class DensityCurve:
    """A trace measured at every size.

    Attributes:
        trace: the trace that was measured.
        table: one row per size. Columns: `size` (relative), `edges`; `refined`, whether the size
            was added to the grid where the curve changes (`refinement`); `tv`, `kl` (nats, full to
            trace), `js` (nats), `head_error` and `tail_error` (which add up to `tv`), `top1`,
            `nucleus` (largest shared); `random_tv`, `inverse_tv`, `random_inverse_tv` (NaN if
            controls were left out, and at refined sizes); `ablatable_size`, the trace's share of
            the edges that can be ablated (all but the kinds of `keep`); `residual`, `attention` and
            `mlp`, the shares of these kinds in its edges; `mean_layer`, from 0;
            `trace_head_mass`, the probability that the trace gives the head.
            With a target, also `target`, its value (a probability or a logit difference);
            `target_recovered`, that value on a scale where the empty trace is 0 and the full model
            1, NaN if these agree; `target_tv`, the total variation when all tokens but the named
            ones are merged into one (`named_total_variation`).
        top: the full model's most probable tokens, as pairs of text and probability.
        tops: the same for the trace at each size.
        top_tokens: both of these at each size (`predictions.TopToken`).
        entropy: entropy of the full model's distribution, in nats.
        head: p of the head, which is the full model's top-p nucleus.
        head_mass: probability that the full model gives the head.
        logit_gap: largest difference of a logit between the full mask and the unmodified model.
        ablation: what replaced ablated edges.
        seed: seed of the random control.
        keep: kinds of edges that were never ablated.
        target: the token or logit difference that was also measured, if any. It may differ from
            what the trace was ranked towards (`Trace.target`); `target_line` names both.
        target_full, target_empty: value of the target in the full model and in the empty trace.
    """

    trace: Trace
    table: pd.DataFrame
    top: tuple[tuple[str, float], ...]
    tops: tuple[tuple[tuple[str, float], ...], ...]
    top_tokens: tuple[tuple[TopToken, ...], ...]
    entropy: float
    head: float
    head_mass: float
    logit_gap: float
    ablation: str
    seed: int
    keep: tuple[str, ...] = ()
    target: Target | None = None
    target_full: float | None = None
    target_empty: float | None = None

    @property
    def target_line(self) -> str:
        """What was measured and ranked towards, as text; "" if both are the whole distribution."""
        aim = self.trace.target
        if self.target is None and aim is None:
            return ""
        given = self.trace.metadata.get("target") == "given"
        whole = "a given distribution" if given else "the whole distribution"
        ranked = "the same" if self.target == aim else aim or whole
        measured = "the whole distribution"
        if self.target is not None:
            measured = (
                f"{self.target.quantity} ({self.target_full:.4g} in the full model, "
                f"{self.target_empty:.4g} in the empty trace)"
            )
        return f"measured: {measured}; edges ranked towards {ranked}"

    @property
    def density(self) -> float:
        """Area under TV over log10 s, divided by the range of log10 s; NaN for a single size."""
        if len(self.table) < 2:
            return math.nan
        return density(self.table["size"].to_numpy(), self.table["tv"].to_numpy())

    @property
    def auc_paper(self) -> float:
        """The authors' area under TV, over only the sizes of the grid (`sizes.auc_paper`).

        It is not divided by the range of log10 s. NaN for a single size.
        """
        grid = self.table.loc[~self.table["refined"].astype(bool), ["edges", "tv"]]
        if len(grid) < 2:
            return math.nan
        return auc_paper(grid["edges"].to_numpy() / self.trace.edges, grid["tv"].to_numpy())

    def to_pandas(self) -> pd.DataFrame:
        """A copy of the table, with the trace's most probable token in the column `top`."""
        return self.table.assign(top=[tokens[0][0] for tokens in self.tops])

    def __repr__(self) -> str:
        return (
            f"DensityCurve({len(self.table)} sizes of {self.trace!r}, density {self.density:.3f})\n"
            + (f"{self.target_line}\n" if self.target_line else "")
            + self.table.to_string(index=False, float_format="{:.4g}".format)
        )

    def _repr_html_(self) -> str:
        line = (
            f"Density curve of {self.trace!r}: density {self.density:.3f}, largest logit "
            f"difference at full mask {self.logit_gap:.1e}"
        )
        line = "; ".join(filter(None, [line, self.target_line]))
        return facts(line, self.to_pandas(), self.trace.prompt.strings)


@verb
def density_curve(
    model: Model,
    trace: Trace,
    *,
    sizes: Sequence[float] = SIZES,
    refine: int = REFINE,
    controls: bool = True,
    keep: Sequence[str] = (),
    replacement: Replacement = ZERO,
    target: TargetLike | None = None,
    head: float = HEAD,
    seed: int = 0,
    memory_budget: int | None = None,
    progress: Progress | None = None,
    allow_other_model: bool = False,
) -> DensityCurve:
    """Run a trace at every size, with its controls, and measure each output.

    Args:
        model: the model that the trace was extracted from.
        trace: the ranking of every edge.
        sizes: the grid, as increasing relative sizes.
        refine: maximum number of sizes to add to the grid, where total variation changes by more
            than a tenth from one size to the next and where head and tail are restored
            (`refinement`); 0 measures only the grid.
        controls: also run a random subgraph, its inverse and the inverse of the trace at every size
            of the grid.
        keep: kinds of edges ("attention", "mlp", "residual") that are never ablated. The paper's
            definition keeps none; with ("attention",) the curve is what the authors' released
            evaluation computes. Sizes remain relative to all edges.
        replacement: what an ablated edge carries (`ablation.ZERO`, `mean`, `resample`).
        target: one token, such as " Rome" or its id, or a pair for a logit difference, such as
            (" Rome", " Paris") or ([" Rome", " Milan"], " Paris"), whose value in each subgraph is
            measured in addition to the distances from the whole distribution.
        head: p of the head of the distribution.
        seed: seed of the random control.
        memory_budget: bytes that one forward pass may take; by default it depends on the device
            (`byte_budget`).
        progress: called after each pass; by default a progress bar.
        allow_other_model: accept a trace and a replacement that were made with other weights, such
            as those of another checkpoint; the graph must still have the shape of this model's.

    Raises:
        ValueError: sizes outside (0, 1] or not increasing, a negative `refine`, an unknown kind of
            edges to keep, a trace of another model, a trace or replacement of other weights, a
            target that names no tokens of the vocabulary, or a replacement of another length than
            the prompt. For a trace that does not say which weights it was made with, only the shape
            of its graph is checked.

    Example:
        >>> curve = sl.density_curve(model, trace)
        >>> curve.to_pandas()[["size", "edges", "tv", "random_tv"]]
    """
    (curve,) = density_curves(
        model,
        [trace],
        sizes=sizes,
        refine=refine,
        controls=controls,
        keeps=[keep],
        replacements=[replacement],
        targets=[target],
        head=head,
        seed=seed,
        memory_budget=memory_budget,
        progress=progress,
        allow_other_model=allow_other_model,
    )
    return curve


@verb
def density_curves(
    model: Model,
    traces: Sequence[Trace],
    *,
    sizes: Sequence[float] = SIZES,
    refine: int = REFINE,
    controls: bool = True,
    keeps: Sequence[Sequence[str]] | None = None,
    replacements: Sequence[Replacement] | None = None,
    targets: Sequence[TargetLike | None] | None = None,
    head: float = HEAD,
    seed: int = 0,
    memory_budget: int | None = None,
    progress: Progress | None = None,
    allow_other_model: bool = False,
) -> list[DensityCurve]:
    """Measure several traces of any length as `density_curve` does, in shared forward passes.

    The parameters `sizes`, `refine`, `controls`, `head`, `seed`, `memory_budget`, `progress` and
    `allow_other_model` are as for `density_curve`.

    Args:
        model: the model that the traces were extracted from.
        traces: the traces to measure.
        keeps: for each trace, the kinds of edges that are never ablated.
        replacements: for each trace, what an ablated edge carries.
        targets: for each trace, the target to measure in addition, or None.

    Raises:
        ValueError: as for `density_curve`.

    Example:
        >>> greedy, fisher = (sl.estimate(model, graph, name) for name in ("greedy", "fisher"))
        >>> [curve.density for curve in sl.density_curves(model, [greedy, fisher])]
    """
    architecture = architecture_of(model)
    for trace in traces:
        trace.expect_model(model, allow_other_model=allow_other_model)
    keeps = [()] * len(traces) if keeps is None else keeps
    replacements = [ZERO] * len(traces) if replacements is None else replacements
    aims = [
        None if target is None else make_target(model, architecture, trace.prompt, target)
        for trace, target in zip(traces, targets or [None] * len(traces), strict=True)
    ]
    plans = [
        curve_rows(
            architecture,
            trace,
            sizes,
            controls=controls,
            replacement=replacement,
            seed=seed,
            keep=keep,
        )
        for trace, keep, replacement in zip(traces, keeps, replacements, strict=True)
    ]
    prompts = {trace.prompt.ids: trace.prompt.tensor[None] for trace in traces}
    output = {ids: last_logits(model, architecture, x)[0] for ids, x in prompts.items()}
    clean = [output[trace.prompt.ids] for trace in traces]
    most = sum(len(rows) for rows in plans) + refine * len(plans)
    with reporting(progress, "running masks", most) as advance:
        plans, logits = run_plans(
            model,
            architecture,
            traces,
            plans,
            clean,
            head=head,
            refine=refine,
            memory_budget=memory_budget,
            advance=advance,
            allow_other_model=allow_other_model,
        )
    nothing = [_empty_row(plan) for plan, aim in zip(plans, aims, strict=True) if aim is not None]
    without = iter(
        masked_logits(
            model,
            architecture,
            nothing,
            memory_budget=memory_budget,
            allow_other_model=allow_other_model,
        )
        if nothing
        else ()
    )
    empty = [None if aim is None else next(without) for aim in aims]
    text = token_texts(model)
    return [
        curve_of(*of_trace, token_text=text, head=head, seed=seed, target=aim, empty=no_edges)
        for *of_trace, aim, no_edges in zip(traces, clean, logits, plans, aims, empty, strict=True)
    ]


def _empty_row(plan: CurveRows) -> MaskedRows:
    """The row that keeps no edge but those of kinds that are never ablated."""
    return replace(plan.own, start=None, stop=torch.zeros(1, dtype=torch.int32))


def curve_of(
    trace: Trace,
    clean: Float[Tensor, " vocab"],
    logits: Float[Tensor, "row vocab"],
    rows: CurveRows,
    token_text: Callable[[int], str],
    head: float,
    seed: int,
    target: Target | None = None,
    empty: Float[Tensor, " vocab"] | None = None,
) -> DensityCurve:
    """The curve of a trace from the outputs of its rows (of `curve_rows`).

    Args:
        trace: whose rows they are.
        clean: logits of the model without masks.
        logits: of the rows, in their order.
        rows: which output belongs to which size.
        token_text: of `token_texts`.
        head: level of the nucleus that is the head.
        seed: of the controls.
        target: what to measure in addition, if anything.
        empty: logits of the empty trace, where there is a target.
    """
    clean = clean.to(logits.device)
    full = clean.double().log_softmax(-1)[None]
    log_probs = logits.double().log_softmax(-1)
    ours = log_probs[rows.trace]
    head_error, tail_error = measures.head_tail_error(full, ours, head)
    tv = measures.total_variation(full, log_probs).cpu()
    (in_head,) = measures.in_nucleus(full, head)
    favourites = most_probable(ours)
    table = pd.DataFrame(
        {
            "size": list(rows.sizes),
            "edges": rows.counts.sum((1, 2)).tolist(),
            "refined": rows.refined.tolist(),
            "tv": tv[rows.trace].tolist(),
            "kl": measures.kl_divergence(full, ours).tolist(),
            "js": measures.jensen_shannon(full, ours).tolist(),
            "head_error": head_error.tolist(),
            "tail_error": tail_error.tolist(),
            "top1": measures.top1_agreement(full, ours).tolist(),
            "nucleus": measures.shared_nucleus(full, ours).tolist(),
            "random_tv": _of_control(tv, rows, rows.random),
            "inverse_tv": _of_control(tv, rows, rows.inverse),
            "random_inverse_tv": _of_control(tv, rows, rows.random_inverse),
            "ablatable_size": _ablatable_size(rows),
            **_composition(rows.counts),
            "trace_head_mass": ours.exp().masked_fill(~in_head, 0.0).sum(-1).tolist(),
        }
    )
    of_target: dict[str, Any] = {}
    if target is not None and empty is not None:
        nothing = empty.to(logits.device).double().log_softmax(-1)
        values, least, most = (target.value(x) for x in (ours, nothing, full[0]))
        share = recovered(values, most, least)
        apart = measures.named_total_variation(full, ours, target.named)
        for name, column in zip(TARGET_COLUMNS, (values, share, apart), strict=True):
            table[name] = column.tolist()
        of_target = {"target": target, "target_full": float(most), "target_empty": float(least)}
    return DensityCurve(
        trace=trace,
        table=table,
        top=top_tokens(full, most_probable(full), token_text)[0],
        tops=tuple(top_tokens(ours, favourites, token_text)),
        top_tokens=tuple(paired_top_tokens(full[0], ours, in_head, favourites, token_text)),
        entropy=float(measures.entropy(full)[0]),
        head_mass=float(measures.head_mass(full, head)[0]),
        logit_gap=float((logits[rows.full] - clean).abs().max()),
        head=head,
        ablation=rows.own.replacement.kind,
        seed=seed,
        keep=rows.own.keep,
        **of_target,
    )


def _of_control(
    tv: Float[Tensor, " row"], rows: CurveRows, control: Int[Tensor, " size"] | None
) -> list[float]:
    """TV of a control at each size; NaN where it has no row."""
    if control is None:
        return [math.nan] * len(rows.sizes)
    return tv[control].masked_fill(control < 0, math.nan).tolist()


def _ablatable_size(rows: CurveRows) -> list[float]:
    """Share of the edges that can be ablated which the trace holds; 1 where none can."""
    held, total = (ablatable(counts, rows.own.keep) for counts in (rows.counts, rows.whole))
    return (held.double() / total).nan_to_num(1.0).tolist()


def _composition(counts: Int[Tensor, "size kind layer"]) -> dict[str, list[float]]:
    """Share of each kind and mean layer (from 0; NaN without edges) of the trace at each size."""
    counts = counts.double()
    total = counts.sum((1, 2))
    shares = counts.sum(2) / total[:, None].clamp_min(1)
    layers = torch.arange(counts.shape[2], dtype=torch.float64)
    mean_layer = (counts.sum(1) * layers).sum(-1) / total
    return {
        **{kind: shares[:, i].tolist() for i, kind in enumerate(KINDS)},
        "mean_layer": mean_layer.tolist(),
    }
