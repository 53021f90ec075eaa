"""Where the parts of a model have to run for rows of a masked run, and where values are shared.

A part is an MLP or a projection of attention; each works on every token alone. It need not run
where nothing reads what it writes. Where a row's stream is as in the untouched run, it writes what
it writes there; and where a stream of zeros stays zero, it writes the same at every node that no
kept edge joins to a token. So one place stands for many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from strace_lens.model.architecture import Architecture
from strace_lens.model.sparse import PARTS, Places
from strace_lens.traces.row_tree import RowTree
from strace_lens.traces.rows import MaskedRows, MaskRows, SubsetRows

_Nodes = Bool[Tensor, "row pos"]
_Pairs = Bool[Tensor, "layer row query key"]


class Live(NamedTuple):
    """What rows need of each part of a layer, and what the part reads there."""

    needed: Bool[Tensor, "layer part row pos"]  # what the part writes is read
    clean: Bool[Tensor, "layer part row pos"]  # it reads what it reads in the untouched run
    zero: Bool[Tensor, "layer part row pos"]  # it reads zeros, and so writes the same everywhere


class _Layer(NamedTuple):
    """What the masks of one layer say, and which streams in it are zeros or clean."""

    reads: Bool[Tensor, "row query key"]  # some head's edge is kept
    residual: Bool[Tensor, "row sublayer pos"]
    mlp: _Nodes
    zero: dict[str, _Nodes]  # of "pre", what attention reads, "z" and "mlp"
    clean: dict[str, _Nodes]


def live_parts(
    architecture: Architecture,
    group: MaskRows,
    watched: Bool[Tensor, " row"],
    *,
    share_clean: bool,
) -> Live:
    """What the rows of a group need, by their masks.

    Args:
        architecture: of the model.
        group: the rows.
        watched: those of which the stream is read at every token, not only the output.
        share_clean: whether a row that runs the prompt untouched is at hand.
    """
    layers = _streams(architecture, group, share_clean)
    shape = group.shape
    everywhere = watched[:, None].expand(-1, shape.tokens)
    node = everywhere.clone()
    node[:, -1] = True
    found = []
    for layer in reversed(layers):
        mlp = node & layer.mlp
        mid = node
        if shape.sublayers == 2:
            mid = mlp | (node & layer.residual[:, 1]) | everywhere
        # A head without edges is silent whatever its pattern, which reads all keys before it.
        query = mid & ~layer.zero["z"]
        key = query.flip(1).cumsum(1).flip(1) > 0
        value = (layer.reads & mid[:, :, None]).any(1)
        node = (mid & layer.residual[:, 0]) | query | key | value | everywhere
        if shape.parallel:
            node = node | mlp
        needed = {"q": query, "k": key, "v": value, "o": mid, "mlp": mlp}
        reads = {"q": "pre", "k": "pre", "v": "pre", "o": "z", "mlp": "mlp"}
        found.append(
            (
                torch.stack([needed[part] for part in PARTS]),
                torch.stack([layer.clean[reads[part]] for part in PARTS]),
                torch.stack([layer.zero[reads[part]] for part in PARTS]),
            )
        )
    return Live(*(torch.stack(flags) for flags in zip(*reversed(found), strict=True)))


def places(
    live: Sequence[Live], references: Sequence[int | None], tree: RowTree | None = None
) -> dict[tuple[int, str], Places]:
    """Where each part of each layer runs in a pass over the rows of groups, in their order.

    Args:
        live: of each group (`live_parts`), with `share_clean` where there is a reference.
        references: for each group the row of the pass that runs its prompt untouched, of which
            every place is needed; None if none does.
        tree: of the rows, where those that agree run as one: it needs what any of them needs.
    """
    width = max(one.needed.shape[-1] for one in live)

    def joined(flags: Sequence[Tensor]) -> Bool[Tensor, "layer part row pos"]:
        padded = [torch.nn.functional.pad(x, (0, width - x.shape[-1])) for x in flags]
        return torch.cat(padded, 2)

    needed, clean, zero = (joined(flags) for flags in zip(*live, strict=True))
    counts = torch.tensor([one.needed.shape[2] for one in live])
    reference = torch.tensor([row or 0 for row in references]).repeat_interleave(counts)
    found = {}
    for layer, (need, same, zeros) in enumerate(zip(needed, clean, zero, strict=True)):
        untouched = reference
        if tree is not None:
            first, place = tree.rows[layer], tree.places[layer]
            merged = torch.zeros(len(PARTS), len(first), width, dtype=torch.int32)
            need = merged.index_add_(1, place, need.int()) > 0
            same, zeros, untouched = same[:, first], zeros[:, first], place[reference[first]]
        there = (untouched[:, None] * width + torch.arange(width)).flatten()
        of_layer = _of_layer(need.flatten(1), same.flatten(1), zeros.flatten(1), there)
        found |= {(layer, part): where for part, where in zip(PARTS, of_layer, strict=True)}
    return found


def _of_layer(
    needed: Bool[Tensor, "part place"],
    clean: Bool[Tensor, "part place"],
    zero: Bool[Tensor, "part place"],
    untouched: Int[Tensor, " place"],
) -> list[Places]:
    """Where the parts of a layer run; `untouched` is the place of the same token in a clean row."""
    source = torch.where(clean, untouched, torch.arange(len(untouched)))
    # One place stands for all that read zeros, of those whose own stream is worked out.
    zero = zero & needed
    source = torch.where(zero, zero.to(torch.int8).argmax(-1, keepdim=True), source)
    runs = torch.zeros_like(source).scatter_add_(1, source, needed.long()) > 0
    taken = (runs.cumsum(-1) - 1).clamp_min(0).gather(1, source)
    return [Places(run.nonzero()[:, 0], *rest) for run, *rest in zip(runs, taken, strict=True)]


def _streams(architecture: Architecture, group: MaskRows, share_clean: bool) -> list[_Layer]:
    """Which streams are zeros and which are clean, layer by layer."""
    shape = group.shape
    residual, mlps = group.kept("residual"), group.kept("mlp")
    reads, whole = _between_tokens(group)
    causal = torch.ones(shape.tokens, shape.tokens, dtype=torch.bool, device=reads.device).tril()
    reads, whole = reads & causal, (whole | ~causal).all(-1)
    # Where zeros stay zeros, an ablated edge leaves nothing either.
    quiet = architecture.silent_without_input and not group.replacement.references
    zero = torch.zeros(len(group), shape.tokens, dtype=torch.bool, device=reads.device)
    clean = torch.full_like(zero, share_clean)
    layers = []
    for number in range(shape.layers):
        there = residual[:, number]
        mlp = mlps[:, number] if shape.mlp else torch.zeros_like(zero)
        zeros = {"pre": zero, "z": torch.zeros_like(zero)}
        if quiet:
            zeros["z"] = ~(reads[number] & ~zero[:, None]).any(-1)
        # A token's pattern depends on every token before it.
        cleans = {"pre": clean, "z": whole[number] & clean.cummin(1).values}
        zero = zeros["z"] & (zero | ~there[:, 0])
        clean = cleans["z"] & clean & there[:, 0]
        zeros["mlp"] = zeros["pre"] if shape.parallel else zero
        cleans["mlp"] = cleans["pre"] if shape.parallel else clean
        if shape.mlp:
            if not shape.parallel:
                zero, clean = zero | (~there[:, 1] & quiet), clean & there[:, 1]
            zero, clean = zero & (zeros["mlp"] | ~mlp), clean & mlp
        layers.append(_Layer(reads[number], there, mlp, zeros, cleans))
    return layers


def _between_tokens(group: MaskRows) -> tuple[_Pairs, _Pairs]:
    """Whether some head's edge from one token to another is kept, and whether every head's is."""
    if isinstance(group, SubsetRows) and "attention" not in group.keep:
        heads = group.subsets.attention.unbind(1)
        some, every = (
            (reduce(join, heads)[:, None] & group.bit[:, None, None]) != 0
            for join in (torch.bitwise_or, torch.bitwise_and)
        )
        inside = (group.wanted != 0)[:, None, None]
        return torch.where(inside, some, ~every), torch.where(inside, every, ~some)
    if isinstance(group, MaskedRows) and (group.start is None or group.stop is None):
        # With one bound the first or the last head's edge decides.
        low, high = (
            replace(group, ranks=group.ranks._replace(attention=x[:, None])).kept("attention")
            for x in group.ranks.attention.aminmax(dim=1)
        )
        some, every = (low, high) if group.start is None else (high, low)
        return some[:, :, 0].movedim(0, 1), every[:, :, 0].movedim(0, 1)
    by_layer = [group.kept("attention", layer) for layer in range(group.shape.layers)]
    return torch.stack([x.any(1) for x in by_layer]), torch.stack([x.all(1) for x in by_layer])
