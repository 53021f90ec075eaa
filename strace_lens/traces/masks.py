"""Masks over the edges of a token graph, as hooks that ablate every edge a row does not keep.

Sizes, controls and prompts are all rows of a batch (`rows`). An ablated edge leaves its replacement
(nothing, for zero ablation) in its place; biases belong to no edge and stay. An edge kept by a
fraction, as only gradients need, is a mixture of the two. Source: s-Trace (arXiv 2605.27033),
section "running a trace".

`mask_hooks` needs to know its rows beforehand, and hands what a layer computed from hook to hook.
`run_hooks` is for runs of a user's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from strace_lens.model.architecture import (
    Architecture,
    AttentionOutput,
    Model,
    attention_output,
    clipped,
    device_of,
    device_of_layer,
    mlp_constant,
    per_query_head,
)
from strace_lens.model.checks import architecture_of
from strace_lens.model.forward import FIRST, Hook, hooks_of_each_run
from strace_lens.traces.row_tree import RowTree, some_rows
from strace_lens.traces.rows import (
    Keep,
    MaskedRows,
    MaskRows,
    Rows,
    WeightedRows,
    complement,
    times,
)

Kept = tuple[Sequence[Keep], Sequence[Keep]]
"""What each row keeps in each layer of residual edges `[sublayer row pos]` and of MLP edges
`[row pos]`."""


def mask_hooks(
    model: Model,
    architecture: Architecture,
    groups: Sequence[Rows],
    kept: Kept | None = None,
    tree: RowTree | None = None,
) -> list[Hook]:
    """Hooks that apply the masks of a batch whose rows are those of the groups, in order.

    A residual edge is ablated where the stream is written: on a bridge a write at `hook_resid_mid`
    reaches the MLP but not `hook_resid_post`, so both are written, from their parts. `kept` is of
    `kept_in_stream`, for callers who need it too. With a tree, a single row is run, and every layer
    hands on the rows that the next one tells apart.
    """
    residual, mlp = kept_in_stream(groups, tree) if kept is None else kept
    layers, device = range(architecture.layers), device_of(model)
    outputs = [attention_output(model, architecture, layer) for layer in layers]
    constants = [torch.zeros(())] * architecture.layers
    if architecture.mlp:
        constants = [mlp_constant(model, architecture, layer) for layer in layers]
    # Which biases there are is one question to the device for all layers together.
    biases = ((output.value_bias, c) for output, c in zip(outputs, constants, strict=True))
    any_bias = torch.stack([bias.any().to(device) for pair in biases for bias in pair])
    replaced = any(group.replacement.references for group in groups)
    hooks: list[Hook] = [] if tree is None else [(FIRST, _branch(tree.parents[0]))]
    for layer, (of_values, of_mlp) in enumerate(any_bias.view(-1, 2).tolist()):
        there = groups if tree is None else some_rows(_unweighted(groups), tree.rows[layer])
        stops = accumulate((len(group) for group in there), initial=0)
        spans = [slice(a, b) for a, b in pairwise(stops)]
        mask = _LayerMask(
            architecture,
            layer,
            device_of_layer(model, layer),
            list(zip(spans, there, strict=True)),
            keep_residual=residual[layer],
            keep_mlp=mlp[layer] if architecture.mlp else None,
            output=outputs[layer],
            constant=constants[layer] if of_mlp else None,
            patches_z=replaced or of_values,
            branches=None if tree is None else tree.branches(layer),
        )
        hooks += mask.hooks()
    return hooks


def kept_in_stream(groups: Sequence[Rows], tree: RowTree | None = None) -> Kept:
    """Which residual and MLP edges each row keeps, of a tree those of the rows that run.

    Padding keeps all.
    """
    width = max(group.shape.tokens for group in groups)

    def of_kind(kind: str) -> Keep:
        pad = torch.nn.functional.pad
        kept = [(g.kept(kind).movedim(0, -2), width - g.shape.tokens) for g in groups]
        return torch.cat([pad(keep, (0, lacking), value=True) for keep, lacking in kept], -2)

    residual, mlp = list(of_kind("residual")), list(of_kind("mlp"))
    if tree is None:
        return residual, mlp
    return (
        [keep[:, rows] for keep, rows in zip(residual, tree.rows, strict=True)],
        [keep[rows] for keep, rows in zip(mlp, tree.rows, strict=False)],  # there may be none
    )


def _unweighted(groups: Sequence[Rows]) -> list[MaskRows]:
    """The groups, which hold no weights: those ask for gradients of every row."""
    return [group for group in groups if not isinstance(group, WeightedRows)]


def _branch(parents: Int64[Tensor, " row"]) -> Callable[..., Tensor]:
    """A hook that hands on the streams that enter the next layer."""

    def hook(value: Float[Tensor, "running pos d_model"], hook: Any) -> Tensor:
        return value[parents]

    return hook


class _LayerMask:
    """The hooks of one layer, which hand each other what the layer computed on its way."""

    def __init__(
        self,
        architecture: Architecture,
        layer: int,
        device: torch.device,
        groups: Sequence[tuple[slice, Rows]],
        *,
        keep_residual: Keep,
        keep_mlp: Keep | None,
        output: AttentionOutput,
        constant: Tensor | None,
        patches_z: bool,
        branches: Int64[Tensor, " running"] | None,
    ) -> None:
        self.architecture, self.layer, self.groups = architecture, layer, groups
        # Masks and replacements live where their layer runs.
        self.device = device
        self.keep_residual = keep_residual.to(device)
        self.keep_mlp = None if keep_mlp is None else keep_mlp.to(device)
        self.output = output
        # What stays of an ablated MLP edge, unless it is zero.
        self.constant = constant
        # Whether an ablated attention edge leaves anything: a bias of its value or a replacement.
        self.patches_z = patches_z
        # Which of the rows enter the next layer, where it tells apart what is one row here.
        self.branches = branches
        self.attention_kept = all("attention" in group.keep for _, group in groups)
        self.read: dict[str, Tensor] = {}

    def hooks(self) -> list[Hook]:
        arch, block = self.architecture, f"blocks.{self.layer}."
        hooks: list[Hook] = [
            (block + "hook_resid_pre", self.reader("resid_pre")),
            (block + "hook_attn_out", self.reader("attn_out")),
        ]
        if self.attention_kept:
            pass  # what attention writes stays as the model computes it
        elif arch.pattern_is_live:
            hooks.append((block + "attn.hook_pattern", self.write_pattern))
            if self.patches_z:
                hooks.append((block + "attn.hook_z", self.write_z))
        else:
            hooks.append((block + "attn.hook_v", self.reader("value")))
            hooks.append((block + "attn.hook_pattern", self.reader("pattern")))
        if arch.mlp:
            hooks.append((block + "hook_mlp_out", self.reader("mlp_out")))
        if arch.mlp and not arch.parallel:
            hooks.append((block + "hook_resid_mid", self.write_mid))
        hooks.append((block + "hook_resid_post", self.write_post))
        return hooks

    def reader(self, name: str) -> Callable[..., None]:
        def hook(value: Tensor, hook: Any) -> None:
            self.read[name] = value

        return hook

    def write_pattern(
        self, pattern: Float[Tensor, "row head query key"], hook: Any
    ) -> Float[Tensor, "row head query key"]:
        if self.patches_z:
            self.read["pattern"] = pattern
        return self.masked_pattern(pattern)

    def masked_pattern(self, pattern: Tensor) -> Float[Tensor, "row head query key"]:
        if all(group.shape.tokens == pattern.shape[-1] for _, group in self.groups):
            kept = [times(pattern[rows], self.kept_attention(group)) for rows, group in self.groups]
            return kept[0] if len(kept) == 1 else torch.cat(kept)
        # Padding follows the prompt, so no real token reads it: its entries stay as they are.
        masked = pattern.clone()
        for rows, group in self.groups:
            n = group.shape.tokens
            kept_there = self.kept_attention(group)
            masked[rows, :, :n, :n] = times(pattern[rows, :, :n, :n], kept_there)
        return masked

    def kept_attention(self, group: Rows) -> Keep:
        return group.kept("attention", self.layer).to(self.device, non_blocking=True)

    def write_z(
        self, z: Float[Tensor, "row query head d_head"], hook: Any
    ) -> Float[Tensor, "row query head d_head"]:
        return z + self.ablated_z(self.read.pop("pattern"))

    def ablated_z(self, pattern: Tensor) -> Float[Tensor, "row query head d_head"]:
        """What ablated attention edges leave in `hook_z`: the value bias and their replacements.

        With r and v' the references' patterns and values, the ablated edges leave
        sum (r v' / n) + b_V (sum of ablated pattern entries - sum of r / n).
        """
        heads, bias = self.architecture.heads, self.output.value_bias
        # Some models keep their patterns in single precision where their values are in half.
        z = bias.new_zeros(*pattern.shape[:3], bias.shape[-1])
        for rows, group in self.groups:
            n = group.shape.tokens
            ablated = complement(self.kept_attention(group))
            missing = (pattern[rows, :, :n, :n] * ablated).sum(-1)
            for pattern_there, value_there in group.replacement.references:
                there = pattern_there[self.layer].to(self.device, non_blocking=True)
                weight = ablated * there / len(group.replacement.references)
                carried = value_there[self.layer].to(self.device, non_blocking=True)
                value = per_query_head(carried, heads, dim=1).transpose(0, 1)
                z[rows, :, :n] += weight.to(value.dtype) @ value
                missing = missing - weight.sum(-1)
            z[rows, :, :n] += missing[..., None].to(bias.dtype) * bias[:, None]
        return z.transpose(1, 2)

    def attention(self) -> Float[Tensor, "row pos d_model"]:
        """This layer's attention output under the mask."""
        attn_out = self.read.pop("attn_out")
        if self.architecture.pattern_is_live or self.attention_kept:
            return attn_out
        # The pattern cannot be written here (and fires after `hook_z`): z is computed from it anew.
        pattern, value = self.read.pop("pattern"), self.read.pop("value")
        value = per_query_head(clipped(self.architecture, value), self.architecture.heads, dim=2)
        z = torch.einsum("bhqk,bkhe->bqhe", self.masked_pattern(pattern), value)
        if self.patches_z:
            z = z + self.ablated_z(pattern)
        return torch.einsum("bqhe,hed->bqd", z, self.output.weight) + self.output.bias

    def write_mid(self, mid: Tensor, hook: Any) -> Float[Tensor, "row pos d_model"]:
        written = self.with_residual(self.attention(), self.read.pop("resid_pre"), sublayer=0)
        self.read["resid_mid"] = written
        return written

    def write_post(self, post: Tensor, hook: Any) -> Float[Tensor, "next_row pos d_model"]:
        written = self.written_post()
        return written if self.branches is None else written[self.branches]

    def written_post(self) -> Float[Tensor, "row pos d_model"]:
        if "resid_mid" in self.read:
            return self.with_residual(self.mlp(), self.read.pop("resid_mid"), sublayer=1)
        written = self.attention()
        if self.keep_mlp is not None:
            written = written + self.mlp()
        return self.with_residual(written, self.read.pop("resid_pre"), sublayer=0)

    def with_residual(
        self, written: Tensor, stream: Tensor, sublayer: int
    ) -> Float[Tensor, "row pos d_model"]:
        """What a sublayer writes, plus the stream where its edge is kept, else what replaces it."""
        keep = self.keep_residual[sublayer, ..., None]
        if keep.dtype == torch.bool:
            written = torch.addcmul(written, stream, keep.to(stream.dtype))
        else:
            written = written + times(stream, keep)
        return self.with_replacement(written, keep, "residual", sublayer)

    def mlp(self) -> Float[Tensor, "row pos d_model"]:
        """`hook_mlp_out` where its edge is kept, else its bias and the replacement."""
        mlp_out = self.read.pop("mlp_out")
        assert self.keep_mlp is not None
        keep = self.keep_mlp[..., None]
        written = times(mlp_out, keep)
        if self.constant is not None:
            written += complement(keep) * self.constant
        return self.with_replacement(written, keep, "mlp")

    def with_replacement(
        self, written: Tensor, keep: Keep, kind: str, *sublayer: int
    ) -> Float[Tensor, "row pos d_model"]:
        """What a sublayer writes, plus what stands in for the edges that are not kept."""
        for rows, group in self.groups:
            values = getattr(group.replacement, kind)
            if values is not None:
                n, there = group.shape.tokens, values[self.layer, *sublayer]
                there = there.to(self.device, non_blocking=True)
                written[rows, :n] += complement(keep[rows, :n]) * there
        return written


def run_hooks(model: Model, row: MaskedRows) -> list[Hook]:
    """Hooks that apply one row's mask to every prompt of a batch, in any number of runs.

    Args:
        model: the model that will run.
        row: the mask, one row; its tokens only say how long a prompt is.
    """
    architecture = architecture_of(model)
    row = row.on(device_of(model))

    def make(first: Float[Tensor, "row pos d_model"]) -> list[Hook]:
        (batch, width), tokens = first.shape[:2], row.shape.tokens
        if width != tokens:
            raise ValueError(
                f"these hooks mask a prompt of {tokens} tokens, but the run has {width}; run "
                f"token ids [batch, {tokens}], or make the hooks of a trace of that length"
            )
        start, stop = (None if x is None else x.expand(batch) for x in (row.start, row.stop))
        return mask_hooks(model, architecture, [replace(row, start=start, stop=stop)])

    return hooks_of_each_run(make, [point for point, _ in mask_hooks(model, architecture, [row])])
