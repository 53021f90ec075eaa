"""The tokens that all nodes and heads of a run promote, as tensors, for display on a page.

`readout` and `logit_attribution` give the same numbers as tables, for one token each.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from strace_lens.model.architecture import Model
from strace_lens.model.checks import at_least_single
from strace_lens.model.hold import verb
from strace_lens.model.prompts import Prompt, label, own_tokenizer
from strace_lens.model.targets import Target, TargetLike, make_target
from strace_lens.model.unembed import unembedding
from strace_lens.traces.edges import GraphShape
from strace_lens.traces.graph import TokenGraph
from strace_lens.traces.readout import head_contributions, head_writes, target_weights

SHOWN = 3
"""Tokens that a node is read as."""

WRITTEN = 5
"""Tokens that a head or an MLP is said to promote, and as many that it suppresses."""

MOST_ATTENTION = 700_000
"""Entries of attention patterns that are kept; of longer prompts the last token's rows alone."""

_LOGITS = 2**25  # at once, so that a long prompt and a large vocabulary take bounded memory


@dataclass(frozen=True, eq=False)
class Lens:
    """What the nodes, heads and MLPs of a prompt contribute to the logits.

    Attributes:
        shape: shape of the token graph that was read.
        prompt: the tokens of the prompt.
        model: the name of the model that ran.
        weights: the model's `weights_hash`; None if it is not known.
        target: the target whose logit, or logit difference, is decomposed.
        capped: whether the model applies a soft cap to these logits.
        words: the label of every token id below.
        logits: the target's logit if the last token's stream were read at each level, in logits
            above the mean of the vocabulary, with the norm's scale of the full run.
        heads: what each head adds to that logit by reading each token.
        mlps: what each MLP adds to it; empty if the model has no MLPs.
        ids: the most probable next tokens, if the model ended at each node.
        probabilities: the probabilities of `ids`.
        written: ids that the output of each head, and last of the MLP, promotes and suppresses most
            at the last token; the first half are promoted, strongest first.
        added: logits that the output adds to them, minus the mean over the vocabulary.
        pattern: attention of each head; only the last row if `MOST_ATTENTION` is exceeded.
    """

    shape: GraphShape
    prompt: Prompt
    model: str
    weights: str | None
    target: Target
    capped: bool
    words: dict[int, str]
    logits: Float[Tensor, " level"]
    heads: Float[Tensor, "layer head key"]
    mlps: Float[Tensor, " mlp"]
    ids: Int[Tensor, "level pos shown"]
    probabilities: Float[Tensor, "level pos shown"]
    written: Int[Tensor, "layer writer both"]
    added: Float[Tensor, "layer writer both"]
    pattern: Float[Tensor, "layer head query key"]


@verb
def read_lens(model: Model, graph: TokenGraph, target: TargetLike | None = None) -> Lens:
    """Read which tokens every node, and every head and MLP at the last token, promotes.

    A node is read through the model's own final norm and unembedding as if the model ended there
    (the logit lens, nostalgebraist, 2020). What a head or an MLP writes is read with the norm's
    scale fixed to that of the full run (direct logit attribution, Elhage et al., 2021).

    Args:
        model: the model from which the graph was read.
        graph: the token graph of a prompt.
        target: the token or logit difference that is decomposed into contributions of heads and
            MLPs; by default the most probable token.

    Raises:
        ValueError: the weights have changed since the graph was read.
        TargetError: the target names no tokens of the model.
        UnsupportedModelError: the final norm and unembedding do not give the model's logits.
    """
    graph.expect_model(model)
    run, shape = graph.activations, graph.shape
    logits = at_least_single(run.logits)
    asked = make_target(
        model, graph.architecture, graph.prompt, int(logits.argmax()) if target is None else target
    )
    reads = unembedding(model, graph.architecture, run.nodes[-1, -1], run.logits)
    stream = at_least_single(run.nodes[-1, -1])
    direction, constant = reads.direction(target_weights(asked, logits), stream)
    with torch.no_grad():
        heads, mlps, writes = [], [], []
        for edges in graph.in_edges():
            if edges.coefficient is not None:
                heads.append(head_contributions(edges, direction))
                writes.append(head_writes(edges, -1))
            if edges.mlp is not None:
                mlps.append(edges.mlp[-1] @ direction)
                writes.append(edges.mlp[[-1]])
        # Few rows at a time would read the whole unembedding for each of them.
        rows = max(1, _LOGITS // len(logits))
        nodes = at_least_single(run.nodes).flatten(0, 1)
        said = [_most(reads.logits(n).softmax(-1), SHOWN) for n in nodes.split(rows)]
        tops = [_both(reads.added(w, stream)) for w in torch.cat(writes).split(rows)]
        so_far = at_least_single(run.nodes[:, -1]) @ direction + constant
    ids, probabilities = _joined(said, shape.levels, shape.tokens)
    written, added = _joined(tops, shape.layers, shape.heads + shape.mlp)
    entries = shape.layers * shape.heads * shape.tokens * (shape.tokens + 1) // 2
    queries = slice(None) if entries <= MOST_ATTENTION else slice(-1, None)
    tokenizer = own_tokenizer(model)
    named = torch.cat([ids.flatten(), written.flatten()]).unique().tolist()
    return Lens(
        shape=shape,
        prompt=graph.prompt,
        model=graph.architecture.name,
        weights=graph.weights,
        target=asked,
        capped=reads.cap is not None,
        words={token: label(tokenizer, token) for token in named},
        logits=so_far.cpu(),
        heads=torch.stack(heads).cpu(),
        mlps=torch.stack(mlps).cpu() if mlps else torch.zeros(0),
        ids=ids,
        probabilities=probabilities,
        written=written,
        added=added,
        pattern=at_least_single(run.pattern[:, :, queries]).cpu(),
    )


Tops = tuple[Int[Tensor, "row token"], Float[Tensor, "row token"]]


def _most(values: Float[Tensor, "row vocab"], count: int, largest: bool = True) -> Tops:
    """The tokens of the largest (or smallest) values of each row, and these."""
    top = values.topk(min(count, values.shape[-1]), largest=largest)
    return top.indices, top.values


def _both(logits: Float[Tensor, "row vocab"]) -> Tops:
    """The tokens that each row promotes most, and then those that it suppresses most."""
    parts = zip(_most(logits, WRITTEN), _most(logits, WRITTEN, largest=False), strict=True)
    ids, values = (torch.cat(part, -1) for part in parts)
    return ids, values


def _joined(
    tops: list[Tops], outer: int, inner: int
) -> tuple[Int[Tensor, "outer inner token"], Float[Tensor, "outer inner token"]]:
    """Tokens and values of rows that were read in parts, by two indices."""
    ids, values = (
        torch.cat(part).reshape(outer, inner, -1).cpu() for part in zip(*tops, strict=True)
    )
    return ids, values
