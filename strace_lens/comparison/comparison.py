"""What came of comparing discovery methods on one task: circuits, curves and costs side by side."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from strace_lens.circuits.circuit import Circuit
from strace_lens.circuits.curve import MEASURES, NO_INTERVAL, Faithfulness, better, difference
from strace_lens.circuits.discover.acdc import REST, TESTED
from strace_lens.circuits.discover.methods import METHODS
from strace_lens.circuits.graph import ComponentGraph
from strace_lens.circuits.scores import Scores
from strace_lens.measures.intervals import row_text
from strace_lens.utils.html_repr import facts

RANDOM = "random"
SIGNIFICANT = 0.05
"""Share of random rankings that may do as well as a method that beats random."""

LEAST_FOR_LEVEL = 39
"""Random rankings of which one may do as well at that share; of fewer none may."""

CANNOT_DO = 0.9
"""Accuracy below which circuits explain little: the model does not do the task."""

_ROUNDING = 1e-6

TIMINGS = ("seconds", "peak_mb")
"""Columns of a comparison's table that differ from run to run."""

FIGURES = (*MEASURES, "completeness", "minimality")
"""Columns that have the ends of a 95 % interval over pairs behind them: `_low` and `_high`."""

COLUMNS = (
    *("method", "forwards", "backwards", "seconds", "peak_mb"),
    *(f"{name}{end}" for name in FIGURES for end in ("", "_low", "_high")),
    *("auroc", "precision", "beats_random"),
)


@dataclass(frozen=True, eq=False)
class MethodResult:
    """One method on one task.

    Attributes:
        method: key of `METHODS`.
        scores: what it says of every edge, with its passes and seconds.
        faithfulness: the curves over sizes, CPR and CMD, on the evaluation pairs.
        circuit: its highest edges, as many as 85 % faithfulness needs, by magnitude unless the
            comparison ranks by sign.
        completeness: faithfulness of the circuit's complement; low is complete. None where it was
            not asked for.
        minimality: share of the circuit's edges whose loss costs at least 1 % of faithfulness.
            None where it was not asked for.
        peak_mb: most memory held while it ran, above what was held before, in 10^6 bytes.
        memory: how that was measured, as a phrase after the word memory.
        auroc: of the scores against the true circuit; None where none is known.
        precision: share of true edges among as many of its highest as there are true ones.
        missed: true edges that are not among those.
        completeness_interval, minimality_interval: 95 % intervals over pairs; None where they are
            not to be had, see `Faithfulness.interval`.
    """

    method: str
    scores: Scores
    faithfulness: Faithfulness
    circuit: Circuit
    completeness: float | None
    minimality: float | None
    peak_mb: float
    memory: str
    auroc: float | None = None
    precision: float | None = None
    missed: tuple[str, ...] = ()
    completeness_interval: tuple[float, float] | None = None
    minimality_interval: tuple[float, float] | None = None

    def interval(self, figure: str) -> tuple[float, float]:
        """The 95 % interval over pairs of one of `FIGURES`; NaN where there is none."""
        if figure in MEASURES:
            return self.faithfulness.interval(figure)
        found: tuple[float, float] | None = getattr(self, f"{figure}_interval")
        return NO_INTERVAL if found is None else found


@dataclass(frozen=True, eq=False)
class Comparison:
    """Methods side by side on one task.

    Attributes:
        task: its name.
        model: its name.
        graph: of the model.
        metric: key of `METRICS`.
        ablation: what an edge outside a circuit carries.
        pairs: pairs that the methods saw.
        evaluated_pairs: pairs that circuits were evaluated on.
        held_out: whether those are others than the methods saw.
        dropped: pairs left out because clean and corrupted did not align.
        accuracy: share of the evaluation pairs that the model gets right; None for a task without
            answers.
        metric_clean: mean metric of the model on the clean prompts of the evaluation pairs.
        metric_corrupted: likewise on the corrupted prompts.
        results: one a method that ran, in the order asked for; random is always among them.
        skipped: reason by method, of those that this graph is too large for or this model refuses.
        warnings: sentences that a reader must see: a task that the model cannot do, a method that
            does not beat random.
        truth: the true circuit under the ablation used, where it is known.
        truth_name: its name among the truths of the model (`GroundTruth.truths`).
        random_cmd: of every random ranking drawn as a control.
        random_auroc: likewise; empty where no truth is known.
        memory: how `peak_mb` was measured, as a phrase after that word.
        projection: of `projection.projection_of_task` for the truth's circuit (`circuit` is
            "truth") and every method's; None where the model has no token graph.
        metadata: seed, sample, options of methods, versions.
    """

    task: str
    model: str
    graph: ComponentGraph
    metric: str
    ablation: str
    pairs: int
    evaluated_pairs: int
    held_out: bool
    dropped: int
    accuracy: float | None
    metric_clean: float
    metric_corrupted: float
    results: tuple[MethodResult, ...]
    skipped: Mapping[str, str]
    warnings: tuple[str, ...]
    truth: Circuit | None
    truth_name: str | None
    random_cmd: tuple[float, ...]
    random_auroc: tuple[float, ...]
    memory: str
    projection: pd.DataFrame | None
    metadata: Mapping[str, Any]

    def beats_random(self, result: MethodResult) -> bool | None:
        """Whether a method does better than chance: by AUROC where the truth is known, else by CMD.

        CMD, of which less is better, is measured on the ranking that circuits are taken from. Its
        areas are coarse on graphs of a few edges. By CMD a method beats random only if its CMD is
        below the level of chance of random rankings, and if the 95 % interval over pairs of its CMD
        less that of the random ranking measured, pair by pair, lies below 0 too. None for random
        itself.
        """
        if result.method == RANDOM:
            return None
        if result.auroc is not None:
            return result.auroc > chance_level(self.random_auroc)
        return self._above_chance(result) and better("cmd", *self._less_random(result))

    def differences(self, measure: str = "cmd") -> pd.DataFrame:
        """Every two methods held against each other, pair by pair of the evaluation.

        Both are worked out on each draw of pairs, so that what an easy or a hard pair does to both
        cancels. The intervals are of single differences, each at 95 %: of twenty differences
        between equals one is expected to part.

        Args:
            measure: "cmd", of which less is better, or "cpr".

        Returns:
            A row for each two methods in both orders: `method`, `other`, `difference` (the method's
            less the other's), `low` and `high` of its 95 % interval over pairs (NaN where there is
            none), and `better`: whether the interval lies wholly on the better side of 0.

        Raises:
            ValueError: another measure.
        """
        if measure not in ("cmd", "cpr"):
            raise ValueError(f"unknown measure {measure!r}; choose cmd or cpr")
        rows = []
        for one, other in itertools.permutations(self.results, 2):
            a, b = one.faithfulness, other.faithfulness
            low, high = difference(measure, a, b)
            gap = getattr(a, measure) - getattr(b, measure)
            rows.append((one.method, other.method, gap, low, high, better(measure, low, high)))
        columns = ["method", "other", "difference", "low", "high", "better"]
        return pd.DataFrame(rows, columns=columns).astype({"better": bool})

    @property
    def intervals(self) -> bool:
        """Whether figures have intervals over pairs; see `Faithfulness.interval`."""
        return any(result.faithfulness.draws is not None for result in self.results)

    def _above_chance(self, result: MethodResult) -> bool:
        return -result.faithfulness.cmd > chance_level([-cmd for cmd in self.random_cmd])

    def _less_random(self, result: MethodResult) -> tuple[float, float]:
        """The interval of a method's CMD less that of the random ranking measured."""
        random = next((r for r in self.results if r.method == RANDOM), None)
        if random is None:
            return NO_INTERVAL
        return difference("cmd", result.faithfulness, random.faithfulness)

    def why_not_better(self, result: MethodResult) -> str:
        """How many random rankings a method beats, and why not more where its making says so.

        Where it beats enough of them, but not beyond doubt over the pairs, that.
        """
        if result.auroc is None and self._above_chance(result):
            cmd, (low, high) = result.faithfulness.cmd, self._less_random(result)
            pairs = f"{self.evaluated_pairs} pair{'s' * (self.evaluated_pairs != 1)}"
            found = f"the interval of its CMD less that of random is [{low:.3f}, {high:.3f}]"
            if math.isnan(low):
                found = f"its CMD of {cmd:.3f} has no interval"
            return f"method {result.method} does not beat random beyond doubt: over {pairs} {found}"
        if result.auroc is None:
            cmd, drawn = result.faithfulness.cmd, len(self.random_cmd)
            beaten = sum(cmd < other - _ROUNDING for other in self.random_cmd)
            value, side = f"CMD of {cmd:.3f}", "below"
        else:
            drawn = len(self.random_auroc)
            beaten = sum(result.auroc > other + _ROUNDING for other in self.random_auroc)
            value, side = f"AUROC of {result.auroc:.3f}", "above"
        among = f"{beaten} of {rankings_drawn(drawn)}" if drawn > 1 else "the random ranking drawn"
        said = f"its {value} is {'not ' * (drawn == 1 and not beaten)}{side} {among}"
        method = METHODS.get(result.method)
        reason = None if method is None else method.blind_spot
        return f"method {result.method} does not beat random: {said}" + (
            "" if reason is None else f"; {reason}"
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know of single methods: where a ranking is another method's."""
        found = []
        for result in self.results:
            made = result.scores.metadata
            if REST in made:
                found.append(
                    f"method {result.method} tested {made[TESTED]:,} of {self.graph.edges:,} "
                    f"edges; those that it did not keep stand in the order of {made[REST]}, so "
                    f"beyond the edges that it kept its curve is that of {made[REST]}"
                )
        if not self.intervals:
            found.append(
                "no figure has an interval: a single pair gives none"
                if self.evaluated_pairs < 2
                else "no figure has an interval: over the pairs drawn the metrics of the full and "
                "the empty circuit do not differ beyond doubt"
            )
        return tuple(found)

    def __repr__(self) -> str:
        methods = ", ".join(result.scores.method for result in self.results)
        return f"Comparison({self.task} on {self.model}, {self.pairs} pairs: {methods})"

    def _repr_html_(self) -> str:
        line = f"{self.task} on {self.model}: {self.pairs} pairs, metric {self.metric}"
        return facts(" ".join([line + ".", *self.warnings]), with_brackets(self.table))

    @property
    def table(self) -> pd.DataFrame:
        """One row a method, with the columns `COLUMNS`; what is not known is NaN or None."""
        return pd.DataFrame([self._row(result) for result in self.results], columns=list(COLUMNS))

    def _row(self, result: MethodResult) -> dict[str, Any]:
        scores = result.scores
        return {
            "method": result.method,
            "forwards": scores.forwards,
            "backwards": scores.backwards,
            "seconds": scores.seconds,
            "peak_mb": result.peak_mb,
            **self._figures(result),
            "auroc": math.nan if result.auroc is None else result.auroc,
            "precision": math.nan if result.precision is None else result.precision,
            "beats_random": self.beats_random(result),
        }

    def _figures(self, result: MethodResult) -> dict[str, float]:
        """Every one of `FIGURES` and the ends of its interval."""
        row: dict[str, float] = {}
        for name in FIGURES:
            value = getattr(result.faithfulness if name in MEASURES else result, name)
            row[name] = math.nan if value is None else value
            row[f"{name}_low"], row[f"{name}_high"] = result.interval(name)
        return row


def with_brackets(table: pd.DataFrame) -> pd.DataFrame:
    """A comparison's table with each of `FIGURES` as text, its interval in brackets behind it."""
    shown = table.copy()
    for name in FIGURES:
        number = "{:,.0f}" if name == "edges_at_85" else "{:.3g}"
        rows = table.astype({name: float}).to_dict("records")
        shown[name] = [row_text(row, name, number) for row in rows]
    return shown.drop(columns=[f"{name}_{end}" for name in FIGURES for end in ("low", "high")])


def warnings_of(comparison: Comparison) -> tuple[str, ...]:
    """What a reader must see before any figure, a sentence each."""
    c, lines = comparison, []
    if c.accuracy is not None and c.accuracy < CANNOT_DO:
        lines.append(
            f"{c.model} does {c.task} on {c.accuracy:.0%} of the pairs only; circuits of a task "
            "that the model cannot do explain little"
        )
    if not c.metric_clean > c.metric_corrupted:
        lines.append(
            f"the mean {c.metric} is {c.metric_clean:.3g} on clean prompts and "
            f"{c.metric_corrupted:.3g} on corrupted ones; there is nothing to restore"
        )
    lines += [c.why_not_better(result) for result in c.results if c.beats_random(result) is False]
    return tuple(lines)


def chance_level(random: Sequence[float]) -> float:
    """What a method must exceed to do better than random rankings at one in twenty.

    The (k + 1)-th highest value, where (k + 1) / (rankings + 1) is at most 0.05: a permutation
    test. Of fewer than `LEAST_FOR_LEVEL` rankings the highest. Rounding is added.

    Raises:
        ValueError: no value.
    """
    if not random:
        raise ValueError("no random ranking was drawn; there is nothing to beat")
    reach = max(0, int(SIGNIFICANT * (len(random) + 1) + 1e-9) - 1)
    return sorted(random, reverse=True)[reach] + _ROUNDING


def rankings_drawn(count: int) -> str:
    """So many random rankings, as a phrase."""
    return f"{count} random ranking{'s' * (count != 1)}"
