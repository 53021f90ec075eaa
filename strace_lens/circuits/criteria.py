"""Whether a circuit holds all that does the task, and nothing else: completeness and minimality."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from strace_lens.circuits.circuit import Circuit
from strace_lens.circuits.curve import NO_INTERVAL, faithfulness_draws
from strace_lens.circuits.evaluate import metric_range
from strace_lens.circuits.experiment import Experiment
from strace_lens.circuits.metric_cache import MetricCache, cache_of
from strace_lens.circuits.run_circuits import stack
from strace_lens.measures.intervals import percentiles
from strace_lens.model.hold import verb

COSTLY = 0.01
"""Loss of faithfulness from which an edge counts as needed."""

_MASKS_AT_ONCE = 64
_DRAWN_AT_ONCE = 256  # circuits of which all draws are held: 20 MB


@verb
def completeness(
    experiment: Experiment, circuit: Circuit, *, cache: MetricCache | None = None
) -> float:
    """Faithfulness of a circuit's complement; 0 when the circuit holds all that does the task.

    After the completeness criterion of Wang et al. (2023), "Interpretability in the Wild", section
    4, with the whole circuit knocked out.

    Args:
        experiment: from `make_experiment`.
        circuit: of its model.
        cache: of the circuits of the ranking that the circuit is taken from, to which those that
            are run are added.

    Raises:
        ValueError: a circuit of another model, a cache of another experiment, or as `metric_range`.
    """
    return metric_range(experiment).faithfulness(_of_complement(experiment, circuit, cache))[0]


@verb
def completeness_interval(
    experiment: Experiment, circuit: Circuit, *, cache: MetricCache | None = None
) -> tuple[float, float]:
    """The 95 % bootstrap interval over pairs of `completeness`; NaN as `Faithfulness.interval`.

    It takes and raises what `completeness` does; with the same cache nothing runs again.
    """
    drawn = _draws(experiment, _of_complement(experiment, circuit, cache))
    if drawn is None:
        return NO_INTERVAL
    low, high = percentiles(drawn[:, 0])
    return float(low), float(high)


@verb
def minimality(
    experiment: Experiment,
    circuit: Circuit,
    *,
    sample: int | None = 64,
    seed: int = 0,
    cache: MetricCache | None = None,
) -> dict[str, float]:
    """What each edge of a circuit is worth to it: faithfulness lost when that edge alone goes too.

    After the minimality criterion of Wang et al. (2023), section 4, with single edges, no sets.

    Args:
        experiment: from `make_experiment`.
        circuit: at least one edge.
        sample, seed: drop only so many edges, drawn from the seed; None for all.
        cache: as for `completeness`.

    Returns:
        The cost of each edge dropped, by its name; at least `COSTLY` where the edge is needed.

    Raises:
        ValueError: an empty circuit, one of another model, a sample below 1, a cache of another
            experiment, or as `metric_range`.
    """
    _check_sample(circuit, sample)
    names, metrics = _dropped(experiment, circuit, sample, seed, cache)
    own, *without = metric_range(experiment).faithfulness(metrics)
    return {name: own - value for name, value in zip(names, without, strict=True)}


@verb
def minimality_interval(
    experiment: Experiment,
    circuit: Circuit,
    *,
    sample: int | None = 64,
    seed: int = 0,
    cache: MetricCache | None = None,
) -> tuple[float, float]:
    """The 95 % bootstrap interval over pairs of the share of edges that cost at least `COSTLY`.

    The edges are those of `minimality`, which takes and raises the same; NaN as
    `Faithfulness.interval`. With the same cache nothing runs again.
    """
    _check_sample(circuit, sample)
    metrics = _dropped(experiment, circuit, sample, seed, cache)[1]
    own = _draws(experiment, metrics[:1])
    if own is None:
        return NO_INTERVAL
    needed = np.where(np.isnan(own[:, 0]), np.nan, 0)
    for some in metrics[1:].split(_DRAWN_AT_ONCE):
        drawn = _draws(experiment, some)
        assert drawn is not None  # as of the circuit itself
        needed += (own - drawn >= COSTLY).sum(1)
    low, high = percentiles(needed / (len(metrics) - 1))
    return float(low), float(high)


def _of_complement(
    experiment: Experiment, circuit: Circuit, cache: MetricCache | None
) -> Float[Tensor, "1 pair"]:
    return cache_of(experiment, cache).metrics(stack(experiment, [~circuit]))


def _check_sample(circuit: Circuit, sample: int | None) -> None:
    if sample is not None and sample < 1:
        raise ValueError(f"sample must be at least 1, or None for all edges; got {sample}")
    if not len(circuit):
        raise ValueError("a circuit without edges has none to drop; give at least one")


def _dropped(
    experiment: Experiment,
    circuit: Circuit,
    sample: int | None,
    seed: int,
    cache: MetricCache | None,
) -> tuple[list[str], Float[Tensor, "circuit pair"]]:
    """Names of the edges that are dropped; metrics of the circuit, then without each of them."""
    cache = cache_of(experiment, cache)
    order = torch.randperm(len(circuit), generator=torch.Generator().manual_seed(seed))
    chosen = order[:sample].sort().values
    cells, names = circuit.kept.cpu().nonzero().flip(0)[chosen], circuit.edge_names()
    whole = stack(experiment, [circuit])
    metrics = [cache.metrics(whole)]
    for dropped in cells.split(_MASKS_AT_ONCE):
        masks = whole.repeat(len(dropped), *[1] * (whole.ndim - 1))
        masks[(torch.arange(len(dropped)), *dropped.T)] = 0
        # Nothing changes below the destination of the edge that goes, and edges are in that order.
        metrics.append(cache.metrics(masks, like=whole[0]))
    return [names[i] for i in chosen.tolist()], torch.cat(metrics)


def _draws(
    experiment: Experiment, metrics: Float[Tensor, "circuit pair"]
) -> Float[np.ndarray, "resample circuit"] | None:
    """Faithfulness of circuits on each draw of pairs; None where there is no interval."""
    between = metric_range(experiment)
    full, empty = np.array(between.full_pairs), np.array(between.empty_pairs)
    return faithfulness_draws(metrics.cpu().double().numpy(), full, empty)
