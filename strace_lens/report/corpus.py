"""One HTML page of one or more sweeps: the claims tested, then every analysis as a figure."""

# pandas' types are wider than what it returns here.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportReturnType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from strace_lens.corpus.analyses.arrays import kept_kinds
from strace_lens.corpus.run_folder import Run
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
from strace_lens.plot.corpus.states import (
    plot_geometry,
    plot_path,
    plot_state_path,
    plot_states_alike,
    plot_states_apart,
)
from strace_lens.report.claims_table import claims_html
from strace_lens.report.estimators import ESTIMATOR_FIGURES
from strace_lens.report.page import facts_html, figure_html, page, table_html, versions_text
from strace_lens.report.tables_corpus import corpus_sections

FEW = 20
"""Prompts below which a page warns that its intervals are rough."""

Tables = Mapping[str, pd.DataFrame]


def corpus_report(runs: Sequence[Run], tables: Tables) -> str:
    """One self-contained page of some runs.

    The same runs give the same page, byte for byte.

    Args:
        runs: of `read_run`.
        tables: of `analyse`, for the same runs.

    Returns:
        HTML with plotly.js inside it (about 5 MB).
    """
    names = ", ".join(run.name for run in runs)
    title = f"Phases over many prompts: {names}"
    lead = f"<h1>{html.escape(title)}</h1><p>{_intervals(runs)}</p>{claims_html(tables['claims'])}"
    sections = {
        "The runs": [
            f"<h3>{html.escape(r.name)}</h3><dl>{facts_html(_facts(r))}</dl>" for r in runs
        ],
        "Runs side by side": _several(runs, tables),
    }
    of_estimators = {_ESTIMATORS: ESTIMATOR_FIGURES} if "estimator_table" in tables else {}
    for heading, figures in (of_estimators | _SECTIONS).items():
        sections[heading] = [_figure(name, *of, runs, tables) for name, of in figures.items()]
    sections[_DENSITY].append(_relations(runs, tables))
    sections["Every number"] = [
        f"<h3>{html.escape(heading)}</h3>{table_html(frame)}"
        for heading, frame in corpus_sections(runs, tables).items()
    ]
    return page(title, lead, sections)


def _figure(
    name: str,
    draw: Callable[..., go.Figure],
    sources: Sequence[str],
    caption: str,
    runs: Sequence[Run],
    tables: Tables,
) -> str:
    """A figure of some tables, or why it is left out."""
    missing = _missing(sources, tables)
    if missing:
        return f"<p>{missing}</p>"
    fig = draw(*(tables[source] for source in sources))
    return figure_html(fig, name, caption + _files(sources, tables, runs))


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


def _missing(sources: Sequence[str], tables: Tables) -> str:
    """Why a figure is left out; nothing if it is not."""
    for source in sources:
        if source not in tables or tables[source].empty:
            return _LEFT_OUT.get(source, f"{source} has no row.")
    return ""


def _files(sources: Sequence[str], tables: Tables, runs: Sequence[Run]) -> str:
    """How many prompts a figure is of, and the files of its numbers."""
    main = tables[sources[0]]
    counts = np.asarray([len(run.prompts) for run in runs])
    if "prompts" in main:
        counts = main["prompts"].to_numpy(dtype=np.int64)
    low, high = int(counts.min()), int(counts.max())
    of = f"{high}" if low == high else f"{low} to {high}"
    count = f" Over {of} prompt{'s' * (of != '1')}"
    count += " (none where no trace has such an edge)." if low == 0 else "."
    files = ", ".join(f"{source}.csv" for source in sources)
    return f"{count} Numbers: {files}."


def _relations(runs: Sequence[Run], tables: Tables) -> str:
    """Density against what is known of each prompt, coloured by its first label."""
    frames = []
    for run in runs:
        labels = [column for column in run.prompts if str(column).startswith("label_")]
        kind = run.prompts[labels[0]] if labels else pd.Series("", index=run.prompts.index)
        frame = run.prompts[["prompt", "density", "entropy", "tokens", "loss"]]
        frame = frame.assign(label=kind.fillna("").astype(str))
        frame.insert(0, "run", run.name)
        frames.append(frame)
    fig = plot_density_against(pd.concat(frames, ignore_index=True), tables["density_correlations"])
    return figure_html(fig, "density-against", _AGAINST + " Numbers: density_correlations.csv.")


def _several(runs: Sequence[Run], tables: Tables) -> list[str]:
    """What only several runs have: densities of shared prompts, curves over those alone."""
    if "between_runs" not in tables:
        return []
    shared = set.intersection(*(set(run.prompts["sha256"]) for run in runs))
    frames = []
    first = runs[0].prompts.drop_duplicates("sha256").set_index("sha256")["prompt"]
    for run in runs:
        own = run.prompts[run.prompts["sha256"].isin(shared)].drop_duplicates("sha256")
        numbers = first[own["sha256"]].to_numpy()  # a prompt has its number in the first run
        frames.append(own[["density"]].assign(run=run.name, prompt=numbers))
    densities = pd.concat(frames, ignore_index=True)
    drawn: list[tuple[go.Figure, str, str]] = [
        (
            plot_mean_curves(tables["shared_curves"], tables["shared_boundaries"]),
            "shared-curves",
            f"Mean curves over the {len(shared)} prompts that all runs have. Numbers: "
            "shared_curves.csv, shared_boundaries.csv.",
        ),
        (
            plot_between_runs(tables["between_runs"]),
            "between-runs",
            "Spearman correlation of the density of a prompt between runs, with its interval. "
            "Numbers: between_runs.csv.",
        ),
        (
            plot_density_of_prompts(densities),
            "density-of-prompts",
            "Density of every shared prompt in every run, prompts sorted by their mean; numbers "
            "are those of the first run.",
        ),
    ]
    return [figure_html(*one) for one in drawn]


_ESTIMATORS = "Estimators and their controls"
_DENSITY = "What density goes with"
_AGAINST = (
    "Density of each prompt against the entropy of the full model's output, the number of tokens "
    "and the loss of the true next token; above each its rank correlation. Correlations given the "
    "other two are in the table below."
)
_LEFT_OUT = {
    "geometry_by_layer": "Hidden states were not kept in this sweep (--no-hidden).",
    "state_matrices": "Hidden states were not kept in this sweep (--no-hidden).",
    "state_curvature": "Hidden states were not kept, or a single size was measured.",
    "growth": "No prompt was grown: a sweep with --generate N shows density along a text.",
    "density_by_label": "No label has two to twelve values, so density by label is left out.",
}
_SECTIONS = {
    "Construction, then refinement": {
        "mean-curves": (
            plot_mean_curves,
            ("mean_curves", "corpus_boundaries"),
            "Mean total variation from the model's output by relative size, for the trace, a "
            "random subgraph and the inverse of the trace; thin: the trace's median. Shaded: where "
            "the boundaries of the mean curve's phases lie, and in how many resamples they do.",
        ),
        "head-tail": (
            plot_head_tail,
            ("mean_curves",),
            "Error over the head (the model's top-p nucleus) and over the tail; they add up to the "
            "total variation.",
        ),
        "prompt-boundaries": (
            plot_prompt_boundaries,
            ("prompt_boundaries",),
            "Where construction starts and stops on every prompt that has it, with residual "
            "bootstrap intervals. A boundary is there only between two phases that were found.",
        ),
        "sizes-needed": (
            plot_sizes_needed,
            ("size_needed",),
            "Smallest relative size from which on the trace shares the model's nucleus, its top "
            "token, or stays under a head or tail error: median and quartiles over prompts. Hollow "
            "markers, which are what the authors' code reports, are the first sizes at which it "
            "does; at a larger one it may not.",
        ),
    },
    "What traces are made of": {
        "kinds": (
            plot_kinds,
            ("kinds_by_size",),
            "Share of each kind among the edges of the trace, and among those that each size adds.",
        ),
        "quarters": (
            plot_quarters,
            ("quarters_by_size",),
            "The same by quarters of the depth, first layers to last.",
        ),
        "phase-diagram": (
            plot_phase_diagram,
            ("phase_diagram", "head_and_tail_means"),
            "Layer by size: the share of a layer's edges that the trace holds, and how much head "
            "and tail error the size takes away, shared out over layers by the ablatable edges "
            "that it adds there (an attribution by composition, not an intervention).",
        ),
        "head-and-tail": (
            plot_head_and_tail,
            ("head_and_tail", "head_and_tail_means"),
            "Relative depth of the head subgraph's edges and of those that the tail refinement "
            "adds, 0 the first layer and 1 the last, over all edges, over those of attention and "
            "MLPs alone, and, if a run keeps kinds of edges, over those that it ablates.",
        ),
    },
    "What is used again and again": {
        "lorenz": (
            plot_lorenz,
            ("lorenz",),
            "Lorenz curves: share of all edges that the least used components hold.",
        ),
        "gini": (
            plot_gini,
            ("gini",),
            "Gini coefficient of the use of components by size; dotted: of the whole graphs. Its "
            "intervals are moved so that resamples have the value as their mean.",
        ),
        "core": (
            plot_core,
            ("core",),
            "Share of components that at least 90 % of the prompts' traces hold an edge of.",
        ),
    },
    _DENSITY: {
        "density-by-label": (
            plot_density_by_label,
            ("density_by_label",),
            "Mean density by label.",
        ),
        "density-parts": (
            plot_density_parts,
            ("density_parts", "part_correlations"),
            "The two parts of a density against the entropy of the full model's output: the "
            "plateau (TV at the smallest size), which is lower where both outputs are broad "
            "whatever is computed, and the size at which TV falls below half of it.",
        ),
    },
    "Shallow statistics": {
        "shallow": (
            plot_shallow,
            ("shallow", "shallow_full_model"),
            "Mean total variation of the trace's output to the model's output, to the corpus' "
            "unigram distribution and to the model's output after a BOS alone; dotted: the full "
            "model's own distance to the latter two.",
        ),
        "nearest": (
            plot_nearest,
            ("nearest",),
            "Share of prompts whose trace is nearer to a target than the full model is, and whose "
            "nearest target it is. Intervals are Wilson's.",
        ),
    },
    "Hidden states": {
        "geometry": (
            plot_geometry,
            ("geometry_by_layer",),
            "The trace's stream after each block against the full model's: cosine at the last "
            "token, linear CKA over all tokens (none in the last layer).",
        ),
        "path": (
            plot_path,
            ("geometry_by_layer",),
            "The path at the last token: length of each layer's step, and the angle between "
            "successive steps.",
        ),
        "states-alike": (
            plot_states_alike,
            ("state_matrices",),
            "The last token's state behind the final norm, in the trace of each size against that "
            "of every other. Cosine: mean over prompts. Linear CKA: whether two sizes arrange the "
            "prompts alike; with fewer prompts than the model is wide it is high for any two sets "
            "of states, which its estimate without bias is not.",
        ),
        "states-apart": (
            plot_states_apart,
            ("state_matrices",),
            "The same states: mean distance over prompts, and information imbalance (Glielmo et "
            "al. 2022): near 0 where the nearest neighbours among prompts at the size of the row "
            "are neighbours at that of the column too, near 1 where they tell nothing of it.",
        ),
        "state-path": (
            plot_state_path,
            ("state_curvature",),
            "The same state's path from size to size: length of each step, and the angle between "
            "successive steps (0 goes straight on, π straight back).",
        ),
    },
    "Growth during generation": {
        "growth": (
            plot_growth,
            ("growth", "growth_lines"),
            "Density of each prompt as the model adds tokens to it.",
        ),
    },
}
"""Figures of a page by heading: how they are drawn, from which tables, and what is seen."""
