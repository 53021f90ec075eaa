"""Hidden states of traces compared with those of the full model, layer by layer.

At the last token, where the prediction is read: cosine, distance, and the path through the layers
(s-Trace, arXiv 2605.27033, section "phases"), and the state that the unembedding reads, behind the
final norm. Over all tokens: linear CKA (Kornblith et al. 2019).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from strace_lens.model.architecture import Architecture
from strace_lens.model.forward import Hook
from strace_lens.traces.graph import TokenGraph
from strace_lens.traces.rows import MaskRows

Stream = Float[Tensor, "depth _ d_model"]
"""The residual stream of a prompt before the first block and after each block."""


class Geometry(NamedTuple):
    """How a path through the layers looks, one value a layer, and the state in which it ends."""

    cosine: Float[Tensor, "row layer"]
    """Of the stream at the last token to the full model's; 0 where a stream is zero."""

    l2: Float[Tensor, "row layer"]
    """Distance of the two."""

    cka: Float[Tensor, "row layer"]
    """Linear CKA of the streams over the tokens: 0 where one does not vary, NaN for fewer than two
    tokens and in the last layer, whose other tokens no trace holds."""

    velocity: Float[Tensor, "row layer"]
    """Length of the step that the layer takes at the last token."""

    curvature: Float[Tensor, "row layer"]
    """Angle between this step and the one before, in radians; NaN in the first layer and where a
    step is zero."""

    final_state: Float[Tensor, "row d_model"]
    """What the unembedding reads at the last token, behind the final norm."""


def stream_of(graph: TokenGraph) -> Stream:
    """The stream of the run that a token graph was read from."""
    return graph.activations.nodes[:: graph.shape.sublayers]


class ActivationRecorder:
    """Reads the stream of some rows of a masked run as it goes by; `hooks` is for `masked_logits`.

    Passes come in order, so rows are counted; states at the last token are kept, and of the other
    tokens only what CKA needs.
    """

    def __init__(
        self, architecture: Architecture, streams: Sequence[Stream], of_row: Sequence[int]
    ) -> None:
        """Watch row i of the run if `of_row[i]`, the number of its full stream, is not negative."""
        after_each = [f"blocks.{layer}.hook_resid_post" for layer in range(architecture.layers)]
        self.points = ["blocks.0.hook_resid_pre", *after_each]
        self.final_point = architecture.unembed_input
        self.streams, self.of_row = streams, torch.tensor(of_row)
        self.grams = [_grams(stream[1:-1]) for stream in streams]
        watched = int((self.of_row >= 0).sum())
        layers, width = len(self.points), architecture.d_model
        self.last = torch.zeros(watched, layers, width)
        self.cka = torch.full((watched, layers - 1), torch.nan)
        self.final = torch.zeros(watched, width)
        self.rows_seen = self.watched_seen = 0

    def hooks(self, batch: Sequence[MaskRows]) -> tuple[list[Hook], Bool[Tensor, " row"]]:
        """Hooks of the next pass, and which of its rows they watch."""
        rows = sum(len(group) for group in batch)
        numbers = self.of_row[self.rows_seen : self.rows_seen + rows]
        watched = numbers >= 0
        here = watched.nonzero()[:, 0]
        first = self.watched_seen
        self.rows_seen += rows
        self.watched_seen += len(here)
        if not len(here):
            return [], watched
        hooks = [
            (name, self._reader(depth, here, numbers[here], first))
            for depth, name in enumerate(self.points)
        ]
        final = (self.final_point, self._final_reader(here, numbers[here], first))
        return [*hooks, final], watched

    def _reader(
        self, depth: int, rows: Tensor, numbers: Tensor, first: int
    ) -> Callable[[Tensor, Any], None]:
        def read(value: Tensor, hook: Any) -> None:
            for number in numbers.unique().tolist():
                own = (numbers == number).nonzero()[:, 0]
                tokens = self.streams[number].shape[1]
                stream = value[rows[own].to(value.device), :tokens].float()
                self.last[first + own, depth] = stream[:, -1].cpu()
                if 0 < depth < len(self.points) - 1 and tokens > 1:
                    gram = self.grams[number][depth - 1]
                    self.cka[first + own, depth - 1] = _alignment(
                        _grams(stream), gram.to(value.device)
                    ).cpu()

        return read

    def _final_reader(
        self, rows: Tensor, numbers: Tensor, first: int
    ) -> Callable[[Tensor, Any], None]:
        lengths = torch.tensor([stream.shape[1] for stream in self.streams])[numbers]

        def read(value: Tensor, hook: Any) -> None:
            states = value[rows.to(value.device), (lengths - 1).to(value.device)]
            self.final[first : first + len(rows)] = states.float().cpu()

        return read

    def geometry(self) -> Geometry:
        """What was seen, a row for each row watched."""
        numbers = self.of_row[self.of_row >= 0]
        ends = torch.stack([stream[:, -1].float().cpu() for stream in self.streams])[numbers]
        cosine = torch.cosine_similarity(self.last, ends, dim=-1)[:, 1:]
        distance = (self.last - ends).norm(dim=-1)[:, 1:]
        return Geometry(cosine, distance, self.cka, *path(self.last), self.final)


def path(
    states: Float[Tensor, "row depth d_model"],
) -> tuple[Float[Tensor, "row layer"], Float[Tensor, "row layer"]]:
    """Velocity and curvature of paths through the layers, as `Geometry` has them."""
    steps = states[:, 1:] - states[:, :-1]
    lengths = steps.norm(dim=-1)
    cosine = (steps[:, 1:] * steps[:, :-1]).sum(-1) / (lengths[:, 1:] * lengths[:, :-1])
    angles = torch.acos(cosine.clamp(-1, 1))  # 0/0 is NaN and stays NaN
    return lengths, torch.nn.functional.pad(angles, (1, 0), value=torch.nan)


def _grams(states: Float[Tensor, "some pos d_model"]) -> Float[Tensor, "some pos pos2"]:
    centred = states.float() - states.float().mean(1, keepdim=True)
    return centred @ centred.transpose(1, 2)


def _alignment(
    ours: Float[Tensor, "row pos pos2"], clean: Float[Tensor, "pos pos2"]
) -> Float[Tensor, " row"]:
    """Linear CKA from Gram matrices of centred states; 0 where one is zero."""
    both = (ours * clean).sum((1, 2))
    scale = ours.flatten(1).norm(dim=1) * clean.norm()
    return torch.where(scale > 0, both / scale, torch.zeros_like(both))
