"""Rows of one prompt that run as one for as long as their masks agree.

What enters a layer depends on the masks of the layers below it alone. So rows whose masks agree in
the first layers are one row there, and part where they first differ: a trace and the same trace
without some edges of late layers share everything up to these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from strace_lens.traces.rows import MaskRows


@dataclass(frozen=True, eq=False)
class RowTree:
    """Which rows run in each layer.

    Attributes:
        rows: for each layer, the first of the rows whose masks agree in it and in all below,
            rising.
        parents: for each layer, the place of the stream that enters each of these among those of
            the layer below. A single stream, that of the embeddings, enters the first layer.
        places: for each layer, the place of every row of the batch among these.
    """

    rows: tuple[Int64[Tensor, " _"], ...]
    parents: tuple[Int64[Tensor, " _"], ...]
    places: tuple[Int64[Tensor, " row"], ...]

    @property
    def share(self) -> float:
        """Share of the rows that run, averaged over the layers."""
        return sum(map(len, self.rows)) / (len(self.rows) * len(self.places[0]))

    def branches(self, layer: int) -> Int64[Tensor, " running"] | None:
        """Which streams that leave a layer enter the next; None where these are the same."""
        if layer + 1 == len(self.rows) or len(self.rows[layer + 1]) == len(self.rows[layer]):
            return None
        return self.parents[layer + 1]


def row_tree(groups: Sequence[MaskRows]) -> RowTree:
    """The tree of a batch whose rows, of a single prompt, are those of the groups, in order."""
    replacements = [id(group.replacement) for group in groups for _ in range(len(group))]
    place = [0] * len(replacements)
    rows, parents, places = [], [], []
    for layer in range(groups[0].shape.layers):
        if rows and len(rows[-1]) == len(place):  # all have parted
            rows.append(rows[-1])
            parents.append(rows[-1])
            places.append(rows[-1])
            continue
        found: dict[tuple[int, int, bytes], int] = {}
        firsts, below = [], []
        masks = _masks(groups, layer)
        for row, key in enumerate(zip(place, replacements, masks, strict=True)):
            if key not in found:
                found[key] = len(firsts)
                firsts.append(row)
                below.append(key[0])
            place[row] = found[key]
        rows.append(torch.tensor(firsts))
        parents.append(torch.tensor(below))
        places.append(torch.tensor(place))
    return RowTree(tuple(rows), tuple(parents), tuple(places))


def some_rows(groups: Sequence[MaskRows], rows: Int64[Tensor, " row"]) -> list[MaskRows]:
    """The groups with rows of the batch, given by rising number; those without are left out."""
    ends = list(accumulate(len(group) for group in groups))
    starts = [0, *ends[:-1]]
    parts = [rows[(rows >= a) & (rows < b)] - a for a, b in zip(starts, ends, strict=True)]
    return [group.rows(part) for group, part in zip(groups, parts, strict=True) if len(part)]


def _masks(groups: Sequence[MaskRows], layer: int) -> list[bytes]:
    """What each row keeps of a layer's edges, a bit for each."""
    masks = []
    for group in groups:
        kinds = ["attention", "residual", *["mlp"] * group.shape.mlp]
        kept = [group.kept(kind, layer).flatten(1) for kind in kinds]
        masks += [bits.tobytes() for bits in np.packbits(torch.cat(kept, 1).numpy(), axis=1)]
    return masks
