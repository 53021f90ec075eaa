"""One prompt in three ways: as defined, with attention left in place, and by a tight trace.

The paper's search runs over all edges. Its authors' released evaluation ablates residual and MLP
edges and leaves attention edges in place, whatever the trace holds. A tighter ranking shows what is
due to the search and what to the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from strace_lens.density.curve import TARGET_COLUMNS, DensityCurve, density_curves
from strace_lens.measures.sizes import smallest_size_from_which
from strace_lens.model.architecture import Model
from strace_lens.model.hold import verb
from strace_lens.model.targets import TargetLike
from strace_lens.traces.ablation import ZERO, Replacement
from strace_lens.traces.edges import keep_text
from strace_lens.traces.estimators import estimate, estimator_of
from strace_lens.traces.graph import TokenGraph
from strace_lens.traces.trace import Trace
from strace_lens.utils.choices import GRADIENT_BUDGET, REFINE, SIZES
from strace_lens.utils.progress import Progress

RECOVERED = 0.9
"""Share of the way from the empty trace to the full model from which on a target is recovered."""


class Way(NamedTuple):
    """A way to measure a prompt.

    Attributes:
        name: a short name, for files and columns.
        title: a title, for figures.
        phrase: a phrase, for sentences.
        estimator: how edges are ranked, a key of `ESTIMATORS`.
        keep: kinds of edges that are never ablated.
    """

    name: str
    title: str
    phrase: str
    estimator: str
    keep: tuple[str, ...] = ()


WAYS = (
    Way("definition", "the paper's search, as defined", "as defined", "greedy"),
    Way(
        name="attention-kept",
        title="the same, attention left in place",
        phrase="with attention left in place",
        estimator="greedy",
        keep=("attention",),
    ),
    Way("tight", "a tighter trace (fisher)", "in the tighter order of fisher", "fisher"),
)
"""The paper's definition, what the authors' released evaluation computes, and a tighter ranking."""


def way_of(estimator: str, keep: Sequence[str] = (), importance: str = "l1") -> Way:
    """The way of an estimator and kinds of edges to keep, under its own name where it has one.

    Args:
        estimator: a key of `ESTIMATORS`.
        keep: kinds of edges that are never ablated.
        importance: by which greedy ranks; only with l1 it is the paper's search.
    """
    for way in WAYS:
        if (way.estimator, way.keep, "l1") == (estimator, tuple(keep), importance):
            return way
    named = estimator if importance == "l1" else f"{estimator}-{importance}"
    kept = f", {keep_text(keep)} kept" if keep else ""
    name = f"{named}-keep-{keep_text(keep)}" if keep else named
    return Way(name, f"{named}{kept}", f"in the order of {named}{kept}", estimator, tuple(keep))


@verb
def measure_ways(
    model: Model,
    graph: TokenGraph,
    ways: Sequence[Way] = WAYS,
    *,
    sizes: Sequence[float] = SIZES,
    refine: int = REFINE,
    controls: bool = False,
    replacement: Replacement = ZERO,
    target: TargetLike | None = None,
    seed: int = 0,
    memory_budget: int | None = None,
    gradient_budget: int = GRADIENT_BUDGET,
    progress: Progress | None = None,
) -> dict[Way, DensityCurve]:
    """Measure the density curve of one prompt in several ways.

    The parameters `sizes`, `refine`, `controls`, `replacement`, `seed`, `memory_budget` and
    `progress` are as for `density_curve`.

    Args:
        model: the model from which the graph was read.
        graph: the token graph of a prompt.
        ways: the ways to measure it.
        target: as for `density_curve`; an estimator that is fitted ranks edges towards it.
        gradient_budget: bytes of a forward and backward pass of an estimator that needs gradients.

    Returns:
        A curve for each way, in the given order.

    Raises:
        ValueError: as for `estimate` and `density_curve`.

    Example:
        >>> graph = sl.token_graph(model, "The capital of France is")
        >>> curves = measure_ways(model, graph)
        >>> read_ways(curves)
    """
    ranked: dict[tuple[str, tuple[str, ...]], Trace] = {}
    traces = []
    for way in ways:
        # The kinds that are kept change the order only where it is fitted.
        kept = way.keep if estimator_of(way.estimator).steps else ()
        if (way.estimator, kept) not in ranked:
            ranked[way.estimator, kept] = estimate(
                model,
                graph,
                way.estimator,
                keep=kept,
                target=target,
                replacement=replacement,
                seed=seed,
                memory_budget=gradient_budget,
                progress=progress,
            )
        traces.append(ranked[way.estimator, kept])
    curves = density_curves(
        model,
        traces,
        sizes=sizes,
        refine=refine,
        controls=controls,
        keeps=[way.keep for way in ways],
        replacements=[replacement] * len(traces),
        targets=[target] * len(traces),
        seed=seed,
        memory_budget=memory_budget,
        progress=progress,
    )
    return dict(zip(ways, curves, strict=True))


def top_size(curve: DensityCurve) -> float:
    """The smallest measured size from which on a trace has the model's top token; NaN if none."""
    table = curve.table
    return smallest_size_from_which(table["size"].to_numpy(), table["top1"].to_numpy())


def recovered_size(curve: DensityCurve) -> float:
    """The smallest measured size from which on a trace recovers the target; NaN if none does.

    That is nine tenths of the way from the empty trace to the full model (`RECOVERED`).
    """
    table = curve.table
    enough = table["target_recovered"].to_numpy() >= RECOVERED
    return smallest_size_from_which(table["size"].to_numpy(), enough)


def _listed(curves: Mapping[Way, DensityCurve], size_of: Callable[[DensityCurve], float]) -> str:
    """From which size on something holds in each way: "from s = 0.1 on as defined and ..."."""
    parts = []
    for way, curve in curves.items():
        size = size_of(curve)
        where = "at no measured size" if math.isnan(size) else f"from s = {size:.3g} on"
        parts.append(f"{where} {way.phrase}")
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def dense_share(curve: DensityCurve) -> float:
    """Share of a prompt's graph that residual and MLP edges make up: 3 T L of L H T^2 / 2 or so."""
    shape = curve.trace.shape
    return 1 - int(shape.reachable().attention.sum()) / shape.edges


def read_ways(curves: Mapping[Way, DensityCurve]) -> list[str]:
    """Summarize the curves of a prompt in a few sentences computed from their numbers.

    Args:
        curves: the result of `measure_ways`.

    Returns:
        From which size on each way has the model's top token; if the curves have a target, from
        which size on each recovers it; and, if one of them leaves attention in place, how few
        edges it ablates.
    """
    (first, *_) = curves.values()
    where = _listed(curves, top_size)
    sentences = [f"A trace has the model's top token {first.top[0][0]!r} {where}."]
    if first.target is not None:
        what = f"{first.target.quantity[0].upper()}{first.target.quantity[1:]}"
        sentences.append(
            f"{what} is {first.target_full:.3g} in the full model and {first.target_empty:.3g} "
            f"in the empty trace. Of the way between them, {RECOVERED:.0%} is recovered "
            f"{_listed(curves, recovered_size)}."
        )
        towards = [way.phrase for way, curve in curves.items() if curve.trace.target is not None]
        if towards:
            sentences.append(f"Edges {' and '.join(towards)} are ranked towards it.")
    for way, curve in curves.items():
        if way.keep == ("attention",):
            text = (
                f"Residual and MLP edges are {dense_share(curve):.2%} of this graph, and with "
                "attention left in place nothing else is ablated"
            )
            size, table = top_size(curve), curve.table
            if not math.isnan(size):
                (held,) = table.loc[table["size"] == size, "ablatable_size"]
                text += f": the trace of s = {size:.3g} holds {held:.0%} of them"
            sentences.append(f"{text}.")
    return sentences


def ways_summary(curves: Mapping[Way, DensityCurve]) -> list[dict[str, Any]]:
    """The ways as plain values for JSON: how each was measured, its density and its sizes."""
    columns = ["size", "edges", "ablatable_size", "tv", "head_error", "tail_error", "top1"]
    if any(curve.target is not None for curve in curves.values()):
        columns += TARGET_COLUMNS
    return [
        {
            "name": way.name,
            "estimator": way.estimator,
            "keep": list(way.keep),
            "density": _known(curve.density),
            "top1_from": _known(top_size(curve)),
            "dense_share": dense_share(curve),
            "sizes": [
                {name: _known(value) for name, value in row.items()}
                for row in curve.table.reindex(columns=columns).to_dict("records")
            ],
        }
        for way, curve in curves.items()
    ]


def _known(value: Any) -> Any:
    """A value as JSON can hold it."""
    return None if isinstance(value, float) and math.isnan(value) else value
