"""A task: pairs of clean and corrupted prompts, aligned token by token, and their metric."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from strace_lens.circuits.metrics import METRICS, NEEDS
from strace_lens.utils.html_repr import facts


class TaskError(ValueError):
    """Raised when a task cannot be made or used, with the reason."""


@dataclass(frozen=True, eq=False)
class Task:
    """Pairs of clean and corrupted prompts, with the answers that the metric compares.

    Attributes:
        name: name of the task, for tables.
        clean: token ids, padded on the right with 0 if pairs differ in length.
        corrupted: token ids; each prompt is as long as its clean one.
        lengths: number of tokens of each pair, without padding.
        answers: ids of the right next tokens of the clean prompt, -1 if a pair has fewer.
        incorrect: ids of the wrong ones, -1 if a pair has fewer.
        metric: key of `METRICS`.
        every_position: whether the output is read at every position, not only at the last.
        dropped: number of pairs left out because clean and corrupted did not align.
        texts: clean and corrupted text of each pair; empty if not known.
        metadata: how the task was made: seed, file, model.
        spans: number of the span in which each token of a pair lies; None where edges by position
            belong to single tokens. See `with_spans`.

    Raises:
        TaskError: parts do not fit together; the message names the first.
    """

    name: str
    clean: Int[Tensor, "pair pos"]
    corrupted: Int[Tensor, "pair pos"]
    lengths: Int[Tensor, " pair"]
    answers: Int[Tensor, "pair answer"]
    incorrect: Int[Tensor, "pair wrong"]
    metric: str
    every_position: bool = False
    dropped: int = 0
    texts: tuple[tuple[str, str], ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    spans: Int[Tensor, "pair pos"] | None = None

    def __post_init__(self) -> None:
        self._check_prompts()
        self._check_answers()
        self._check_spans()

    def __len__(self) -> int:
        return self.clean.shape[0]

    def __repr__(self) -> str:
        dropped = f", {self.dropped} dropped" if self.dropped else ""
        pairs = f"{len(self)} pair{'s' * (len(self) != 1)}"
        return f"Task({self.name}: {pairs} of up to {self.clean.shape[1]} tokens{dropped})"

    def _repr_html_(self) -> str:
        return facts(repr(self), pd.DataFrame(self.texts, columns=["clean", "corrupted"]))

    @property
    def equal_lengths(self) -> bool:
        """Whether all pairs have the same number of tokens."""
        return bool((self.lengths == self.clean.shape[1]).all())

    @property
    def positions(self) -> int:
        """How many positions an edge can be kept at: spans if there are some, otherwise tokens."""
        return self.clean.shape[1] if self.spans is None else int(self.spans.max()) + 1

    @property
    def unchanged(self) -> tuple[int, ...]:
        """Indices, from 0, of the pairs whose clean and corrupted prompts are the same tokens."""
        clean, corrupted = self.clean.tolist(), self.corrupted.tolist()
        lengths = enumerate(self.lengths.tolist())
        return tuple(i for i, n in lengths if clean[i][:n] == corrupted[i][:n])

    def take(self, rows: slice | Sequence[int]) -> Task:
        """Select pairs, in the order given; the width, and so all positions, stay the same.

        Raises:
            IndexError: a row does not exist.
            TaskError: no row is selected.
        """
        keep = range(len(self))[rows] if isinstance(rows, slice) else rows
        index = torch.tensor(list(keep), dtype=torch.int64, device=self.clean.device)
        return dataclasses.replace(
            self,
            clean=self.clean[index],
            corrupted=self.corrupted[index],
            lengths=self.lengths[index],
            answers=self.answers[index],
            incorrect=self.incorrect[index],
            texts=tuple(self.texts[i] for i in keep) if self.texts else (),
            spans=None if self.spans is None else self.spans[index],
        )

    def with_spans(self, firsts: Sequence[Sequence[int]]) -> Task:
        """Divide the prompts of each pair into spans of tokens that mean the same in every pair.

        Scores, circuits and masks by token position then have one position for each span, so that
        prompts of different lengths can be compared: Haklay et al. (2025, arXiv 2502.04577),
        section 4.

        Args:
            firsts: for each pair the first token of each span, rising from 0; every pair has as
                many spans, each of at least one token.

        Raises:
            TaskError: spans of another number of pairs, or that do not rise from 0 within a prompt.

        Example:
            >>> task = sl.make_task(sl.load_model(), "ioi", pairs=2)
            >>> task.with_spans([[0, 4, 9], [0, 4, 10]]).positions
            3
        """
        if len(firsts) != len(self):
            raise TaskError(f"spans of {len(firsts)} pairs, but task {self.name!r} has {len(self)}")
        width, lengths = self.clean.shape[1], self.lengths.tolist()
        rows = []
        for pair, (own, length) in enumerate(zip(firsts, lengths, strict=True)):
            numbers = span_numbers(own, length, width)
            if numbers is None or len(own) != len(firsts[0]):
                raise TaskError(
                    f"the spans of pair {pair} must begin at token 0, rise within its {length} "
                    f"tokens and be as many as those of pair 0 ({len(firsts[0])}); got {list(own)}"
                )
            rows.append(numbers)
        return dataclasses.replace(self, spans=torch.stack(rows))

    def sample(self, pairs: int | None = None, seed: int = 0) -> Task:
        """Draw pairs at random without replacement.

        Args:
            pairs: number of pairs; all, in random order, if None or if there are no more.
            seed: the same seed gives the same pairs in the same order.

        Raises:
            TaskError: no pair is drawn.
        """
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed)).tolist()
        return self.take(order[:pairs])

    def _check_prompts(self) -> None:
        if self.clean.ndim != 2 or self.clean.shape != self.corrupted.shape:
            raise TaskError(
                f"clean and corrupted prompts must align token by token, [pair, pos]; got shapes "
                f"{tuple(self.clean.shape)} and {tuple(self.corrupted.shape)}"
            )
        pairs, width = self.clean.shape
        if not pairs or not width:
            raise TaskError(f"task {self.name!r} has no pairs of prompts")
        if self.lengths.shape != (pairs,):
            raise TaskError(f"lengths of shape {tuple(self.lengths.shape)} for {pairs} pairs")
        shortest, longest = int(self.lengths.min()), int(self.lengths.max())
        if shortest < 1 or longest > width:
            bad = shortest if shortest < 1 else longest
            raise TaskError(f"lengths must lie in 1 to {width}, the width of a row; got {bad}")
        for what, ids in (("clean", self.clean), ("corrupted", self.corrupted)):
            if int(ids.min()) < 0:
                raise TaskError(f"{what} prompts hold the token id {int(ids.min())}")
        if self.every_position and not self.equal_lengths:
            raise TaskError("a task read at every position needs prompts of one length, unpadded")
        if self.texts and len(self.texts) != pairs:
            raise TaskError(f"{len(self.texts)} texts for {pairs} pairs")

    def _check_spans(self) -> None:
        if self.spans is None:
            return
        if self.spans.shape != self.clean.shape:
            raise TaskError(
                f"spans of shape {tuple(self.spans.shape)} for prompts of shape "
                f"{tuple(self.clean.shape)}"
            )
        if int(self.spans.min()) < 0:
            raise TaskError(f"spans are counted from 0; got {int(self.spans.min())}")

    def _check_answers(self) -> None:
        if self.metric not in METRICS:
            raise TaskError(f"unknown metric {self.metric!r}; choose from {', '.join(METRICS)}")
        for name, what, ids in (
            ("answers", "answers", self.answers),
            ("incorrect", "incorrect answers", self.incorrect),
        ):
            if ids.ndim != 2 or ids.shape[0] != len(self):
                raise TaskError(f"{what} of shape {tuple(ids.shape)} for {len(self)} pairs")
            missing = ~(ids >= 0).any(-1)
            if name in NEEDS[self.metric] and bool(missing.any()):
                raise TaskError(
                    f"pair {int(missing.nonzero()[0, 0])} has no {what}, which {self.metric} needs"
                )
        for pair, (right, wrong) in enumerate(
            zip(self.answers.tolist(), self.incorrect.tolist(), strict=True)
        ):
            named = [i for i in (*right, *wrong) if i != -1]
            if any(i < -1 for i in named):
                raise TaskError(f"pair {pair} has the answer id {min(named)}; -1 marks no answer")
            if len(set(named)) < len(named):
                twice = next(i for i in named if named.count(i) > 1)
                raise TaskError(f"pair {pair} names the token {twice} twice among its answers")


def span_numbers(firsts: Sequence[int], length: int, width: int) -> Int[Tensor, " pos"] | None:
    """The number of the span in which each token of a padded prompt lies.

    None where the spans, given by their first tokens, do not rise from 0 within its length.
    """
    rises = all(a < b for a, b in itertools.pairwise([*firsts, length]))
    if list(firsts[:1]) != [0] or not rises:
        return None
    return torch.searchsorted(torch.tensor(firsts), torch.arange(width), right=True) - 1
