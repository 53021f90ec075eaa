"""One HTML page of a comparison of discovery methods; it works offline."""

from __future__ import annotations

import html
import math
from pathlib import Path

from strace_lens.circuits.circuit import Circuit, Scores
from strace_lens.comparison.comparison import LEAST_FOR_LEVEL, Comparison, rankings_drawn
from strace_lens.comparison.projection import containing_size
from strace_lens.plot.circuit_drawing import plot_circuits
from strace_lens.plot.circuits import (
    plot_agreement,
    plot_faithfulness,
    plot_overlap,
    plot_quality,
)
from strace_lens.plot.known import plot_auroc, plot_found, plot_projection
from strace_lens.plot.style import percent
from strace_lens.report.page import (
    facts_html,
    figure_html,
    page,
    sentence,
    table_html,
    versions_text,
)
from strace_lens.utils.disk import write_whole

DRAWN = 200
"""Edges drawn of each circuit, the strongest first."""

_MOST_NAMED = 12  # missed edges named in a row of the table


def comparison_report(comparison: Comparison, path: str | Path) -> None:
    """Write `comparison_page` to a file, whole or not at all.

    Raises:
        ValueError: no method ran.
        OSError: the file cannot be written.
    """
    write_whole(path, comparison_page(comparison).encode())


def comparison_page(comparison: Comparison) -> str:
    """One self-contained page: every figure of a comparison, its table and what was left out.

    The same results give the same page, byte for byte.

    Returns:
        HTML with plotly.js inside it (about 5 MB).

    Raises:
        ValueError: no method ran.
    """
    title = f"Circuits of {comparison.task} in {comparison.model}"
    lead = f"<h1>{html.escape(title)}</h1><dl>{facts_html(_facts(comparison))}</dl>"
    sections = {
        "Every method": [_table(comparison), _notes(comparison)],
        "Faithfulness": [_faithfulness(comparison)],
        "Against the true circuit": [_truth(comparison)],
        "The circuits": [_circuits(comparison)],
        "What a method costs": [
            figure_html(plot_quality(comparison), "quality", _quality(comparison))
        ],
        "How far methods agree": [
            figure_html(plot_overlap(comparison), "overlap", _OVERLAP),
            figure_html(plot_agreement(comparison), "agreement", _AGREEMENT),
        ],
        "Does a trace contain the circuit?": [_projection(comparison)],
    }
    return page(title, lead + _warnings(comparison), sections)


def _facts(comparison: Comparison) -> dict[str, str]:
    graph, made = comparison.graph, comparison.metadata
    others = "others, held out" if comparison.held_out else "the same"
    right = "" if comparison.accuracy is None else f"; {percent(comparison.accuracy)} right"
    facts = {
        "component graph": f"{graph.edges:,} edges, {graph.sources:,} sources, "
        f"{graph.destinations:,} destinations, {graph.layers} layers",
        "pairs of prompts": f"{comparison.pairs} to find circuits, {comparison.evaluated_pairs} to "
        f"evaluate them ({others}); {comparison.dropped} dropped because they did not align",
        "metric": f"{comparison.metric}: mean {comparison.metric_clean:.4g} on the clean prompts, "
        f"{comparison.metric_corrupted:.4g} on the corrupted{right}",
        "ablated edges carry": _ABLATIONS.get(comparison.ablation, comparison.ablation),
        "memory": f"measured {comparison.memory}",
        "seed": str(made.get("seed", "unknown")),
        "versions": versions_text(made.get("versions", {})),
    }
    if comparison.truth is not None:
        which = _TRUTHS.get(str(comparison.truth_name), f"by {comparison.truth_name}")
        facts["true circuit"] = f"{len(comparison.truth):,} edges, {which}"
    return facts


def _warnings(comparison: Comparison) -> str:
    lines = [sentence(warning.rstrip(".")) for warning in comparison.warnings]
    lines += [f"Skipped {m}: {why.rstrip('.')}." for m, why in comparison.skipped.items()]
    return _list(lines, ' class="finding"') if lines else ""


def _table(comparison: Comparison) -> str:
    table = comparison.table
    beats = {True: "yes", False: "no"}
    table["beats_random"] = [
        beats.get(value, "–") if value is not None else "–" for value in table["beats_random"]
    ]
    table["completeness"] = table["completeness"].round(4) + 0.0  # rounding leaves no "-0"
    if comparison.truth is None:
        table = table.drop(columns=["auroc", "precision"])
    table = table.rename(columns=_HEADINGS).rename(columns=lambda c: c.replace("_", " "))
    return table_html(table, (_HEADINGS["edges_at_85"],))


def _notes(comparison: Comparison) -> str:
    lines = [sentence(note) for note in comparison.notes]
    return _list(lines) if lines else ""


def _faithfulness(comparison: Comparison) -> str:
    fig = plot_faithfulness(comparison)
    pairs, ablation = comparison.evaluated_pairs, comparison.ablation
    gap = max(r.faithfulness.full_gap for r in comparison.results)
    caption = (
        f"Mean {html.escape(comparison.metric)} over {pairs} pair{'s' * (pairs != 1)} when each "
        "method's best edges are kept and all others ablated "
        f"({html.escape(ablation)}), on a scale where the model with every edge ablated is 0 and "
        "the full model 1 (solid line). CMD is the area between a curve and 1 over the fraction "
        "itself, so most of it lies in the right-hand decade. Dashed: 0.85, from which edges are "
        f"counted. Edges are ranked by {_ranked(comparison)}. {_SIGNED * _by_sign(comparison)}Full "
        f"circuit and untouched model differ by at most {gap:.1e} on any pair."
    )
    return figure_html(fig, "faithfulness", caption)


def _ranked(comparison: Comparison) -> str:
    absolute = {bool(r.circuit.metadata.get("absolute")) for r in comparison.results}
    return " or ".join("magnitude of score" if a else "signed score" for a in sorted(absolute))


def _by_sign(comparison: Comparison) -> bool:
    """Whether CPR has a curve of its own for some method."""
    return any(r.faithfulness.cpr_values != r.faithfulness.values for r in comparison.results)


def _truth(comparison: Comparison) -> str:
    known = [r for r in comparison.results if r.auroc is not None]
    if comparison.truth is None or not known:
        return ""
    count = len(comparison.truth)
    missed = [
        f"<li>{html.escape(r.method)} ({len(r.missed)} of {count}): {_named(r.missed)}</li>"
        for r in known
    ]
    return (
        figure_html(plot_auroc(comparison), "auroc", _auroc(comparison))
        + figure_html(plot_found(comparison), "found", _FOUND)
        + "<p>True edges that a method misses:</p>"
        + f"<ul>{''.join(missed)}</ul>"
    )


def _auroc(comparison: Comparison) -> str:
    return (
        "Bars: the chance that a true edge scores above another one; 0.5 is chance, and the dotted "
        f"line {_chance(len(comparison.random_auroc))}. Diamonds: share of true edges among as "
        "many of the best as there are true ones."
    )


def _quality(comparison: Comparison) -> str:
    return (
        "CMD, on the evaluation pairs, against the wall time that a method took to score all "
        f"edges; less is better. Dotted: {_chance(len(comparison.random_cmd))}; a method above it "
        "is no better than chance. Hover over a dot for its passes and its CPR."
    )


def _chance(drawn: int) -> str:
    """What the dotted line is, by how many random rankings it is drawn from."""
    if drawn < 2:
        return "the value of the one random ranking drawn"
    if drawn < LEAST_FOR_LEVEL:
        return f"the best value of the {rankings_drawn(drawn)} drawn"
    return f"the value that at most one in twenty of the {rankings_drawn(drawn)} drawn exceed"


def _named(edges: tuple[str, ...]) -> str:
    """Names as HTML, none of them broken at its arrow."""
    named = [f"<code>{html.escape(edge)}</code>" for edge in edges[:_MOST_NAMED]]
    left = len(edges) - len(named)
    return (", ".join(named) or "none") + (f" and {left:,} more" if left else "")


def _list(lines: list[str], style: str = "") -> str:
    items = "".join(f"<li>{html.escape(line, quote=False)}</li>" for line in lines)
    return f"<ul{style}>{items}</ul>"


def _circuits(comparison: Comparison) -> str:
    circuits: dict[str, tuple[Circuit, Scores | None]] = {
        r.method: (r.circuit, r.scores) for r in comparison.results
    }
    if comparison.truth is not None:
        circuits["true circuit"] = (comparison.truth, None)
    caption = _CIRCUITS
    if comparison.graph.heads != comparison.graph.kv_heads:
        caption += " Diamonds are key-value heads, below the heads that share them."
    return figure_html(plot_circuits(circuits, DRAWN), "circuits", caption)


def _projection(comparison: Comparison) -> str:
    if comparison.projection is None:
        return "<p>Left out: this model has no token graph, so there is no trace to project.</p>"
    sizes = {
        name: containing_size(comparison.projection, name)
        for name in comparison.projection["circuit"].unique()
    }
    lines = [
        f"{name}: never whole in a trace measured"
        if math.isnan(size)
        else f"{name}: whole from s = {size:.3g}"
        for name, size in sizes.items()
    ]
    return (
        figure_html(plot_projection(comparison), "projection", _PROJECTION)
        + "<p>Smallest trace measured that contains every component of a circuit:</p>"
        + _list(lines)
    )


_HEADINGS = {
    "peak_mb": "peak MB",
    "cpr": "CPR",
    "cmd": "CMD",
    "edges_at_85": "edges at 85 %",
    "auroc": "AUROC",
}
_ABLATIONS = {
    "resample": "resample: their value on the corrupted prompt of the pair",
    "mean": "mean: the position-wise mean over all clean and corrupted prompts",
    "zero": "zero",
}
_TRUTHS = {
    "written and read": "those whose source writes what their destination reads",
    "zero": "those whose zeroing alone changes what the model does",
    "mean": "those whose mean-ablation alone changes what the model does",
    "resample": "those whose resampling alone changes what the model does",
}
_SIGNED = (
    "Thin lines with open dots rank them by signed score, as the MIB benchmark does for CPR, the "
    "area under a curve. "
)
_OVERLAP = (
    "Edges that the circuits of two methods share, over the edges of either. The circuits of 85 % "
    "differ in size, which bounds their overlap: a circuit of 10 edges inside one of 100 has 0.1. "
    "The menu compares circuits of equal size."
)
_AGREEMENT = (
    "Spearman's correlation weighs all edges alike, rank-biased overlap (menu) the best edges "
    "most. Methods that say nothing of most edges tie them, which lowers both. Blank: a method "
    "that scores all edges the same, or by token position where the other does not."
)
_FOUND = (
    "Dark: a true edge that is among as many of a method's best edges as there are true ones. "
    "Pale: one that it misses."
)
_CIRCUITS = (
    f"The circuit by which a method reaches 85 % faithfulness, up to its {DRAWN} strongest edges. "
    "The menu changes the method. Layers upwards, heads and MLPs across. Colour is the input that "
    "an edge enters; the stronger an edge, the thicker; dotted edges have a negative score. Hover "
    "over an edge for its name, score and rank, over a node for its edges in the whole circuit."
)
_PROJECTION = (
    "The s-Trace of the first clean prompt, projected to heads and MLPs. Above: share of a "
    "circuit's components with at least one edge in the trace of each size. Below: whether the "
    "trace keeps more of the edges of components inside the circuit than of those outside (AUROC; "
    "0.5 is chance, dashed); a circuit of all components has none. The number behind a name "
    "counts the circuit's components."
)
