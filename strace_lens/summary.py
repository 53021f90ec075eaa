"""A density curve and its phases as one JSON object for scripts, whose keys stay as they are."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from strace_lens.density import DensityCurve
from strace_lens.phases import LayerPhase, Phases
from strace_lens.token_graph.edges import KINDS

_COLUMNS = ("tv", "kl", "js", "head_error", "tail_error", "nucleus", "random_tv", "inverse_tv")


def summarize(curve: DensityCurve, phases: Phases, ablation: pd.DataFrame) -> dict[str, Any]:
    """Everything `strace-lens trace` found, as plain lists, numbers and strings.

    Args:
        curve: the measured trace.
        phases: of that curve.
        ablation: what `causal.phase_ablation` returned.

    Returns:
        A dict that `json.dumps(..., allow_nan=False)` takes: what is not finite is None.
    """
    trace, made = curve.trace, curve.trace.made
    return {
        "model": made["model"],
        "prompt": trace.prompt.text,
        "tokens": list(trace.prompt.strings),
        "edges": trace.edges,
        "importance": made["importance"],
        "order": made["order"],
        "ablation": curve.ablation,
        "seed": curve.seed,
        "versions": dict(made["versions"]),
        "phases": [{"name": p.name, "from": p.start, "to": p.stop} for p in phases.along_sizes],
        "sizes": [_size(row) for row in curve.table.to_dict("records")],
        "density": _finite(curve.density),
        "entropy": curve.entropy,
        "head": {"p": curve.head, "mass": curve.head_mass},
        "top": _top(curve.top),
        "logit_gap": curve.logit_gap,
        "layer_phases": [_layer_phase(p) for p in (phases.head, phases.tail) if p is not None],
        "phase_ablation": records(ablation),
    }


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table as dicts that `json.dumps(..., allow_nan=False)` takes."""
    return [
        {str(name): _finite(value) for name, value in row.items()}
        for row in table.to_dict("records")
    ]


def _size(row: dict[Any, Any]) -> dict[str, Any]:
    return {
        "size": row["size"],
        "edges": row["edges"],
        **{name: _finite(row[name]) for name in _COLUMNS},
        "top1": bool(row["top1"]),
        "share": {kind: row[kind] for kind in KINDS},
        "mean_layer": _finite(row["mean_layer"]),
        "top": _top(row["top"]),
    }


def _layer_phase(phase: LayerPhase) -> dict[str, Any]:
    return {
        "name": phase.name,
        "from": phase.start,
        "to": phase.stop,
        "edges": phase.edges,
        "kinds": phase.kinds,
        "mean_layer": _finite(phase.mean_layer),
        "share_of_layer": phase.share_of_layer.tolist(),
    }


def _top(pairs: tuple[tuple[str, float], ...]) -> list[dict[str, Any]]:
    return [{"token": token, "probability": probability} for token, probability in pairs]


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
