"""Prompts to batches: tokenized, grouped by length, each batch one part of the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from strace_lens.corpus.altered import corrupted, next_token
from strace_lens.corpus.prompts import CONTROL_LABELS, CorpusPrompt, generator_for
from strace_lens.corpus.setting import Options
from strace_lens.density.cost import most_rows
from strace_lens.model.architecture import Architecture, Model
from strace_lens.model.forward import last_logits, rows_per_pass
from strace_lens.model.prompts import (
    Prompt,
    PromptError,
    added_text,
    extended,
    own_tokenizer,
    pad_right,
    text_ids,
    tokenize,
)

MOST_PROMPTS = 8
"""In a batch: as many are measured again after a power failure."""


@dataclass(frozen=True)
class Item:
    """A prompt of a sweep.

    Attributes:
        number: of the prompt, from 0.
        text: as given.
        prompt: its tokens, corrupted if the sweep does so; None where it cannot be traced.
        next: the text that truly follows, if it is known.
        next_id: the token that truly follows.
        labels: as given.
        error: why it cannot be traced.
        original: tokens of the text as given, where they were corrupted.
        wrong, sibling: tokens of the prompt's controls, where the sweep runs them
            (`estimator_controls`).
    """

    number: int
    text: str
    prompt: Prompt | None
    next: str | None = None
    next_id: int | None = None
    labels: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    original: Prompt | None = None
    wrong: Prompt | None = None
    sibling: Prompt | None = None

    @property
    def length(self) -> int:
        """Number of its tokens; 0 where it cannot be traced."""
        return 0 if self.prompt is None else len(self.prompt.ids)


class Batch(NamedTuple):
    """Prompts that are measured together and written as one part."""

    number: int
    items: tuple[Item, ...]

    @property
    def numbers(self) -> list[int]:
        """The numbers of its prompts."""
        return [item.number for item in self.items]


def items_of(
    model: Model, architecture: Architecture, prompts: Sequence[CorpusPrompt], options: Options
) -> list[Item]:
    """Tokenize prompts; one that cannot be traced carries the reason.

    Raises:
        ValueError: a label has the name of one that growing prompts adds.
    """
    taken = {name for one in prompts for name in one.labels} & {"of", "step"}
    if options.generate and taken:
        raise ValueError(f"generating tokens adds a label {min(taken)!r}; rename the one given")
    items = []
    of_controls = CONTROL_LABELS if options.controls == "all" else ()
    for number, one in enumerate(prompts):
        labels = {name: v for name, v in one.labels.items() if name not in of_controls}
        item = Item(number, one.text, None, one.next, labels=labels)
        try:
            tokens = tokenize(model, architecture, one.text, options.bos)
            if of_controls:
                controls = _control_prompts(model, architecture, one, tokens, options.bos)
                item = replace(item, **controls)
            if options.corrupt == "none":
                item = replace(item, prompt=tokens, next_id=_next_id(model, one))
            else:
                item = replace(item, next=None)  # nothing truly follows a text that nobody wrote
                changed = corrupted(model, architecture, tokens, options)
                item = replace(item, prompt=changed, original=tokens)
        except ValueError as error:
            item = replace(item, error=str(error))
        items.append(item)
    return _grown(model, architecture, items, options) if options.generate else items


def _control_prompts(
    model: Model, architecture: Architecture, given: CorpusPrompt, tokens: Prompt, bos: bool | None
) -> dict[str, Prompt]:
    """The tokens of a prompt's controls: of `wrong`, and of its `sibling` if it has one."""
    texts = {name: given.labels[name] for name in CONTROL_LABELS if name in given.labels}
    found = {name: tokenize(model, architecture, str(text), bos) for name, text in texts.items()}
    sibling = found.get("sibling")
    if sibling is not None and len(sibling.ids) != len(tokens.ids):
        raise PromptError(
            f"the sibling has {len(sibling.ids)} tokens, the prompt {len(tokens.ids)}; "
            "give texts of equal token length"
        )
    return found


def _next_id(model: Model, one: CorpusPrompt) -> int | None:
    """The token that the next text begins with after the prompt's own tokens.

    None where it is unknown, or where the text after the prompt changes the prompt's tokens.
    """
    tokenizer = own_tokenizer(model)
    if not one.next or tokenizer is None:
        return None
    plain = text_ids(tokenizer, one.text)
    longer = text_ids(tokenizer, one.text + one.next)
    if longer[: len(plain)] == plain and len(longer) > len(plain):
        return longer[len(plain)]
    return None


def _grown(
    model: Model, architecture: Architecture, items: Sequence[Item], options: Options
) -> list[Item]:
    """Every prompt, then itself with one to `options.generate` tokens that the model added."""
    tokenizer = own_tokenizer(model)
    grown: list[Item] = []
    for item in items:
        if item.prompt is None:
            labels = {**item.labels, "of": item.number, "step": 0}
            grown.append(replace(item, number=len(grown), labels=labels))
            continue
        added: list[int] = []
        generator = generator_for(item.text, options.seed)
        for step in range(options.generate + 1):
            prompt = extended(model, item.prompt, added)
            if len(prompt.ids) > architecture.context:
                break
            following = None
            if step < options.generate:
                logits = last_logits(model, architecture, pad_right([prompt.tensor]))[0]
                following = next_token(logits, options.temperature, options.top_p, generator)
                added.append(following)
            here = Item(
                number=len(grown),
                text=prompt.text,
                prompt=prompt,
                next=None if following is None else added_text(tokenizer, prompt.ids, [following]),
                next_id=following,
                labels={**item.labels, "of": item.number, "step": step},
            )
            grown.append(here)
    return grown


def batches_of(architecture: Architecture, items: Sequence[Item], options: Options) -> list[Batch]:
    """Batches of prompts of like length: as many as fill one pass of the memory budget.

    The options are those on the device of the model (`Options.on`). A batch has at most
    `MOST_PROMPTS`, at least one. What cannot be traced is a batch of its own, the last.
    """
    rows = most_rows(options.sizes, options.size_controls)
    groups: list[list[Item]] = []
    traceable = [item for item in items if item.prompt is not None]
    for item in sorted(traceable, key=lambda item: item.length):
        fits = rows_per_pass(architecture, item.length, options.pass_bytes) // rows
        if groups and len(groups[-1]) < min(MOST_PROMPTS, max(1, fits)):
            groups[-1].append(item)
        else:
            groups.append([item])
    refused = [item for item in items if item.prompt is None]
    if refused:
        groups.append(refused)
    return [Batch(number, tuple(group)) for number, group in enumerate(groups)]
