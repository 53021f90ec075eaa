"""One HTML page of a trial of estimators: what is read off, figures, tables; it works offline."""

from __future__ import annotations

import html
from string import Template

import pandas as pd

from strace_lens.corpus.trials.phases import TrialPhases
from strace_lens.corpus.trials.run import Trials
from strace_lens.plot.estimator_panels import plot_errors, plot_mean_kinds, plot_mean_layers
from strace_lens.plot.estimator_phases import plot_depth_curves, plot_depths, plot_phase_ends
from strace_lens.plot.estimators import plot_compute, plot_densities, plot_fidelity
from strace_lens.report.page import facts_html, figure_html, page, table_html, versions_text
from strace_lens.report.reading import (
    read_compute,
    read_controls,
    read_depth,
    read_fidelity,
    read_kinds,
    read_phases,
)
from strace_lens.report.tables import estimator_sections, phase_sections


def estimators_report(
    trials: Trials, table: pd.DataFrame, phases: TrialPhases, phase_means: pd.DataFrame
) -> str:
    """One self-contained page of a trial.

    The same results give the same page, byte for byte; of a trial run again, only the seconds in
    one table differ. Whatever the page says of a figure is computed from the tables.

    Args:
        trials: of `run_trials`.
        table: of `estimator_table`, for the same trials.
        phases: of `trial_phases`.
        phase_means: of `phase_table`.

    Returns:
        HTML with plotly.js inside it (about 5 MB).

    Raises:
        ValueError: the trials have no rows.
    """
    figures = {
        "fidelity": (plot_fidelity(trials.runs), _FIDELITY),
        "densities": (plot_densities(trials.traces), _DENSITIES),
        "phase-ends": (plot_phase_ends(phases.prompts, phase_means), _PHASE_ENDS),
        "errors": (plot_errors(trials.runs, phase_means), _ERRORS),
        "depths": (plot_depths(phases.prompts, phase_means), _DEPTHS),
        "depth-curves": (plot_depth_curves(phases.layers, phases.prompts), _DEPTH_CURVES),
        "layers": (plot_mean_layers(phases.layers, phase_means), _LAYERS),
        "kinds": (plot_mean_kinds(trials.runs), _KINDS),
        "compute": (plot_compute(trials.runs), _COMPUTE),
    }
    drawn = {
        name.replace("-", "_"): figure_html(fig, name, caption)
        for name, (fig, caption) in figures.items()
    }
    model = str(phases.made.get("model", "a model without a name"))
    body = _BODY.substitute(
        model=html.escape(model),
        facts=facts_html(_facts(trials, phases)),
        read_fidelity=_list(read_fidelity(table)),
        read_controls=_list(read_controls(table)),
        read_phases=_list(read_phases(phase_means)),
        read_depth=_list(read_depth(phase_means)),
        read_kinds=_list(read_kinds(phase_means)),
        read_compute=_list(read_compute(table)),
        estimator_tables=_tables(estimator_sections(table)),
        phase_tables=_tables(phase_sections(phase_means)),
        **drawn,
    )
    return page(f"Estimators of a trace of {model}", body)


def _facts(trials: Trials, phases: TrialPhases) -> dict[str, str]:
    runs, made = trials.runs, phases.made
    kinds = [kind for kind in runs["kind"].fillna("").unique() if kind]
    tokens, edges, sizes = runs["tokens"], runs["edges"], runs["size"]
    return {
        "prompts": f"{runs['prompt'].nunique()}, of {tokens.min()} to {tokens.max()} tokens and "
        f"{edges.min():,} to {edges.max():,} edges",
        "kinds of prompts": ", ".join(kinds) or "not given",
        "estimators": ", ".join(runs["estimator"].unique()),
        "seeds": f"{runs['seed'].nunique()} of each estimator that draws; phases, depth and layers "
        "are of seed 0",
        "relative sizes": f"{sizes.nunique()}, from {sizes.min():.3g} to {sizes.max():.3g}",
        "ablated edges carry": str(made.get("trial", {}).get("ablation", "unknown")),
        "versions": versions_text(made.get("versions", {})),
    }


def _list(lines: list[str]) -> str:
    return (
        "<ul>" + "".join(f"<li>{html.escape(line, quote=False)}</li>" for line in lines) + "</ul>"
    )


def _tables(sections: dict[str, pd.DataFrame]) -> str:
    return "".join(
        f"<h3>{html.escape(title)}</h3>{table_html(frame)}" for title, frame in sections.items()
    )


_BANDS = "Bands and bars are 95 % bootstrap intervals over prompts."
_FIDELITY = (
    "Total variation by relative size, mean over prompts. Above, from the model's own output. "
    "Below, the control: every estimator aimed at the output of another prompt (greedy and "
    "scheduled cannot be aimed: their own trace against it). A line that falls below is a "
    f"subgraph that was talked into an answer the model does not give. {_BANDS}"
)
_DENSITIES = (
    "Density of every prompt, joined from estimator to estimator; less is a tighter bound on how "
    f"much of the graph the prediction needs. {_BANDS}"
)
_PHASE_ENDS = (
    "Bars: the construction phase, the steepest stretch of a prompt's curve. Circles: from where "
    "on the head error stays under a tenth of the head's mass. Squares: the tail error likewise, "
    "and no sooner than the head. "
    "Large marks are geometric means over the prompts that have the phase, small ones are prompts; "
    f"head and tail end at measured sizes, so marks coincide. {_BANDS}"
)
_ERRORS = (
    "Head and tail error, which add up to the total variation: over the model's top-p nucleus and "
    f"over the rest. Grey: the mean construction phase. {_BANDS}"
)
_DEPTHS = (
    "Relative depth, mean over the edges of the head subgraph and over those that the tail "
    "refinement adds to it. A residual column that reaches down to the embedding is early by its "
    "making, hence the right panel. Dotted: the whole graph, towards which every trace goes as it "
    f"grows; a larger head subgraph is nearer to it for that alone. {_BANDS}"
)
_DEPTH_CURVES = (
    "Relative depth of all edges of the trace of each size: estimators at equal sizes. Dotted: the "
    f"whole graph. Sizes at which a prompt's trace has no such edge are left out. {_BANDS}"
)
_LAYERS = (
    "Which share of a layer's edges the trace of each size holds, mean over prompts, logarithmic "
    "colours in one scale; blank where no prompt's trace has an edge. Lines: where the head "
    "subgraph is complete (solid) and the tail refined (dashed), geometric means. The last layer "
    "has edges into the last token alone, so it fills first."
)
_KINDS = (
    "Share of residual, attention and MLP edges among the edges of the trace of each size, mean "
    "over prompts. Sizes at which a prompt's trace has no edge are left out."
)
_COMPUTE = (
    "Left: multiply-adds that a sparse run of the trace would need, over those of the full pass. "
    "Right: mean total variation at the mean compute share of the same size, so that estimators "
    f"are compared by what their traces cost to run. {_BANDS}"
)

_BODY = Template("""<h1>Estimators of a trace of $model</h1>
<dl>$facts</dl>
<p>Estimators rank the edges of the same graphs; each gives an upper bound on how much of the model
a prediction needs. Numbers are means over prompts, in brackets 95 % percentile bootstrap intervals
over prompts. What a list says below is computed from these tables.</p>
<h2>How much of the graph a prediction needs</h2>
$read_fidelity
$fidelity
$densities
<h2>Controls</h2>
$read_controls
<h2>Does construction, then refinement, survive a better estimator?</h2>
$read_phases
$phase_ends
$errors
<h2>Is the head subgraph still early?</h2>
$read_depth
$depths
$depth_curves
$layers
<h2>What the traces are made of</h2>
$read_kinds
$kinds
<h2>What a small trace saves</h2>
$read_compute
$compute
<h2>Every number: estimators</h2>
$estimator_tables
<h2>Every number: phases</h2>
$phase_tables
""")
