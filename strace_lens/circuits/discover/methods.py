"""Every way of finding a circuit, by name, with one signature."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from strace_lens.circuits.discover import (
    acdc,
    activation,
    attribution,
    edge_pruning,
    flow,
    pass_counts,
    relp,
    spans,
)
from strace_lens.circuits.discover.bootstrap import consistent_first
from strace_lens.circuits.discover.ensemble import combined
from strace_lens.circuits.discover.pass_counts import Count, PassCount
from strace_lens.circuits.experiment import Experiment
from strace_lens.circuits.graph import ComponentGraph, EdgeValues
from strace_lens.circuits.run_circuits import check_positions


def random_scores(experiment: Experiment, *, seed: int = 0, positions: bool = False) -> EdgeValues:
    """Scores drawn uniformly from (0, 1) by the seed, with `positions` one for each token position.

    No pass is run, and the sign means nothing.
    """
    exists = experiment.graph.exists
    if positions:
        check_positions(experiment.task)
        exists = exists[..., None].expand(*exists.shape, experiment.task.positions)
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(exists.shape, generator=generator) * exists


MEMBERS = ("eap-ig", "clean-corrupted", "relp")
"""Methods of an ensemble unless told otherwise."""


def ensemble_scores(
    experiment: Experiment,
    *,
    seed: int = 0,
    members: Sequence[str] = MEMBERS,
    how: str = "rank",
    weights: Sequence[float] | None = None,
) -> EdgeValues:
    """The scores of several methods made one; signs are those of its members, positive helps.

    Passes: those of its members, which share the clean and the corrupted run. See
    `strace_lens.circuits.discover.ensemble`, which names the source.

    Args:
        members: two or more keys of `METHODS`, each with its default options.
        how: "rank", the mean of ranks by magnitude with the sign of most, or "mean", "min"
            or "max" of scores over their root mean square.
        weights: of the members in a mean, equal by default.

    Raises:
        ValueError: fewer than two members, one that is unknown or is an ensemble itself, or options
            that do not fit one another, see `combined`.
    """
    unknown = [
        name
        for name in members
        if name not in METHODS or name == "ensemble" or METHODS[name].by_position
    ]
    if isinstance(members, str) or unknown or len(set(members)) < max(2, len(members)):
        raise ValueError(
            "members must be two or more different methods, no ensemble and none that scores edges "
            f"by position; got {members!r}"
        )
    signed = [METHODS[name].signed for name in members]
    values = [METHODS[name].find(experiment, seed=seed) for name in members]
    return combined(values, experiment.graph.exists, signed=signed, how=how, weights=weights)


def bootstrap_scores(
    experiment: Experiment,
    *,
    seed: int = 0,
    member: str = "eap-ig",
    share: float = 0.95,
    sign: str = "any",
    resamples: int = 1000,
) -> EdgeValues:
    """The scores of a method, edges whose sign depends on the pairs drawn ranked behind the others.

    Scores estimate effects, positive helps; those of edges that are kept are the member's own, the
    rest are scaled down, see `consistent_first`. Passes: those of the member, a pair at a time, and
    one forward over each prompt. See `strace_lens.circuits.discover.bootstrap`, which names the
    source.

    Args:
        member: a key of `METHODS` whose scores are means over pairs of effects.
        share: of the resamples in which the sign must hold.
        sign: "any", or "positive" to rank what hurts behind too: a positive-ratio filter.
        resamples: of the pairs, with replacement.

    Raises:
        ValueError: a member that is unknown, gives no effects or combines others, or as
            `consistent_first`.
    """
    found = _by_pair(experiment, member, seed)
    edges = consistent_first(found, share=share, sign=sign, resamples=resamples, seed=seed)
    return _spread(experiment, edges)


def pair_magnitude(experiment: Experiment, *, seed: int = 0, member: str = "eap-ig") -> EdgeValues:
    """The mean over pairs of the size of each edge's effect, whatever its sign on a pair.

    Other methods average signed effects. That mean is near 0 for an edge that helps on some pairs
    and hurts on others, such as one that tells which of two names came first, although a circuit
    without it is wrong on every pair. The scores are not negative, and only order edges; for a
    single pair they are the magnitudes of the member's. Passes: those of the member, a pair at a
    time, and one forward over each prompt.

    Args:
        member: a key of `METHODS` whose scores are means over pairs of effects.

    Raises:
        ValueError: a member that is unknown, gives no effects or combines others.
    """
    return _spread(experiment, _by_pair(experiment, member, seed).abs().mean(0))


def _by_pair(experiment: Experiment, member: str, seed: int) -> Float[Tensor, "pair edge"]:
    """The scores that a method gives each edge on each pair alone."""
    fits = member in METHODS and METHODS[member].signed and not METHODS[member].by_position
    if not fits or member in ("ensemble", "bootstrap"):
        raise ValueError(
            f"member must be a method whose scores are effects, as eap-ig or relp; got {member!r}"
        )
    exists = experiment.graph.exists
    found = [
        METHODS[member].find(experiment.take([pair]), seed=seed).cpu()[exists]
        for pair in range(len(experiment.task))
    ]
    return torch.stack(found)


def _spread(experiment: Experiment, edges: Float[Tensor, " edge"]) -> EdgeValues:
    """Scores of edges in the layout of the graph."""
    values = torch.zeros(experiment.graph.exists.shape)
    values[experiment.graph.exists] = edges.float()
    return values


class Look(NamedTuple):
    """Colour, dash and symbol of a method's line and dots in figures."""

    colour: str = "#222222"
    dash: str = "longdash"
    symbol: str = "star"


@dataclass(frozen=True)
class Method:
    """A way of finding a circuit.

    Attributes:
        find: from an `Experiment`, a `seed` and options of its own to one score an edge.
        look: in figures.
        signed: the scores estimate effects on the metric; False where only their order counts.
        first_order: the scores are gradients times changes, so that a task in which nothing
            changes shows in them; for the others it is found out beforehand, with passes of its
            own.
        by_position: it scores an edge at each token by default, so that its circuits are no edges
            alone: `compare` skips it, and it is no member of an ensemble.
        large_options: options that `compare` gives it on graphs of more than 2,000 edges, where the
            caller gives none: what two cores do in minutes.
        blind_spot: what it cannot see by its making, for the warning that it does not beat random.
        count: from the graph, the number of pairs and the method's options to the passes that it
            takes; None where nobody has said.
        facts: from an experiment and the options to what `Scores.metadata` says beside them.
    """

    find: Callable[..., EdgeValues]
    look: Look = field(default_factory=Look)
    signed: bool = True
    first_order: bool = False
    by_position: bool = False
    large_options: Mapping[str, Any] = field(default_factory=dict)
    blind_spot: str | None = None
    count: Count | None = None
    facts: Callable[[Experiment, Mapping[str, Any]], dict[str, Any]] | None = None


def _of_members(graph: ComponentGraph, pairs: int, options: Mapping[str, Any]) -> PassCount | None:
    """The passes of other methods together, which share those without gradients.

    These are the clean and the corrupted run, or one of them.
    """
    shared, total = 0, PassCount()
    for name in options.get("members") or [options["member"]]:
        own = passes_of(name, graph, pairs)
        if own is None:
            return None
        shared = max(shared, own.forward - own.backward)
        total = PassCount(
            total.forward + own.backward,
            total.backward + own.backward,
            total.patched + own.patched,
            total.patched_backward + own.patched_backward,
        )
    return total._replace(forward=total.forward + shared)


_GRADIENT = pass_counts.fixed(2, 1)
_NODES = "it scores nodes, and all out-edges of a node alike"
_CLEAN = "it reads the clean run alone, not what an ablation would change"

# Hue by family: black patches exactly, blues and purples take gradients, red and orange search or
# learn a mask, green follows the flow, grey is chance.
METHODS: dict[str, Method] = {
    "edge-patching": Method(
        activation.edge_patching, Look("#000000", "solid", "circle"), count=pass_counts.each_edge
    ),
    "node-patching": Method(
        activation.node_patching,
        Look("#000000", "dash", "square"),
        blind_spot=_NODES,
        count=pass_counts.each_node,
    ),
    "attribution-patching": Method(
        attribution.attribution_patching,
        Look("#56B4E9", "dash", "square"),
        first_order=True,
        blind_spot=_NODES,
        count=_GRADIENT,
    ),
    "eap": Method(
        attribution.eap, Look("#56B4E9", "solid", "circle"), first_order=True, count=_GRADIENT
    ),
    "peap": Method(
        spans.peap,
        Look("#56B4E9", "dot", "diamond"),
        first_order=True,
        by_position=True,
        count=_GRADIENT,
    ),
    "relp": Method(
        relp.relp, first_order=True, look=Look("#882255", "solid", "circle"), count=_GRADIENT
    ),
    "relevance-patching": Method(
        relp.relevance_patching,
        first_order=True,
        blind_spot=_NODES,
        look=Look("#882255", "dash", "square"),
        count=_GRADIENT,
    ),
    "eap-ig": Method(
        attribution.eap_ig,
        Look("#0072B2", "solid", "circle"),
        first_order=True,
        count=pass_counts.steps(),
    ),
    "eap-gp": Method(
        attribution.eap_gp,
        Look("#0072B2", "dash", "square"),
        first_order=True,
        count=pass_counts.steps(each=2),
    ),
    "eap-ig-activations": Method(
        attribution.eap_ig_activations,
        Look("#332288", "dashdot", "diamond"),
        first_order=True,
        large_options={"steps": 1},
        count=pass_counts.layers,
    ),
    "clean-corrupted": Method(
        attribution.clean_corrupted,
        Look("#0072B2", "dot", "triangle-up"),
        first_order=True,
        count=pass_counts.fixed(4, 2),
    ),
    "eap-ig-kl": Method(
        attribution.eap_ig_kl,
        Look("#CC79A7", "solid", "diamond"),
        first_order=True,
        count=pass_counts.steps(),
    ),
    "acdc": Method(
        acdc.acdc,
        Look("#CC3311", "solid", "triangle-up"),
        signed=False,
        large_options={"screen": 128},
        count=acdc.passes,
        facts=acdc.tested_edges,
    ),
    "edge-pruning": Method(
        edge_pruning.edge_pruning,
        Look("#E69F00", "solid", "circle"),
        signed=False,
        count=pass_counts.pruned(2),
    ),
    "node-pruning": Method(
        edge_pruning.node_pruning,
        Look("#E69F00", "dash", "square"),
        signed=False,
        blind_spot=_NODES,
        count=pass_counts.pruned(2),
    ),
    "warm-edge-pruning": Method(
        edge_pruning.warm_edge_pruning,
        signed=False,
        look=Look("#E69F00", "dot", "triangle-up"),
        count=pass_counts.pruned(7, 5),
    ),
    "hap": Method(
        edge_pruning.hap,
        signed=False,
        look=Look("#CC3311", "dashdot", "diamond"),
        count=pass_counts.pruned(3, 1),
    ),
    "ensemble": Method(
        ensemble_scores,
        first_order=True,
        look=Look("#AA4499", "solid", "x"),
        count=_of_members,
    ),
    "bootstrap": Method(
        bootstrap_scores,
        first_order=True,
        look=Look("#AA4499", "dash", "circle"),
        count=_of_members,
    ),
    "pair-magnitude": Method(
        pair_magnitude,
        signed=False,
        first_order=True,
        look=Look("#AA4499", "dot", "triangle-up"),
        count=_of_members,
    ),
    "ifr": Method(
        flow.ifr,
        Look("#009E73", "dash", "square"),
        signed=False,
        blind_spot=_CLEAN,
        count=pass_counts.fixed(1),
    ),
    "strace": Method(
        flow.strace,
        Look("#009E73", "solid", "circle"),
        signed=False,
        blind_spot=_CLEAN,
        count=pass_counts.fixed(1),
    ),
    "strace-contrast": Method(
        flow.strace_contrast,
        Look("#009E73", "dot", "triangle-up"),
        signed=False,
        first_order=True,
        count=pass_counts.steps(),
    ),
    "random": Method(
        random_scores, Look("#808080", "dot", "x"), signed=False, count=pass_counts.fixed(0)
    ),
}
"""Every way of finding a circuit, by name."""


def options_of(method: str, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """All options of a method, those that are not given at their defaults."""
    parameters = inspect.signature(METHODS[method].find).parameters.items()
    defaults = {name: p.default for name, p in parameters if p.kind is p.KEYWORD_ONLY}
    return {**defaults, **(given or {})}


def passes_of(
    method: str, graph: ComponentGraph, pairs: int, given: Mapping[str, Any] | None = None
) -> PassCount | None:
    """The passes that a method takes for each pair, at the least; None where nobody has said.

    Args:
        method: key of `METHODS`.
        graph: of the model.
        pairs: how many the method sees.
        given: options that are not at their defaults.
    """
    count = METHODS[method].count
    return None if count is None else count(graph, pairs, options_of(method, given))


F = TypeVar("F", bound=Callable[..., EdgeValues])


def method(name: str, *, signed: bool = True, first_order: bool = False) -> Callable[[F], F]:
    """Register a function of your own as a method of discovery, for `discover` and `compare`.

    The function takes an `Experiment` called `experiment`, a keyword `seed`, and keywords with
    defaults, which become its options; it returns one score an edge, `[destination, source]` or
    with token positions behind. `del METHODS[name]` takes the method back.

    Args:
        name: of the method, a word of letters, digits and hyphens that is no key of `METHODS` yet.
        signed: the scores estimate what an edge is worth to the metric, positive where it helps;
            False where only their order means something.
        first_order: the scores are gradients times changes: see `Method`.

    Returns:
        A decorator, which returns the function itself.

    Raises:
        ValueError: a name that is taken or is no word, or a function of other parameters.

    Example:
        >>> import torch
        >>> @sl.method("constant", signed=False)
        ... def constant(experiment, *, seed=0, value=1.0):
        ...     return torch.full(experiment.graph.exists.shape, value) * experiment.graph.exists
        >>> from strace_lens.ground_truth.models import ground_truth
        >>> known = ground_truth("linear")
        >>> float(sl.discover(known.model, known.task, "constant", value=2.0).values.max())
        2.0
        >>> del sl.METHODS["constant"]
    """
    if not re.fullmatch(r"[A-Za-z0-9]+(-[A-Za-z0-9]+)*", name):
        raise ValueError(f"a method's name is letters, digits and hyphens; got {name!r}")
    if name in METHODS:
        raise ValueError(
            f"there is a method {name!r} already; choose another name, or del METHODS[{name!r}]"
        )

    def register(function: F) -> F:
        first, *others = inspect.signature(function).parameters.values()
        keywords = {p.name for p in others if p.kind is not p.POSITIONAL_ONLY}
        no_default = [p.name for p in others if p.default is p.empty]
        if first.name != "experiment" or "seed" not in keywords or no_default:
            raise ValueError(
                f"method {name!r} must be a function (experiment, *, seed=0, ...) whose options "
                f"have defaults; got {function.__name__}{inspect.signature(function)}"
            )
        METHODS[name] = Method(function, signed=signed, first_order=first_order)
        return function

    return register
