"""Subgraphs: sets of edges of a token graph that can be combined, inspected and run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import networkx as nx
import pandas as pd
import torch
from torch import Tensor

from strace_lens.measures.heads import head_table
from strace_lens.model.architecture import Model
from strace_lens.model.checks import architecture_of
from strace_lens.model.forward import Hook
from strace_lens.model.prompts import Prompt
from strace_lens.model.weights import expect_same_weights, joint_metadata
from strace_lens.traces.ablation import ZERO, Replacement
from strace_lens.traces.edges import UNREACHABLE, EdgeTensors, GraphShape, edge_table
from strace_lens.traces.graph import shape_of
from strace_lens.traces.masks import run_hooks
from strace_lens.traces.names import edge_id, edge_names
from strace_lens.traces.rows import MaskedRows
from strace_lens.utils.choices import kinds_to_keep
from strace_lens.utils.html_repr import facts, short


@dataclass(frozen=True, eq=False)
class Subgraph:
    """A set of edges of a token graph.

    Subgraphs of one prompt and model combine like sets: `a | b`, `a & b`, `a - b`, and `~a` for
    all other edges that reach the output. The result has the ranks and importance of the left
    operand. `len(a)` counts the edges, and `"a3.h2@5->9" in a` tests for an edge by its name
    (`strace_lens.traces.names`); a name that no edge of the graph has is refused.

    Attributes:
        shape: shape of the token graph.
        prompt: the tokens of the prompt.
        kept: True for the edges of the subgraph.
        ranks: ranks in the trace it was cut from; the most important edges come first.
        metadata: how that trace was made.
        importance: what the trace ranked its edges by, if it has that.

    Example:
        >>> later = trace.subgraph(0.05) - trace.subgraph(100)
        >>> len(later), "m0@0" in later
    """

    shape: GraphShape
    prompt: Prompt
    kept: EdgeTensors
    ranks: EdgeTensors
    metadata: Mapping[str, Any] = field(default_factory=dict)
    importance: EdgeTensors | None = None

    @property
    def edges(self) -> int:
        """Number of edges."""
        return int(sum(int(k.sum()) for k in self.kept))

    def __len__(self) -> int:
        return self.edges

    def __contains__(self, name: object) -> bool:
        return bool(self.kept.flat()[edge_id(self.shape, name)])

    def __or__(self, other: Subgraph) -> Subgraph:
        return self._combined(other, torch.logical_or)

    def __and__(self, other: Subgraph) -> Subgraph:
        return self._combined(other, torch.logical_and)

    def __sub__(self, other: Subgraph) -> Subgraph:
        return self._combined(other, lambda ours, theirs: ours & ~theirs)

    def __invert__(self) -> Subgraph:
        pairs = zip(self.shape.reachable(), self.kept, strict=True)
        return replace(self, kept=EdgeTensors(*(there & ~kept for there, kept in pairs)))

    def edge_names(self) -> list[str]:
        """Names of the edges, in order of rank: `a3.h2@5->9`, `m3@5`, `r3.mid@5`."""
        names = edge_names(self.shape, self.kept)
        return [names[i] for i in self._kept_ranks().argsort(stable=True).tolist()]

    def heads(self) -> pd.DataFrame:
        """How much of each head the subgraph keeps, one row for each layer and head.

        Returns:
            Columns `layer`, `head`, `edges` (number of the head's attention edges that are kept),
            `share_of_head` (as a share of its edges that reach the output) and, if the importance
            is known, `importance` (the sum over those kept, in the importance's unit) and
            `share_of_importance` (as a share of this sum over all heads; NaN if that is 0).

        Example:
            >>> trace.subgraph(0.02).heads().nlargest(5, "share_of_importance")
        """
        kept = self.kept.attention
        edges = kept.sum((2, 3))
        columns = {
            "edges": edges,
            "share_of_head": edges / self.shape.reachable().attention.sum((2, 3)),
        }
        if self.importance is not None:
            there = torch.where(kept, self.importance.attention, 0.0)
            weight = there.sum((2, 3), dtype=torch.float64)
            columns |= {"importance": weight, "share_of_importance": weight / weight.sum()}
        return head_table(columns)

    def to_pandas(self) -> pd.DataFrame:
        """The edges, one row per edge, in order of rank.

        Columns: `rank` (missing if it is not known), `kind`, `layer`, `head` (missing unless
        attention), the `source` and `target` hook points, each with `_position` and `_token`, and
        `importance` if it is known.
        """
        table, ranks = edge_table(self.shape, self.prompt.strings, self.kept), self._kept_ranks()
        unknown = (ranks == UNREACHABLE).numpy()
        known = pd.arrays.IntegerArray(ranks.numpy(), unknown) if unknown.any() else ranks.numpy()
        table.insert(0, "rank", known)
        if self.importance is not None:
            table["importance"] = self.importance.flat()[self.kept.flat()].numpy()
        return table.sort_values("rank", ignore_index=True, kind="stable")

    def to_networkx(self) -> nx.MultiDiGraph:
        """The subgraph as a networkx MultiDiGraph with nodes (hook point, token position).

        Node attribute: `token`. Edge attributes: `kind`, `layer`, `head` (None unless attention)
        and `rank`. Graph attributes: `shape`, `prompt` and `made`, from which
        `subgraph_from_networkx` makes the subgraph again.
        """
        graph = nx.MultiDiGraph(shape=self.shape, prompt=self.prompt, metadata=dict(self.metadata))
        for edge in self.to_pandas().to_dict("records"):
            ends = [(edge[end], edge[f"{end}_position"]) for end in ("source", "target")]
            for node, end in zip(ends, ("source", "target"), strict=True):
                graph.add_node(node, token=edge[f"{end}_token"])
            head = None if edge["kind"] != "attention" else edge["head"]
            rank = None if pd.isna(edge["rank"]) else edge["rank"]
            graph.add_edge(*ends, kind=edge["kind"], layer=edge["layer"], head=head, rank=rank)
        return graph

    def hooks(
        self,
        model: Model,
        *,
        keep: Sequence[str] = (),
        replacement: Replacement = ZERO,
        allow_other_model: bool = False,
    ) -> list[Hook]:
        """Return hooks that ablate every edge outside the subgraph, for use in your own runs.

        A batch may hold any prompts as long as the subgraph's; all get the same mask. The list can
        be used any number of times, one run at a time.

        Args:
            model: the model that the subgraph was made with.
            keep: kinds of edges that are never ablated.
            replacement: what an ablated edge carries instead.
            allow_other_model: accept a model with another name or other weights than those of the
                subgraph or the replacement, such as another checkpoint, if its graph has the same
                shape.

        Returns:
            Pairs of hook point and function. A run with another number of tokens raises ValueError.

        Raises:
            ValueError: an unknown kind of edges to keep, another model, or a replacement of other
                weights or of another length than the prompt.

        Example:
            >>> without = ~trace.subgraph(0.01)
            >>> tokens = trace.prompt.tensor[None]
            >>> model.run_with_hooks(tokens, fwd_hooks=without.hooks(model))
        """
        expect_made_with(f"{self!r}", self.shape, self.metadata, model, allow_other_model)
        replacement.expect_model(model, allow_other_model=allow_other_model)
        return hooks_of(self, model, keep, replacement)

    def __repr__(self) -> str:
        share = self.edges / self.shape.edges
        return f"Subgraph({self.edges:,} of {self.shape.edges:,} edges, s = {share:.3g})"

    def _repr_html_(self) -> str:
        return facts(repr(self), self.to_pandas(), self.prompt.strings)

    def _kept_ranks(self) -> Tensor:
        return self.ranks.flat()[self.kept.flat()]

    def _combined(self, other: Subgraph, function: Callable[[Tensor, Tensor], Tensor]) -> Subgraph:
        """The edges that a function of both masks keeps.

        Raises:
            ValueError: the subgraphs are of two models, graphs or prompts.
        """
        if not isinstance(other, Subgraph):
            return NotImplemented
        metadata = joint_metadata("subgraphs", self.metadata, other.metadata)
        if self.prompt.ids != other.prompt.ids:
            raise ValueError(
                f"subgraphs of two prompts have no edge in common: {short(self.prompt.text)!r} and "
                f"{short(other.prompt.text)!r}; combine subgraphs of one prompt"
            )
        if self.shape != other.shape:
            raise ValueError(
                f"subgraphs of graphs of two shapes do not combine: {self.shape} and {other.shape}"
            )
        kept = EdgeTensors(*map(function, self.kept, other.kept))
        return replace(self, kept=kept, metadata=metadata)


def hooks_of(
    subgraph: Subgraph, model: Model, keep: Sequence[str], replacement: Replacement
) -> list[Hook]:
    """`Subgraph.hooks` of a model that fits."""
    row = MaskedRows(
        tokens=subgraph.prompt.tensor,
        shape=subgraph.shape,
        ranks=subgraph.kept.map(lambda kept: (~kept).to(torch.int32)),
        start=None,
        stop=torch.tensor([1]),
        keep=kinds_to_keep(keep),
        replacement=replacement,
    )
    return run_hooks(model, row)


def expect_made_with(
    what: str,
    shape: GraphShape,
    metadata: Mapping[str, Any],
    model: Model,
    allow_other_model: bool,
) -> None:
    """Refuse a model that a trace or subgraph was not made with: see `Trace.expect_model`."""
    architecture = architecture_of(model)
    made_with = metadata.get("model", architecture.name)
    fits = shape == shape_of(architecture, shape.tokens)
    other_name = made_with != architecture.name and metadata.get("weights") is None
    if not fits or (other_name and not allow_other_model):
        kind = what.partition("(")[0].lower()
        raise ValueError(
            f"a {kind} of {made_with} ({shape}) does not fit {architecture.name}; extract one "
            f"with this model{', or pass allow_other_model=True' if fits else ''}"
        )
    if not allow_other_model:
        expect_same_weights(what, metadata, model)
