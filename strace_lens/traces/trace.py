"""The trace: one rank for every edge of a token graph, so every size is a prefix of one order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from jaxtyping import Int, Int64
from torch import Tensor

from strace_lens.measures.sizes import edge_count
from strace_lens.model.architecture import Model
from strace_lens.model.forward import Hook
from strace_lens.model.prompts import Prompt
from strace_lens.model.targets import Target, target_of
from strace_lens.traces.ablation import ZERO, Replacement
from strace_lens.traces.edges import EdgeTensors, GraphShape
from strace_lens.traces.names import edge_id
from strace_lens.traces.subgraph import Subgraph, expect_made_with, hooks_of
from strace_lens.utils.choices import KINDS
from strace_lens.utils.html_repr import facts

GIVEN = "given in the table"
"""What `metadata` says of an order or importance that came from a user's table."""


def check_size(size: float) -> float:
    """A relative size as it is.

    Raises:
        ValueError: it does not lie in (0, 1].
    """
    if not 0 < size <= 1:
        raise ValueError(f"sizes must lie in (0, 1]; got {size}")
    return float(size)


def edges_by_size(
    parts: Sequence[Int[Tensor, "..."]], edges: Sequence[int]
) -> Int64[Tensor, "size part"]:
    """How many edges of each part the first k edges have, from the ranks of the part's edges."""
    order = torch.tensor(edges, dtype=torch.int32).sort()
    counts = torch.empty(len(edges), len(parts), dtype=torch.int64)
    # Part by part: numbers of all edges at once would take gigabytes.
    for i, ranks in enumerate(parts):
        # An edge enters at the first size above its rank; one above all sizes never does.
        enters = torch.searchsorted(order.values, ranks.flatten(), right=True, out_int32=True)
        entered = torch.bincount(enters, minlength=len(edges) + 1)[:-1]
        counts[order.indices, i] = entered.cumsum(0)
    return counts


@dataclass(frozen=True, eq=False)
class Trace:
    """A ranking of every edge of a prompt's token graph; the trace of k edges is `ranks < k`.

    The ranking is a heuristic. Its prefixes approximate the model's output, and the size of one
    that does so well is an upper bound on the number of edges that are needed.

    Attributes:
        shape: shape of the token graph.
        prompt: the tokens of the prompt.
        ranks: position of each edge in the order of extraction; `UNREACHABLE` for an edge that
            cannot reach the output.
        metadata: how it was made: model, hash of its weights, importance, order, seed, versions.
        importance: what each edge was ranked by, float32, 0 for an edge that cannot reach the
            output; None if ranks depend on more than one number per edge (pruned, learned).
    """

    shape: GraphShape
    prompt: Prompt
    ranks: EdgeTensors
    metadata: Mapping[str, Any] = field(default_factory=dict)
    importance: EdgeTensors | None = None

    @property
    def target(self) -> Target | None:
        """The token or logit difference that edges were ranked towards; None for a distribution."""
        made = self.metadata.get("target")
        return target_of(made) if isinstance(made, Mapping) else None

    @property
    def edges(self) -> int:
        """Number of edges ranked: all that can reach the output."""
        return self.shape.edges

    def edge_count(self, size: int | float) -> int:
        """Number of edges of a size: the size itself (int), or floor(s * |E|) for a fraction s.

        Raises:
            TypeError: the size is a boolean or not a number.
            ValueError: a number of edges outside 1..|E|, or a fraction outside (0, 1].
        """
        return edge_count(size, self.edges)

    def subgraph(self, size: int | float) -> Subgraph:
        """The subgraph of the first edges.

        Args:
            size: a number of edges (int), or a fraction of all edges in (0, 1] (float).

        Example:
            >>> trace.subgraph(0.02), trace.subgraph(500)
        """
        return self.first(self.edge_count(size))

    def first(self, edges: int) -> Subgraph:
        """The subgraph of the first `edges` edges, a number that may be 0."""
        return self.between(0, edges)

    def between(self, start: int, stop: int) -> Subgraph:
        """The subgraph of the edges with ranks from `start` up to, but not including, `stop`."""
        kept = self.ranks.map(lambda r: (r >= start) & (r < stop))
        return Subgraph(self.shape, self.prompt, kept, self.ranks, self.metadata, self.importance)

    def heads(self, size: int | float = 1.0) -> pd.DataFrame:
        """How much of the trace of a size belongs to each head: see `Subgraph.heads`.

        Example:
            >>> trace.heads(0.02).nlargest(5, "share_of_importance")
        """
        return self.subgraph(size).heads()

    def counts_by_size(self, edges: Sequence[int]) -> Int64[Tensor, "size kind layer"]:
        """Count the first k edges by kind (in the order of `KINDS`) and layer, for each k given.

        It passes over the edges once, however many sizes there are.
        """
        layers = [layer for kind in KINDS for layer in getattr(self.ranks, kind)]
        counts = edges_by_size(layers, edges).split(
            [len(getattr(self.ranks, kind)) for kind in KINDS], dim=1
        )
        pad = torch.nn.functional.pad  # an attention-only model has no layers of MLP edges
        return torch.stack([pad(n, (0, self.shape.layers - n.shape[1])) for n in counts], 1)

    def to_pandas(self, size: int | float = 1.0) -> pd.DataFrame:
        """The edges of the trace of a size, one row per edge, in order of rank.

        Columns: `rank`, `kind`, `layer`, `head` (missing unless attention), the `source` and
        `target` hook points, each with `_position` and `_token`, and `importance` if the trace
        has it. `trace_from_pandas` makes the trace again from the frame of all edges.
        """
        return self.subgraph(size).to_pandas()

    def hooks(
        self,
        size: int | float,
        model: Model,
        *,
        keep: Sequence[str] = (),
        replacement: Replacement = ZERO,
        allow_other_model: bool = False,
    ) -> list[Hook]:
        """Return hooks that ablate all edges outside the trace of a size, for use in your own runs.

        They apply the masks that `density_curve` runs. A batch may hold any prompts as long as the
        trace's; all get the same mask. The list can be used any number of times, one run at a time.

            hooks = trace.hooks(0.05, model)
            logits = model.run_with_hooks(trace.prompt.tensor[None], fwd_hooks=hooks)
            with model.hooks(fwd_hooks=hooks):
                ...  # any code that runs the model

        Args:
            size: a number of edges (int), or a fraction of all edges in (0, 1] (float).
            model: the model that the trace was made with.
            keep: kinds of edges that are never ablated.
            replacement: what an ablated edge carries instead.
            allow_other_model: accept a model with another name or other weights than those of the
                trace or the replacement, such as another checkpoint, if its graph has the same
                shape.

        Returns:
            Pairs of hook point and function. A run with another number of tokens raises ValueError.

        Raises:
            ValueError: a size out of range, an unknown kind of edges to keep, a model other than
                the trace's, or a replacement of other weights or of another length than the prompt.
        """
        self.expect_model(model, allow_other_model=allow_other_model)
        replacement.expect_model(model, allow_other_model=allow_other_model)
        return hooks_of(self.subgraph(size), model, keep, replacement)

    def expect_model(self, model: Model, *, allow_other_model: bool = False) -> None:
        """Refuse a model that the trace was not made with.

        A model is identified by the hash of its weights. If the trace has none, because it was made
        by hand or read from a file of version 0.1, the model's name (if the trace has one) and the
        shape of the graph are compared instead.

        Args:
            model: a HookedTransformer or a TransformerBridge.
            allow_other_model: compare only the shape of the graph.

        Raises:
            ValueError: the model's graph has another shape, or it is another model, by its name or
                by its weights.
        """
        expect_made_with(f"{self!r}", self.shape, self.metadata, model, allow_other_model)

    def __repr__(self) -> str:
        made = self.metadata
        how = made.get("order", "order unknown")
        if made.get("importance", GIVEN) != GIVEN:
            how += f" by {made['importance']}"
        if self.target is not None:
            how += f", towards {self.target}"
        return (
            f"Trace({made.get('model', 'model')}: {self.edges:,} edges over {self.shape.tokens} "
            f"tokens, {how})"
        )

    def _repr_html_(self) -> str:
        return facts(repr(self), strings=self.prompt.strings)


def subgraph_of_edges(like: Trace | Subgraph, names: Iterable[str]) -> Subgraph:
    """Return the subgraph of the named edges.

    Args:
        like: a trace or subgraph of the same graph, from which ranks and importance are taken.
        names: names of edges, as `Subgraph.edge_names` returns them.

    Raises:
        ValueError: no edge of the graph has one of the names.

    Example:
        >>> subgraph_of_edges(trace, ["m0@4", "a3.h2@1->4"]).heads()
    """
    kept = like.shape.full(False, torch.bool).flat()
    kept[[edge_id(like.shape, name) for name in names]] = True
    return Subgraph(
        shape=like.shape,
        prompt=like.prompt,
        kept=like.shape.split(kept),
        ranks=like.ranks,
        metadata=like.metadata,
        importance=like.importance,
    )
