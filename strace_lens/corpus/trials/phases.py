"""The phases of every trace of a trial: what a better estimator changes in the paper's picture.

Source: s-Trace (arXiv 2605.27033), section "phases", for traces of every estimator on the same
prompts. What is early or late is told by relative depth: 0 is the first layer, 1 the last. A
residual column that reaches down to the embedding is early by its making, so the depth of the
attention and MLP edges, those of the blocks, is told beside that of all edges.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from jaxtyping import Int64

from strace_lens.corpus.trials.jobs import Job
from strace_lens.corpus.trials.run import Trials
from strace_lens.corpus.trials.saved import OtherTrialError
from strace_lens.density.change_points import change_points
from strace_lens.files.traces import load_trace
from strace_lens.measures.sizes import restored_from
from strace_lens.token_graph.edges import KINDS
from strace_lens.token_graph.trace import Trace

SHOWN_SIZES = (0.01, 0.05, 0.2)
"""Sizes at which kinds and depth are compared."""

_BLOCK = slice(KINDS.index("attention"), None)  # the kinds after residual
Counts = Int64[np.ndarray, "kind layer"]


@dataclass(frozen=True, eq=False)
class TrialPhases:
    """Phases of the traces of a trial, own target and seed 0.

    Attributes:
        prompts: one row a prompt and estimator. Columns: `prompt`, `kind`, `estimator`;
            `construction_start`, `construction_stop` and `construction_tv` (the TV at its end);
            `construction_pace` and `refinement_pace`, by how much TV falls while the size grows
            tenfold; of the head subgraph and the tail refinement `head_size` and `tail_size`
            (relative sizes at which they end), `head_edges` and `tail_edges`, `head_depth` and
            `tail_depth`, `head_block_depth` and `tail_block_depth`; `depth_gap` and
            `block_depth_gap`, the head's less the tail's; `graph_depth` and `graph_block_depth`, of
            the whole graph; at sizes 0.01, 0.05 and 0.2, if they were measured, `residual_*`,
            `attention_*`, `mlp_*` (shares of the edges), `depth_*` and `block_depth_*`. NaN where
            there is no such phase or no such edge.
        layers: one row a prompt, estimator, size and layer: `residual`, `attention` and `mlp`, the
            trace's edges, and `reachable`, the graph's.
        made: how the first trace was made, as in `Trace.made`: model, ablation, versions.
    """

    prompts: pd.DataFrame
    layers: pd.DataFrame
    made: Mapping[str, Any] = field(default_factory=dict)


def trial_phases(trials: Trials, out: str | Path) -> TrialPhases:
    """Phases of every trace of a trial.

    Args:
        trials: of `run_trials`.
        out: the folder that `run_trials` saved the traces in.

    Raises:
        FileNotFoundError: a trace is not there.
        ResultFileError: a saved trace is truncated or foreign.
        OtherTrialError: a saved trace is of another graph than the trial's.
    """
    own = trials.runs.query("role == 'own' and seed == 0")
    prompts, layers, made = [], [], {}
    for key, rows in own.groupby(["prompt", "estimator"], sort=False):
        prompt, name = cast(tuple[int, str], key)
        trace = _load(Path(out), int(prompt), name, rows)
        made = made or trace.made
        sizes = rows["size"].tolist()
        edges = [*(trace.edge_count(s) for s in sizes), trace.edges]
        *counts, graph = trace.counts_by_size(edges).numpy()
        about = {"prompt": prompt, "kind": rows["kind"].iloc[0], "estimator": name}
        prompts.append({**about, **_phases(rows, dict(zip(sizes, counts, strict=True)), graph)})
        layers += [
            pd.DataFrame(dict(zip(KINDS, here, strict=True))).assign(
                prompt=prompt,
                estimator=name,
                size=size,
                layer=range(trace.shape.layers),
                reachable=graph.sum(0),
            )
            for size, here in zip(sizes, counts, strict=True)
        ]
    columns = ["prompt", "estimator", "size", "layer", *KINDS, "reachable"]
    return TrialPhases(
        pd.DataFrame(prompts), pd.concat(layers, ignore_index=True).reindex(columns=columns), made
    )


def relative_depth(counts: Counts) -> float:
    """Mean layer of edges over the last layer; NaN without edges or with a single layer."""
    by_layer = counts.sum(0)
    last = len(by_layer) - 1
    if not by_layer.any() or last == 0:
        return math.nan
    return float(by_layer @ np.arange(last + 1) / by_layer.sum() / last)


def _load(out: Path, prompt: int, estimator: str, rows: pd.DataFrame) -> Trace:
    path = Job(estimator, 0, "own").path(out, prompt)
    trace = load_trace(path)
    edges = int(rows["edges"].iloc[0])
    if trace.edges != edges:
        raise OtherTrialError(
            f"{path} ranks {trace.edges:,} edges, the trial's graph of that prompt has {edges:,}"
        )
    return trace


def _phases(rows: pd.DataFrame, counts: dict[float, Counts], graph: Counts) -> dict[str, Any]:
    """Everything about one trace: along the sizes, along the layers, at single sizes."""
    head_size, tail_size = restored_from(rows, float(rows["head_mass"].iloc[0]))
    # NaN if either is: the refinement of the tail starts where the head is restored.
    tail_size = float(np.maximum(head_size, tail_size))
    none = np.zeros_like(graph)
    head, end = counts.get(head_size, none), counts.get(tail_size)
    tail = none if end is None else end - head
    return {
        **_along_sizes(rows),
        "head_size": head_size,
        "tail_size": tail_size,
        "head_edges": math.nan if math.isnan(head_size) else int(head.sum()),
        "tail_edges": math.nan if math.isnan(tail_size) else int(tail.sum()),
        **_depths("head_", head),
        **_depths("tail_", tail),
        "depth_gap": relative_depth(head) - relative_depth(tail),
        "block_depth_gap": relative_depth(head[_BLOCK]) - relative_depth(tail[_BLOCK]),
        **_depths("graph_", graph),
        **dict(_at_sizes(counts)),
    }


def _along_sizes(rows: pd.DataFrame) -> dict[str, float]:
    phases = {
        p.name: p for p in change_points(rows["size"].to_numpy(), rows["tv"].to_numpy(np.float64))
    }
    found: dict[str, float] = dict.fromkeys(
        ("construction_start", "construction_stop", "construction_tv", "construction_pace"),
        math.nan,
    )
    found["refinement_pace"] = math.nan
    for name, phase in phases.items():
        fall = phase.tv_start - phase.tv_stop
        if name != "plateau":
            found[f"{name}_pace"] = fall / math.log10(phase.stop / phase.start)
        if name == "construction":
            found["construction_start"] = float(phase.start)
            found["construction_stop"] = float(phase.stop)
            found["construction_tv"] = phase.tv_stop
    return found


def _at_sizes(counts: dict[float, Counts]) -> Iterator[tuple[str, float]]:
    for size, here in counts.items():
        for shown in SHOWN_SIZES:
            if math.isclose(size, shown):
                for kind, edges in zip(KINDS, here.sum(1), strict=True):
                    yield f"{kind}_{shown:g}", edges / here.sum() if here.any() else math.nan
                for name, depth in _depths("", here).items():
                    yield f"{name}_{shown:g}", depth


def _depths(name: str, counts: Counts) -> dict[str, float]:
    return {
        f"{name}depth": relative_depth(counts),
        f"{name}block_depth": relative_depth(counts[_BLOCK]),
    }
