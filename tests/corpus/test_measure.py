"""Batches for which there is not the memory: halved and tried again, and never recorded so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from strace_lens.corpus import batches as batches_module
from strace_lens.corpus import measure
from strace_lens.corpus.batches import Item
from strace_lens.corpus.measure import PromptMemoryError, is_memory_error
from strace_lens.corpus.parts import part_paths
from strace_lens.corpus.prompts import CorpusPrompt
from strace_lens.corpus.run_folder import Run, read_run
from strace_lens.corpus.setting import Setting
from strace_lens.corpus.sweep import sweep
from strace_lens.utils.choices import MEMORY_BUDGET
from tests.corpus.made import model, options, prompts, words

HUGE = 2**58


@pytest.fixture(scope="module", autouse=True)
def four_a_batch() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches_module, "MOST_PROMPTS", 4)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return sweep(model(), prompts(), tmp_path_factory.mktemp("runs") / "whole", options())


@pytest.mark.parametrize("allocate", [torch.empty, np.empty, lambda size: bytearray(8 * size)])
def test_what_allocators_raise_is_known(allocate: Callable[[int], Any]) -> None:
    with pytest.raises((MemoryError, RuntimeError)) as raised:
        allocate(HUGE)
    assert is_memory_error(raised.value)


def test_other_errors_are_none_of_memory() -> None:
    assert is_memory_error(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert not is_memory_error(RuntimeError("shape '[4, 4, 32]' is invalid for input of size 8"))
    assert not is_memory_error(ValueError("out of memory"))


Fits = Callable[[Setting, Sequence[Item]], bool]


def scarce(patch: pytest.MonkeyPatch, fits: Fits) -> list[int]:
    """Let a real allocation fail where a batch does not fit; what was tried, by its size."""
    real, tried = measure._measured, []

    def measured(model: Any, setting: Setting, items: Sequence[Item]) -> Any:
        tried.append(len(items))
        if not fits(setting, items):
            torch.empty(HUGE)
        return real(model, setting, items)

    patch.setattr(measure, "_measured", measured)
    return tried


def same_numbers(run: Run, whole: Run) -> None:
    assert run.prompts["prompt"].tolist() == whole.prompts["prompt"].tolist()
    np.testing.assert_allclose(run.sizes["tv"], whole.sizes["tv"], atol=1e-5)


@pytest.mark.extended
def test_a_batch_is_halved_until_it_fits(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = scarce(monkeypatch, lambda _, items: len(items) == 1)
    run = sweep(model(), prompts(), tmp_path, options())
    assert tried == [4, 2, 1, 1, 2, 1, 1, 2, 1, 1]
    assert run.failures.empty
    same_numbers(run, whole)


@pytest.mark.extended
def test_a_prompt_that_does_not_fit_alone_is_run_in_smaller_passes(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = options()
    most = MEMORY_BUDGET // 4
    tried = scarce(monkeypatch, lambda s, _: s.options.pass_bytes <= most)
    run = sweep(model(), prompts(), tmp_path, given)
    assert tried.count(1) == 6 * 3
    assert run.failures.empty
    assert run.manifest["options"]["memory_budget"] == MEMORY_BUDGET
    same_numbers(run, whole)


@pytest.mark.extended
def test_a_prompt_that_never_fits_ends_the_sweep_and_is_tried_again(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = prompts()[3]
    with monkeypatch.context() as patch:
        scarce(patch, lambda _, items: all(item.text != longest.text for item in items))
        with pytest.raises(PromptMemoryError, match=r"prompt 3 \(\d+ tokens\) does not fit in mem"):
            sweep(model(), prompts(), tmp_path, options())
    assert len(part_paths(tmp_path)) == 1
    assert len(read_run(tmp_path).prompts) == 4
    run = sweep(model(), prompts(), tmp_path, options())
    assert run.failures.empty
    same_numbers(run, whole)


@pytest.mark.extended
def test_what_failed_is_tried_again_if_asked(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [*prompts(), CorpusPrompt(words(1))]  # the last cannot be traced at all
    with monkeypatch.context() as patch:
        real = measure.token_graph

        def fails(model: Any, prompt: Any) -> Any:
            if prompt.text == prompts()[2].text:
                raise FloatingPointError("a passing failure")
            return real(model, prompt)

        patch.setattr(measure, "token_graph", fails)
        assert sweep(model(), given, tmp_path, options()).failures["prompt"].tolist() == [2, 6]
    tried = scarce(monkeypatch, lambda *_: True)
    assert sweep(model(), given, tmp_path, options()).failures["prompt"].tolist() == [2, 6]
    assert tried == []
    run = sweep(model(), given, tmp_path, options(), retry_failed=True)
    assert run.failures["prompt"].tolist() == [6]
    assert tried == [2]
    same_numbers(run, whole)
    sweep(model(), given, tmp_path, options(), retry_failed=True)
    assert tried == [2]
