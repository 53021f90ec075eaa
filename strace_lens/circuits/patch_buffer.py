"""The buffer in which a patched run holds what its sources would carry less what they carry.

Every later destination reads it. With gradients a buffer that is written again could not be
differentiated, and a block for each source would make a destination's sum hundreds of small
products. So writing and reading are two functions with backward passes of their own, over a second
buffer of gradients: a slot is read by destinations that run after it was written, so its gradient
is whole when its writer's turn comes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


class PatchBuffer:
    """Changes of the sources that have a slot, filled in order as a run goes.

    Attributes:
        cut: share of the source's change that each destination reads, by token position or one for
            all: what is cut of an edge where the change is the replacement less the output.
        sources: numbers of the sources that have a slot, rising.
        count: slots filled.
    """

    def __init__(
        self,
        cut: Float[Tensor, "row _ destination source"],
        sources: list[int],
        like: Float[Tensor, "row pos d_model"],
        *,
        gradient: bool,
    ) -> None:
        self.cut, self.sources, self.count = cut, sources, 0
        rows, tokens, width = like.shape
        # One slot more than sources: see `read`.
        self.buffer = like.new_empty(rows, tokens, len(sources) + 1, width)
        self.gradient = torch.zeros_like(self.buffer) if gradient else None
        self._scratch = like.new_empty(0)
        # Depends on every slot written, so that autograd runs their readers first, then them.
        self._written = like.new_zeros(())

    def add(self, sources: list[int], block: Float[Tensor, "row pos new d_model"]) -> None:
        """Fill the slots of some sources.

        Raises:
            RuntimeError: other sources are next: the model ran out of the graph's order.
        """
        new = self._next(sources)
        if self.gradient is None:
            self.buffer[:, :, new] = block
        else:
            buffers = (self.buffer, self.gradient)
            self._written = self._written + _Write.apply(block, buffers, new)
        self.count = new.stop

    def add_products(
        self,
        sources: list[int],
        values: Float[Tensor, "row pos new d_head"],
        weight: Float[Tensor, "new d_head d_model"],
    ) -> None:
        """Fill the slots of heads with `values @ weight`, as `add` does.

        Raises:
            RuntimeError: as `add`.
        """
        if self.gradient is not None:
            self.add(sources, torch.einsum("rphe,hem->rphm", values, weight))
            return
        new = self._next(sources)
        # Right into the slots: a copy would take as long as the product.
        slots = self.buffer.flatten(0, 1)[:, new].transpose(0, 1)
        torch.bmm(values.flatten(0, 1).transpose(0, 1), weight, out=slots)
        self.count = new.stop

    def _next(self, sources: list[int]) -> slice:
        """The slots of sources, which must be the next in the graph's order."""
        new = slice(self.count, self.count + len(sources))
        if self.sources[new] != sources:
            raise RuntimeError(f"source {sources[0]} has run out of the graph's order")
        return new

    def read(
        self,
        destinations: Int[Tensor, " destination"],
        stream: Float[Tensor, "row pos d_model"],
        *,
        changes: int = 0,
    ) -> Float[Tensor, "row pos destination d_model"]:
        """What these destinations read: the stream with their edges replaced.

        Without gradients what is returned holds only until the next call.

        Args:
            destinations: that read.
            stream: before any edge is replaced.
            changes: of so many of the destinations, the last, the change of the stream alone.
        """
        cut, whole = self.cut[:, :, destinations, : self.count], len(destinations) - changes
        weight = torch.arange(len(destinations), device=cut.device) < whole
        if self.gradient is not None:
            buffers = (self.buffer, self.gradient)
            change = _Read.apply(cut, self._written, buffers, slice(0, self.count))
            return change + stream[:, :, None] * weight[:, None]
        # The stream stands in the next free slot, with weight 1, so no sum is taken afterwards.
        self.buffer[:, :, self.count] = stream
        weight = weight.to(cut.dtype)[:, None].expand(*cut.shape[:3], 1)
        filled = self.buffer[:, :, : self.count + 1]
        shape = (*stream.shape[:2], len(destinations), stream.shape[-1])
        size = math.prod(shape)
        if self._scratch.numel() < size:  # fresh memory costs as much as the product
            self._scratch = stream.new_empty(size)
        out = self._scratch[:size].view(shape)
        return torch.matmul(torch.cat([cut, weight], -1), filled, out=out)

    def read_since(self, destination: int, first: int) -> Float[Tensor, "row pos d_model"] | float:
        """What the slots filled from the `first` on change for a destination."""
        slots = slice(first, self.count)
        if first == self.count:
            return 0.0
        cut = self.cut[:, :, destination : destination + 1, slots]
        if self.gradient is None:
            return (cut @ self.buffer[:, :, slots])[:, :, 0]
        buffers = (self.buffer, self.gradient)
        return _Read.apply(cut, self._written, buffers, slots)[:, :, 0]


# The functions below hold the two buffers and not the `PatchBuffer`, which holds what they return:
# a cycle through autograd's graph is never collected.
_Buffers = tuple[Tensor, Tensor]


class _Write(torch.autograd.Function):
    """Fill a slot; returns a zero that stands for it."""

    @staticmethod
    def forward(ctx: Any, block: Tensor, buffers: _Buffers, slot: slice) -> Tensor:
        ctx.gradient, ctx.slot = buffers[1], slot
        buffers[0][:, :, slot] = block
        return block.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, None, None]:
        slot = ctx.gradient[:, :, ctx.slot]
        gradient = slot.clone()
        slot.zero_()  # for a second backward pass over the same run
        return gradient, None, None


class _Read(torch.autograd.Function):
    """`cut @ buffer` over some of the slots filled so far."""

    @staticmethod
    def forward(ctx: Any, cut: Tensor, written: Tensor, buffers: _Buffers, slots: slice) -> Tensor:
        ctx.save_for_backward(cut)
        ctx.buffers, ctx.slots = buffers, slots
        return cut @ buffers[0][:, :, slots]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (cut,), (gradient,) = ctx.saved_tensors, gradients
        values, sums = (buffer[:, :, ctx.slots] for buffer in ctx.buffers)
        sums += cut.transpose(-1, -2) @ gradient
        of_cut = gradient @ values.transpose(-1, -2)
        if cut.shape[1] == 1:
            of_cut = of_cut.sum(1, keepdim=True)
        return of_cut, gradient.new_zeros(()), None, None
