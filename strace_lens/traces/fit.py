"""What a ranking is fitted to, its gradients, and the trace that comes of it.

Gradients are taken in the weights of the edges of a masked run, while the model's own weights are
held fixed. All fitted estimators share this module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from strace_lens.model.architecture import Architecture, Model, device_of
from strace_lens.model.forward import bytes_per_row, even_chunks, last_logits
from strace_lens.model.hold import expect_gradients
from strace_lens.model.targets import Target, TargetLike, make_target
from strace_lens.traces.ablation import Replacement
from strace_lens.traces.edges import EdgeTensors, in_reach
from strace_lens.traces.graph import TokenGraph
from strace_lens.traces.masks import mask_hooks
from strace_lens.traces.rows import WeightedRows, weighted_rows
from strace_lens.traces.trace import Trace
from strace_lens.utils.choices import kinds_to_keep
from strace_lens.utils.versions import versions

MASS_TOLERANCE = 1e-3
"""How far the probabilities of a target may miss 1 in sum."""


def weighted_log_probs(
    model: Model, architecture: Architecture, rows: WeightedRows
) -> Float[Tensor, "row vocab"]:
    """Log-probabilities at the last token, in single precision, differentiable in the weights."""
    logits = last_logits(
        model,
        architecture,
        rows.tokens.expand(len(rows), -1),
        hooks=mask_hooks(model, architecture, [rows]),
        gradient=True,
    )
    return logits.float().log_softmax(-1).to(device_of(model))


def gradients(value: Float[Tensor, "*any"], rows: WeightedRows, **options: Any) -> EdgeTensors:
    """Gradients of a value in the weights of attention and MLP edges; those of residual are zero.

    Args:
        value: what to differentiate.
        rows: whose weights.
        options: of `torch.autograd.grad`.

    Returns:
        Tensors in the layout of edges, behind an axis of rows and, if `grad_outputs` are batched,
        one of these before it.
    """
    leaves = [*rows.attention, rows.mlp]
    found = torch.autograd.grad(value, leaves, materialize_grads=True, **options)
    attention = torch.stack(found[:-1], dim=-4)
    batch = attention.shape[:-4]
    # An attention-only model reads no MLP weight: its zeros come without the axis of a batch.
    mlp = found[-1].expand(*batch, *rows.mlp.shape[1:])
    residual = attention.new_zeros(*batch, *rows.residual.shape[1:])
    return EdgeTensors(attention, residual, mlp)


def bytes_per_gradient_row(architecture: Architecture, tokens: int) -> int:
    """Bytes that one row of a forward and backward pass needs, an upper estimate."""
    return architecture.layers * bytes_per_row(architecture, tokens)


@dataclass(frozen=True, eq=False)
class Fit:
    """A model's output on a prompt, to be reproduced under masks of its token graph.

    Attributes:
        model: the model.
        graph: its token graph of the prompt.
        target: probabilities to reproduce: the model's own, or another prompt's in a control.
        own: whether they are the model's own.
        replacement: what an ablated edge carries.
        memory_budget: bytes of a forward and backward pass.
        keep: kinds of edges that are never ablated.
        aim: the token or logit difference to reproduce in place of the whole of `target`, if any.
    """

    model: Model
    graph: TokenGraph
    target: Float[Tensor, " vocab"]
    own: bool
    replacement: Replacement
    memory_budget: int
    keep: tuple[str, ...]
    aim: Target | None = None

    def probes(self, asked: int) -> int:
        """Backward passes that a score takes: the gradient of one number is exact in one."""
        return asked if self.aim is None else min(asked, 1)

    def rows(
        self, ranks: EdgeTensors, counts: Sequence[int], besides: Sequence[EdgeTensors] = ()
    ) -> WeightedRows:
        """The traces of so many edges each, as weights to differentiate in.

        `besides` are the edges that each row keeps whatever their rank, if any.
        """
        return weighted_rows(
            self.graph.prompt.tensor,
            self.graph.shape,
            ranks,
            torch.tensor(counts, dtype=torch.int32),
            self.replacement,
            self.target.device,
            besides,
            self.keep,
        )

    @property
    def ablatable(self) -> int:
        """Number of edges that can be ablated: those of kinds that are not kept whole."""
        kinds = self.graph.shape.reachable()._asdict().items()
        return sum(int(there.sum()) for kind, there in kinds if kind not in self.keep)

    def chunks(self, rows: int) -> Iterator[slice]:
        """Cut rows, or the probes of one, into as few passes as the budget allows."""
        each = bytes_per_gradient_row(self.graph.architecture, self.graph.shape.tokens)
        return even_chunks(rows, max(1, self.memory_budget // each))


def fit_to(
    model: Model,
    graph: TokenGraph,
    target: Float[Tensor, "..."] | TargetLike | None,
    replacement: Replacement,
    memory_budget: int,
    start: Trace | None = None,
    *,
    keep: Sequence[str] = (),
    allow_other_model: bool = False,
) -> Fit:
    """Put a graph and what to reproduce together; by default the model's own output.

    A target that names tokens is reproduced as the model itself has it.

    Raises:
        ValueError: a graph of one token or of other weights, kinds of edges to keep that leave
            nothing to fit, a target that is no distribution over the vocabulary or names no
            tokens of it, a ranking to start from that belongs to another prompt or, unless
            `allow_other_model`, a ranking or a replacement of other weights.
        UnsupportedModelError: no gradient passes through the model's weights.
    """
    expect_gradients(model)
    graph.expect_model(model)
    if start is not None:
        if (start.shape, start.prompt.ids) != (graph.shape, graph.prompt.ids):
            raise ValueError(f"the start {start!r} is of another prompt or model than {graph!r}")
        start.expect_model(model, allow_other_model=allow_other_model)
    replacement.expect_model(model, allow_other_model=allow_other_model)
    if graph.shape.tokens < 2:
        raise ValueError(
            "a graph of one token has no token to read from, and nothing to fit; "
            "give a prompt of two tokens or more"
        )
    keep = kinds_to_keep(keep)
    if {"attention", "mlp"} <= {*keep}:
        raise ValueError(
            "with attention and MLP edges kept there is nothing to fit; keep one of them"
        )
    own = graph.activations.logits.float().softmax(-1)
    aim = None
    if target is not None and not isinstance(target, Tensor):
        aim = make_target(model, graph.architecture, graph.prompt, target)
    return Fit(
        model=model,
        graph=graph,
        target=_distribution(target, like=own) if isinstance(target, Tensor) else own,
        own=not isinstance(target, Tensor),
        replacement=replacement,
        memory_budget=memory_budget,
        keep=keep,
        aim=aim,
    )


def _distribution(
    target: Float[Tensor, "..."], like: Float[Tensor, " vocab"]
) -> Float[Tensor, " vocab"]:
    if target.shape != like.shape:
        raise ValueError(
            f"a target holds the probability of each of {len(like)} tokens; "
            f"got shape {tuple(target.shape)}"
        )
    target = target.detach().to(like)
    mass, least = float(target.sum()), float(target.min())
    if not (abs(mass - 1) <= MASS_TOLERANCE and least >= 0):  # NaN too
        raise ValueError(
            f"a target is a distribution: probabilities from 0 that add up to 1; "
            f"got a least of {least:.3g} and a sum of {mass:.3g}. Pass logits.softmax(-1)"
        )
    return target / mass


def _target_facts(fit: Fit) -> str | dict[str, Any]:
    """What `Trace.metadata` says of the target; `Trace.target` reads it."""
    if fit.aim is not None:
        return fit.aim.facts()
    return "own" if fit.own else "given"


def fitted_trace(
    fit: Fit,
    ranks: EdgeTensors,
    passes: tuple[int, int],
    metadata: Mapping[str, Any],
    *,
    start: Trace | None = None,
    importance: EdgeTensors | None = None,
) -> Trace:
    """A trace that says how it was fitted and what it cost, its start's passes included.

    Args:
        fit: what was fitted.
        ranks: of every edge.
        passes: rows of forward passes, and of backward passes.
        metadata: importance, order, seed and the options that a repetition needs.
        start: the trace that fitting started from, if any.
        importance: what edges were ranked by, if it is one number an edge.
    """
    before = dict(start.metadata) if start is not None else {}
    cost = before.get("passes", {})
    return Trace(
        shape=fit.graph.shape,
        prompt=fit.graph.prompt,
        ranks=ranks,
        metadata={
            "model": fit.graph.architecture.name,
            "weights": fit.graph.weights,
            **metadata,
            "target": _target_facts(fit),
            "ablation": fit.replacement.kind,
            "keep": list(fit.keep),
            "passes": {
                "forward": passes[0] + cost.get("forward", 0),
                "backward": passes[1] + cost.get("backward", 0),
            },
            "start": before or None,
            "versions": versions(),
        },
        importance=None if importance is None else in_reach(importance, fit.graph.shape),
    )
