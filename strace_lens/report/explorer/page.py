"""The explorer's page: its assets and the packed results put together into one HTML file."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from importlib.resources import files
from string import Template

from strace_lens.density.curve import DensityCurve
from strace_lens.report.explorer.pack import pack
from strace_lens.report.page import model_name, trace_title

MOST_EDGES = 2_000_000
"""Edges on one page; about three and a half bytes each, so that it stays under 8 MB."""

_ASSETS = files("strace_lens.report.explorer") / "assets"
_SCRIPTS = ("text", "unpack", "drawing", "graph", "charts", "prediction", "main")


def explorer(curves: Sequence[DensityCurve], *, most_edges: int = MOST_EDGES) -> str:
    """One self-contained page to explore measured traces: a slider over s moves all of them.

    Each curve is a panel: the trace drawn layer by token, the prediction beside the model's, the
    density curve and the composition. The same curves give the same page, byte for byte. It needs
    no network, and a browser of 2023 or later.

    Args:
        curves: of one or more prompts or models.
        most_edges: drawn on the page, shared evenly; a longer trace is drawn up to its share, and
            the page says so.

    Returns:
        HTML.

    Raises:
        ValueError: no curves, or `most_edges` is less than one for each.
    """
    if not curves:
        raise ValueError("no curves to explore; give at least one")
    share = most_edges // len(curves)
    if share < 1:
        raise ValueError(f"most_edges must be at least one a curve; got {most_edges}")
    packed = json.dumps(
        [pack(curve, share) for curve in curves],
        allow_nan=False,
        sort_keys=True,  # a curve read back from a file has its facts in this order
    )
    return Template(_asset("page.html")).substitute(
        title=html.escape(_title(curves)),
        style=_asset("style.css"),
        # Within a script element nothing is escaped, but a "</script>" of a prompt would end it.
        results=packed.replace("<", "\\u003c"),
        script="\n".join(_asset(f"{name}.js") for name in _SCRIPTS),
    )


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _title(curves: Sequence[DensityCurve]) -> str:
    if len(curves) == 1:
        return trace_title(curves[0])
    models = sorted({model_name(curve) for curve in curves})
    return f"{len(curves)} traces of {', '.join(models)}"
