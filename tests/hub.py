"""A Hugging Face hub cache made here: one repository of two revisions, nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
import torch

from tests import tiny

NAME, MAIN, EARLY = "somebody/tiny", "a" * 40, "b" * 40
REVISION = "step1000"


def fill(folder: Path) -> None:
    """Make the cache: main holds the tiny Llama, the other revision one of halved matrices.

    Its tokenizer has a BOS that is its EOS too, as GPT-2's has.
    """
    repository = folder / f"models--{NAME.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    for revision, commit in (("main", MAIN), (REVISION, EARLY)):
        (repository / "refs" / revision).write_text(commit)
        snapshot = repository / "snapshots" / commit
        model = tiny.BRIDGES["llama"]()
        tokenizer = tiny.tokenizer()
        if commit == EARLY:
            halve(model)
            tokenizer = type(tokenizer).from_pretrained(tokenizer.name_or_path, bos_token="</s>")
        model.save_pretrained(snapshot)
        tokenizer.save_pretrained(snapshot)


def halve(model: torch.nn.Module) -> None:
    """Halve the matrices of a model."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(0.5)


def use(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Let the hub's libraries look there alone."""
    patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
