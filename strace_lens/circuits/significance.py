"""Tests of the claims about a circuit: that it does the task, alone, and has no superfluous edge.

Shi et al. (2024), "Hypothesis Testing the Circuit Hypothesis in LLMs" (arXiv 2410.13032). What a
circuit does is the metric of each pair; its distance from the model is the mean over pairs of the
absolute difference of their metrics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Shaped
from scipy.stats import binom
from torch import Tensor

from strace_lens.circuits.circuit import Circuit
from strace_lens.circuits.evaluate import metric_range
from strace_lens.circuits.experiment import Experiment, make_experiment
from strace_lens.circuits.random_circuits import new_path, random_circuits
from strace_lens.circuits.run_circuits import circuit_metric, stack
from strace_lens.circuits.task import Task
from strace_lens.model.architecture import Model
from strace_lens.model.hold import verb
from strace_lens.utils.choices import REFERENCES
from strace_lens.utils.progress import Advance, Progress, reporting

SIGNIFICANT = 0.05
"""The p-value from which on a null hypothesis is rejected."""

QUANTILE = 0.9
"""Share of edges added at random that an edge of a minimal circuit matters more than (q*)."""

MARGIN = 0.1
"""How far from one half the chance may lie that a circuit equal to the model does better (epsilon).
"""

STOP_AFTER = 10
"""Random circuits that do as well, after which no more are drawn."""

_AT_ONCE = 16  # circuits between two looks at whether to stop
_PERMUTATIONS = 999


class Outcome(NamedTuple):
    """What came of one test; the columns of `circuit_tests`, but for the test and the verdict."""

    statistic: float
    reference: float
    p_value: float
    draws: int


@verb
def circuit_tests(
    model: Model,
    task: Task,
    circuit: Circuit,
    *,
    tests: Sequence[str] | None = None,
    reference: str = "random",
    draws: int = 99,
    sample: int = 16,
    ablation: str = "resample",
    metric: str | None = None,
    seed: int = 0,
    memory_budget: int | None = None,
    allow_other_model: bool = False,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Test whether a circuit is sufficient, necessary, complete, minimal, equivalent to the model.

    Two tests compare it with random circuits and pass at a p-value of at most 0.05:

    - "sufficiency": its distance from the model is less than that of random circuits of as many
      edges.
    - "partial necessity": ablating its edges moves the model farther from its original behaviour
      than ablating as many random edges.

    Three take the claim as the null hypothesis and pass if it is not rejected at 0.05:

    - "non-independence": over pairs, what the complement does is independent of what the model
      does, by the Hilbert-Schmidt criterion (Gretton et al., 2007) under 999 permutations.
    - "minimality": each edge matters more to the circuit than 90 % of edges on random paths that
      are added to it; binomial, for the weakest of the edges tested, times their number
      (Bonferroni).
    - "equivalence": circuit and model are equally likely to do better on a pair, up to 0.1;
      binomial. Pairs on which both do the same count half for each.

    Random circuits are drawn until 10 of them do as well (p is then 10 over the number drawn), or
    until there are `draws` (p is then one plus the number that did as well, over `draws` plus one):
    Besag and Clifford (1991), "Sequential Monte Carlo p-values". For a circuit that is itself drawn
    at random both p-values are exactly uniform, whatever the model.

    The parameters `ablation`, `metric`, `memory_budget` and `allow_other_model` are as for
    `run_circuits`.

    Args:
        model: the model.
        task: pairs to test on, preferably not those on which the circuit was found.
        circuit: a circuit of this model, with at least one edge; weights and token positions are
            permuted with the edges.
        tests: names of the tests to run; by default all five.
        reference: "random" draws any edges; "connected" draws circuits in which every edge lies on
            a path from the embedding to the logits, with no fewer edges than the circuit.
        draws: maximum number of random circuits; a p-value of 0.05 needs at least 19.
        sample: number of edges of the circuit, drawn at random, that "minimality" tests.
        seed: seed of all draws; the same seed gives the same table, whatever the memory.
        progress: called with the number of circuits run; by default a progress bar.

    Returns:
        One row per test: `test`; `statistic` (a distance; the Hilbert-Schmidt criterion; the share
        of added edges that the weakest edge exceeds; the share of pairs on which the circuit does
        better than the model); `reference`, the median statistic of the random circuits or
        permutations, or the share in the null hypothesis; `p_value`; `draws`, the number of random
        circuits, permutations, added edges or pairs that were used; `verdict`, "pass" or "fail", or
        "undefined" if no path can be added to the circuit.

    Raises:
        ValueError: an unknown test or reference, fewer than 19 draws, a circuit without edges or
            of another model, or a task whose full and empty circuits have the same metric.
        UnsupportedModelError: the model cannot be patched.
        FloatingPointError: a logit is NaN or infinite.

    Example:
        >>> circuit = sl.discover(model, task, "eap").top(0.1)
        >>> tests = ["sufficiency", "equivalence"]  # all five take minutes on SmolLM2
        >>> sl.circuit_tests(model, task, circuit, tests=tests)[["test", "p_value", "verdict"]]
    """
    experiment = make_experiment(
        model,
        task,
        metric=metric,
        ablation=ablation,
        memory_budget=memory_budget,
        allow_other_model=allow_other_model,
    )
    names = _check(circuit, tests, reference, draws, sample)
    with reporting(progress, "testing", sum(_steps(name, draws, sample) for name in names)) as told:
        rows = []
        for name in names:
            told(0, name)
            setting = Setting(experiment, circuit, reference, draws, sample, seed, told)
            outcome = TESTS[name](setting)
            rows.append({"test": name, **outcome._asdict(), "verdict": _verdict(name, outcome)})
    return pd.DataFrame(rows)


class Setting(NamedTuple):
    """What a test is given: see `circuit_tests`."""

    experiment: Experiment
    circuit: Circuit
    reference: str
    draws: int
    sample: int
    seed: int
    advance: Advance


def _check(
    circuit: Circuit, tests: Sequence[str] | None, reference: str, draws: int, sample: int
) -> list[str]:
    names = list(TESTS) if tests is None else list(dict.fromkeys(tests))
    for name in names:
        if name not in TESTS:
            raise ValueError(f"unknown test {name!r}; choose from {', '.join(TESTS)}")
    if not names:
        raise ValueError(f"no test to make; choose from {', '.join(TESTS)}")
    if reference not in REFERENCES:
        raise ValueError(f"unknown reference {reference!r}; choose from {', '.join(REFERENCES)}")
    if draws < round(1 / SIGNIFICANT) - 1:
        raise ValueError(f"{draws} draws cannot give a p-value of {SIGNIFICANT}; give at least 19")
    if sample < 1:
        raise ValueError(f"sample must be at least 1 edge; got {sample}")
    if not len(circuit):
        raise ValueError("a circuit without edges claims nothing; give one with some")
    return names


def _verdict(name: str, outcome: Outcome) -> str:
    if math.isnan(outcome.p_value):
        return "undefined"
    rejected = outcome.p_value <= SIGNIFICANT
    return "pass" if rejected == (name in _AGAINST_RANDOM) else "fail"


def _steps(name: str, draws: int, sample: int) -> int:
    return {"minimality": sample + draws}.get(name, draws if name in _AGAINST_RANDOM else 1)


# ------------------------------------------------------------------ against random circuits


def sufficiency(setting: Setting) -> Outcome:
    """Is the circuit nearer to the model than random circuits are?"""
    return _against_random(setting, lambda circuit: circuit, nearer=True)


def partial_necessity(setting: Setting) -> Outcome:
    """Does the model lose more without the circuit than without random circuits?"""
    return _against_random(setting, lambda circuit: ~circuit, nearer=False)


def _against_random(
    setting: Setting, run: Callable[[Circuit], Circuit], *, nearer: bool
) -> Outcome:
    """Distances of what is run of the circuit and of random ones, until enough do as well."""
    own = _distances(setting.experiment, [run(setting.circuit)])[0]
    sign = -1.0 if nearer else 1.0
    # What differs by rounding is alike; so the order of the sums decides nothing.
    least = sign * own - 1e-5 * abs(_full_less_empty(setting.experiment))
    drawn: list[float] = []
    random = random_circuits(setting.circuit, setting.reference, setting.seed)
    p_value = None
    while p_value is None:
        count = min(_AT_ONCE, setting.draws - len(drawn))
        some = [run(next(random)) for _ in range(count)]
        drawn += _distances(setting.experiment, some)
        setting.advance(count)
        p_value = sequential_p_value([sign * d >= least for d in drawn], setting.draws)
    setting.advance(setting.draws - len(drawn))
    drawn = drawn[: p_value.draws]
    return Outcome(own, float(np.median(drawn)), p_value.value, p_value.draws)


class PValue(NamedTuple):
    """A p-value and how many draws it rests on."""

    value: float
    draws: int


def sequential_p_value(as_well: Sequence[bool], most: int) -> PValue | None:
    """The p-value of draws so far; None where more are needed.

    Besag and Clifford (1991): where the h-th draw that does as well is the l-th drawn, h / l; after
    all draws, (g + 1) / (n + 1), where g of n do as well.

    Args:
        as_well: of each draw, in order, whether it does as well as what is tested.
        most: draws at which to end.
    """
    places = [i for i, well in enumerate(as_well[:most], 1) if well]
    if len(places) >= STOP_AFTER:
        last = places[STOP_AFTER - 1]
        return PValue(STOP_AFTER / last, last)
    if len(as_well) < most:
        return None
    return PValue((len(places) + 1) / (most + 1), most)


# ------------------------------------------------------------------ the claim as null hypothesis


def non_independence(setting: Setting) -> Outcome:
    """Does what the complement does depend on what the model does?"""
    full, other = _metrics(setting.experiment, [_full(setting), ~setting.circuit])
    setting.advance()
    statistic, permuted = hsic(full.numpy(), other.numpy(), _PERMUTATIONS, setting.seed)
    as_well = int((permuted >= statistic - 1e-12).sum())
    p_value = (as_well + 1) / (_PERMUTATIONS + 1)
    return Outcome(statistic, float(np.median(permuted)), p_value, _PERMUTATIONS)


def hsic(
    a: Float[np.ndarray, " pair"], b: Float[np.ndarray, " pair"], permutations: int, seed: int
) -> tuple[float, Float[np.ndarray, " permutation"]]:
    """The Hilbert-Schmidt independence criterion of two samples, and that of permuted ones.

    Gretton et al. (2007), "A Kernel Statistical Test of Independence": trace(K H L H) / n^2 with
    Gaussian kernels, whose widths are the median distances of each sample. Samples of which one is
    constant are independent, so 0.
    """
    first, second = (_centred_kernel(x) for x in (a, b))
    random, count = np.random.default_rng(seed), len(a)
    orders = (random.permutation(count) for _ in range(permutations))
    permuted = [float((first * second[np.ix_(o, o)]).sum()) for o in orders]
    scale = 1 / count**2
    return float((first * second).sum()) * scale, np.array(permuted) * scale


def _centred_kernel(sample: Float[np.ndarray, " pair"]) -> Float[np.ndarray, "pair pair"]:
    distances = np.abs(sample[:, None] - sample)
    apart = distances[np.triu_indices(len(sample), 1)]
    apart = apart[apart > 1e-6 * np.abs(sample).max()]
    if not len(apart):
        return np.zeros_like(distances)
    kernel = np.exp(-((distances / np.median(apart)) ** 2) / 2)
    kernel = kernel - kernel.mean(0)
    return kernel - kernel.mean(1, keepdims=True)


def minimality(setting: Setting) -> Outcome:
    """Does an edge of the circuit matter less than edges that are added to it at random?"""
    experiment, graph = setting.experiment, setting.circuit.graph
    generator = torch.Generator().manual_seed(setting.seed)
    whole = stack(experiment, [setting.circuit]).cpu()[0]
    kept = setting.circuit.kept.cpu()
    kept = kept if kept.ndim == 2 else kept.any(-1)
    edges = kept.nonzero()
    edges = edges[torch.randperm(len(edges), generator=generator)[: setting.sample]]
    own = _losses(experiment, whole[None], edges)
    setting.advance(setting.sample)
    added: list[float] = []
    for start in range(0, setting.draws, _AT_ONCE):
        grown, dropped = [], []
        for _ in range(min(_AT_ONCE, setting.draws - start)):
            path = new_path(graph, kept, generator)
            if path is None:
                return Outcome(math.nan, QUANTILE, math.nan, 0)
            mask, new = whole.clone(), path[~kept[tuple(path.T)]]
            mask[tuple(path.T)] = 1
            grown.append(mask)
            dropped.append(new[torch.randint(len(new), (1,), generator=generator)[0]])
        added += _losses(experiment, torch.stack(grown), torch.stack(dropped))
        setting.advance(len(grown))
    least = 1e-5 * abs(_full_less_empty(experiment))
    exceeded = [sum(cost > other + least for other in added) for cost in own]
    p_value = float(binom.cdf(min(exceeded), setting.draws, QUANTILE))
    return Outcome(
        min(exceeded) / setting.draws, QUANTILE, min(1.0, p_value * len(own)), setting.draws
    )


def _losses(
    experiment: Experiment,
    masks: Shaped[Tensor, "circuit destination source *pos"],
    edges: Tensor,
) -> list[float]:
    """How far each circuit is from itself without an edge; one circuit stands for all edges."""
    without = masks.expand(len(edges), *masks.shape[1:]).clone()
    without[(torch.arange(len(edges)), *edges.T)] = 0
    values = circuit_metric(experiment, torch.cat([masks, without])).cpu().double()
    before, after = values[: len(masks)], values[len(masks) :]
    return (before - after).abs().mean(-1).tolist()


def equivalence(setting: Setting) -> Outcome:
    """Is the circuit better, or worse, than the model on more pairs than chance allows?"""
    full, own = _metrics(setting.experiment, [_full(setting), setting.circuit])
    setting.advance()
    least = 1e-5 * abs(_full_less_empty(setting.experiment))
    better, worse = int((own > full + least).sum()), int((own < full - least).sum())
    pairs = len(own)
    share = (better + (pairs - better - worse) / 2) / pairs
    return Outcome(share, 0.5, equivalence_p_value(share, pairs, MARGIN), pairs)


def equivalence_p_value(share: float, pairs: int, margin: float) -> float:
    """Chance of a share as far from one half, where the true one is farther by the margin."""
    counts = np.arange(pairs + 1)
    far = np.abs(counts / pairs - 0.5) >= abs(share - 0.5) - 1e-12
    return min(1.0, float(binom.pmf(counts[far], pairs, 0.5 + margin).sum()))


# ------------------------------------------------------------------ what is measured


def _full(setting: Setting) -> Circuit:
    keep = setting.circuit.exists
    return Circuit(setting.circuit.graph, keep)


def _metrics(experiment: Experiment, circuits: Sequence[Circuit]) -> Float[Tensor, "circuit pair"]:
    return circuit_metric(experiment, stack(experiment, circuits)).cpu().double()


def _distances(experiment: Experiment, circuits: Sequence[Circuit]) -> list[float]:
    """Mean absolute difference over pairs from the metric of the full model."""
    full = experiment.score(experiment.clean[1], experiment.reference).cpu().double()
    return (_metrics(experiment, circuits) - full).abs().mean(-1).tolist()


def _full_less_empty(experiment: Experiment) -> float:
    between = metric_range(experiment)
    return between.full - between.empty


_AGAINST_RANDOM = ("sufficiency", "partial necessity")

TESTS: dict[str, Callable[[Setting], Outcome]] = {
    "sufficiency": sufficiency,
    "partial necessity": partial_necessity,
    "non-independence": non_independence,
    "minimality": minimality,
    "equivalence": equivalence,
}
"""The tests by name."""
