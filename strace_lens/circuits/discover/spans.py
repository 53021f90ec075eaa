"""Edges by spans of tokens, and what attention carries from one span to another (PEAP).

Haklay, Orgad, Bau, Mueller and Belinkov (2025), "Position-aware Automatic Circuit Discovery". An
edge into a head or an MLP lies at one position, so `peap` scores it at each span as `eap` does.
Between positions information moves inside a head, where the component graph has no edges: that is
what `crossing_scores` tabulates.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from strace_lens.circuits.discover.attribution import eap, run_backward
from strace_lens.circuits.discover.gradients import Values
from strace_lens.circuits.experiment import Experiment, make_experiment
from strace_lens.circuits.graph import EdgeValues
from strace_lens.circuits.outputs import read_logits
from strace_lens.circuits.run_circuits import check_positions
from strace_lens.circuits.task import Task
from strace_lens.circuits.wiring import keep_hooks
from strace_lens.model.architecture import (
    Model,
    UnsupportedModelError,
    clipped,
    per_query_head,
)
from strace_lens.model.checks import at_least_single, tolerance
from strace_lens.model.forward import Hook
from strace_lens.model.hold import verb

Spans = Sequence[int] | Mapping[str, int]
"""The first token of each span, rising from 0; by name, if they have names."""

AGGREGATIONS = ("sum", "mean")


def peap(
    experiment: Experiment, *, seed: int = 0, spans: Spans | None = None, how: str = "sum"
) -> EdgeValues:
    """Edge attribution patching by spans of tokens: every position of a span has the span's score.

    Passes: as `eap`. Attention from one span to another is no edge of the graph: see
    `crossing_scores`.

    Args:
        spans: the first token of each span, the same for all pairs; by default every token is a
            span, which is `eap` with positions.
        how: "sum" or "mean" over the positions of a span.

    Raises:
        ValueError: prompts of unequal lengths, spans that do not rise from 0 within them, or
            another `how`.
    """
    if how not in AGGREGATIONS:
        raise ValueError(f"unknown how {how!r}; choose from {', '.join(AGGREGATIONS)}")
    names, span = _span_of_tokens(experiment.task, spans)
    values = eap(experiment, positions=True)
    span = span.to(values.device)
    found = values.new_zeros(*values.shape[:2], len(names)).index_add_(2, span, values)
    if how == "mean":
        found = found / span.bincount(minlength=len(names))
    return found[:, :, span]


@verb
def crossing_scores(
    model: Model,
    task: Task,
    spans: Spans | None = None,
    *,
    metric: str | None = None,
    memory_budget: int | None = None,
) -> pd.DataFrame:
    """What each head carries from one span of tokens to another, through its keys and its values.

    The key or the value of one token is replaced by that of the corrupted prompt, and all that the
    head writes elsewhere is worked out exactly; its effect on the metric is estimated to first
    order, summed over the tokens of both spans and averaged over pairs. Positive helps, as for
    `eap`. Passes: four forward and one backward.

    Args:
        model: the model.
        task: pairs of prompts of one length.
        spans: the first token of each span, rising from 0, as `[0, 4, 9]` or by name, as
            `{"intro": 0, "names": 4, "question": 9}`; by default every token is a span.
        metric, memory_budget: as for `run_circuits`.

    Returns:
        One row for each layer, head, `input` ("k" or "v") and pair of spans: columns `layer`,
        `head`, `input`, `source` (the span whose key or value it is), `destination` (the span that
        attends) and `score`. In a causal model no source comes behind its destination.

    Raises:
        ValueError: prompts of unequal lengths, or spans that do not rise from 0 within them.
        UnsupportedModelError: the model shows no attention scores, or its pattern is not their
            softmax.
        FloatingPointError: NaN or infinite logits, or gradients.

    Source:
        Haklay et al. (2025), section 3: crossing edges.

    Example:
        >>> from strace_lens.ground_truth.models import ground_truth
        >>> known = ground_truth("linear")
        >>> found = sl.crossing_scores(known.model, known.task)
        >>> list(found.columns)
        ['layer', 'head', 'input', 'source', 'destination', 'score']
    """
    experiment = make_experiment(model, task, metric=metric, memory_budget=memory_budget)
    names, span = _span_of_tokens(task, spans)
    arch = experiment.wiring.architecture
    total = torch.zeros(2, arch.layers, arch.heads, len(span), len(span), dtype=torch.float64)
    for rows in experiment.gradient_chunks(len(task)):
        for layer, found in enumerate(_crossing(experiment, rows)):
            total[:, layer] += found.double().cpu()
    share = torch.nn.functional.one_hot(span, len(names)).double()
    table = torch.einsum("ilhqk,qd,ks->ilhsd", total, share, share) / len(task)
    ahead = getattr(cast(Any, model).cfg, "attention_dir", "causal") != "causal"
    order = torch.arange(len(names))
    exists = (order[:, None] <= order) | ahead
    cells = exists.expand_as(table).nonzero()
    kinds, layers, heads, sources, destinations = cells.T.numpy()
    return pd.DataFrame(
        {
            "layer": layers,
            "head": heads,
            "input": [("k", "v")[kind] for kind in kinds],
            "source": [names[n] for n in sources],
            "destination": [names[n] for n in destinations],
            "score": table[tuple(cells.T)].numpy(),
        }
    )


def _span_of_tokens(
    task: Task, spans: Spans | None
) -> tuple[list[str] | list[int], Int[Tensor, " pos"]]:
    """The names of the spans, and the number of the span in which each token lies."""
    check_positions(task)
    tokens = task.clean.shape[1]
    if spans is None:
        return list(range(tokens)), torch.arange(tokens)
    named = isinstance(spans, Mapping)
    firsts = list(spans.values()) if named else list(spans)
    if firsts[:1] != [0] or not all(a < b for a, b in pairwise([*firsts, tokens])):
        raise ValueError(
            f"spans must begin at token 0 and rise within the {tokens} tokens of the prompts of "
            f"task {task.name!r}; got {spans!r}"
        )
    span = torch.searchsorted(torch.tensor(firsts), torch.arange(tokens), right=True) - 1
    return list(spans) if named else list(range(len(firsts))), span


def _crossing(experiment: Experiment, rows: slice) -> list[Float[Tensor, "2 head pos pos2"]]:
    """Of each layer, the effect of each key and value on each token that attends, summed over rows.

    With p the share of a token, p' its share once its key is replaced, v its value and z the head's
    mean of values, the head's mean moves by (p' - p) / (1 - p) times v - z: all other shares
    shrink alike. A replaced value moves it by p times the change.
    """
    arch = experiment.wiring.architecture
    points = {kind: f"attn.hook_{kind}" for kind in ("q", "k", "v", "z", "pattern", "attn_scores")}
    names = {
        kind: [f"blocks.{layer}.{point}" for layer in range(arch.layers)]
        for kind, point in points.items()
    }
    known = cast(Any, experiment.model).hook_dict
    missing = [name for of in names.values() for name in of if name not in known]
    if missing:
        raise UnsupportedModelError(
            f"{arch.name} shows no attention scores: it has no {missing[0]}"
        )
    other, own, patched, gradients = cast(tuple[Values, ...], ({}, {}, {}, {}))
    task = experiment.task
    _run(experiment, rows, task.corrupted, keep_hooks([*names["k"], *names["v"]], other))
    kept = [name for of in names.values() for name in of]
    hooks = [*keep_hooks(kept, own), *((name, _note(name, gradients)) for name in names["z"])]
    run_backward(experiment, rows, hooks=hooks, untouched=True)
    hooks = [(name, _written(own[name])) for name in names["q"]]
    hooks += [(name, _written(other[name])) for name in names["k"]]
    _run(experiment, rows, task.clean, [*hooks, *keep_hooks(names["attn_scores"], patched)])
    found = []
    for layer in range(arch.layers):
        at = {kind: of[layer] for kind, of in names.items()}
        pattern, scores = (at_least_single(own[at[kind]]) for kind in ("pattern", "attn_scores"))
        _expect_softmax(experiment, pattern, scores)
        gradient, z = (_by_head(of[at["z"]], arch.heads, arch.heads) for of in (gradients, own))
        value, replaced = (
            _by_head(clipped(arch, of[at["v"]]), arch.heads, arch.kv_heads) for of in (own, other)
        )
        change = value - replaced
        of_value = pattern * torch.einsum("rqhe,rkhe->rhqk", gradient, change)
        moved = torch.where(pattern > 0, at_least_single(patched[at["attn_scores"]]) - scores, 0)
        share = torch.sigmoid(moved + pattern.log() - torch.log1p(-pattern))
        weight = torch.where((pattern > 0) & (pattern < 1), (share - pattern) / (1 - pattern), 0)
        towards = torch.einsum("rqhe,rkhe->rhqk", gradient, value)
        towards = towards - torch.einsum("rqhe,rqhe->rhq", gradient, z)[..., None]
        found.append(torch.stack([-(weight * towards).sum(0), of_value.sum(0)]))
    return found


def _run(
    experiment: Experiment, rows: slice, tokens: Int[Tensor, "pair pos"], hooks: Sequence[Hook]
) -> None:
    """Run some prompts for what hooks keep of them."""
    task = experiment.task
    with torch.no_grad():
        read_logits(
            experiment.model,
            experiment.wiring.architecture,
            tokens[rows],
            task.lengths[rows],
            hooks,
            every_position=task.every_position,
        )
    experiment.passes.forward_rows += rows.stop - rows.start


def _note(name: str, gradients: Values) -> Callable[..., Tensor]:
    """A hook that leaves a value as it is and keeps the gradient there once it is known."""

    def hook(value: Tensor, hook: Any) -> Tensor:
        # A hook may be handed a view that is not on the path: what it returns is.
        value = value.view_as(value)
        value.register_hook(functools.partial(gradients.__setitem__, name))
        return value

    return hook


def _written(value: Tensor) -> Callable[..., Tensor]:
    return lambda _, hook: value


def _by_head(
    value: Float[Tensor, "row pos *any"], heads: int, kv_heads: int
) -> Float[Tensor, "row pos head d_head"]:
    """What every query head has of values that lie by head or side by side, grouped or not."""
    if value.ndim == 3:
        value = value.unflatten(-1, (kv_heads, -1))
    return at_least_single(per_query_head(value, heads, dim=2))


def _expect_softmax(
    experiment: Experiment,
    pattern: Float[Tensor, "row head pos pos2"],
    scores: Float[Tensor, "row head pos pos2"],
) -> None:
    gap = float((scores.softmax(-1) - pattern).abs().max())
    name = experiment.wiring.architecture.name
    if not gap < tolerance(torch.float32):
        raise UnsupportedModelError(
            f"the attention pattern of {name} is not the softmax of its scores (they differ by "
            f"{gap:.1e}), so the effect of one key cannot be told"
        )
