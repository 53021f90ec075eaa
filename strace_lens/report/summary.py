"""Results as JSON objects for scripts; their keys are stable."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from strace_lens.comparison.comparison import FIGURES, Comparison, MethodResult
from strace_lens.density.causal import read_ablation
from strace_lens.density.change_points import Phase
from strace_lens.density.curve import TARGET_COLUMNS, DensityCurve
from strace_lens.density.phases import LayerPhase, Phases
from strace_lens.utils.choices import KINDS

_COLUMNS = (
    "tv",
    "kl",
    "js",
    "head_error",
    "tail_error",
    "nucleus",
    "random_tv",
    "inverse_tv",
    "random_inverse_tv",
    "ablatable_size",
)


def summarize(curve: DensityCurve, phases: Phases, ablation: pd.DataFrame) -> dict[str, Any]:
    """Return the results of `strace-lens trace` as plain lists, numbers and strings.

    Args:
        curve: The measured trace.
        phases: The phases of the curve.
        ablation: The result of `phase_ablation`.

    Returns:
        A dict for `json.dumps(..., allow_nan=False)`, in which values that are not finite are None.
        `target` and `ranked_towards` are None for the whole distribution.
    """
    trace, made = curve.trace, curve.trace.metadata
    return {
        "model": made["model"],
        "prompt": trace.prompt.text,
        "tokens": list(trace.prompt.strings),
        "edges": trace.edges,
        "importance": made["importance"],
        "order": made["order"],
        "ablation": curve.ablation,
        "keep": list(curve.keep),
        "seed": curve.seed,
        "versions": dict(made["versions"]),
        "phases": [_phase(p) for p in phases.along_sizes],
        "sizes": [
            _size(row) | {"top": _top(top)}
            for row, top in zip(curve.table.to_dict("records"), curve.tops, strict=True)
        ],
        "density": finite(curve.density),
        "auc_paper": finite(curve.auc_paper),
        "entropy": curve.entropy,
        "head": {"p": curve.head, "mass": curve.head_mass},
        "top": _top(curve.top),
        "logit_gap": curve.logit_gap,
        "target": _target(curve),
        "ranked_towards": None if trace.target is None else trace.target.facts(),
        "layer_phases": [_layer_phase(p) for p in (phases.head, phases.tail) if p is not None],
        "phase_ablation": records(ablation),
        "phase_ablation_reading": read_ablation(ablation),
    }


def summarize_comparison(comparison: Comparison) -> dict[str, Any]:
    """Return the results of `strace-lens compare` as plain lists, numbers and strings.

    Returns:
        A dict for `json.dumps(..., allow_nan=False)`. `methods` has one object for each method that
        ran; unknown values are None. `intervals` has the two ends of 95 % intervals over pairs by
        figure, for `faithfulness` one a size; `better_than` are the methods whose CMD is higher
        beyond doubt, see `Comparison.differences`.
    """
    differences = comparison.differences("cmd")
    better_than = differences[differences["better"]].groupby("method")["other"].agg(list).to_dict()
    return {
        "task": comparison.task,
        "model": comparison.model,
        "accuracy": comparison.accuracy,
        "methods": [_method(result, better_than) for result in comparison.results],
    }


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a table as dicts for `json.dumps(..., allow_nan=False)`."""
    return [
        {str(name): finite(value) for name, value in row.items()}
        for row in table.to_dict("records")
    ]


def _method(result: MethodResult, better_than: Mapping[str, list[str]]) -> dict[str, Any]:
    scores, curve = result.scores, result.faithfulness
    ends = curve.to_pandas()[["faithfulness_low", "faithfulness_high"]].to_numpy().tolist()
    return {
        "method": result.method,
        "cpr": curve.cpr,
        "cmd": curve.cmd,
        "auroc": result.auroc,
        "edges_at_85": curve.edges_at_85,
        "completeness": result.completeness,
        "minimality": result.minimality,
        "forwards": scores.forwards,
        "backwards": scores.backwards,
        "seconds": finite(scores.seconds),
        "peak_mb": finite(result.peak_mb),
        "faithfulness": [list(pair) for pair in zip(curve.fractions, curve.values, strict=True)],
        "intervals": {
            **{name: _interval(result.interval(name)) for name in FIGURES},
            "faithfulness": [_interval(both) for both in ends],
        },
        "better_than": better_than.get(result.method, []),
    }


def _interval(ends: Sequence[float]) -> list[float] | None:
    """The two ends of an interval, or None where there is none."""
    return None if math.isnan(ends[0]) else list(ends)


def _target(curve: DensityCurve) -> dict[str, Any] | None:
    if curve.target is None:
        return None
    values = {"full": finite(curve.target_full), "empty": finite(curve.target_empty)}
    return {**curve.target.facts(), **values}


def _size(row: dict[Any, Any]) -> dict[str, Any]:
    of_target = {name: finite(row[name]) for name in TARGET_COLUMNS if name in row}
    return {
        "size": row["size"],
        "edges": row["edges"],
        "refined": bool(row["refined"]),
        **{name: finite(row[name]) for name in _COLUMNS},
        "top1": bool(row["top1"]),
        "share": {kind: row[kind] for kind in KINDS},
        "mean_layer": finite(row["mean_layer"]),
        **of_target,
    }


def _phase(phase: Phase) -> dict[str, Any]:
    return {
        "name": phase.name,
        "from": phase.start,
        "from_between": phase.start_between and list(phase.start_between),
        "to": phase.stop,
        "to_between": phase.stop_between and list(phase.stop_between),
    }


def _layer_phase(phase: LayerPhase) -> dict[str, Any]:
    return {
        "name": phase.name,
        "from": phase.start,
        "to": phase.stop,
        "to_between": list(phase.stop_between),
        "edges": phase.edges,
        "kinds": phase.kinds,
        "mean_layer": finite(phase.mean_layer),
        "share_of_layer": phase.share_of_layer.tolist(),
    }


def _top(pairs: tuple[tuple[str, float], ...]) -> list[dict[str, Any]]:
    return [{"token": token, "probability": probability} for token, probability in pairs]


def finite(value: Any) -> Any:
    """Return the value, or None for NaN and infinity, which JSON cannot hold."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
