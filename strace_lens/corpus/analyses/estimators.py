"""Estimators compared over the same prompts: fidelity, cost, controls, and what becomes of phases.

Source: s-Trace (arXiv 2605.27033), section "phases", for the traces of every estimator. The runs
are sweeps with `controls="all"`, one for each estimator. A run is compared with greedy's of the
same model and kept kinds of edges, prompt by prompt; prompts are known by their texts.
"""

# pandas' types are wider than what it returns here.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportReturnType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from strace_lens.corpus.analyses.arrays import (
    divide,
    edges_by,
    every_size,
    kept_kinds,
    layer_of,
    named,
    shares,
)
from strace_lens.corpus.analyses.layer_phases import head_and_tail
from strace_lens.corpus.analyses.sizes import pace_of
from strace_lens.corpus.run_folder import Run
from strace_lens.density.change_points import change_points
from strace_lens.measures.intervals import interval, means
from strace_lens.measures.sizes import DENSITY_SIZES, density, smallest_size_from_which
from strace_lens.utils.choices import KINDS

BASELINE = "greedy"
PHASE_SIZES = (0.01, 0.05, 0.2)
"""Sizes at which the kinds and the depth of traces are compared."""

LOGARITHMIC = ("construction_start", "construction_stop", "head_size", "tail_size")
"""Quantities of `estimator_phases` whose means are geometric and whose comparisons are ratios."""

_TV_SIZES = (0.01, 0.05, 0.1, 0.2, 0.4)
_CONTROL_SIZES = (0.05, 0.1, 0.2)
_COMPUTE_SIZES = (0.01, 0.05, 0.2)
_LARGEST_WRONG = 0.2
_SMALLEST_PATH = 0.01
_OF_LAYERS = (
    *("head_size", "tail_size", "head_depth", "head_block_depth", "tail_depth", "tail_block_depth"),
    *("depth_gap", "block_depth_gap", "graph_depth", "graph_block_depth"),
)

Wide = pd.DataFrame
"""A value for each run (rows) and prompt (columns, by the hash of its text)."""


def estimator_tables(runs: Sequence[Run], *, seed: int = 0) -> dict[str, pd.DataFrame]:
    """Every table of runs with the controls of their estimators, by name."""
    return {
        "estimator_table": estimator_table(runs, seed=seed),
        "estimator_phases": estimator_phases(runs, seed=seed),
        "estimator_traces": named({run.name: estimator_traces(run) for run in runs}),
        "estimator_curves": named({run.name: estimator_curves(run, seed=seed) for run in runs}),
    }


def estimator_traces(run: Run) -> pd.DataFrame:
    """Every trace that a run fitted: how small it is, and what it cost.

    Returns:
        One row a prompt, seed and `target` ("own", the prompt's output, or "wrong", another
        prompt's). Columns: `density`, over `DENSITY_SIZES` (over all sizes where one of these was
        not measured; NaN for a single size); `top1_size`, from which on the target's top token is
        right (NaN if not at the largest); `forward` and `backward`, rows of passes, those of the
        trace that it started from included.
    """
    fitted = run.controls[run.controls["role"].isin(["own", "wrong"])]
    rows = []
    for (prompt, seed, target), one in fitted.groupby(["prompt", "seed", "role"], sort=False):
        sizes, even = one["size"].to_numpy(), one["size"].isin(DENSITY_SIZES)
        over = one[even] if even.sum() == len(DENSITY_SIZES) else one
        whole = len(over) > 1
        rows.append(
            {
                "prompt": prompt,
                "seed": seed,
                "target": target,
                "density": density(over["size"].to_numpy(), over["tv"].to_numpy())
                if whole
                else math.nan,
                "top1_size": smallest_size_from_which(sizes, one["top1"].to_numpy(dtype=np.bool_)),
                "forward": int(one["forward"].iloc[0]),
                "backward": int(one["backward"].iloc[0]),
            }
        )
    return pd.DataFrame(rows)


def estimator_curves(run: Run, *, seed: int = 0) -> pd.DataFrame:
    """Means over prompts by size, with 95 % percentile bootstrap intervals.

    Returns:
        Columns `quantity`, `size`, `mean`, `low`, `high`, `prompts`. Quantities: `tv`, total
        variation from the model's output, and `wrong_tv`, from the wrong target's by a trace aimed
        at it; `compute`, the share of the multiply-adds of the full pass that a sparse run of the
        trace needs; `depth` and `block_depth`, the relative depth of all edges of the trace and of
        those of attention and MLPs, at sizes at which every prompt's trace has such an edge. A
        prompt counts by its mean over seeds; depth is that of the first.
    """
    values = {
        "tv": _prompts_by_sizes(run, "own", "tv"),
        "wrong_tv": _prompts_by_sizes(run, "wrong", "tv"),
        "compute": _prompts_by_sizes(run, "own", "compute"),
        **_depths(run),
    }
    parts = []
    for name, table in values.items():
        there = ~np.isnan(table).any(0)
        found = means(table[:, there], seed)
        parts.append(
            pd.DataFrame(
                {
                    "quantity": name,
                    "size": run.grid[there],
                    **found.columns(),
                    "prompts": found.prompts,
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def estimator_table(runs: Sequence[Run], *, seed: int = 0) -> pd.DataFrame:
    """What the traces of each run reproduce, what they cost, and what the controls say.

    Values are means over prompts of the mean over seeds; intervals are 95 % percentile bootstrap
    intervals over prompts, NaN for a single prompt. Names end in a relative size where they hold
    for that one; sizes that were not measured are left out.

    Returns:
        One row a run. Columns:

        - `run`, `prompts`, `seeds`;
        - `density` with `density_low` and `density_high`; `top1_size`, a geometric mean, 1 where
          the top token is not right at the largest size, as it is in the full graph; `tv_*`;
        - `density_vs_greedy` (difference) and `top1_ratio` (of sizes), paired over prompts, each
          with `_low` and `_high`; NaN without greedy;
        - `forward`, `backward`; `density_sd`, over seeds, NaN where there is only one;
        - `wrong_tv_mean` and `wrong_tv_min`, over prompts, of the lowest TV to the wrong target at
          sizes up to 0.2; `sibling_*`, the TV on the sibling; `noise_*`, by how much noise changes
          the TV;
        - `path_share_mean` and `path_share_min` at sizes from 0.01 on; `connected_size`, a
          geometric mean of the size from which a path joins a token to the output; `compute_*`.
    """
    rows = named({run.name: _keyed(run, run.controls) for run in runs})
    traces = named({run.name: _keyed(run, estimator_traces(run)) for run in runs})
    traces = traces[traces["target"].eq("own")]
    traces = traces.assign(top1=np.log(traces["top1_size"].fillna(1.0)))
    densities, top1 = _wide(traces, "density"), _wide(traces, "top1")
    greedy = _greedy_of(runs)
    ratios = _with_interval("top1_ratio", _less_greedy(top1, greedy), seed)
    by_run = traces.groupby("run")
    columns: dict[str, Any] = {
        "prompts": by_run["prompt"].nunique(),
        "seeds": by_run["seed"].nunique(),
        **_with_interval("density", densities, seed),
        "top1_size": np.exp(top1.mean(axis=1)),
        **_at(rows[rows["role"].eq("own")], "tv", _TV_SIZES, "tv"),
        **_with_interval("density_vs_greedy", _less_greedy(densities, greedy), seed),
        **{name: np.exp(values) for name, values in ratios.items()},
        **{name: _wide(traces, name).mean(axis=1) for name in ("forward", "backward")},
        "density_sd": _wide(traces, "density", "std").mean(axis=1),
        **_controls(rows),
    }
    table = pd.DataFrame(columns).reindex([run.name for run in runs])
    return table.rename_axis("run").reset_index()


def estimator_phases(runs: Sequence[Run], *, seed: int = 0) -> pd.DataFrame:
    """The phases of the traces of each run: means over the prompts that have them.

    Intervals are 95 % percentile bootstrap intervals over prompts, NaN for fewer than two.

    Returns:
        One row a quantity and run. Columns:

        - `run`; `quantity`: `construction_start`, `construction_stop`, `construction_tv` (the TV at
          its end), `construction_pace` and `refinement_pace` (by how much TV falls while the size
          grows tenfold); of `head_and_tail` the sizes and depths of the head subgraph and the tail
          refinement, the head's depth less the tail's (`depth_gap`), and the whole graph's; at
          sizes 0.01, 0.05 and 0.2, if they were measured, `residual_*`, `attention_*`, `mlp_*`
          (shares of the edges), `depth_*` and `block_depth_*`;
        - `prompts`, those that have it; `mean` with `low` and `high`, geometric for `LOGARITHMIC`;
        - `vs_greedy` with `vs_greedy_low` and `vs_greedy_high`, paired over the prompts that have
          it in both: a ratio for `LOGARITHMIC`, a difference for others; NaN without greedy.
    """
    prompts = named({run.name: _keyed(run, _phases_of(run)) for run in runs})
    greedy, names, keys = _greedy_of(runs), [run.name for run in runs], prompts["key"].unique()
    tables = []
    for quantity in prompts.columns.drop(["run", "key", "prompt"]):
        wide = _wide(prompts, quantity).reindex(index=names, columns=keys)
        logarithmic = quantity in LOGARITHMIC
        wide = pd.DataFrame(np.log(wide)) if logarithmic else wide
        found = means(wide.to_numpy(np.float64).T, seed)
        compared = means(_less_greedy(wide, greedy).to_numpy(np.float64).T, seed)
        columns = {**found.columns(), **compared.columns("vs_greedy")}
        if logarithmic:
            columns = {name: np.exp(values) for name, values in columns.items()}
        about = {"run": names, "quantity": quantity, "prompts": found.prompts}
        tables.append(pd.DataFrame({**about, **columns}))
    return pd.concat(tables, ignore_index=True)


def _phases_of(run: Run) -> pd.DataFrame:
    """The quantities of `estimator_phases`, one row a prompt."""
    along = pd.DataFrame([_along_sizes(table) for table in every_size(run)])
    layers = head_and_tail(run)[["prompt", *_OF_LAYERS]]
    found = pd.concat([layers["prompt"], along, layers[list(_OF_LAYERS)]], axis=1)
    depths = _depths(run)
    for shown in PHASE_SIZES:
        for at in np.flatnonzero(np.isclose(run.grid, shown, rtol=1e-9, atol=0)):
            rows = run.sizes.iloc[at :: len(run.grid)]
            for kind in KINDS:
                share = rows[kind].where(rows["edges"] > 0)
                found[f"{kind}_{shown:g}"] = share.to_numpy(dtype=np.float64)
            for name, values in depths.items():
                found[f"{name}_{shown:g}"] = values[:, at]
    return found


def _along_sizes(table: pd.DataFrame) -> dict[str, float]:
    """Construction and refinement of one prompt, from its table at every size."""
    added = int(np.count_nonzero(table["refined"].to_numpy()))
    phases = change_points(table["size"].to_numpy(), table["tv"].to_numpy(), added)
    by_name = {phase.name: phase for phase in phases}
    construction = by_name.get("construction")
    return {
        "construction_start": construction.start if construction else math.nan,
        "construction_stop": construction.stop if construction else math.nan,
        "construction_tv": construction.tv_stop if construction else math.nan,
        "construction_pace": pace_of(construction),
        "refinement_pace": pace_of(by_name.get("refinement")),
    }


def _depths(run: Run) -> dict[str, Float[np.ndarray, "prompt size"]]:
    """Relative depth of the edges of every trace; NaN without edges or with a single layer."""
    layers = layer_of(run)
    count = int(layers.max()) + 1
    block = run.components["kind"].ne("residual").to_numpy(dtype=np.bool_)
    found = {}
    for name, group in (("depth", layers), ("block_depth", np.where(block, layers, -1))):
        mean_layer = shares(edges_by(run, group, count)[0]) @ np.arange(count)
        found[name] = divide(mean_layer, np.asarray(count - 1))
    return found


def _prompts_by_sizes(run: Run, role: str, column: str) -> Float[np.ndarray, "prompt size"]:
    """A column of a role, means over seeds."""
    rows = run.controls[run.controls["role"].eq(role)]
    return rows.pivot_table(index="prompt", columns="size", values=column).to_numpy(np.float64)


def _controls(rows: pd.DataFrame) -> dict[str, Any]:
    own, noise = (rows[rows["role"].eq(role)] for role in ("own", "noise"))
    wrong = rows[rows["role"].eq("wrong") & rows["size"].le(_LARGEST_WRONG)]
    lowest = _wide(wrong, "tv", "min")
    keys = ["run", "prompt", "seed", "size"]
    both = noise.merge(own, on=keys, suffixes=("", "_own"), validate="one_to_one")
    both = both.assign(change=(both["tv"] - both["tv_own"]).abs())
    paths = own[own["size"].ge(_SMALLEST_PATH)].groupby("run")["path_share"]
    return {
        "wrong_tv_mean": lowest.mean(axis=1),
        "wrong_tv_min": lowest.min(axis=1),
        **_at(rows[rows["role"].eq("sibling")], "tv", _CONTROL_SIZES, "sibling"),
        **_at(both, "change", _CONTROL_SIZES, "noise"),
        "path_share_mean": paths.mean(),
        "path_share_min": paths.min(),
        "connected_size": np.exp(_wide(_connected(own), "log_size").mean(axis=1)),
        **_at(own, "compute", _COMPUTE_SIZES, "compute"),
    }


def _connected(own: pd.DataFrame) -> pd.DataFrame:
    """Logarithm of the size from which a path joins a token to the output; 0 if only at the end."""
    rows = []
    keys = ["run", "prompt", "key", "seed"]
    for which, one in own.groupby(keys, sort=False):
        holds = one["connected"].to_numpy(dtype=np.bool_)
        size = smallest_size_from_which(one["size"].to_numpy(), holds)
        log_size = 0.0 if math.isnan(size) else math.log(size)
        rows.append({**dict(zip(keys, which, strict=True)), "log_size": log_size})
    return pd.DataFrame(rows)


def _greedy_of(runs: Sequence[Run]) -> dict[str, str]:
    """The greedy run that each run is compared with: of its model and kept kinds, if there is."""

    def kind(run: Run) -> tuple[object, ...]:
        return run.manifest.get("weights"), run.model, kept_kinds(run)

    first: dict[tuple[object, ...], str] = {}
    for run in runs:
        if run.manifest["options"]["estimator"] == BASELINE:
            first.setdefault(kind(run), run.name)
    return {run.name: first[kind(run)] for run in runs if kind(run) in first}


def _less_greedy(values: Wide, greedy: Mapping[str, str]) -> Wide:
    """Less the value of greedy on the same prompt; NaN for runs that have no greedy one."""
    names = [greedy.get(str(name)) for name in values.index]
    return values - values.reindex(names).set_axis(values.index)


def _keyed(run: Run, frame: pd.DataFrame) -> pd.DataFrame:
    """A frame with the hash of the text of each prompt as `key`."""
    texts = run.prompts.set_index("prompt")["sha256"]
    return frame.assign(key=frame["prompt"].map(texts))


def _wide(frame: pd.DataFrame, column: str, over_seeds: str = "mean") -> Wide:
    return frame.pivot_table(
        index="run", columns="key", values=column, aggfunc=over_seeds, sort=False
    )


def _at(
    frame: pd.DataFrame, column: str, sizes: Sequence[float], name: str
) -> dict[str, pd.Series]:
    """Means at single sizes, of those that were measured."""
    there = {size: frame[(frame["size"] - size).abs().lt(1e-9)] for size in sizes}
    return {
        f"{name}_{size:g}": _wide(rows, column).mean(axis=1)
        for size, rows in there.items()
        if len(rows)
    }


def _with_interval(name: str, values: Wide, seed: int) -> dict[str, pd.Series]:
    low, high = interval(values.to_numpy(dtype=np.float64).T, seed)
    return {
        name: values.mean(axis=1),
        f"{name}_low": pd.Series(low, index=values.index),
        f"{name}_high": pd.Series(high, index=values.index),
    }
