"""What every source wrote in a run, and what stands in for it when its edges are ablated.

A head's row is worked out from z and W_O when it is needed, so a run of many prompts is kept in the
space of its embeddings, z and MLP outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from strace_lens.circuits.graph import ComponentGraph
from strace_lens.circuits.wiring import Wiring, head_writer
from strace_lens.model.architecture import Model
from strace_lens.model.forward import Hook, all_logits, last_logits

ABLATIONS = ("resample", "mean", "zero")


@dataclass(frozen=True, eq=False)
class Outputs:
    """Outputs of every source, by row (one row a prompt).

    Attributes:
        embed: `blocks.0.hook_resid_pre`.
        z: `attn.hook_z` of each layer; over the scale of the norm after attention where there is
            one, so that `z @ head_writer` is what the head adds to the stream.
        mlp: `hook_mlp_out` of each layer, its bias included (none if attention-only).
    """

    embed: Float[Tensor, "row pos d_model"]
    z: tuple[Float[Tensor, "row pos head d_head"], ...]
    mlp: tuple[Float[Tensor, "row pos d_model"], ...]

    def map(self, function: Callable[[Tensor], Tensor]) -> Outputs:
        """Apply a function to every tensor."""
        return Outputs(
            function(self.embed), tuple(map(function, self.z)), tuple(map(function, self.mlp))
        )

    def minus(self, other: Outputs) -> Outputs:
        """The outputs less those of another run."""
        return Outputs(
            self.embed - other.embed,
            tuple(a - b for a, b in zip(self.z, other.z, strict=True)),
            tuple(a - b for a, b in zip(self.mlp, other.mlp, strict=True)),
        )

    def rows(self, index: Int[Tensor, " row"]) -> Outputs:
        """The outputs of some rows, in the order given."""
        return self.map(lambda x: x[index])


def join_outputs(parts: list[Outputs]) -> Outputs:
    """One after another, the rows of several runs of equal width."""
    return Outputs(
        torch.cat([p.embed for p in parts]),
        tuple(torch.cat(z) for z in zip(*(p.z for p in parts), strict=True)),
        tuple(torch.cat(m) for m in zip(*(p.mlp for p in parts), strict=True)),
    )


def output_hooks(wiring: Wiring, keep: dict[str, list[Tensor]]) -> list[Hook]:
    """Hooks that collect, detached, what `outputs_of` is made of."""
    arch = wiring.architecture

    def read(name: str) -> Callable[..., None]:
        kept = keep.setdefault(name, [])

        def hook(value: Tensor, hook: Any) -> None:
            kept.append(value.detach())

        return hook

    names = ["attn.hook_z"] + ["ln1_post.hook_scale"] * arch.post_norm + ["hook_mlp_out"] * arch.mlp
    hooks: list[Hook] = [("blocks.0.hook_resid_pre", read("embed"))]
    hooks += [(f"blocks.{n}.{name}", read(name)) for n in range(arch.layers) for name in names]
    return hooks


def outputs_of(wiring: Wiring, kept: dict[str, list[Tensor]]) -> Outputs:
    """The outputs from what `output_hooks` collected."""
    arch = wiring.architecture
    z = [x.unflatten(-1, (arch.heads, -1)) if x.ndim == 3 else x for x in kept["attn.hook_z"]]
    if arch.post_norm:
        # Some norms give their scale in single precision whatever the model's.
        scales = kept["ln1_post.hook_scale"]
        z = [(x / s[..., None]).to(x.dtype) for x, s in zip(z, scales, strict=True)]
    return Outputs(kept["embed"][0], tuple(z), tuple(kept.get("hook_mlp_out", ())))


def read_outputs(
    model: Model,
    wiring: Wiring,
    tokens: Int[Tensor, "row pos"],
    lengths: Int[Tensor, " row"],
    *,
    every_position: bool = False,
) -> tuple[Outputs, Float[Tensor, "row read vocab"]]:
    """Run prompts untouched: what every source wrote, and the logits."""
    kept: dict[str, list[Tensor]] = {}
    hooks = output_hooks(wiring, kept)
    if every_position:
        logits = all_logits(model, wiring.architecture, tokens, hooks)
    else:
        logits = last_logits(model, wiring.architecture, tokens, lengths, hooks)[:, None]
    return outputs_of(wiring, kept), logits


def source_rows(
    model: Model, wiring: Wiring, outputs: Outputs
) -> Float[Tensor, "source row pos d_model"]:
    """What every source adds to the stream, sources first: `[source, row, pos, d_model]`."""
    graph: ComponentGraph = wiring.graph
    rows = outputs.embed.new_empty(graph.sources, *outputs.embed.shape)
    rows[0] = outputs.embed
    for layer in range(graph.layers):
        first = 1 + layer * graph.sources_per_layer
        heads = rows[first : first + graph.heads].flatten(1, 2)
        z = outputs.z[layer].flatten(0, 1).transpose(0, 1)
        torch.bmm(z, head_writer(model, wiring, layer), out=heads)
        if graph.mlp:
            rows[first + graph.heads] = outputs.mlp[layer]
    return rows
