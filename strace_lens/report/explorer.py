"""The explorer: measured traces as one interactive page that opens from disk.

Edges are packed by rising rank: the flat id of each in three or four byte planes, and of its
importance the upper half of a float32.
"""

from __future__ import annotations

import dataclasses
import html
import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from strace_lens.density.curve import DensityCurve
from strace_lens.density.phases import find_phases
from strace_lens.report.lens import pack_lens
from strace_lens.report.packed import byte_planes, packed_text
from strace_lens.report.page import asset, fill, model_name, trace_title
from strace_lens.report.summary import finite
from strace_lens.traces.edges import hook_name, order_of
from strace_lens.traces.lens import Lens
from strace_lens.traces.trace import Trace
from strace_lens.utils.choices import KINDS

MOST_EDGES = 2_000_000
"""Edges on one page; about three and a half bytes each, so that it stays under 8 MB."""

_SCRIPTS = (
    *(
        "text",
        "unpack",
        "lens",
        "view",
        "groups",
        "drawing",
        "prediction",
        "readout",
        "graph",
        "heads",
    ),
    *("pattern", "controls", "charts", "place", "main"),
)
_NUMBERS = (
    *("size", "edges", "tv", "kl", "head_error", "tail_error", "nucleus", "trace_head_mass"),
    *("random_tv", "inverse_tv", "random_inverse_tv", "ablatable_size", *KINDS, "mean_layer"),
)


def explorer(
    curves: Sequence[DensityCurve],
    *,
    names: Sequence[str] | None = None,
    lenses: Sequence[Lens | str] = (),
    most_edges: int = MOST_EDGES,
) -> str:
    """Make one self-contained, interactive page of measured traces, with a slider over s for all.

    Each curve is a panel: the trace drawn layer by token, a grid of layers by heads, the prediction
    and the model's, the density curve and the composition. Many edges are bundled by layer and
    token. Filters, pinned nodes and the size are stored in the fragment of the page's address. With
    lenses, clicking a node shows which tokens it promotes and what it adds to the predicted one,
    and clicking a head shows its attention pattern.

    The same curves give the same page, byte for byte. It needs no network, but a browser from 2023
    or later.

    Args:
        curves: the curves of one or more prompts or models.
        names: names of the curves. With names, one curve is shown at a time, and buttons switch
            between them, keeping size, filters and pinned nodes: for one prompt that was measured
            in several ways.
        lenses: `read_lens` of the curves' prompts, or the sentence that says why there is none, in
            the order of the curves; a single one serves for all curves of one prompt and model.
        most_edges: maximum number of edges on the page, shared evenly; a longer trace is drawn up
            to its share, and the page says so. Curves of the same trace share one copy of it.

    Returns:
        The page as HTML.

    Raises:
        ValueError: no curves, `most_edges` is less than one for each, the names do not match the
            curves or these are not of one prompt, or a lens is of another prompt or model.

    Example:
        >>> page = sl.explorer([curve])
        >>> Path("explorer.html").write_text(page, encoding="utf-8")
    """
    if not curves:
        raise ValueError("no curves to explore; give at least one")
    if names is not None:
        _check_names(curves, names)
    first = [_same_trace(curves, number) for number in range(len(curves))]
    share = most_edges // len(set(first))
    if share < 1:
        raise ValueError(f"most_edges must be at least one a curve; got {most_edges}")
    packed = [pack(curve, share) for curve in curves]
    for number, (same, results) in enumerate(zip(first, packed, strict=True)):
        if same != number:
            results.update(order=same, importance=None)
    data = json.dumps(
        {
            "results": packed,
            "names": None if names is None else list(names),
            "lenses": _packed_lenses(curves, lenses),
        },
        allow_nan=False,
        sort_keys=True,  # a curve read back from a file has its facts in this order
    )
    return fill(
        "page.html",
        title=html.escape(_title(curves)),
        style=asset("style.css"),
        # Within a script element nothing is escaped, but a "</script>" of a prompt would end it.
        results=data.replace("<", "\\u003c"),
        script="\n".join(asset(f"{name}.js") for name in _SCRIPTS),
    )


def _packed_lenses(
    curves: Sequence[DensityCurve], lenses: Sequence[Lens | str]
) -> list[dict[str, Any] | str]:
    """The lens of each curve, or one for all; none at all where none was given."""
    if lenses and len(lenses) not in (1, len(curves)):
        raise ValueError(
            f"{len(lenses)} lenses for {len(curves)} curves; give one for all, or one for each"
        )
    for number, curve in enumerate(curves if lenses else ()):
        lens = lenses[number % len(lenses)]
        if not isinstance(lens, str) and not _is_of(lens, curve):
            raise ValueError(
                f"the lens of {lens.model} after {' '.join(lens.prompt.strings)!r} is not of "
                f"{trace_title(curve)}; read it from the graph of that trace"
            )
    return [lens if isinstance(lens, str) else pack_lens(lens) for lens in lenses]


def _is_of(lens: Lens, curve: DensityCurve) -> bool:
    """Whether a lens is of the prompt, the model and the weights of a curve."""
    trace, made = curve.trace, curve.trace.metadata
    weights = {lens.weights, made.get("weights")} - {None}
    same = (lens.shape, lens.prompt.ids) == (trace.shape, trace.prompt.ids)
    return same and lens.model == made.get("model", lens.model) and len(weights) <= 1


def _check_names(curves: Sequence[DensityCurve], names: Sequence[str]) -> None:
    """Refuse curves that cannot be switched in one place."""
    if len(names) != len(curves):
        raise ValueError(f"{len(names)} names for {len(curves)} curves; give one for each")
    facts = {(c.trace.shape, c.trace.prompt.ids, model_name(c)) for c in curves}
    if len(facts) > 1:
        raise ValueError(
            "curves with names must be of one prompt and one model; leave out names to show them "
            "side by side"
        )


def _same_trace(curves: Sequence[DensityCurve], number: int) -> int:
    """The first curve that has the same trace as one of them."""
    mine = curves[number].trace
    same = (i for i, curve in enumerate(curves[:number]) if _equal(curve.trace, mine))
    return next(same, number)


def _equal(one: Trace, other: Trace) -> bool:
    """Whether two traces have the same edges in one order, with the same importances."""
    if one is other:
        return True
    if one.shape != other.shape or not torch.equal(one.ranks.flat(), other.ranks.flat()):
        return False
    if one.importance is None or other.importance is None:
        return one.importance is other.importance
    return torch.equal(one.importance.flat(), other.importance.flat())


def _title(curves: Sequence[DensityCurve]) -> str:
    if len({(c.trace.prompt.ids, model_name(c)) for c in curves}) == 1:
        return trace_title(curves[0])
    models = sorted({model_name(curve) for curve in curves})
    return f"{len(curves)} traces of {', '.join(models)}"


def pack(curve: DensityCurve, most: int) -> dict[str, Any]:
    """A curve and the first edges of its trace as JSON values; what is not finite is None.

    Args:
        curve: a trace measured at every size.
        most: edges to pack at most.
    """
    trace, table = curve.trace, curve.table
    order = order_of(trace.ranks)[:most]
    counts = trace.counts_by_size(table["edges"].tolist())
    facts = ("density", "entropy", "head", "head_mass", "ablation", "seed", "logit_gap")
    return {
        "metadata": dict(trace.metadata),
        "tokens": list(trace.prompt.strings),
        "shape": dataclasses.asdict(trace.shape),
        "levels": [hook_name(trace.shape, level) for level in range(trace.shape.levels)],
        "edges": trace.edges,
        "reachable": trace.counts_by_size([trace.edges])[0].tolist(),
        "packed": len(order),
        "order": packed_text(byte_planes(order).tobytes()),
        "importance": _packed_importance(curve, order),
        "sizes": [
            {
                **{name: finite(row[name]) for name in _NUMBERS},
                "top1": bool(row["top1"]),
                "top": top[0],
                "top_tokens": [list(token) for token in top_tokens],
                "counts": count.tolist(),
            }
            for row, top, top_tokens, count in zip(
                table.to_dict("records"), curve.tops, curve.top_tokens, counts, strict=True
            )
        ],
        "keep": list(curve.keep),
        "phases": [dataclasses.asdict(p) for p in find_phases(curve).along_sizes],
        **{name: finite(getattr(curve, name)) for name in facts},
    }


def _packed_importance(curve: DensityCurve, order: Tensor) -> str | None:
    importance = curve.trace.importance
    if importance is None:
        return None
    upper = importance.flat()[order].bfloat16().view(torch.int16).long() & 0xFFFF
    return packed_text(byte_planes(upper, planes=2).tobytes())
