"""Targets: one token, or a logit difference between two sets of tokens, in place of a distribution.

A logit difference is the mean logit of one set less that of the other, as in Wang et al. (2023),
"Interpretability in the Wild" (arXiv 2211.00593), who have one token on each side.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from strace_lens.model.architecture import Architecture, Model
from strace_lens.model.prompts import Prompt, continuation_ids, label, own_tokenizer

Token = str | int
"""A token as its text, which begins with a space where the word does, or as its id."""

ROUNDING = 1e-9
"""Values of a target that differ by no more than this are the same."""


class TargetError(ValueError):
    """A target that does not name tokens of the model, with the reason."""


@dataclass(frozen=True)
class Target:
    """What is asked of a next-token distribution: one token, or some tokens against others.

    The value of a target is the probability of its token or, where there are tokens to compare
    with, the logit difference: the mean logit of `ids` less the mean logit of `against`.

    Attributes:
        ids: token ids that are asked for; one where there is nothing to compare with.
        against: token ids that they are compared with; empty for the probability of one token.
        strings: a label of each of `ids`.
        against_strings: a label of each of `against`.
    """

    ids: tuple[int, ...]
    against: tuple[int, ...]
    strings: tuple[str, ...]
    against_strings: tuple[str, ...]

    @property
    def named(self) -> tuple[int, ...]:
        """Every token id that the target names."""
        return self.ids + self.against

    def direction(self, like: Float[Tensor, "*any vocab"]) -> Float[Tensor, " vocab"]:
        """Weights of the logits in the target: 1 / n for each of n tokens, negative for `against`.

        Log-probabilities may stand in for logits where there are tokens to compare with: what they
        differ by cancels.
        """
        weights = like.new_zeros(like.shape[-1])
        weights[list(self.ids)] = 1 / len(self.ids)
        if self.against:
            weights[list(self.against)] = -1 / len(self.against)
        return weights

    def log_value(self, log_probs: Float[Tensor, "*row vocab"]) -> Float[Tensor, "*row"]:
        """The log-probability of the token, or the logit difference; linear in its argument."""
        return log_probs @ self.direction(log_probs)

    def value(self, log_probs: Float[Tensor, "*row vocab"]) -> Float[Tensor, "*row"]:
        """The probability of the token, or the logit difference."""
        found = self.log_value(log_probs)
        return found if self.against else found.exp()

    @property
    def quantity(self) -> str:
        """What is measured, in words: "probability of ' Rome'"."""
        what = "logit difference of" if self.against else "probability of"
        return f"{what} {self}"

    def facts(self) -> dict[str, Any]:
        """The target as JSON holds it; `target_of` reads it back."""
        return {name: list(value) for name, value in asdict(self).items()}

    def __str__(self) -> str:
        asked, others = (", ".join(map(repr, x)) for x in (self.strings, self.against_strings))
        return f"{asked} against {others}" if self.against else asked


TargetLike = Target | Token | Sequence[Token | Sequence[Token]]
"""A target, the one token that it names, or a pair of tokens or of lists of tokens to compare."""


def target_of(facts: Mapping[str, Any]) -> Target:
    """The target that `Target.facts` wrote."""
    return Target(**{name: tuple(value) for name, value in facts.items()})


def make_target(
    model: Model, architecture: Architecture, prompt: Prompt, target: TargetLike
) -> Target:
    """Find the tokens of a target in a model's vocabulary.

    Args:
        model: with a tokenizer, unless tokens are given as ids.
        architecture: of the same model.
        prompt: what the target follows; the tokenizer reads a text as it goes on with the prompt.
        target: " Rome" for the probability of a token, (" Rome", " Paris") for a logit difference,
            ([" Rome", " Milan"], " Paris") for one of sets. Ids may stand for texts.

    Raises:
        TargetError: a text that is not one token or unknown, an id out of the vocabulary, a token
            named twice, an empty set, or anything but one token or a pair.

    Example:
        >>> make_target(model, architecture, graph.prompt, (" Rome", " Paris")).quantity
        "logit difference of ' Rome' against ' Paris'"
    """
    if isinstance(target, Target):
        _check_ids(architecture, target.named)
        return target
    if _is_token(target):
        asked, others = [target], []
    else:
        pair = list(target)  # pyright: ignore[reportArgumentType]
        if len(pair) != 2:
            raise TargetError(
                "a target is one token, as ' Rome', or a pair of tokens or of lists of tokens, as "
                f"(' Rome', ' Paris'); got {len(pair)} parts in {target!r}"
            )
        asked, others = ([side] if _is_token(side) else list(side) for side in pair)
        for side, which in ((asked, "first"), (others, "second")):
            if not side:
                raise TargetError(f"the {which} part of the target {target!r} names no token")
    tokenizer = own_tokenizer(model)
    asked, others = (
        tuple(_token_id(tokenizer, architecture, prompt, token) for token in side)
        for side in (asked, others)
    )
    _check_ids(architecture, asked + others)
    twice = next((i for i in asked + others if (asked + others).count(i) > 1), None)
    if twice is not None:
        raise TargetError(f"the target names the token {label(tokenizer, twice)!r} twice")
    strings, against = (tuple(label(tokenizer, i) for i in side) for side in (asked, others))
    return Target(asked, others, strings, against)


def _is_token(value: object) -> bool:
    if isinstance(value, str):
        return True
    try:
        operator.index(value)  # pyright: ignore[reportArgumentType]
    except TypeError:
        return False
    return not isinstance(value, bool)


def _token_id(tokenizer: Any, architecture: Architecture, prompt: Prompt, token: Any) -> int:
    if not isinstance(token, str):
        if not _is_token(token):
            raise TargetError(f"a token of a target is a text or an id; got {token!r}")
        return operator.index(token)
    if tokenizer is None:
        raise TargetError(
            f"{architecture.name} has no tokenizer; name {token!r} by its token id instead"
        )
    ids = continuation_ids(tokenizer, prompt, token) if token else []
    if len(ids) != 1:
        are = ", ".join(repr(label(tokenizer, i)) for i in ids) or "no tokens"
        raise TargetError(
            f"{token!r} is not one token of {architecture.name} but {len(ids)}: {are}; name one of "
            "its tokens, or begin a word with its space"
        )
    if ids[0] == getattr(tokenizer, "unk_token_id", None):
        raise TargetError(f"{token!r} is not in the vocabulary of {architecture.name}")
    return ids[0]


def _check_ids(architecture: Architecture, ids: Sequence[int]) -> None:
    bad = next((i for i in ids if not 0 <= i < architecture.d_vocab), None)
    if bad is not None:
        raise TargetError(
            f"token id {bad} of the target lies outside the vocabulary of {architecture.d_vocab}"
        )


def recovered(
    values: Float[Tensor, " row"], full: Float[Tensor, ""], empty: Float[Tensor, ""]
) -> Float[Tensor, " row"]:
    """Share of the way from the empty trace's value (0) to the full model's (1); NaN if they agree.

    Where a trace goes beyond the model the share is above 1, and below 0 where it goes the other
    way.
    """
    way = full - empty
    return ((values - empty) / way).masked_fill(way.abs() <= ROUNDING, torch.nan)
