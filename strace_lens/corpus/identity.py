"""By what a run knows its prompts again, whatever order they are given in."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from strace_lens.corpus.batches import Item
from strace_lens.corpus.manifest import OtherRunError
from strace_lens.corpus.prompts import CorpusPrompt


def prompt_key(prompt: CorpusPrompt) -> str:
    """Hash of everything that was given of a prompt."""
    said = prompt.text, prompt.next, sorted(prompt.labels.items())
    return hashlib.sha256(repr(said).encode()).hexdigest()[:16]


def tokens_hash(items: Sequence[Item]) -> str:
    """Hash of the tokens of all prompts of a run, in their order."""
    ids = [item.prompt.ids if item.prompt else () for item in items]
    return hashlib.sha256(repr(ids).encode()).hexdigest()[:16]


def in_order_of(keys: Sequence[str], prompts: Sequence[CorpusPrompt]) -> list[CorpusPrompt]:
    """The prompts of a run in the order in which it was begun.

    Args:
        keys: of the prompts of the run, in its order.
        prompts: given now, in any order.

    Raises:
        OtherRunError: prompts are missing or new; the message says how many, and shows one.
    """
    given: dict[str, list[CorpusPrompt]] = defaultdict(list)
    for prompt in reversed(prompts):
        given[prompt_key(prompt)].append(prompt)
    found = [given[key].pop() if given[key] else None for key in keys]
    ordered = [prompt for prompt in found if prompt is not None]
    new = [prompt for left in given.values() for prompt in left]
    if new or len(ordered) < len(keys):
        said = f"of its {len(keys)} prompts {len(keys) - len(ordered)} are not given"
        if new:
            said += f", and {len(new)} that are given are not in it, such as {_shown(new[-1].text)}"
        raise OtherRunError(said)
    return ordered


def _shown(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= 40 else f"{line[:37]}...")
