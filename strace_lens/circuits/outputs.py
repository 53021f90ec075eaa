"""What every source wrote in a run, and what stands in for it when its edges are ablated.

A head's row is worked out from z and W_O when it is needed, so a run of many prompts is kept in the
space of its embeddings, z and MLP outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from strace_lens.circuits.wiring import Wiring, head_writer, keep_hooks, stream_points
from strace_lens.model.architecture import Architecture, Model
from strace_lens.model.forward import Hook, all_logits, last_logits

Streams = Mapping[str, Float[Tensor, "_ pos d_model"]]


class Outputs(NamedTuple):
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

    def map(self, function: Callable[..., Tensor], *others: Outputs) -> Outputs:
        """Apply a function to every tensor, with those of other outputs beside it."""
        all_of = (self, *others)
        return Outputs(
            function(*(outputs.embed for outputs in all_of)),
            tuple(map(function, *(outputs.z for outputs in all_of))),
            tuple(map(function, *(outputs.mlp for outputs in all_of))),
        )

    def rows(self, index: Int[Tensor, " row"] | slice) -> Outputs:
        """The outputs of some rows, in the order given."""
        return self.map(lambda x: x[index])


class Run(NamedTuple):
    """A run of many prompts.

    Attributes:
        outputs: of every source.
        logits: where the task reads them.
        streams: by hook point, those of `patched_streams`.
    """

    outputs: Outputs
    logits: Float[Tensor, "row read vocab"]
    streams: Streams

    def rows(self, index: Int[Tensor, " _"]) -> Run:
        """Some rows, in the order given."""
        return Run(self.outputs.rows(index), self.logits[index], rows_of(self.streams, index))


def patched_streams(wiring: Wiring) -> list[str]:
    """Hook points of every stream that a destination reads, the logits' too."""
    return [*stream_points(wiring), f"blocks.{wiring.graph.layers - 1}.hook_resid_post"]


def rows_of(streams: Streams, index: Int[Tensor, " _"]) -> Streams:
    """The streams of some rows, each taken when it is asked for."""
    return _RowsOf(streams, index)


class _RowsOf(Mapping[str, Tensor]):
    def __init__(self, streams: Streams, index: Int[Tensor, " _"]) -> None:
        self._streams, self._index = streams, index

    def __getitem__(self, name: str) -> Tensor:
        return self._streams[name][self._index]

    def __iter__(self) -> Iterator[str]:
        return iter(self._streams)

    def __len__(self) -> int:
        return len(self._streams)


def join_runs(runs: list[Run]) -> Run:
    """One after another, the rows of several runs of equal width."""
    return Run(
        join_outputs([run.outputs for run in runs]),
        torch.cat([run.logits for run in runs]),
        {name: torch.cat([run.streams[name] for run in runs]) for name in runs[0].streams},
    )


def join_outputs(parts: list[Outputs]) -> Outputs:
    """One after another, the rows of several runs of equal width."""
    return parts[0].map(lambda *tensors: torch.cat(tensors), *parts[1:])


def output_hooks(wiring: Wiring, kept: dict[str, Tensor]) -> list[Hook]:
    """Hooks that keep, detached, what `outputs_of` is made of."""
    arch = wiring.architecture
    names = ["attn.hook_z"] + ["ln1_post.hook_scale"] * arch.post_norm + ["hook_mlp_out"] * arch.mlp
    points = [f"blocks.{layer}.{name}" for layer in range(arch.layers) for name in names]
    return keep_hooks(["blocks.0.hook_resid_pre", *points], kept)


def outputs_of(
    wiring: Wiring, kept: Mapping[str, Tensor], missing: Outputs | None = None
) -> Outputs:
    """The outputs from what `output_hooks` kept, those that did not run from others."""
    arch = wiring.architecture
    z, mlp = [], []
    for layer in range(arch.layers):
        block = f"blocks.{layer}."
        if missing is not None and block + "attn.hook_z" not in kept:
            z.append(missing.z[layer])
            mlp += [missing.mlp[layer]] if arch.mlp else []
            continue
        own = kept[block + "attn.hook_z"]
        own = own.unflatten(-1, (arch.heads, -1)) if own.ndim == 3 else own
        if arch.post_norm:  # some norms give their scale in single precision whatever the model's
            own = (own / kept[block + "ln1_post.hook_scale"][..., None]).to(own.dtype)
        z.append(own)
        mlp += [kept[block + "hook_mlp_out"]] if arch.mlp else []
    embed = kept.get("blocks.0.hook_resid_pre", None if missing is None else missing.embed)
    assert embed is not None
    return Outputs(embed, tuple(z), tuple(mlp))


def read_logits(
    model: Model,
    architecture: Architecture,
    tokens: Int[Tensor, "row pos"],
    lengths: Int[Tensor, " row"],
    hooks: Sequence[Hook] = (),
    *,
    every_position: bool,
    gradient: bool = False,
) -> Float[Tensor, "row read vocab"]:
    """Logits where a task reads them: at every position, or after the last token of each row."""
    if every_position:
        return all_logits(model, architecture, tokens, hooks, gradient=gradient)
    return last_logits(model, architecture, tokens, lengths, hooks, gradient=gradient)[:, None]


def read_outputs(
    model: Model,
    wiring: Wiring,
    tokens: Int[Tensor, "row pos"],
    lengths: Int[Tensor, " row"],
    *,
    every_position: bool = False,
) -> Run:
    """Run prompts untouched."""
    kept: dict[str, Tensor] = {}
    streams: dict[str, Tensor] = {}
    hooks = [*output_hooks(wiring, kept), *keep_hooks(patched_streams(wiring), streams)]
    logits = read_logits(
        model, wiring.architecture, tokens, lengths, hooks, every_position=every_position
    )
    return Run(outputs_of(wiring, kept), logits, streams)


def source_rows(
    model: Model, wiring: Wiring, outputs: Outputs
) -> Float[Tensor, "source row pos d_model"]:
    """What every source adds to the stream, sources first: `[source, row, pos, d_model]`."""
    graph = wiring.graph
    rows = outputs.embed.new_empty(graph.sources, *outputs.embed.shape)
    rows[0] = outputs.embed
    for layer in range(graph.layers):
        own = graph.heads_of(layer)
        heads = rows[own].flatten(1, 2)
        z = outputs.z[layer].flatten(0, 1).transpose(0, 1)
        torch.bmm(z, head_writer(model, wiring, layer), out=heads)
        if graph.mlp:
            rows[own.stop] = outputs.mlp[layer]
    return rows
