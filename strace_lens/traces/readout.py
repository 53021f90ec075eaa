"""Contributions of the parts of a run to logits: direct logit attribution and readouts of nodes.

Both go through the model's own final norm and unembedding. The norm's scale is fixed to that of the
full run, as `logit_attrs` of TransformerLens does, so that the parts of a logit add up to it. The
effect of a part through later heads and MLPs is attributed to those.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from strace_lens.model.architecture import Model
from strace_lens.model.checks import at_least_single
from strace_lens.model.hold import verb
from strace_lens.model.prompts import label, own_tokenizer
from strace_lens.model.targets import Target, TargetLike, make_target
from strace_lens.model.unembed import unembedding
from strace_lens.traces.edges import hook_name
from strace_lens.traces.graph import InEdges, TokenGraph

EMBED, BIAS, SOFT_CAP = "embed", "bias", "soft cap"
"""Names of parts of a logit that no head or MLP writes."""


@verb
def logit_attribution(
    model: Model,
    graph: TokenGraph,
    target: TargetLike | None = None,
    *,
    by_token: bool = False,
) -> pd.DataFrame:
    """Decompose a logit, or a logit difference, into contributions of the heads and MLPs.

    Direct logit attribution: what each component writes at the last token is passed through the
    final norm, at the scale of the full run, and the unembedding. The mean logit of the vocabulary
    is subtracted from a single token's logit, since adding a constant to all logits changes no
    probability. Elhage et al. (2021), "A Mathematical Framework for Transformer Circuits"; Wang et
    al. (2023), "Interpretability in the Wild" (arXiv 2211.00593), section 3.1.

    Args:
        model: the model from which the graph was read.
        graph: the token graph of a prompt.
        target: " Rome" for the logit of a token, (" Rome", " Paris") for a logit difference,
            ([" Rome", " Milan"], " Paris") for one of sets; by default the most probable token.
        by_token: return a row for each token that a head reads, instead of one for the head.

    Returns:
        One row per part: `name` ("embed", "a3.h2", "m3", "bias" for all biases together, and
        "soft cap" for what a cap on logits takes away), `kind`, `layer`, `head`, with `by_token`
        also the `position` and `token` that the head reads, and `contribution` in logits. The
        contributions add up to the target's value.

    Raises:
        ValueError: the weights have changed since the graph was read.
        TargetError: the target names no tokens of the model.
        UnsupportedModelError: the final norm and unembedding do not give the model's logits.

    Example:
        >>> table = sl.logit_attribution(model, graph, (" Paris", " London"))
        >>> table.nlargest(5, "contribution")
    """
    graph.expect_model(model)
    run = graph.activations
    logits = at_least_single(run.logits)
    asked = make_target(
        model, graph.architecture, graph.prompt, int(logits.argmax()) if target is None else target
    )
    stream = at_least_single(run.nodes[-1, -1])
    reads = unembedding(model, graph.architecture, run.nodes[-1, -1], run.logits)
    weights = target_weights(asked, logits)
    direction, constant = reads.direction(weights, stream)
    rows: list[dict[str, Any]] = []

    def add(name: str, kind: str, value: Tensor | float, **more: Any) -> None:
        rows.append({"name": name, "kind": kind, **more, "contribution": float(value)})

    add(EMBED, EMBED, at_least_single(run.nodes[0, -1]) @ direction)
    for edges in graph.in_edges():
        constant += float(edges.bias[-1] @ direction)
        layer = edges.layer
        if edges.coefficient is not None:
            for head, values in enumerate(head_contributions(edges, direction).cpu()):
                of_head: dict[str, Any] = {"layer": layer, "head": head}
                if not by_token:
                    add(f"a{layer}.h{head}", "attention", values.sum(), **of_head)
                    continue
                for position, value in enumerate(values):
                    of_token = {"position": position, "token": graph.prompt.strings[position]}
                    add(f"a{layer}.h{head}", "attention", value, **of_head, **of_token)
        if edges.mlp is not None:
            add(f"m{layer}", "mlp", edges.mlp[-1] @ direction, layer=layer)
    add(BIAS, BIAS, constant)
    if reads.cap is not None:
        add(SOFT_CAP, SOFT_CAP, float(logits @ weights) - sum(row["contribution"] for row in rows))
    columns = ["name", "kind", "layer", "head"]
    columns += ["position", "token"] * by_token + ["contribution"]
    whole = {name: "Int64" for name in ("layer", "head", "position") if name in columns}
    return pd.DataFrame(rows, columns=columns).astype(whole)


def target_weights(target: Target, logits: Float[Tensor, " vocab"]) -> Float[Tensor, " vocab"]:
    """Weights of the logits in a target; those of a single token sum to zero as well."""
    weights = target.direction(logits)
    return weights if target.against else weights - 1 / len(weights)


def head_contributions(
    edges: InEdges, direction: Float[Tensor, " d_model"]
) -> Float[Tensor, "head key"]:
    """What each attention edge into the last token adds along a direction."""
    assert edges.coefficient is not None
    assert edges.written is not None
    return edges.coefficient[:, -1] * (edges.written @ direction).T


def head_writes(edges: InEdges, position: int) -> Float[Tensor, "head d_model"]:
    """What each head writes at a token, without the bias."""
    assert edges.coefficient is not None
    assert edges.written is not None
    return torch.einsum("hk,khd->hd", edges.coefficient[:, position], edges.written)


@verb
def readout(
    model: Model, graph: TokenGraph, *, position: int = -1, tokens: int = 5
) -> pd.DataFrame:
    """List the tokens that each node, head and MLP at one position promotes and suppresses.

    A node is read as if the model ended there (the logit lens, nostalgebraist, 2020). For a head or
    an MLP, the logits that its output adds are read, with the final norm's scale fixed to that of
    the full run at the same token.

    Args:
        model: the model from which the graph was read.
        graph: the token graph of a prompt.
        position: token position, by default the last; negative ones count from the end.
        tokens: number of promoted tokens, and of suppressed ones, for each node, head and MLP.

    Returns:
        One row per token: `name` (the hook point of a node, "a3.h2", "m3"), `kind` ("node",
        "attention" or "mlp"), `layer`, `head`, `effect` ("promoted" or "suppressed"; for nodes only
        the former), `order` from 0, `token` and `value`: for a node the probability, for a head or
        MLP the logits that it adds, minus their mean over the vocabulary.

    Raises:
        ValueError: the position is outside the prompt, `tokens` is less than one or more than the
            vocabulary has, or the weights have changed since the graph was read.
        UnsupportedModelError: the final norm and unembedding do not give the model's logits.

    Example:
        >>> table = sl.readout(model, graph)
        >>> table[(table.name == "m29") & (table.effect == "promoted")]
    """
    graph.expect_model(model)
    run, shape = graph.activations, graph.shape
    if not -shape.tokens <= position < shape.tokens:
        raise ValueError(f"position {position} lies outside the prompt of {shape.tokens} tokens")
    if not 1 <= tokens <= len(run.logits):
        raise ValueError(
            f"tokens must lie in [1, {len(run.logits)}], the size of the vocabulary; got {tokens}"
        )
    reads = unembedding(model, graph.architecture, run.nodes[-1, -1], run.logits)
    stream = at_least_single(run.nodes[-1, position])
    tokenizer, names = own_tokenizer(model), {}
    rows: list[dict[str, Any]] = []

    def add(values: Float[Tensor, " vocab"], effect: str, **of: Any) -> None:
        top = values.topk(tokens, largest=effect == "promoted")
        for order, (value, token) in enumerate(
            zip(top.values.tolist(), top.indices.tolist(), strict=True)
        ):
            name = names.setdefault(token, label(tokenizer, token))
            rows.append({**of, "effect": effect, "order": order, "token": name, "value": value})

    with torch.no_grad():
        nodes = at_least_single(run.nodes[:, position])
        for level, node in enumerate(nodes):
            of = {"name": hook_name(shape, level), "kind": "node"}
            add(reads.logits(node).softmax(-1), "promoted", **of)
        for names_of, writes in _writes(graph, position):
            for of, logits in zip(names_of, reads.added(writes, stream), strict=True):
                add(logits, "promoted", **of)
                add(logits, "suppressed", **of)
    columns = ["name", "kind", "layer", "head", "effect", "order", "token", "value"]
    return pd.DataFrame(rows, columns=columns).astype({"layer": "Int64", "head": "Int64"})


def _writes(
    graph: TokenGraph, position: int
) -> Iterator[tuple[list[dict[str, Any]], Float[Tensor, "write d_model"]]]:
    """What the heads and the MLP of each sublayer write at a token, after their names."""
    for edges in graph.in_edges():
        layer = edges.layer
        if edges.coefficient is not None:
            of_heads = [
                {
                    "name": f"a{layer}.h{head}",
                    "kind": "attention",
                    "layer": layer,
                    "head": head,
                }
                for head in range(graph.shape.heads)
            ]
            yield of_heads, head_writes(edges, position)
        if edges.mlp is not None:
            of_mlp = {"name": f"m{layer}", "kind": "mlp", "layer": layer}
            yield [of_mlp], edges.mlp[[position]]
