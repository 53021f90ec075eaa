"""The sizes at which things happen: phase boundaries, and what a prompt needs for its output.

Source: s-Trace (arXiv 2605.27033), sections "phases", which draws boundaries by eye, and
"measures"; its authors' code for the rule "first". Boundaries are the change points of
`density.change_points`. A boundary lies between two phases that were found. So construction has no
start without a plateau before it, as it may begin below the smallest size measured, and no stop
without a refinement after it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from strace_lens.corpus.analyses.arrays import at_sizes, every_size
from strace_lens.corpus.run_folder import Run
from strace_lens.density.change_points import LEAST_SIZES, Phase, change_points
from strace_lens.measures.distributions import NUCLEI
from strace_lens.measures.intervals import draws_of, percentiles
from strace_lens.measures.sizes import RULES, THRESHOLD, restored_from, size_for_nucleus

QUANTITIES = (
    *("phases", "construction_start", "construction_stop", "tv_at_start", "tv_at_stop"),
    *("construction_pace", "refinement_pace"),
)
"""Quantities of a curve: the number of phases; the relative sizes at which construction starts and
stops, and TV there; by how much TV falls while the size grows tenfold."""

_BOUNDARIES = ("construction_start", "construction_stop")

ERRORS = (0.01, 0.05, 0.1)
"""Absolute errors of head and tail to stay under."""

_FACTS_OF_PROMPT = (
    *("prompt", "sha256", "tokens", "edges"),
    *("density", "auc_paper", "entropy", "head_mass", "loss"),
)
_SIZES_OF_PROMPT = {
    "top1_size": ("top1", None, "stable"),
    "top1_first": ("top1", None, "first"),
    "nucleus_size": ("nucleus", 0.5, "stable"),
    "nucleus_first": ("nucleus", 0.5, "first"),
    "head_size": ("head_share", THRESHOLD, "stable"),
    "tail_size": ("tail_share", THRESHOLD, "stable"),
}

Asked = tuple[str, float | None, str]
"""What a prompt needs a size for, at which level, and by which rule."""


def corpus_boundaries(run: Run, *, seed: int = 0, resamples: int = 200) -> pd.DataFrame:
    """Phases of the mean TV curve over prompts.

    The mean of curves that break at different sizes is smoother than each of them:
    `prompt_boundaries` has the phases of single prompts.

    Returns:
        One row for each of `QUANTITIES`. Columns `quantity`, `value` (NaN without such a phase),
        `below` and `above` (the sizes of the grid around a boundary; NaN for what is none),
        `low` and `high` (95 % percentile bootstrap over prompts, of the resamples that have such a
        phase; NaN without a value), `found` (the share of resamples that have it; for `phases`,
        that have two phases or more), `prompts`. Intervals and `found` are NaN for a single prompt.
    """
    curves = at_sizes(run, "tv")
    prompts = len(curves)
    draws = draws_of(prompts, resamples if prompts > 1 else 0, seed)
    value, *drawn = (
        _quantities(change_points(run.grid, curves[these].mean(0)), len(run.grid))
        for these in (np.arange(prompts), *draws)
    )
    found = _table(drawn)
    low, high = _interval(value, found)
    around = [
        _around(run.grid, v if name in _BOUNDARIES else math.nan)
        for name, v in zip(QUANTITIES, value, strict=True)
    ]
    there = ~np.isnan(found)
    there[:, 0] = found[:, 0] > 1
    return pd.DataFrame(
        {
            "quantity": QUANTITIES,
            "value": value,
            **dict(zip(("below", "above"), np.array(around).T, strict=True)),
            "low": low,
            "high": high,
            "found": there.mean(0) if len(draws) else np.full(len(value), np.nan),
            "prompts": prompts,
        }
    )


def prompt_boundaries(run: Run, *, seed: int = 0, resamples: int = 100) -> pd.DataFrame:
    """Phases of each prompt's TV curve.

    The interval is of the fit, not over prompts: what the fitted lines miss at the measured sizes,
    less its mean, is drawn with replacement and added to the lines, and these are fitted again.

    Returns:
        One row a prompt. Columns `prompt`; `phases`, their number, 0 where TV never falls by a
        tenth at one pace, NaN for fewer than four sizes; `construction_start` and
        `construction_stop`, each with `_below` and `_above` (the measured sizes around it), `_low`
        and `_high` (95 %, of the resamples that have such a boundary) and `_found` (the share that
        has it). NaN without such a phase, and intervals where no phase was fitted.
    """
    rows = []
    for prompt, table in zip(run.prompts["prompt"], every_size(run), strict=True):
        sizes, tv = table["size"].to_numpy(), table["tv"].to_numpy()
        added = int(np.count_nonzero(table["refined"].to_numpy()))
        phases = change_points(sizes, tv, added)
        value = _quantities(phases, len(tv))
        draws = draws_of(len(sizes), resamples, seed)
        again = _refitted(sizes, tv, added, phases, draws) if phases else _table([])
        low, high = _interval(value, again)
        row = {"prompt": prompt, "phases": value[0]}
        for name in _BOUNDARIES:
            at = QUANTITIES.index(name)
            row[f"{name}_below"], row[f"{name}_above"] = _around(sizes, value[at])
            row[name], row[f"{name}_low"], row[f"{name}_high"] = value[at], low[at], high[at]
            missing = np.isnan(again[:, at])
            row[f"{name}_found"] = 1 - float(missing.mean()) if len(missing) else math.nan
        rows.append(row)
    return pd.DataFrame(rows)


def size_needed(run: Run) -> pd.DataFrame:
    """The smallest sizes at which prompts have what is asked for.

    Nuclei and the top token are asked for by two rules. By "stable" a size is enough if what is
    asked for holds there and at every larger size; by "first" it is enough if it holds there, as
    in the authors' code. Heads and tails are asked for by "stable" alone.

    A quartile is the smallest measured size at which that share of the prompts has it. A prompt
    that no size is enough for counts as infinite: a quartile that falls on such a prompt is NaN, as
    is the median where more than half are such. The authors' code drops these prompts instead,
    so that its medians are of those that get there; it also interpolates between the two middle
    prompts, has no refined sizes, and states sizes as k / |E|. The more sizes are measured, the
    earlier a first one is found by accident: `--refine 0` measures the grid alone.

    Returns:
        Columns `what`, `level`, `rule`, `median`, `q1`, `q3` (relative sizes), `never` (how many
        prompts no size is enough for: by "stable" those that do not have it at the largest size,
        by "first" those that have it at none) and `prompts`. By `what`:

        - "nucleus": the nucleus is shared up to p = `level`, for every p of `NUCLEI`;
        - "top1": the top token is the full model's; `level` is NaN;
        - "head_share" and "tail_share": the error stays under `level` times the full model's mass
          in that part;
        - "head_error" and "tail_error": the error stays under `level`.
    """
    needed = needed_by_prompt(run)
    frame = pd.DataFrame(list(needed), columns=["what", "level", "rule"]).astype({"level": float})
    # The smallest of the values that a share of the prompts does not exceed; NaN sorts last.
    rising = np.sort(np.stack(list(needed.values())), axis=1)
    prompts = rising.shape[1]
    for name, share in (("median", 0.5), ("q1", 0.25), ("q3", 0.75)):
        frame[name] = rising[:, math.ceil(share * prompts) - 1]
    return frame.assign(never=np.isnan(rising).sum(1), prompts=prompts)


def needed_by_prompt(run: Run) -> dict[Asked, Float[np.ndarray, " prompt"]]:
    """The sizes that prompts need, NaN for none, by what is asked for, level and rule."""
    tables = [(t, t["size"].to_numpy()) for t in every_size(run)]
    found: dict[Asked, list[float]] = {}
    for p in NUCLEI:
        for rule in RULES:
            found["nucleus", p, rule] = [
                size_for_nucleus(sizes, t["nucleus"].to_numpy(), p, rule) for t, sizes in tables
            ]
    for rule, size_of in RULES.items():
        found["top1", None, rule] = [
            size_of(sizes, t["top1"].to_numpy(bool)) for t, sizes in tables
        ]
    masses = run.prompts["head_mass"]
    shares = [restored_from(t, mass) for (t, _), mass in zip(tables, masses, strict=True)]
    for part, of_part in zip(("head", "tail"), zip(*shares, strict=True), strict=True):
        found[f"{part}_share", THRESHOLD, "stable"] = list(of_part)
    for part in ("head_error", "tail_error"):
        for error in ERRORS:
            found[part, error, "stable"] = [
                RULES["stable"](sizes, t[part].to_numpy() < error) for t, sizes in tables
            ]
    return {asked: np.array(sizes, dtype=np.float64) for asked, sizes in found.items()}


def per_prompt(run: Run) -> pd.DataFrame:
    """The scalars of each prompt, and the relative sizes that it needs.

    Returns:
        A row a prompt: `prompt`, `sha256` (of its text), `tokens`, `edges`, `density`, `auc_paper`,
        `entropy`, `head_mass`, `loss` as in `Run.prompts`; and the smallest sizes from which on the
        top token is the full model's (`top1_size`), the nucleus is shared up to p = 0.5
        (`nucleus_size`), and the errors of head and tail stay under `phases.THRESHOLD` of their
        mass (`head_size`, `tail_size`); and the first sizes at which the top token is the full
        model's (`top1_first`) and the nucleus is shared (`nucleus_first`), which may be lost again.
        A size that is not reached is NaN.
    """
    needed = needed_by_prompt(run)
    table = run.prompts[list(_FACTS_OF_PROMPT)].reset_index(drop=True)
    return table.assign(**{column: needed[asked] for column, asked in _SIZES_OF_PROMPT.items()})


def _refitted(
    sizes: Float[np.ndarray, " size"],
    tv: Float[np.ndarray, " size"],
    added: int,
    phases: tuple[Phase, ...],
    draws: np.ndarray,
) -> Float[np.ndarray, "resample quantity"]:
    """`QUANTITIES` of curves made of the fitted lines and drawn misses."""
    ends = [phases[0].start, *(p.stop for p in phases)]
    heights = [phases[0].tv_start, *(p.tv_stop for p in phases)]
    line = np.interp(np.log10(sizes), np.log10(ends), heights)
    misses = tv - line
    misses -= misses.mean()
    curves = [line + misses[draw] for draw in draws]
    return _table([_quantities(change_points(sizes, c, added), len(sizes)) for c in curves])


def _interval(
    value: Sequence[float], found: Float[np.ndarray, "resample quantity"]
) -> tuple[Float[np.ndarray, " quantity"], Float[np.ndarray, " quantity"]]:
    """The ends of the interval of each value; NaN where there is no value for it to be around."""
    none = np.isnan(value)
    low, high = percentiles(found)
    return np.where(none, np.nan, low), np.where(none, np.nan, high)


def _around(sizes: Float[np.ndarray, " size"], boundary: float) -> tuple[float, float]:
    """The measured sizes next below and next above a boundary; NaN where there is none."""
    below, above = sizes[sizes < boundary], sizes[sizes > boundary]
    return (
        float(below[-1]) if len(below) else math.nan,
        float(above[0]) if len(above) else math.nan,
    )


def _quantities(phases: tuple[Phase, ...], sizes: int) -> list[float]:
    """`QUANTITIES` of the phases found in a curve of so many sizes."""
    by_name = {p.name: p for p in phases}
    plateau, refinement = by_name.get("plateau"), by_name.get("refinement")
    return [
        math.nan if sizes < LEAST_SIZES else float(len(phases)),
        float(plateau.stop) if plateau else math.nan,
        float(refinement.start) if refinement else math.nan,
        plateau.tv_stop if plateau else math.nan,
        refinement.tv_start if refinement else math.nan,
        pace_of(by_name.get("construction")),
        pace_of(refinement),
    ]


def pace_of(phase: Phase | None) -> float:
    """By how much TV falls in a phase while the size grows tenfold; NaN for no phase."""
    if phase is None:
        return math.nan
    return (phase.tv_start - phase.tv_stop) / math.log10(phase.stop / phase.start)


def _table(rows: Sequence[Sequence[float]]) -> Float[np.ndarray, "resample quantity"]:
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(QUANTITIES))
