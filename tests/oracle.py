"""The slow truth: a masked forward pass and the in-edges of every node, written out edge by edge.

Independent of the package and of hooks: float64, one prompt, loops over heads and (query, key)
pairs. The names are those of `tiny.BRIDGES` and, where the class exists, `tiny.HOOKED`.

What a dropped edge means:
- attention (layer, head, query, key): `pattern * (v - b_V) @ W_O` of that pair is left out, before
  a post-norm, with nothing renormalised. `b_V @ W_O` of every head, times the sum of the whole
  pattern's row, and b_O always stay. Where values are clipped, b_V is no bias but part of v.
- MLP (layer, pos): of the MLP's output only `b_out` stays, or post_norm(b_out).
- residual (layer, sublayer, pos): the stream that the sublayer reads is left out of its sum.
Everything downstream is computed anew.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from strace_lens.traces.edges import EdgeTensors, GraphShape
from tests import tiny
from tests.oracle_hooked import from_hooked_transformer
from tests.oracle_hugging_face import from_hugging_face
from tests.oracle_model import Attention, Layer, Model, Norm, Rows


@dataclass(frozen=True)
class InEdges:
    """In-edges of the nodes of one level in the full run, as vectors that sum to the nodes.

    `node == residual + attention.sum((0, 2)) + mlp.sum(0) + bias`. The first axis of `attention` or
    `mlp` is empty where the nodes have no such edge. A post-norm is linearised at its scale in the
    full run, its bias counted in `bias`.
    """

    attention: Float[Tensor, "head query key d_model"]
    residual: Float[Tensor, "pos d_model"]
    mlp: Float[Tensor, "mlp pos d_model"]
    bias: Float[Tensor, "pos d_model"]
    node: Float[Tensor, "pos d_model"]


@functools.cache
def plain(name: str) -> Model:
    """The model of that name as plain matrices."""
    return from_hugging_face(name) if name in tiny.BRIDGES else from_hooked_transformer(name)


def graph_shape(name: str, tokens: int) -> GraphShape:
    """The shape of the model's token graph, from its weights alone."""
    model = plain(name)
    heads = len(model.layers[0].attention.W_O)
    has_mlp = model.layers[0].mlp is not None
    return GraphShape(len(model.layers), heads, tokens, parallel=model.parallel, mlp=has_mlp)


def masked_logits(name: str, tokens: list[int], keep: EdgeTensors) -> Float[Tensor, " vocab"]:
    """Logits after the last token when only the edges that are True in `keep` carry anything."""
    return plain(name).unembed(masked_stream(name, tokens, keep))


def masked_stream(name: str, tokens: list[int], keep: EdgeTensors) -> Float[Tensor, " d_model"]:
    """The output node (last token, last layer) under the mask."""
    model = plain(name)
    stream = model.embed(torch.tensor(tokens))
    for index, layer in enumerate(model.layers):
        attention = _attention_out(layer, stream, keep.attention[index])
        first = _kept(stream, keep.residual[index, 0]) + attention
        if layer.mlp is None:
            stream = first
        elif model.parallel:
            stream = first + _mlp_out(layer, stream, keep.mlp[index])
        else:
            second = _kept(first, keep.residual[index, 1])
            stream = second + _mlp_out(layer, first, keep.mlp[index])
    return stream[-1]


def edge_vectors(name: str, tokens: list[int]) -> list[InEdges]:
    """In-edges of the nodes at levels 1, 2, .. of the full run; entry j is level j + 1."""
    model = plain(name)
    stream = model.embed(torch.tensor(tokens))
    levels = []
    for layer in model.layers:
        attention, attention_bias = _attention_edges(layer, stream)
        no_attention, no_mlp = attention[:0], stream.new_zeros(0, *stream.shape)
        if layer.mlp is None:
            levels.append(_in_edges(attention, stream, no_mlp, attention_bias))
        elif model.parallel:
            mlp, mlp_bias = _mlp_edges(layer, stream)
            levels.append(_in_edges(attention, stream, mlp[None], attention_bias + mlp_bias))
        else:
            levels.append(_in_edges(attention, stream, no_mlp, attention_bias))
            middle = levels[-1].node
            mlp, mlp_bias = _mlp_edges(layer, middle)
            levels.append(_in_edges(no_attention, middle, mlp[None], mlp_bias))
        stream = levels[-1].node
    return levels


def _in_edges(attention: Tensor, residual: Tensor, mlp: Tensor, bias: Tensor) -> InEdges:
    node = residual + attention.sum((0, 2)) + mlp.sum(0) + bias
    return InEdges(attention, residual, mlp, bias, node)


def _kept(stream: Rows, keep: Bool[Tensor, " pos"]) -> Rows:
    """The rows of the stream whose residual edge is kept; zero elsewhere."""
    return torch.where(keep[:, None], stream, 0.0)


def _attention_out(layer: Layer, stream: Rows, keep: Bool[Tensor, "head query key"]) -> Rows:
    pattern, moved, bias = _attention_parts(layer, stream)
    out = bias.clone()
    for head, query, key in keep.tril().nonzero().tolist():
        out[query] += pattern[head, query, key] * moved[key, head]
    return out if layer.attention_post is None else layer.attention_post(out)


def _attention_edges(
    layer: Layer, stream: Rows
) -> tuple[Float[Tensor, "head query key d_model"], Rows]:
    """Every attention edge as a vector, and the bias of each node."""
    pattern, moved, bias = _attention_parts(layer, stream)
    edges = torch.einsum("hqk,khd->hqkd", pattern, moved)
    norm = layer.attention_post
    if norm is None:
        return edges, bias
    total = edges.sum((0, 2)) + bias
    return (
        norm.linearised(edges, at=total[None, :, None]),
        norm.linearised(bias, at=total) + norm.bias,
    )


def _mlp_out(layer: Layer, stream: Rows, keep: Bool[Tensor, " pos"]) -> Rows:
    edges, bias = _mlp_edges(layer, stream)
    return _kept(edges, keep) + bias


def _mlp_edges(layer: Layer, stream: Rows) -> tuple[Rows, Rows]:
    """The MLP edge of each token as a vector, and what stays when it is dropped."""
    assert layer.mlp is not None
    out = layer.mlp(stream if layer.mlp_norm is None else layer.mlp_norm(stream))
    bias = torch.zeros_like(out) if layer.mlp_bias is None else layer.mlp_bias.expand_as(out)
    if layer.mlp_post is not None:
        out, bias = layer.mlp_post(out), layer.mlp_post(bias)
    return out - bias, bias


def _attention_parts(
    layer: Layer, stream: Rows
) -> tuple[Float[Tensor, "head query key"], Float[Tensor, "key head d_model"], Rows]:
    """The pattern; `(v - b_V) @ W_O` of each key and query head; the bias of each query."""
    attention = layer.attention
    x = stream if layer.attention_norm is None else layer.attention_norm(stream)
    placed = x if attention.positions is None else x + attention.positions[: len(x)]
    pattern = _pattern(attention, placed)

    values = attention.clipped(attention.value(x))
    heads, groups = len(attention.W_O), values.shape[1]
    moved = torch.zeros(len(x), heads, x.shape[1], dtype=x.dtype)
    bias = attention.b_O.repeat(len(x), 1)
    for head in range(heads):
        group = head * groups // heads
        b_V = attention.value_bias[group]
        moved[:, head] = (values[:, group] - b_V) @ attention.W_O[head]
        for query in range(len(x)):
            bias[query] += pattern[head, query].sum() * (b_V @ attention.W_O[head])
    return pattern, moved, bias


def _pattern(attention: Attention, x: Rows) -> Float[Tensor, "head query key"]:
    """Softmax of the scores, row by row; zero outside the causal window."""
    queries, keys = attention.clipped(attention.query(x)), attention.clipped(attention.key(x))
    if attention.query_norm is not None and attention.key_norm is not None:
        queries = _normed(attention.query_norm, queries)
        keys = _normed(attention.key_norm, keys)
    queries, keys = _rotated(attention, queries), _rotated(attention, keys)

    tokens, heads, groups = len(x), queries.shape[1], keys.shape[1]
    pattern = torch.zeros(heads, tokens, tokens, dtype=x.dtype)
    for head in range(heads):
        for query in range(tokens):
            first = 0 if attention.window is None else max(0, query - attention.window + 1)
            seen = slice(first, query + 1)
            scores = keys[seen, head * groups // heads] @ queries[query, head] * attention.scale
            if attention.cap is not None:
                scores = attention.cap * torch.tanh(scores / attention.cap)
            if attention.slopes is not None:
                scores = scores + attention.slopes[head] * (torch.arange(first, query + 1) - query)
            sink = scores[:0] if attention.sinks is None else attention.sinks[head : head + 1]
            pattern[head, query, seen] = torch.cat([scores, sink]).softmax(0)[: len(scores)]
    return pattern


def _normed(norm: Norm, x: Float[Tensor, "pos head d_head"]) -> Float[Tensor, "pos head d_head"]:
    """Over one head, or over all of them where the norm is that wide."""
    return norm(x.reshape(len(x), -1, len(norm.weight))).reshape(x.shape)


def _rotated(
    attention: Attention, x: Float[Tensor, "pos head d_head"]
) -> Float[Tensor, "pos head d_head"]:
    """Turn each pair of coordinates by position times the frequency of the pair."""
    out, pairs = x.clone(), len(attention.frequencies)
    for pair, frequency in enumerate(attention.frequencies):
        a, b = (2 * pair, 2 * pair + 1) if attention.adjacent else (pair, pair + pairs)
        for position in range(len(x)):
            cos, sin = math.cos(position * frequency), math.sin(position * frequency)
            out[position, :, a] = x[position, :, a] * cos - x[position, :, b] * sin
            out[position, :, b] = x[position, :, b] * cos + x[position, :, a] * sin
    return out
