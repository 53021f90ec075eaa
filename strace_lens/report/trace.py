"""One HTML page of a curve: figures, tables and how it was made; it works offline."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from strace_lens.density.causal import read_ablation
from strace_lens.density.curve import DensityCurve
from strace_lens.density.phases import Phases, find_phases
from strace_lens.density.ways import Way, read_ways, top_size
from strace_lens.plot.density import plot_density, plot_ways
from strace_lens.plot.layer_phases import plot_layer_phases
from strace_lens.plot.phases import missing, plot_kinds, plot_layer_profiles, plot_layers
from strace_lens.plot.style import quoted, visible
from strace_lens.report.explorer import explorer
from strace_lens.report.page import (
    NUMBER,
    drawn,
    facts_html,
    model_name,
    page,
    paragraphs,
    sentence,
    table_html,
    trace_title,
    versions_text,
)
from strace_lens.traces.edges import keep_text
from strace_lens.traces.lens import Lens
from strace_lens.utils.choices import KINDS

EXPLORED_EDGES = 450_000
"""Edges that the explorer of a page draws at most, so that the page stays under 8 MB."""


def trace_report(
    curve: DensityCurve,
    phases: Phases,
    ablation: pd.DataFrame | None = None,
    *,
    ways: Mapping[Way, DensityCurve] | None = None,
    ablations: Mapping[Way, pd.DataFrame] | None = None,
    lens: Lens | str | None = None,
) -> str:
    """Make one self-contained page: a summary, the explorer, the curve, then folded sections.

    The sections are composition, phases along the layers, every size, and how it was made.
    If the same prompt was measured in other ways, the summary compares them, all of them are drawn
    in one figure, and the phases along the layers of each have a section.

    The same results give the same page, byte for byte.

    Args:
        curve: a trace measured at every size.
        phases: the phases of the same curve.
        ablation: the result of `phase_ablation`; if it is None or empty, the page says so.
        ways: curves of the same prompt in several ways (`ways.measure_ways`), including `curve`.
        ablations: the results of `phase_ablation` in these ways.
        lens: `read_lens` of the prompt, or the sentence that says why there is none.

    Returns:
        HTML that includes plotly.js (about 5 MB, and under 8 MB for a trace of any length).
    """
    tokens = " ".join(f"<span>{visible(t, 40)}</span>" for t in curve.trace.prompt.strings)
    target = facts_html({"target": curve.target_line}) if curve.target_line else ""
    others = {way: other for way, other in (ways or {}).items() if other is not curve}
    density = drawn(plot_density, curve, phases, more=_REFINED * bool(curve.table["refined"].any()))
    lead = [
        f"<h1>Trace of a prompt through {html.escape(model_name(curve))}</h1>",
        f'<p class="tokens">{tokens}</p>',
        f"<dl><dt>the model's next token</dt><dd>{_next_token(curve)}</dd>{target}</dl>",
        f'<p class="finding">{html.escape(sentence(phases.describe()))}</p>',
        _summary(ways) if ways and others else "",
        _explorer(curve, ways or {}, lens),
        _ways(ways) if ways and others else density,
    ]
    sections = {
        "Density: how much of the graph the prediction needs": [density] if others else [],
        "Composition: what the trace is made of": [
            drawn(plot_kinds, curve),
            drawn(plot_layers, curve),
        ],
        "Phases along the layers": [
            drawn(plot_layer_phases, curve, phases),
            drawn(plot_layer_profiles, phases),
            _phase_table(phases),
            "<h3>Does the split hold? Ablation of early and late layers</h3>",
            _ablation(phases, ablation),
        ],
        **{
            f"Phases in another way: {way.title}": [
                _other(way, other, (ablations or {}).get(way)),
            ]
            for way, other in others.items()
        },
        "Every size": [_sizes(curve)],
        "How this was made": [f"<dl>{_facts(curve)}</dl>"],
    }
    return page(trace_title(curve), "\n".join(lead), sections, folded=True)


def _summary(curves: Mapping[Way, DensityCurve]) -> str:
    """Where each way has the model's top token and is constructed, a line a way."""
    rows = []
    for way, curve in curves.items():
        construction, top = find_phases(curve).get("construction"), top_size(curve)
        rows.append(
            {
                "way of measuring": way.title,
                "has the model's top token from": "–" if math.isnan(top) else f"s = {top:.2g}",
                "construction": "–"
                if construction is None
                else f"s = {construction.start:.2g} to {construction.stop:.2g}",
                "density": curve.density,
            }
        )
    return table_html(pd.DataFrame(rows))


def _explorer(
    curve: DensityCurve, ways: Mapping[Way, DensityCurve], lens: Lens | str | None
) -> str:
    """The explorer in a frame of its own, so that neither page changes how the other looks.

    It shows the curve first and switches between it and the other ways.
    """
    curves, names = [curve], None
    if len(ways) > 1:
        ordered = sorted(ways.items(), key=lambda item: item[1] is not curve)
        curves, names = [each for _, each in ordered], [way.title for way, _ in ordered]
    lenses = () if lens is None else (lens,)
    page = explorer(curves, names=names, lenses=lenses, most_edges=EXPLORED_EDGES)
    return f'<iframe title="The explorer" srcdoc="{html.escape(page)}"></iframe>'


def _ways(curves: Mapping[Way, DensityCurve]) -> str:
    """The figure of all ways and what follows from it."""
    return drawn(plot_ways, curves) + paragraphs(read_ways(curves))


def _other(way: Way, curve: DensityCurve, ablation: pd.DataFrame | None) -> str:
    """Phases along sizes and layers in another way."""
    phases = find_phases(curve)
    return (
        paragraphs([sentence(phases.describe())])
        + drawn(plot_layer_phases, curve, phases, suffix=f"-{way.name}")
        + _phase_table(phases)
        + _ablation(phases, ablation)
    )


def _facts(curve: DensityCurve) -> str:
    trace, made = curve.trace, curve.trace.metadata
    known = not math.isnan(curve.density)
    facts = {
        "edges of the graph": f"{trace.edges:,} over {trace.shape.tokens} tokens",
        "importance, order": f"{made.get('importance', '?')}, {made.get('order', '?')}",
        "ablated edges carry": curve.ablation,
        "kinds of edges never ablated": keep_text(curve.keep),
        "density": f"{curve.density:.3f}" if known else "needs two sizes; one was measured",
        "entropy of the model's output": f"{curve.entropy:.3f} nats",
        "head": f"top-{curve.head:g} nucleus, mass {curve.head_mass:.3f}",
        "largest logit difference at full mask": f"{curve.logit_gap:.1e}",
        "seed": str(curve.seed),
        "versions": versions_text(made.get("versions", {})),
    }
    return facts_html(facts)


def _next_token(curve: DensityCurve) -> str:
    """The model's most probable tokens, as HTML."""
    return ", ".join(f"<code>{quoted(token)}</code> {p:.3f}" for token, p in curve.top)


def _sizes(curve: DensityCurve) -> str:
    """Every measure at every size."""
    table = curve.to_pandas()
    table["size"] = [f"{s:.10g}" for s in table["size"]]
    for name in ("refined", "top1"):
        table[name] = ["yes" if holds else "no" for holds in table[name]]
    # pandas escapes the text: it must not be escaped twice.
    table["top"] = [f"{html.unescape(quoted(text))} {p:.3g}" for (text, p), *_ in curve.tops]
    composition = ("nucleus", "trace_head_mass", "ablatable_size", *KINDS, "mean_layer")
    controls = [c for c in table if str(c).startswith(("random", "inverse"))]
    beside = [*composition, *controls]  # two tables fit side to side into a narrow window
    shown = (table.drop(columns=beside), table.filter(["size", "edges", *beside]))
    return "".join(table_html(t.rename(columns=lambda c: c.replace("_", " "))) for t in shown)


def _phase_table(phases: Phases) -> str:
    table = phases.layer_table().rename(columns=lambda c: c.replace("_", " "))
    reasons = paragraphs(map(sentence, missing(phases).values()))
    return reasons if table.empty else reasons + table_html(table, ("edges", *KINDS))


def _ablation(phases: Phases, table: pd.DataFrame | None) -> str:
    if table is not None and not table.empty:
        shown = table_html(_ablation_cells(table), ("of", "edges"))
        return f"<p>{_ABLATION}</p>" + shown + paragraphs(read_ablation(table))
    if phases.head is None or phases.tail is None:
        part = "head subgraph" if phases.head is None else "tail refinement"
        return f"<p>The table is absent: this curve has no {part} to ablate.</p>"
    return "<p>The table is absent: the ablation was not run.</p>"


def _ablation_cells(table: pd.DataFrame) -> pd.DataFrame:
    """The table of `phase_ablation` with the range of the draws after each mean."""
    columns = {}
    for name in table.columns.drop("keep"):
        if name.endswith(("_low", "_high")):
            continue
        columns[name.replace("_", " ")] = (
            [_drawn(row, name) for row in table.to_dict("records")]
            if f"{name}_low" in table
            else table[name]
        )
    return pd.DataFrame(columns)


def _drawn(row: dict[Any, Any], name: str) -> str:
    """A mean, with the least and the greatest draw where there are several; a dash for none."""
    if math.isnan(row[name]):
        return "–"
    mean, low, high = (NUMBER(row[f"{name}{end}"]) for end in ("", "_low", "_high"))
    return mean if low in (high, "nan") else f"{mean} ({low} to {high})"


_REFINED = (
    "Sizes were added to the grid where total variation moves by more than a tenth from one size "
    "to the next, and where head and tail are restored."
)
_ABLATION = (
    "From the trace at the end of the refinement, each row ablates edges of one part: those that "
    "the refinement added, or those of the head subgraph, in the early or the late half of the "
    "layers. Kinds of edges that are never ablated do not count. Both halves lose equally many "
    "edges: as many as the smaller one has or, where that destroys the output, a half, a quarter "
    "and so on of it. Where a half has more, the row is the mean of five "
    "random draws, with the least and the greatest in parentheses. The matched columns are the "
    "same of a control: as many edges of each kind in each layer, drawn five times from all other "
    "edges of the trace; where there are fewer, all of them. The last row ablates the whole trace."
)
