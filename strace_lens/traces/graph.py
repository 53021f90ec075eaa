"""The token graph of a prompt: its nodes and the vectors that flow along its edges.

Nodes are positions of hook points (`blocks.0.hook_resid_pre`, `blocks.{l}.hook_resid_mid`,
`blocks.{l}.hook_resid_post`); the in-edges of a node and a bias add up to it. An attention edge is
never stored as a vector: it is a coefficient, `hook_pattern[h, t, t']`, times what head h writes
for token t', `(hook_v[t', h] - b_V[h]) @ W_O[h]`. Source: s-Trace (arXiv 2605.27033), section
"token graph".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from strace_lens.model.architecture import (
    Architecture,
    AttentionOutput,
    Model,
    UnsupportedModelError,
    attention_output,
    device_of,
    mlp_constant,
    per_query_head,
)
from strace_lens.model.checks import architecture_of, at_least_single, tolerance
from strace_lens.model.forward import Activations, read_activations
from strace_lens.model.hold import noted, verb
from strace_lens.model.prompts import Prompt, PromptError, cut, tokenize
from strace_lens.model.weights import remembered_hash
from strace_lens.traces.edges import GraphShape, hook_name
from strace_lens.utils.html_repr import facts


class InEdges(NamedTuple):
    """The in-edges of the nodes that one sublayer of one layer writes, all tokens at once.

    The vector of attention edge (h, q, k) is `coefficient[h, q, k] * written[k, h]`. The biases
    (b_O, b_V through W_O, the MLP's, a norm's) belong to no edge, and that of attention is not
    split among heads: they are part of their node and always present. In-edges and bias sum to
    the node.
    """

    layer: int
    sublayer: int
    node: Float[Tensor, "pos d_model"]  # the residual stream after the sublayer
    bias: Float[Tensor, "pos d_model"]  # the part of each node that belongs to no edge
    residual: Float[Tensor, "pos d_model"]  # the residual edge into each node
    mlp: Float[Tensor, "pos d_model"] | None = None  # the MLP edge into each node, if any
    # Pattern entries, divided by the scale of a norm after attention.
    coefficient: Float[Tensor, "head query key"] | None = None
    # What each head writes for each key token, through W_O and that norm's gain.
    written: Float[Tensor, "key head d_model"] | None = None


@dataclass(frozen=True, eq=False)
class TokenGraph:
    """A prompt's token graph: every node and edge of the untouched forward pass.

    Attributes:
        shape: counts and layout of the edges.
        prompt: the tokens.
        architecture: the architecture of the model that ran.
        activations: the activations of the run at the hook points.
        outputs: how each block's heads write to the stream.
        mlp_constants: what remains of each block's MLP output when its edge is ablated.
        weights: `weights_hash` of the model that ran; None if it is not known.
    """

    shape: GraphShape
    prompt: Prompt
    architecture: Architecture
    activations: Activations
    outputs: tuple[AttentionOutput, ...]
    mlp_constants: tuple[Float[Tensor, " d_model"], ...]
    weights: str | None = None

    def in_edges(self) -> Iterator[InEdges]:
        """The in-edges of all nodes above the embeddings, layer by layer, sublayer by sublayer."""
        run, shape = self.activations, self.shape
        for layer, output in enumerate(self.outputs):
            for sublayer in range(shape.sublayers):
                level = layer * shape.sublayers + sublayer
                residual, node = (at_least_single(run.nodes[n]) for n in (level, level + 1))
                mlp = coefficient = written = None
                bias = torch.zeros_like(node)
                if shape.mlp and sublayer == shape.sublayers - 1:
                    mlp = at_least_single(run.mlp[layer])
                    bias = bias + self.mlp_constants[layer]
                if sublayer == 0:
                    scale = at_least_single(run.attention_scale[layer])
                    coefficient = at_least_single(run.pattern[layer]) / scale[:, None]
                    value = self._value(layer, output)
                    written = torch.einsum("khe,hed->khd", value, output.weight)
                    written = at_least_single(output.linear_norm(written))
                    bias = bias + self._attention_bias(layer, output)
                yield InEdges(layer, sublayer, node, bias, residual, mlp, coefficient, written)

    def _value(self, layer: int, output: AttentionOutput) -> Float[Tensor, "key head d_head"]:
        """What each query head reads at each token, without the bias."""
        value = self.activations.value[layer]
        return per_query_head(value, self.shape.heads, dim=1) - output.value_bias

    def expect_model(self, model: Model) -> None:
        """Refuse a model with other weights than the graph was read from.

        Raises:
            ValueError: the model's weights differ; the message says what to do.
        """
        if self.weights not in (None, noted(remembered_hash, model)):
            raise ValueError(
                f"the weights of {self.architecture.name} have changed since {self!r} was read: "
                "read it anew with token_graph"
            )

    def check_sums(self) -> None:
        """Check that the in-edges of every node add up to it on this prompt.

        The model was checked on a few random tokens; another prompt may meet a clip, an expert or
        a change of scale that those did not. The cost is that of the attention of one forward pass.

        Raises:
            UnsupportedModelError: a sum is off by more than rounding; the message names the node.
        """
        # One transfer from the device, after all sums.
        gaps = torch.stack([self._gap(level) for level in range(self.shape.levels - 1)]).cpu()
        allowed = tolerance(self.activations.nodes.dtype)
        off = ~(gaps < allowed)  # also where a gap is NaN
        if not bool(off.any()):
            return
        level, token = (int(i) for i in off.nonzero()[0])
        raise UnsupportedModelError(
            f"{self.architecture.name} cannot be traced on this prompt: the in-edges of "
            f"{hook_name(self.shape, level + 1)} at token {token} "
            f"({self.prompt.strings[token]!r}) do not add up to it (relative gap "
            f"{float(gaps[level, token]):.1e}, allowed {allowed:.0e}); please report the model"
        )

    def _gap(self, level: int) -> Float[Tensor, " pos"]:
        """How far the in-edges of the nodes above a level are from them, over the largest part."""
        run = self.activations
        layer, sublayer = divmod(level, self.shape.sublayers)
        node = at_least_single(run.nodes[level + 1])
        parts = [at_least_single(run.nodes[level])]
        if self.shape.mlp and sublayer == self.shape.sublayers - 1:
            parts += [at_least_single(run.mlp[layer]), self.mlp_constants[layer].expand_as(node)]
        if sublayer == 0:
            output = self.outputs[layer]
            value = self._value(layer, output)
            pattern = at_least_single(run.pattern[layer])
            z = torch.einsum("hqk,khe->qhe", pattern, value.to(pattern.dtype))
            weight = output.weight.to(z.dtype)
            written = output.linear_norm(torch.einsum("qhe,hed->qd", z, weight))
            scale = at_least_single(run.attention_scale[layer])
            parts += [written / scale[:, None], self._attention_bias(layer, output)]
        # A sum of large parts that cancel is as exact as those parts are.
        largest = torch.stack([part.norm(dim=-1) for part in (node, *parts)]).amax(0)
        missing = (node - sum(parts, torch.zeros_like(node))).norm(dim=-1)
        return missing / largest.clamp_min(torch.finfo(largest.dtype).tiny)

    def _attention_bias(self, layer: int, output: AttentionOutput) -> Float[Tensor, "pos d_model"]:
        row_sums = at_least_single(self.activations.pattern[layer]).sum(-1)
        scale = at_least_single(self.activations.attention_scale[layer])
        return at_least_single(output.constant(scale, row_sums))

    def __repr__(self) -> str:
        shape = self.shape
        return (
            f"TokenGraph({self.architecture.name}: {shape.tokens} tokens, {shape.layers} layers, "
            f"{shape.heads} heads, {shape.edges:,} edges)"
        )

    def _repr_html_(self) -> str:
        return facts(repr(self), strings=self.prompt.strings)


@verb
def token_graph(
    model: Model,
    prompt: str | Sequence[int] | Int[Tensor, " pos"] | Prompt,
    *,
    bos: bool | None = None,
    position: int | None = None,
) -> TokenGraph:
    """Run the unmodified model on a prompt and return the prompt's token graph.

    Args:
        model: a HookedTransformer or TransformerBridge.
        prompt: text or token ids.
        bos: whether the prompt starts with a BOS token; None leaves this to the tokenizer.
        position: the token whose next-token distribution the graph computes, by default the last.
            The prompt is cut after it. A causal model computes the same there in the whole prompt,
            unless its length exceeds one of `Architecture.position_switches`.

    Raises:
        UnsupportedModelError: the model cannot be traced, or not on this prompt.
        PromptError: the prompt cannot be traced.
        FloatingPointError: the model's logits are not finite.

    Example:
        >>> graph = sl.token_graph(model, "The capital of France is")
        >>> graph.shape.edges
        4398
    """
    architecture = architecture_of(model)
    tokens = tokenize(model, architecture, prompt, bos)
    if position is not None:
        count = len(tokens.ids)
        if not -count <= position < count:
            raise PromptError(f"position {position} lies outside the prompt of {count} tokens")
        length = range(1, count + 1)[position]
        tokens = tokenize(model, architecture, cut(model, tokens, length))
    blocks, device = range(architecture.layers), device_of(model)
    graph = TokenGraph(
        shape=shape_of(architecture, len(tokens.ids)),
        prompt=tokens,
        architecture=architecture,
        activations=read_activations(model, architecture, tokens.tensor),
        outputs=tuple(attention_output(model, architecture, n).to(device) for n in blocks),
        mlp_constants=tuple(
            mlp_constant(model, architecture, n).to(device) for n in blocks if architecture.mlp
        ),
        weights=noted(remembered_hash, model),
    )
    graph.check_sums()
    return graph


def shape_of(architecture: Architecture, tokens: int) -> GraphShape:
    """Shape of the token graph of a prompt of so many tokens."""
    return GraphShape(
        layers=architecture.layers,
        heads=architecture.heads,
        tokens=tokens,
        parallel=architecture.parallel,
        mlp=architecture.mlp,
    )
