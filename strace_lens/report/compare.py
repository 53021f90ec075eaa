"""One HTML page of a comparison of discovery methods; it works offline."""

from __future__ import annotations

import html
import math
from pathlib import Path

import numpy as np
import pandas as pd

from strace_lens.circuits.circuit import Circuit
from strace_lens.circuits.scores import Scores
from strace_lens.comparison.comparison import (
    FIGURES,
    LEAST_FOR_LEVEL,
    Comparison,
    rankings_drawn,
    with_brackets,
)
from strace_lens.comparison.projection import TRACED, containing_size
from strace_lens.plot.circuit_drawing import plot_circuits
from strace_lens.plot.circuits import (
    plot_agreement,
    plot_differences,
    plot_faithfulness,
    plot_overlap,
    plot_quality,
)
from strace_lens.plot.known import plot_auroc, plot_found, plot_projection
from strace_lens.report.page import (
    bullets,
    drawn,
    facts_html,
    page,
    sentence,
    table_html,
    versions_text,
)
from strace_lens.report.tables import comparison_facts, difference_lines, unknown_columns
from strace_lens.utils.disk import write_whole

_MOST_NAMED = 12  # missed edges named in a row of the table
_COSTS = ["forwards", "backwards", "seconds", "peak_mb"]
# Without these no table is read.
_FIRST_FACTS = ("pairs of prompts", "metric", "ablated edges carry")


def comparison_report(comparison: Comparison, path: str | Path) -> None:
    """Write `comparison_page` to a file, whole or not at all.

    Raises:
        ValueError: no method ran.
        OSError: the file cannot be written.
    """
    write_whole(path, comparison_page(comparison).encode())


def comparison_page(comparison: Comparison) -> str:
    """One self-contained page: which methods differ, their table and curves, the rest in sections.

    The sections are folded: the true circuit where it is known, the circuits, what a method costs,
    how far methods agree, whether a trace contains the circuit, how this was made.

    The same results give the same page, byte for byte.

    Returns:
        HTML with plotly.js inside it (about 5 MB).

    Raises:
        ValueError: no method ran.
    """
    title = f"Circuits of {comparison.task} in {comparison.model}"
    made = comparison.metadata
    facts = comparison_facts(comparison)
    first = {name: facts.pop(name) for name in _FIRST_FACTS}
    facts["seed"] = str(made.get("seed", "unknown"))
    facts["versions"] = versions_text(made.get("versions", {}))
    warnings = [sentence(warning.rstrip(".")) for warning in comparison.warnings]
    warnings += [f"Skipped {m}: {why.rstrip('.')}." for m, why in comparison.skipped.items()]
    notes = map(sentence, (*([_INTERVALS] if comparison.intervals else []), *comparison.notes))
    lines = difference_lines(comparison)
    lead = [
        f"<h1>{html.escape(title)}</h1><dl>{facts_html(first)}</dl>",
        bullets(warnings, "finding"),
        bullets(map(sentence, lines)),
        _table(comparison),
        bullets(notes),
        _faithfulness(comparison),
        # Which method is better than which, pair by pair.
        drawn(plot_differences, comparison) if lines else "",
    ]
    sections = {
        "Against the true circuit": [_truth(comparison)],
        "The circuits": [_circuits(comparison), _heads(comparison)],
        "What a method costs": [
            drawn(plot_quality, comparison, more=_chance(len(comparison.random_cmd))),
            _costs(comparison),
        ],
        "How far methods agree": [
            drawn(plot_overlap, comparison),
            drawn(plot_agreement, comparison),
        ],
        "Does a trace contain the circuit?": [_projection(comparison)],
        "How this was made": [f"<dl>{facts_html(facts)}</dl>"],
    }
    return page(title, "\n".join(lead), sections, folded=True)


def _table(comparison: Comparison) -> str:
    """What each method found; what it costs has a table of its own."""
    table = comparison.table.drop(columns=_COSTS)
    beats = {True: "yes", False: "no", None: "–"}
    table["beats_random"] = [beats[value] for value in table["beats_random"]]
    table["completeness"] = table["completeness"].round(4) + 0.0  # rounding leaves no "-0"
    ends = [f"{name}_{end}" for name in FIGURES for end in ("low", "high")]
    table[ends] = table[ends].round(4) + 0.0
    table = with_brackets(table).drop(columns=[*unknown_columns(comparison)])
    # In a narrow window a cell is broken before its bracket, not within.
    table = table.map(lambda cell: cell.replace(", ", ",\xa0") if isinstance(cell, str) else cell)
    return _headed(table)


def _costs(comparison: Comparison) -> str:
    return _headed(comparison.table.filter(["method", *_COSTS]))


def _headed(table: pd.DataFrame) -> str:
    """A table under the names of its columns in words."""
    table = table.rename(columns=_HEADINGS).rename(columns=lambda c: c.replace("_", " "))
    return table_html(table)


def _faithfulness(comparison: Comparison) -> str:
    pairs, results = comparison.evaluated_pairs, comparison.results
    kinds = {"magnitude of" if r.circuit.metadata.get("absolute") else "signed" for r in results}
    ranked = f"{' or '.join(sorted(kinds))} score"
    more = (
        f"Mean {html.escape(comparison.metric)} over {pairs} pair{'s' * (pairs != 1)}, "
        f"{html.escape(comparison.ablation)} ablation. Edges are ranked by {ranked}."
    )
    return drawn(plot_faithfulness, comparison, more=more)


def _truth(comparison: Comparison) -> str:
    known = [r for r in comparison.results if r.auroc is not None]
    if comparison.truth is None or not known:
        return ""
    count = len(comparison.truth)
    missed = "".join(
        f"<li>{html.escape(r.method)} ({len(r.missed)} of {count}): {_named(r.missed)}</li>"
        for r in known
    )
    return (
        drawn(plot_auroc, comparison, more=_chance(len(comparison.random_auroc)))
        + drawn(plot_found, comparison)
        + f"<p>True edges that a method misses:</p><ul>{missed}</ul>"
    )


def _chance(drawn: int) -> str:
    """What the dotted line is, by how many random rankings it is drawn from."""
    rankings = f"{rankings_drawn(drawn)} drawn"
    if drawn < 2:
        said = "the value of the one random ranking drawn"
    elif drawn < LEAST_FOR_LEVEL:
        said = f"the best value of the {rankings}"
    else:
        said = f"the value that at most one in twenty of the {rankings} exceed"
    return f"The dotted line is {said}."


def _named(edges: tuple[str, ...]) -> str:
    """Names as HTML, none of them broken at its arrow."""
    named = [f"<code>{html.escape(edge)}</code>" for edge in edges[:_MOST_NAMED]]
    left = len(edges) - len(named)
    return (", ".join(named) or "none") + (f" and {left:,} more" if left else "")


def _found(comparison: Comparison) -> dict[str, tuple[Circuit, Scores | None]]:
    """Every circuit with its scores by the method that found it, the true one last."""
    circuits: dict[str, tuple[Circuit, Scores | None]] = {
        r.method: (r.circuit, r.scores) for r in comparison.results
    }
    if comparison.truth is not None:
        circuits["true circuit"] = (comparison.truth, None)
    return circuits


def _heads(comparison: Comparison) -> str:
    """How many edges of each circuit enter and leave each head that one of them has."""
    tables = {name: circuit.heads() for name, (circuit, _) in _found(comparison).items()}
    first = next(iter(tables.values()))
    cells = pd.DataFrame(
        {
            "head": [f"a{n}.h{h}" for n, h in zip(first["layer"], first["head"], strict=True)],
            **{name: _in_and_out(table) for name, table in tables.items()},
        }
    )
    circuits_with = np.sum([table["edges"].to_numpy() > 0 for table in tables.values()], axis=0)
    # Stable: heads of as many circuits stay in the model's order.
    order = np.argsort(-circuits_with, kind="stable")[: np.count_nonzero(circuits_with)]
    if not len(order):
        return ""
    return f"<h3>Heads</h3><p>{_HEADS}</p>" + table_html(cells.iloc[order], tall=True)


def _in_and_out(heads: pd.DataFrame) -> list[str]:
    pairs = zip(heads["edges_in"], heads["edges_out"], strict=True)
    return [f"{a:,} in, {b:,} out" if a or b else "–" for a, b in pairs]


def _circuits(comparison: Comparison) -> str:
    circuits = _found(comparison)
    grouped = comparison.graph.heads != comparison.graph.kv_heads
    return drawn(plot_circuits, circuits, more=_GROUPED * grouped)


def _projection(comparison: Comparison) -> str:
    if comparison.projection is None:
        return "<p>Left out: this model has no token graph, so there is no trace to project.</p>"
    nodes = {tuple(circuit.nodes()) for circuit, _ in _found(comparison).values()}
    if len(nodes) == 1:
        return f"<p>{_SAME_NODES}</p>"
    table = comparison.projection
    lines = []
    for name in table["circuit"].unique():
        whole = [
            f"{_size(containing_size(of_kind, name))} of the {kind}"
            for kind, of_kind in table.groupby("trace", sort=False)
        ]
        lines.append(f"{name}: {', '.join(whole)}")
    return (
        drawn(plot_projection, comparison)
        + f"<p>Smallest size measured at which most of the traces of {_TRACED} hold every "
        "component of a circuit:</p>" + bullets(lines)
    )


def _size(size: float) -> str:
    return "never in traces" if math.isnan(size) else f"s = {size:.3g} in traces"


_TRACED = f"the first {TRACED} prompts"
_INTERVALS = "in brackets are 95 % bootstrap intervals over the pairs"
_HEADS = "Edges of each circuit into and out of a head; heads of most circuits come first."
_SAME_NODES = (
    "Left out: all circuits have the same heads and MLPs, so the trace contains all of them alike."
)
_GROUPED = "Diamonds are key-value heads, below the heads that share them."
_HEADINGS = {
    "peak_mb": "peak MB",
    "cpr": "CPR",
    "cmd": "CMD",
    "edges_at_85": "edges at 85 %",
    "auroc": "AUROC",
}
