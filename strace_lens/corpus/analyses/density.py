"""What goes with a prompt's density: uncertainty, length, loss, labels, and tokens added to it.

Source: s-Trace (arXiv 2605.27033), section on density and uncertainty. Longer prompts may be both
denser and less certain, so each correlation is also given with the others held.

A density (the area under TV over log s) is large if the curve falls late, and if it starts high.
How high it starts says little of computation: it is by how much the model's output differs from
what an almost empty trace puts out, and two broad distributions differ less than two narrow ones.
`density_parts` therefore gives the height of the plateau and the size of the fall on their own.
"""

# pandas' types are wider than what it returns here.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportReturnType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import math
from itertools import chain, combinations, product

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import kruskal, rankdata
from scipy.stats import t as student

from strace_lens.corpus.analyses.arrays import every_size
from strace_lens.corpus.run_folder import Run
from strace_lens.measures.intervals import draws_of, interval, interval_of, means, percentiles

CORRELATES = ("entropy", "tokens", "loss")
"""Columns of `Run.prompts` that density is correlated with."""

PARTS = ("plateau", "half_size")
LEAST_PROMPTS = 4
GROWTH = ("label_of", "label_step")
LABEL_VALUES = range(2, 13)
"""How many values a label may have to be a grouping of prompts."""

_SAME = 1e-9  # of a variance of ranks scaled to 1: what is left where the held variables tell it
_GROWTH_COLUMNS = (
    *("step", "density", "low", "high", "tokens", "entropy"),
    *("change", "change_low", "change_high", "prompts"),
)


def density_correlations(run: Run, *, seed: int = 0, resamples: int = 2000) -> pd.DataFrame:
    """Spearman's rank correlation of density with each of `CORRELATES`, plain and partial.

    A partial correlation is that of what linear fits on the ranks of the held variables leave of
    both ranks.

    Returns:
        Columns `what`, `given` (the variables held, joined by ", "; empty for none), `prompts`
        (those with a value of all that takes part), `rho`, `low` and `high` (95 % percentile
        bootstrap over prompts), `p` (two-sided, of Student's t). NaN for fewer than four prompts
        and one more for each variable held, and where one variable is constant or a
        function of those held.
    """
    rows = []
    for what in CORRELATES:
        others = [name for name in CORRELATES if name != what]
        for given in chain.from_iterable(combinations(others, n) for n in range(len(others) + 1)):
            values = run.prompts[["density", what, *given]]
            row = {"what": what, "given": ", ".join(given)}
            rows.append({**row, **correlation(values, seed, resamples)})
    return pd.DataFrame(rows)


def rank_correlations(
    values: Float[np.ndarray, "sample prompt variable"],
) -> Float[np.ndarray, " sample"]:
    """Rank correlation of the first two variables, given the others; NaN where it is undefined."""
    ranks = rankdata(values, axis=-2)
    ranks -= ranks.mean(-2, keepdims=True)
    length = np.linalg.norm(ranks, axis=-2, keepdims=True)
    ranks = np.divide(ranks, length, out=np.full_like(ranks, np.nan), where=length > 0)
    first, second, held = ranks[..., 0], ranks[..., 1], ranks[..., 2:]
    for at in range(held.shape[-1]):  # Gram-Schmidt: each held variable leaves all others
        axis = _unit(held[..., at])
        first, second = _without(first, axis), _without(second, axis)
        for later in range(at + 1, held.shape[-1]):
            held[..., later] = _without(held[..., later], axis)
    return np.clip((_unit(first) * _unit(second)).sum(-1), -1, 1)


def density_by_label(run: Run, *, seed: int = 0) -> pd.DataFrame:
    """Density of the prompts of each value of each label, and whether the values differ.

    Labels with two to twelve values; prompts without a label are left out of it. Those that a
    sweep with --generate gives (`growth`) are none.

    Returns:
        Columns `label` (without "label_"), `value`, `prompts`, `mean`, `low` and `high` (95 %
        percentile bootstrap over the prompts of the value; NaN for a single one); and, the same for
        all values of a label, `h` and `p` of the Kruskal-Wallis test and `eta_squared`, the share
        of the variance of density's ranks that lies between values. These three are NaN for fewer
        than four prompts, and where density is constant.
    """
    rows = []
    for column in run.prompts.columns[run.prompts.columns.str.startswith("label_")]:
        groups = {value: d.to_numpy() for value, d in run.prompts.groupby(column)["density"]}
        if column in GROWTH or len(groups) not in LABEL_VALUES:
            continue
        test = _differ(list(groups.values()))
        for value, densities in groups.items():
            low, high = interval(densities, seed)
            about = {"label": column.removeprefix("label_"), "value": value}
            found = {"mean": densities.mean(), "low": float(low), "high": float(high)}
            rows.append({**about, "prompts": len(densities), **found, **test})
    names = ["label", "value", "prompts", "mean", "low", "high", "h", "p", "eta_squared"]
    return pd.DataFrame(rows, columns=names)


def density_parts(run: Run) -> pd.DataFrame:
    """Plateau and half size of every prompt.

    Returns:
        One row a prompt: `prompt`; `plateau`, TV at the smallest size; `half_size`, the relative
        size at which TV falls for good below half of that, interpolated in log s (NaN if it never
        does, or is below from the start); and the prompt's `density` and `CORRELATES`.
    """
    curves = [(np.log10(t["size"].to_numpy()), t["tv"].to_numpy()) for t in every_size(run)]
    half = np.asarray([_falls_below(logs, tv, tv[0] / 2) for logs, tv in curves])
    frame = run.prompts[["prompt", "density", *CORRELATES]]
    return frame.assign(plateau=[tv[0] for _, tv in curves], half_size=10.0**half)


def part_correlations(run: Run, *, seed: int = 0, resamples: int = 2000) -> pd.DataFrame:
    """Spearman's rank correlation of each part with each of `CORRELATES`.

    Returns:
        Columns `part`, `what`, `prompts`, `rho`, `low`, `high`, `p`, as `density_correlations`.
    """
    parts = density_parts(run)
    return pd.DataFrame(
        [
            {"part": part, "what": what, **correlation(parts[[part, what]], seed, resamples)}
            for part, what in product(PARTS, CORRELATES)
        ]
    )


def growth_lines(run: Run) -> pd.DataFrame:
    """Every prompt of a generating sweep, text by text and step by step.

    Returns:
        Columns `of` (number of the prompt that the text grew from), `step` (tokens generated so
        far), `prompt` (its number in the run), `tokens`, `density`, `entropy` (nats) and `next`
        (the token that the model writes then). No row for a run that did not generate.
    """
    columns = ["of", "step", "prompt", "tokens", "density", "entropy", "next"]
    if not set(GROWTH) <= set(run.prompts):
        return pd.DataFrame(columns=columns)
    numbers = run.prompts[list(GROWTH)].apply(pd.to_numeric, errors="coerce")  # others' are text
    frame = run.prompts.join(numbers.set_axis(["of", "step"], axis=1)).dropna(subset=["of", "step"])
    frame = frame.astype({"of": "int64", "step": "int64"})
    return frame.sort_values(["of", "step"], ignore_index=True)[columns]


def growth(run: Run, *, seed: int = 0) -> pd.DataFrame:
    """Mean density after each number of generated tokens.

    Returns:
        Columns `step`; `density` with `low` and `high` (NaN for fewer than two texts); `tokens` and
        `entropy`, means; `prompts`, the texts that got so far; `change`, by how much density
        exceeds that of the same texts at step 0, with `change_low` and `change_high`. No row for a
        run that did not generate.
    """
    lines = growth_lines(run)
    if lines.empty:
        return pd.DataFrame(columns=list(_GROWTH_COLUMNS))
    wide = lines.pivot(index="of", columns="step", values="density")
    density = wide.to_numpy(dtype=np.float64)
    by_step = lines.groupby("step")
    steps = wide.columns.to_numpy(dtype=np.int64)
    start = density[:, :1] if steps[0] == 0 else np.full((len(density), 1), np.nan)
    found, change = means(density, seed), means(density - start, seed)
    return pd.DataFrame(
        {
            "step": steps,
            "density": found.mean,
            "low": found.low,
            "high": found.high,
            "tokens": by_step["tokens"].mean().to_numpy(),
            "entropy": by_step["entropy"].mean().to_numpy(),
            **change.columns("change"),
            "prompts": found.prompts,
        }
    )


def correlation(variables: pd.DataFrame, seed: int, resamples: int) -> dict[str, float | int]:
    """Rank correlation of the first two variables given the others: `prompts`, `rho` and so on.

    Of the prompts that have a value of all; `low`, `high` and `p` as `density_correlations`.
    """
    values = variables.dropna().to_numpy(dtype=np.float64)
    prompts, held = len(values), values.shape[1] - 2
    enough = prompts >= LEAST_PROMPTS + held
    rho = float(rank_correlations(values[None])[0]) if enough else math.nan
    if math.isnan(rho):
        return {"prompts": prompts, **dict.fromkeys(("rho", "low", "high", "p"), math.nan)}
    low, high = percentiles(rank_correlations(values[draws_of(prompts, resamples, seed)]))
    freedom = prompts - 2 - held
    t = rho * math.sqrt(freedom / (1 - rho**2)) if abs(rho) < 1 else math.inf
    p = float(2 * student.sf(abs(t), freedom))
    return {"prompts": prompts, "rho": rho, "low": float(low), "high": float(high), "p": p}


def agreement(
    a: pd.DataFrame, b: pd.DataFrame, seed: int = 0, resamples: int = 2000
) -> dict[str, float | int]:
    """How the densities of two runs agree over the prompts that both have, one at the least.

    Takes `Run.prompts` of each, a text once, and gives the columns of `all.between_runs` from
    `prompts` on.
    """
    # Sorted, so that (a, b) and (b, a) draw the same prompts.
    shared = a.merge(b, on="sha256").sort_values("sha256")[["density_x", "density_y"]]
    difference = (shared["density_x"] - shared["density_y"]).to_numpy(dtype=np.float64)
    draws = draws_of(len(shared), resamples, seed)
    low, high = interval_of(difference[:, None], np.mean, draws)
    rho = correlation(shared, seed, resamples)
    return {
        **{name: rho[name] for name in ("prompts", "rho", "low", "high")},
        "mean_difference": float(difference.mean()),
        "difference_low": float(low[0]),
        "difference_high": float(high[0]),
    }


def _differ(groups: list[Float[np.ndarray, " _"]]) -> dict[str, float]:
    everything = np.concatenate(groups)
    if len(everything) < LEAST_PROMPTS or np.ptp(everything) == 0:
        return dict.fromkeys(("h", "p", "eta_squared"), math.nan)
    test = kruskal(*groups)
    h = float(test.statistic)
    return {"h": h, "p": float(test.pvalue), "eta_squared": h / (len(everything) - 1)}


def _unit(ranks: Float[np.ndarray, "sample prompt"]) -> Float[np.ndarray, "sample prompt"]:
    """Scaled to length 1; NaN where next to nothing is left."""
    square = (ranks**2).sum(-1, keepdims=True)
    out = np.full_like(ranks, np.nan)
    return np.divide(ranks, np.sqrt(square), out=out, where=square > _SAME)


def _without(
    ranks: Float[np.ndarray, "sample prompt"], axis: Float[np.ndarray, "sample prompt"]
) -> Float[np.ndarray, "sample prompt"]:
    return ranks - (ranks * axis).sum(-1, keepdims=True) * axis


def _falls_below(
    log_sizes: Float[np.ndarray, " size"], curve: Float[np.ndarray, " size"], level: float
) -> float:
    """Where a curve crosses a level for the last time, downwards; NaN if it does not."""
    above = np.flatnonzero(curve >= level)
    if not len(above) or above[-1] == len(curve) - 1 or level == 0:
        return float("nan")
    at = int(above[-1])
    share = (curve[at] - level) / (curve[at] - curve[at + 1])
    return float(log_sizes[at] + share * (log_sizes[at + 1] - log_sizes[at]))
