"""Results as tables for a terminal: a trace, a prompt in several ways, methods of discovery."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float
from rich import box
from rich.console import Console
from rich.table import Table

from strace_lens.comparison.comparison import LEAST_FOR_LEVEL, Comparison, rankings_drawn
from strace_lens.density.causal import read_ablation
from strace_lens.density.curve import DensityCurve
from strace_lens.density.phases import Phases
from strace_lens.density.ways import Way, read_ways
from strace_lens.measures.intervals import row_text

WIDTH = 132

Columns = Mapping[str, tuple[str, str]]
"""The heading and the format of each column that is shown, by its name."""


def cell(value: object, shown: str = "{:.4g}") -> str:
    """A value as text: a dash for none and NaN, words for truth, numbers in a format."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return shown.format(value) if isinstance(value, int | float) else str(value)


def cells(table: pd.DataFrame, columns: Columns) -> pd.DataFrame:
    """Some columns of a table as text, under their headings."""
    return pd.DataFrame(
        {
            heading: [cell(value, shown) for value in table[name].tolist()]
            for name, (heading, shown) in columns.items()
        }
    )


def frame_table(title: str, frame: pd.DataFrame) -> Table:
    """A small data frame as a table under a title; numbers get four digits."""
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        title=title,
        title_justify="left",
    )
    for name in frame.columns:
        table.add_column(str(name).replace("_", " "), justify="right", no_wrap=True)
    for row in frame.itertuples(index=False):
        table.add_row(*(cell(x, "{:,}" if isinstance(x, int) else "{:.4g}") for x in row))
    return table


def wide_console(least: int = WIDTH) -> Console:
    """A console that prints text as it is and never folds a table, even if it is narrow.

    Labels, names and prompts may hold square brackets and colons, which are no markup here.
    """
    width = max(least, Console().width)
    return Console(highlight=False, markup=False, emoji=False, width=width)


def print_curve(curve: DensityCurve, phases: Phases, ablated: pd.DataFrame) -> None:
    """Print a density curve, its phases, and the effect of ablating their parts."""
    console = wide_console()
    console.print("; ".join(_about(curve)))
    console.print(frame_table("", cells(curve.table, _SIZES)))
    if curve.target is not None:
        console.print(frame_table("The target at each size", cells(curve.table, _TARGET)))
    if curve.target_line:
        console.print(curve.target_line)
    console.print(f"density {curve.density:.3f}; {phases.describe()}")
    console.print(
        f"largest logit difference, full mask to untouched model: {curve.logit_gap:.1e}\n"
    )
    layers = phases.layer_table()
    if len(layers):
        console.print(frame_table("Layer phases", layers))
    if not len(ablated):
        console.print("no table of ablated parts: the sizes measured do not restore head and tail")
        return
    title = (
        "What is left when edges of the trace are ablated, early or late in the layers;\n"
        "match: as many others of the same kinds in the same layers"
    )
    parts = ablated.assign(ablated=ablated["ablated"].str.removesuffix(" layers"))
    console.print(frame_table(title, cells(parts, _ABLATED)))
    for sentence in read_ablation(ablated):
        console.print(f"{sentence}\n")


def _about(curve: DensityCurve) -> list[str]:
    """What was measured, and what the model says next."""
    trace, (token, probability) = curve.trace, curve.top[0]
    return [
        f"{trace.metadata['model']}: {len(trace.prompt.ids)} tokens, {trace.edges:,} edges",
        f"next token {token!r} ({probability:.2f}), entropy {curve.entropy:.2f} nats",
    ]


_SIZES: Columns = {
    "size": ("s", "{:g}"),
    "edges": ("edges", "{:,}"),
    "tv": ("TV", "{:.3f}"),
    "kl": ("KL", "{:.3f}"),
    "head_error": ("head", "{:.3f}"),
    "tail_error": ("tail", "{:.3f}"),
    "top1": ("top-1", ""),
    "nucleus": ("nucleus", "{:.0%}"),
    "residual": ("resid", "{:.0%}"),
    "attention": ("attn", "{:.0%}"),
    "mlp": ("MLP", "{:.0%}"),
    "mean_layer": ("layer", "{:.1f}"),
    "random_tv": ("random", "{:.3f}"),
    "inverse_tv": ("inverse", "{:.3f}"),
    "random_inverse_tv": ("rand inv", "{:.3f}"),
}
_TARGET: Columns = {
    "size": ("s", "{:g}"),
    "edges": ("edges", "{:,}"),
    "target": ("target", "{:.4g}"),
    "target_recovered": ("recovered", "{:.1%}"),
    "target_tv": ("TV of named", "{:.3f}"),
}
# The measures of `phase_ablation` that 80 columns have room for.
_ABLATED: Columns = {
    "ablated": ("ablated", ""),
    "edges": ("edges", "{:,}"),
    "tv": ("TV", "{:.3f}"),
    "head_error": ("head", "{:.3f}"),
    "tail_error": ("tail", "{:.3f}"),
    "matched_tv": ("match\nTV", "{:.3f}"),
    "matched_head_error": ("match\nhead", "{:.3f}"),
    "matched_tail_error": ("match\ntail", "{:.3f}"),
}

# ------------------------------------------------------------------ several ways, 80 columns

SHOWN = (1e-4, 1e-3, 4e-3, 1e-2, 2e-2, 4e-2, 0.1, 0.2, 0.4, 0.8)
"""The relative sizes of the short table: those of the default grid where most happens."""

NARROW = 80
_ABREAST = 3  # ways side by side
_GAP, _WAY = "   ", 18  # between ways, and the width of one
_NAMES = {"definition": "as defined", "attention-kept": "attention kept", "tight": "tight (fisher)"}


def print_ways(curves: Mapping[Way, DensityCurve]) -> None:
    """Print a prompt, about ten sizes of each way of measuring it, and what follows from them.

    No line is longer than 80 characters.
    """
    lines = [*_about(next(iter(curves.values()))), "", *ways_lines(curves), ""]
    for sentence in read_ways(curves):
        lines += [*textwrap.wrap(sentence, NARROW, break_on_hyphens=False), ""]
    print("\n".join(lines))


def ways_lines(curves: Mapping[Way, DensityCurve]) -> list[str]:
    """A line for each size: TV, top-1 agreement, head and tail error of each way.

    More ways than three are told below each other.
    """
    lines = []
    (first, *_) = curves.values()
    sizes = _shown(first.table["size"].to_numpy()[~first.table["refined"].to_numpy()])
    for start in range(0, len(curves), _ABREAST):
        some = dict(itertools.islice(curves.items(), start, start + _ABREAST))
        names = [f"{_NAMES.get(way.name, way.name)[:_WAY]:^{_WAY}}" for way in some]
        lines += [
            *[""] * (start > 0),
            _GAP.join([" " * 6, *names]).rstrip(),
            _GAP.join([f"{'s':>6}", *["  TV top head tail"] * len(some)]),
            _GAP.join(["-" * 6, *["-" * _WAY] * len(some)]),
        ]
        for size in sizes:
            measures = [_way_cells(curve, size) for curve in some.values()]
            lines.append(_GAP.join([f"{size:>6.4g}", *measures]))
    return lines


def _way_cells(curve: DensityCurve, size: float) -> str:
    (place,) = np.flatnonzero(np.isclose(curve.table["size"], size, rtol=1e-9, atol=0))
    row = curve.table.iloc[place]
    top = "yes" if row["top1"] else "no"
    return f"{row['tv']:.2f} {top:>3} {row['head_error']:.2f} {row['tail_error']:.2f}"


def _shown(sizes: Float[np.ndarray, " size"]) -> Sequence[float]:
    """The sizes of `SHOWN` that were measured, or ten spread over another grid."""
    there = [size for size in SHOWN if np.isclose(sizes, size, rtol=1e-9, atol=0).any()]
    if len(there) >= len(SHOWN) // 2 or len(sizes) <= len(there):
        return there
    places = np.unique(np.linspace(0, len(sizes) - 1, min(len(SHOWN), len(sizes))).astype(int))
    return sizes[places].tolist()


# ------------------------------------------------------------------ methods of discovery

_NAMED = 8  # missed edges named
_COMPARISON_WIDTH = 160  # with two intervals


def print_comparison(comparison: Comparison) -> None:
    """Print the table of methods, what it stands on, and the edges that each method misses."""
    console = wide_console(_COMPARISON_WIDTH)
    facts = [f"{name}: {fact}" for name, fact in comparison_facts(comparison).items()]
    _say(console, [f"{comparison.model} on {comparison.task}", *facts])
    _say(console, [f"warning: {line}" for line in comparison.warnings])
    console.print(frame_table("", comparison_cells(comparison)))
    _say(console, difference_lines(comparison))
    _say(console, [*_legend(comparison), *comparison.notes])
    _say(console, truth_lines(comparison))


def _legend(comparison: Comparison) -> list[str]:
    """What the columns that are there mean."""
    unknown = unknown_columns(comparison)
    return [
        _AREAS[comparison.metadata.get("ranking", "mib")],
        *([_BRACKETS] if comparison.intervals else []),
        _COSTS,
        *(said for name, said in _MEANINGS.items() if name not in unknown),
    ]


def comparison_facts(comparison: Comparison) -> dict[str, str]:
    """What a comparison stands on, by name: graph, pairs, metric, ablation, the control."""
    c, graph, draws = comparison, comparison.graph, len(comparison.random_cmd)
    others = f"{c.evaluated_pairs} others" if c.held_out else "the same"
    right = "" if c.accuracy is None else f"; {100 * c.accuracy:.3g} % right"
    level = "at most 1 in 20 does" if draws >= LEAST_FOR_LEVEL else "none does"
    rules = [f"{level} as well"] if draws > 1 else []
    if c.truth is None:
        rules.append("the pairs tell its CMD from random's")
    control = f"; a method beats random if {' and if '.join(rules)}" if rules else ""
    gap = max((result.faithfulness.full_gap for result in c.results), default=math.nan)
    facts = {
        "component graph": f"{graph.edges:,} edges, {graph.sources:,} sources, "
        f"{graph.destinations:,} destinations, {graph.layers} layers",
        "pairs of prompts": f"{c.pairs} seen by the methods, circuits evaluated on {others}; "
        f"{c.dropped} dropped because they did not align",
        "metric": f"{c.metric}: mean {c.metric_clean:.4g} on the clean prompts, "
        f"{c.metric_corrupted:.4g} on the corrupted{right}",
        "ablated edges carry": _ABLATIONS.get(c.ablation, c.ablation),
        "full circuit": f"at most {gap:.1e} from the untouched model on any pair",
        "control": f"{rankings_drawn(draws)}{control}",
        "memory": f"above what was held before, measured {c.memory}",
    }
    if c.truth is not None:
        which = _TRUTHS.get(str(c.truth_name), f"by {c.truth_name}")
        facts["true circuit"] = f"{len(c.truth):,} edges, {which}"
    return facts


def comparison_cells(comparison: Comparison) -> pd.DataFrame:
    """The table of methods as text, one row a method; only columns of what is known.

    CPR and CMD have their intervals over pairs in brackets.
    """
    left_out, table = unknown_columns(comparison), comparison.table
    shown = {name: column for name, column in _METHODS.items() if name not in left_out}
    found = cells(table, shown)
    for name in ("cpr", "cmd"):
        heading, number = _METHODS[name]
        found[heading] = [row_text(row, name, number) for row in table.to_dict("records")]
    return found


def unknown_columns(comparison: Comparison) -> tuple[str, ...]:
    """Columns of a comparison's table that no method has: of a truth, or of what was not run."""
    truth = ("auroc", "precision") if comparison.truth is None else ()
    asked = ("completeness", "minimality")
    unasked = [n for n in asked if all(getattr(r, n) is None for r in comparison.results)]
    return (*truth, *unasked)


def difference_lines(comparison: Comparison) -> list[str]:
    """Which method is best by CPR and by CMD, and which others it is better than beyond doubt."""
    if len(comparison.results) < 2 or not comparison.intervals:
        return []
    lines = []
    for measure, most in (("cpr", "highest CPR"), ("cmd", "lowest CMD")):
        best = _best_by(comparison, measure)
        own = comparison.differences(measure).query("method == @best")
        parts = {
            "better than": own[own["better"]]["other"].tolist(),
            "not told apart from": own[~own["better"]]["other"].tolist(),
        }
        said = "; ".join(f"{words} {', '.join(names)}" for words, names in parts.items() if names)
        lines.append(f"{most}: {best}, {said} (95 % intervals of differences, pair by pair)")
    return lines


def _best_by(comparison: Comparison, measure: str) -> str:
    """The method with the highest CPR or the lowest CMD."""
    sign = -1 if measure == "cmd" else 1
    best = max(comparison.results, key=lambda r: sign * getattr(r.faithfulness, measure))
    return best.method


def truth_lines(comparison: Comparison) -> list[str]:
    """Which true edges each method misses, where a truth is known."""
    if comparison.truth is None:
        return []
    lines = []
    for result in comparison.results:
        left = len(result.missed) - _NAMED
        named = ", ".join(result.missed[:_NAMED]) + (f" and {left} more" if left > 0 else "")
        misses = f"{len(result.missed)} true edges: {named}" if result.missed else "no true edge"
        lines.append(f"{result.method} misses {misses}")
    return lines


def _say(console: Console, lines: list[str]) -> None:
    for line in lines:
        console.print(line, soft_wrap=True)


_METHODS: Columns = {
    "method": ("method", ""),
    "forwards": ("fwd", "{:,.4g}"),
    "backwards": ("bwd", "{:,.4g}"),
    "seconds": ("s", "{:,.1f}"),
    "peak_mb": ("MB", "{:,.0f}"),
    "cpr": ("CPR", "{:.3f}"),
    "cmd": ("CMD", "{:.3f}"),
    "edges_at_85": ("edges", "{:,.0f}"),
    "completeness": ("compl.", "{:.3f}"),
    "minimality": ("minimal", "{:.0%}"),
    "auroc": ("AUROC", "{:.3f}"),
    "precision": ("precision", "{:.0%}"),
    "beats_random": ("> random", ""),
}
_ABLATIONS = {
    "resample": "resample: their value on the corrupted prompt of the pair",
    "mean": "mean: the position-wise mean over all clean and corrupted prompts",
    "mean-over-positions": "mean-over-positions: the mean over all prompts and positions",
    "optimal": "optimal: for each source the constant that costs the model least, as learned",
}
_TRUTHS = {
    "written and read": "those whose source writes what their destination reads",
    "zero": "those whose zeroing alone changes what the model does",
    "mean": "those whose mean-ablation alone changes what the model does",
    "resample": "those whose resampling alone changes what the model does",
}
_AREAS = {
    "mib": "CPR: area under faithfulness over sizes, edges ranked by sign; CMD: area between "
    "faithfulness and 1, edges ranked by magnitude, as for all that follows.",
    "signed": "CPR: area under faithfulness over sizes; CMD: area between it and 1; edges are "
    "ranked by sign.",
    "absolute": "CPR: area under faithfulness over sizes; CMD: area between it and 1; edges are "
    "ranked by magnitude.",
}
_BRACKETS = (
    "in brackets: 95 % interval over pairs (bootstrap); all others are on the page and in the CSV."
)
_COSTS = "fwd, bwd: forward and backward passes over all pairs seen; s: seconds; MB: peak memory."
_MEANINGS = {
    "edges_at_85": "edges: fewest with 85 % faithfulness, the method's circuit.",
    "completeness": "compl.: faithfulness of all other edges, the complement (completeness; near "
    "0 is complete).",
    "minimality": "minimal: share of the circuit's edges, of a sample, whose loss costs 1 % of "
    "faithfulness.",
}
