"""One HTML page of one or more sweeps: a summary, then every analysis in folded sections."""

# pandas' types are wider than what it returns here.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportReturnType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import html
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from strace_lens.corpus.analyses.arrays import kept_kinds
from strace_lens.corpus.run_folder import Run
from strace_lens.plot.charts import of_runs, run_lines
from strace_lens.plot.corpus.composition import (
    plot_core,
    plot_gini,
    plot_head_and_tail,
    plot_kinds,
    plot_lorenz,
    plot_phase_diagram,
    plot_quarters,
)
from strace_lens.plot.corpus.curves import (
    plot_head_tail,
    plot_mean_curves,
    plot_prompt_boundaries,
    plot_shared_curves,
    plot_sizes_needed,
)
from strace_lens.plot.corpus.density import (
    plot_between_runs,
    plot_density_against,
    plot_density_by_label,
    plot_density_of_prompts,
    plot_density_parts,
    plot_growth,
    plot_nearest,
    plot_shallow,
)
from strace_lens.plot.corpus.estimators import (
    plot_compute,
    plot_depth_curves,
    plot_fidelity,
    plot_phase_ends,
)
from strace_lens.plot.corpus.states import (
    plot_geometry,
    plot_path,
    plot_state_path,
    plot_states_alike,
    plot_states_apart,
)
from strace_lens.report.claims_table import claims_html
from strace_lens.report.page import drawn, facts_html, page, square, table_html, versions_text
from strace_lens.report.tables_corpus import corpus_sections

FEW = 20
"""Prompts below which a page warns that its intervals are rough."""

Tables = Mapping[str, pd.DataFrame]


def corpus_report(runs: Sequence[Run], tables: Tables) -> str:
    """Make one self-contained page of one or more runs.

    It starts with the claims, the boundaries of the phases and three figures. Everything else is
    in folded sections.

    The same runs give the same page, byte for byte.

    Args:
        runs: runs that `read_run` returned.
        tables: the result of `analyse` for the same runs.

    Returns:
        HTML that includes plotly.js (about 5 MB).
    """
    names = ", ".join(run.name for run in runs)
    title = f"Phases over many prompts: {names}"
    of = {**tables, "prompts": _prompts(runs)}
    if "between_runs" in tables:
        of["shared_prompts"] = _shared_prompts(runs)
    of = {name: of_runs(table, [run.name for run in runs]) for name, table in of.items()}
    colours = {} if len(runs) < 2 else run_colours(runs)
    numbers = corpus_sections(runs, tables)
    shared = tables.get("shared_curves")
    summary = _SUMMARY if shared is None or shared.empty else _SUMMARY_OF_SEVERAL
    lead = [
        f"<h1>{html.escape(title)}</h1><p>{_intervals(runs)}{_key(colours)}</p>",
        claims_html(tables["claims"], colours),
        _boundaries(numbers),
        *(_figure(plot, runs, of) for plot in summary),
    ]
    sections = {
        "The runs": [
            f"<h3>{square(colours, run.name)}{html.escape(run.name)}</h3>"
            f"<dl>{facts_html(_facts(run))}</dl>"
            for run in runs
        ]
    }
    for heading, plots in _SECTIONS.items():
        drawn_here = [plot for plot in plots if plot not in summary]
        sections[heading] = [_figure(plot, runs, of) for plot in drawn_here]
    sections["Every number"] = [
        f"<h3>{html.escape(heading)}</h3>{table_html(frame)}" for heading, frame in numbers.items()
    ]
    return page(title, "\n".join(lead), sections, folded=True)


def run_colours(runs: Sequence[Run]) -> dict[str, str]:
    """The colour of each run, the same in every figure and table of a page."""
    lines = run_lines(pd.DataFrame({"run": [run.name for run in runs]}))
    return {name: str(line["color"]) for name, line in lines.items()}


def _key(colours: Mapping[str, str]) -> str:
    """What colour each run has, if there are several."""
    names = ", ".join(f"{square(colours, name)}{html.escape(name)}" for name in colours)
    return f" The runs have one colour each everywhere: {names}." if names else ""


def _boundaries(numbers: Mapping[str, pd.DataFrame]) -> str:
    """Where the phases of each run meet, with intervals, a line a run."""
    if _BOUNDARIES not in numbers:
        return ""
    rows = numbers[_BOUNDARIES]
    shown = [name for name in _QUANTITIES if name in set(rows["quantity"])]
    table = rows.pivot(index="run", columns="quantity", values="value")
    table = table.reindex(index=rows["run"].unique(), columns=shown)
    return f"<h2>{_BOUNDARIES}</h2>{table_html(table.rename_axis(columns=None).reset_index())}"


def _figure(plot: Callable[..., go.Figure], runs: Sequence[Run], tables: Tables) -> str:
    """A figure of the tables that its parameters name, or why it is left out.

    Nothing is said of tables that only several runs or the controls of estimators have.
    """
    sources = list(inspect.signature(plot).parameters)
    if not set(sources) <= set(tables):
        return ""
    for source in sources:
        if tables[source].empty:
            return f"<p>{_LEFT_OUT.get(source, f'{source} has no row.')}</p>"
    more = _files(sources, tables, runs) + _lacking(sources[0], tables, runs)
    return drawn(plot, *(tables[source] for source in sources), more=more)


def _lacking(source: str, tables: Tables, runs: Sequence[Run]) -> str:
    """Which runs a figure has no panel of, for want of data, and why."""
    if "run" not in tables[source]:
        return ""
    shown = set(tables[source]["run"])
    absent = [html.escape(run.name) for run in runs if run.name not in shown]
    if not absent:
        return ""
    return f" Left out: {', '.join(absent)}. {_LEFT_OUT.get(source, f'{source} has no row of it.')}"


def _intervals(runs: Sequence[Run]) -> str:
    """What the bands of a page stand for, and whether there are any."""
    fewest = min(len(run.prompts) for run in runs)
    if fewest < 2:
        return "A single prompt gives no interval: no figure of that run has a band."
    text = "Bands and brackets are 95 % percentile bootstrap intervals over prompts."
    if fewest < FEW:
        text += f" With {fewest} prompts they are rough."
    return text


def _facts(run: Run) -> dict[str, str]:
    options, prompts = run.manifest["options"], run.prompts
    sizes, tokens, edges = run.grid, prompts["tokens"], prompts["edges"]
    facts = {
        "model": run.model,
        "prompts": f"{len(prompts)}, of {tokens.min()} to {tokens.max()} tokens and "
        f"{edges.min():,} to {edges.max():,} edges",
        "estimator": str(options.get("estimator", "unknown")),
        "never ablated": ", ".join(kept_kinds(run)) or "no kind of edges",
        "ablated edges carry": str(options.get("ablation", "unknown")),
        **_corruption(options),
        "relative sizes": f"{len(sizes)}, from {sizes.min():.3g} to {sizes.max():.3g}",
        "mean density": f"{prompts['density'].mean():.3f}",
        "full mask against the model": f"largest logit difference {prompts['logit_gap'].max():.1e}",
        "versions": versions_text(dict(run.manifest.get("versions", {}))),
    }
    if run.missing:
        facts["unfinished"] = f"{run.missing} prompts are not done; run the sweep again to go on"
    if len(run.failures):
        first = run.failures.iloc[0]
        facts["failed"] = f"{len(run.failures)}; prompt {first['prompt']}: {first['error']}"
    return facts


def _corruption(options: Mapping[str, Any]) -> dict[str, str]:
    done = {"shuffle": "words change places", "random": "tokens are replaced"}.get(
        options.get("corrupt", "")
    )
    if done is None:
        return {}
    return {"texts": f"corrupted: {options['corrupt_rate']:.0%} of the {done}"}


def _files(sources: Sequence[str], tables: Tables, runs: Sequence[Run]) -> str:
    """How many prompts a figure is of, and the files of its numbers."""
    main = tables[sources[0]]
    counts = np.asarray([len(run.prompts) for run in runs])
    if "prompts" in main:
        counts = main["prompts"].to_numpy(dtype=np.int64)
    low, high = int(counts.min()), int(counts.max())
    of = f"{high}" if low == high else f"{low} to {high}"
    count = f"Over {of} prompt{'s' * (of != '1')}"
    count += " (none where no trace has such an edge)." if low == 0 else "."
    files = [f"{source}.csv" for source in sources if source not in ("prompts", "shared_prompts")]
    return f"{count} Numbers: {', '.join(files)}." if files else count


def _prompts(runs: Sequence[Run]) -> pd.DataFrame:
    """What is known of each prompt, with its first label."""
    frames = []
    for run in runs:
        labels = [column for column in run.prompts if str(column).startswith("label_")]
        kind = run.prompts[labels[0]] if labels else pd.Series("", index=run.prompts.index)
        frame = run.prompts[["prompt", "density", "entropy", "tokens", "loss"]]
        frames.append(frame.assign(run=run.name, label=kind.fillna("").astype(str)))
    return pd.concat(frames, ignore_index=True)


def _shared_prompts(runs: Sequence[Run]) -> pd.DataFrame:
    """The densities of the prompts that all runs have, under their numbers in the first run."""
    shared = set.intersection(*(set(run.prompts["sha256"]) for run in runs))
    first = runs[0].prompts.drop_duplicates("sha256").set_index("sha256")["prompt"]
    frames = []
    for run in runs:
        own = run.prompts[run.prompts["sha256"].isin(shared)].drop_duplicates("sha256")
        numbers = first[own["sha256"]].to_numpy()
        frames.append(own[["density"]].assign(run=run.name, prompt=numbers))
    return pd.concat(frames, ignore_index=True)


_LEFT_OUT = {
    "geometry_by_layer": "Hidden states were not kept in this sweep (--no-hidden).",
    "state_matrices": "Hidden states were not kept in this sweep (--no-hidden).",
    "state_curvature": "Hidden states were not kept, or a single size was measured.",
    "growth": "No prompt was grown: a sweep with --generate N shows density along a text.",
    "density_by_label": "No label has two to twelve values, so density by label is left out.",
}
_BOUNDARIES = "Phase boundaries of the mean curve"
_QUANTITIES = ("phases", "construction start", "construction stop")
_SUMMARY = (plot_mean_curves, plot_kinds, plot_sizes_needed)
_SUMMARY_OF_SEVERAL = (plot_shared_curves, plot_between_runs, plot_sizes_needed)
"""Figures that stand open at the start of a page: those of several runs tell them by colour."""

_SECTIONS: dict[str, tuple[Callable[..., go.Figure], ...]] = {
    "Runs side by side": (plot_shared_curves, plot_between_runs, plot_density_of_prompts),
    "Estimators and their controls": (
        plot_fidelity,
        plot_phase_ends,
        plot_depth_curves,
        plot_compute,
    ),
    "Construction, then refinement": (
        plot_mean_curves,
        plot_head_tail,
        plot_prompt_boundaries,
        plot_sizes_needed,
    ),
    "What traces are made of": (
        plot_kinds,
        plot_quarters,
        plot_phase_diagram,
        plot_head_and_tail,
    ),
    "What is used again and again": (plot_lorenz, plot_gini, plot_core),
    "What density goes with": (plot_density_by_label, plot_density_parts, plot_density_against),
    "Shallow statistics": (plot_shallow, plot_nearest),
    "Hidden states": (
        plot_geometry,
        plot_path,
        plot_states_alike,
        plot_states_apart,
        plot_state_path,
    ),
    "Growth during generation": (plot_growth,),
}
"""Figures of a page by heading: parameters name the tables that are drawn, docstrings the rest."""
