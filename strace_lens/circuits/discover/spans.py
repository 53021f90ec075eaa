"""Edges by spans of tokens, and what attention carries from one span to another (PEAP).

Haklay, Orgad, Bau, Mueller and Belinkov (2025), "Position-aware Automatic Circuit Discovery". An
edge into a head or an MLP lies at one position, so `peap` scores it at each span as `eap` does.
Between positions information moves inside a head, where the component graph has no edges: that is
what `crossing_scores` tabulates.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from strace_lens.circuits.discover.attribution import eap, run_backward, write
from strace_lens.circuits.discover.gradients import Values
from strace_lens.circuits.experiment import Experiment, make_experiment
from strace_lens.circuits.graph import EdgeValues
from strace_lens.circuits.outputs import read_logits
from strace_lens.circuits.run_circuits import check_positions
from strace_lens.circuits.task import Task, span_numbers
from strace_lens.circuits.wiring import Input, keep_hooks
from strace_lens.model.architecture import Model
from strace_lens.model.checks import at_least_single
from strace_lens.model.forward import Hook
from strace_lens.model.hold import verb

Spans = Sequence[int] | Mapping[str, int]
"""The first token of each span, rising from 0; by name, if they have names."""

AGGREGATIONS = ("sum", "mean")

_KINDS: tuple[Input, ...] = ("k", "v")


def peap(
    experiment: Experiment, *, seed: int = 0, spans: Spans | None = None, how: str = "sum"
) -> EdgeValues:
    """Edge attribution patching by spans of tokens.

    If the task has spans (`Task.with_spans`), which may differ from pair to pair, there is a score
    for each of them, as from `eap` with positions. With the option `spans`, every token of a span
    has the span's score. Passes: as for `eap`. Attention from one span to another is not an edge of
    the graph: see `crossing_scores`.

    Args:
        spans: the first token of each span, the same for all pairs; by default the spans of the
            task, or every token.
        how: "sum" or "mean" over the tokens of one of these spans.

    Raises:
        ValueError: prompts of unequal lengths without spans of the task, spans both here and in the
            task, spans that do not rise from 0 within the prompts, or an unknown `how`.
    """
    if how not in AGGREGATIONS:
        raise ValueError(f"unknown how {how!r}; choose from {', '.join(AGGREGATIONS)}")
    task = experiment.task
    if how != "sum" and task.spans is not None:
        raise ValueError(f"the scores of a task's own spans are sums; got how={how!r}")
    names, numbers = _spans_of(task, spans)
    values = eap(experiment, positions=True)
    if task.spans is not None:
        return values
    span = numbers[0].to(values.device)
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
    """Score what each head carries from one span of tokens to another, by its keys and its values.

    The key or the value of one token is replaced by that of the corrupted prompt, and the model
    runs with it, so that what the head writes is exact; its effect on the metric is estimated to
    first order, summed over the tokens of both spans and averaged over pairs. Positive helps, as
    for `eap`. Passes: two forward per token, three more forward, and one backward.

    Args:
        model: the model.
        task: pairs of prompts of one length, or with spans (`Task.with_spans`).
        spans: the first token of each span, increasing from 0, as in `[0, 4, 9]`, or with names, as
            in `{"intro": 0, "names": 4, "question": 9}`; by default every token is a span.
        metric: as for `run_circuits`.
        memory_budget: as for `run_circuits`.

    Returns:
        One row for each layer, head, `input` ("k" or "v") and pair of spans: columns `layer`,
        `head`, `input`, `source` (the span whose key or value it is), `destination` (the span that
        attends) and `score`. In a causal model no source comes after its destination.

    Raises:
        ValueError: the prompts differ in length, or spans do not increase from 0 within them.
        UnsupportedModelError: the model cannot be patched, or gives no gradients.
        FloatingPointError: logits or gradients are NaN or infinite.

    Source:
        Haklay et al. (2025), section 3: crossing edges.

    Example:
        >>> from strace_lens.ground_truth.models import ground_truth
        >>> known = ground_truth("induction-trained", pairs=4)
        >>> found = sl.crossing_scores(known.model, known.task)
        >>> list(found.columns)
        ['layer', 'head', 'input', 'source', 'destination', 'score']
    """
    experiment = make_experiment(model, task, metric=metric, memory_budget=memory_budget)
    names, numbers = _spans_of(task, spans)
    share = torch.nn.functional.one_hot(numbers, len(names)).double()
    arch = experiment.wiring.architecture
    total = torch.zeros(2, arch.layers, arch.heads, len(names), len(names), dtype=torch.float64)
    for rows in experiment.gradient_chunks(len(task)):
        total += _crossing(experiment, rows, share[rows])
    table = total / len(task)
    ahead = getattr(cast(Any, model).cfg, "attention_dir", "causal") != "causal"
    order = torch.arange(len(names))
    exists = (order[:, None] <= order) | ahead
    cells = exists.expand_as(table).nonzero()
    kinds, layers, heads, sources, destinations = cells.T.numpy()
    return pd.DataFrame(
        {
            "layer": layers,
            "head": heads,
            "input": [_KINDS[kind] for kind in kinds],
            "source": [names[n] for n in sources],
            "destination": [names[n] for n in destinations],
            "score": table[tuple(cells.T)].numpy(),
        }
    )


def _spans_of(
    task: Task, spans: Spans | None
) -> tuple[list[str] | list[int], Int[Tensor, "pair pos"]]:
    """The names of the spans, and the number of the span in which each token of a pair lies."""
    check_positions(task)
    pairs, tokens = task.clean.shape
    if task.spans is not None:
        if spans is not None:
            raise ValueError(f"task {task.name!r} has spans of its own; leave out spans={spans!r}")
        return list(range(task.positions)), task.spans
    if spans is None:
        return list(range(tokens)), torch.arange(tokens).expand(pairs, -1)
    named = isinstance(spans, Mapping)
    firsts = list(spans.values()) if named else list(spans)
    span = span_numbers(firsts, tokens, tokens)
    if span is None:
        raise ValueError(
            f"spans must begin at token 0 and rise within the {tokens} tokens of the prompts of "
            f"task {task.name!r}; got {spans!r}"
        )
    return list(spans) if named else list(range(len(firsts))), span.expand(pairs, -1)


def _crossing(
    experiment: Experiment, rows: slice, share: Float[Tensor, "row pos span"]
) -> Float[Tensor, "2 layer head span span2"]:
    """The effect of the keys and values of each span on each span that attends, summed over rows.

    Every head is given its clean queries, keys and values but for one token, so that one pass tells
    what that token changes in all layers, and nothing is passed on from one to the next.
    """
    arch, task = experiment.wiring.architecture, experiment.task
    names = {
        kind: [f"blocks.{layer}.attn.hook_{kind}" for layer in range(arch.layers)]
        for kind in ("q", "k", "v", "z")
    }
    read = [*names["q"], *names["k"], *names["v"]]
    other, own, gradients = cast(tuple[Values, ...], ({}, {}, {}))
    _run(experiment, rows, task.corrupted, keep_hooks(read, other))
    hooks = [
        *keep_hooks([*read, *names["z"]], own),
        *((n, _note(n, gradients)) for n in names["z"]),
    ]
    run_backward(experiment, rows, hooks=hooks, untouched=True)
    tokens = task.clean.shape[1]
    spans = share.shape[2]
    found = torch.zeros(2, arch.layers, arch.heads, spans, spans, dtype=torch.float64)
    for place, kind in enumerate(_KINDS):
        for token in range(tokens):
            patched: Values = {}
            written = {**own, **{n: _at_token(own[n], other[n], token) for n in names[kind]}}
            hooks = [(name, write(written[name])) for name in read]
            _run(experiment, rows, task.clean, [*hooks, *keep_hooks(names["z"], patched)])
            for layer, name in enumerate(names["z"]):
                moved, gradient = (
                    at_least_single(value).reshape(*value.shape[:2], arch.heads, -1)
                    for value in (own[name] - patched[name], gradients[name])
                )
                effect = torch.einsum("rqhe,rqhe->rhq", moved, gradient).double().cpu()
                found[place, layer] += torch.einsum(
                    "rhq,rqd,rs->hsd", effect, share, share[:, token]
                )
    return found


def _at_token(
    own: Float[Tensor, "row pos *any"], other: Float[Tensor, "row pos *any"], token: int
) -> Float[Tensor, "row pos *any"]:
    """A value with that of another run at one token."""
    value = own.clone()
    value[:, token] = other[:, token]
    return value


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
