"""The explorer: measured traces as one interactive page that opens from disk.

Edges are packed by rising rank: the flat id of each in three or four byte planes, and of its
importance the upper half of a float32. Planes of similar bytes compress well;
`assets/unpack.js` reads them back.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import json
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from strace_lens.density.curve import DensityCurve
from strace_lens.density.phases import find_phases
from strace_lens.report.page import asset, fill, model_name, trace_title
from strace_lens.report.summary import finite
from strace_lens.traces.edges import KINDS, hook_name, order_of
from strace_lens.traces.trace import Trace

MOST_EDGES = 2_000_000
"""Edges on one page; about three and a half bytes each, so that it stays under 8 MB."""

_SCRIPTS = (
    *("text", "unpack", "view", "drawing", "graph", "heads", "controls", "charts", "prediction"),
    *("place", "main"),
)
_NUMBERS = (
    *("size", "edges", "tv", "kl", "head_error", "tail_error", "nucleus", "trace_head_mass"),
    *("random_tv", "inverse_tv", "random_inverse_tv", "ablatable_size", *KINDS, "mean_layer"),
)


def explorer(
    curves: Sequence[DensityCurve],
    *,
    names: Sequence[str] | None = None,
    most_edges: int = MOST_EDGES,
) -> str:
    """One self-contained page to explore measured traces: a slider over s moves all of them.

    Each curve is a panel: the trace drawn layer by token, a grid of layers by heads, the prediction
    beside the model's, the density curve and the composition. Many edges are bundled by layer and
    token. Filters, pinned nodes and the size are kept in the fragment of the page's address.

    The same curves give the same page, byte for byte. It needs no network, and a browser of 2023
    or later.

    Args:
        curves: of one or more prompts or models.
        names: what the curves are called. With names, one curve is shown at a time, and buttons
            switch between them, keeping size, filters and pinned nodes: for one prompt that was
            measured in several ways.
        most_edges: drawn on the page, shared evenly; a longer trace is drawn up to its share, and
            the page says so. Curves of the same trace share one copy of it.

    Returns:
        HTML.

    Raises:
        ValueError: no curves, `most_edges` is less than one for each, or the names do not match the
            curves or these are not of one prompt.

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
        {"results": packed, "names": None if names is None else list(names)},
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
        "order": _text(_planes(order)),
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
    return _text(_planes(upper, planes=2))


def _planes(values: Tensor, planes: int | None = None) -> UInt8[np.ndarray, "plane edge"]:
    """The bytes of whole numbers, lowest first, each place a row of its own."""
    if planes is None:
        planes = 3 if int(values.max()) < 2**24 else 4
    shifts = 8 * torch.arange(planes)[:, None]
    return ((values[None] >> shifts) & 0xFF).to(torch.uint8).numpy()


def _text(planes: UInt8[np.ndarray, "plane edge"]) -> str:
    """Bytes as base64 of a zlib stream."""
    return base64.b64encode(zlib.compress(planes.tobytes(), 9)).decode("ascii")
