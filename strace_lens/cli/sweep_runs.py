"""The prompts that `strace-lens sweep` takes, its runs one after the other, and what it prints."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import typer

from strace_lens.cli.common import Bar, say
from strace_lens.corpus.prompts import (
    CorpusPrompt,
    cut_to_words,
    deduplicate,
    ends_of_tokens,
    sample,
    with_wrong_texts,
)
from strace_lens.corpus.read import check_limit, read_corpus
from strace_lens.corpus.run_folder import Run
from strace_lens.corpus.setting import Options
from strace_lens.model.architecture import Model
from strace_lens.model.prompts import own_tokenizer, text_ids
from strace_lens.model.skeleton import Skeleton
from strace_lens.traces.edges import keep_text
from strace_lens.utils.interrupt import INTERRUPTED


def sweep_each(
    run: Callable[..., Run],
    options: Options,
    estimators: Sequence[str],
    keeps: Sequence[tuple[str, ...]],
    folder: Path,
    bar: Bar,
) -> dict[Path, Run]:
    """Sweep with each combination of estimator and kept kinds, one after the other.

    Returns:
        The runs by folder: the given one, or one within it for each of several combinations.
    """
    runs = {}
    several = len(estimators) * len(keeps) > 1
    for estimator, keep in itertools.product(estimators, keeps):
        name = f"{estimator}-keep-{keep_text(keep)}" if keep else estimator
        into = folder / name if several else folder
        bar.step(name)
        try:
            runs[into] = run(
                into,
                dataclasses.replace(options, estimator=estimator, keep=keep),
                progress=lambda done, total, _, name=name: bar.tell(done, total, name),
            )
        except KeyboardInterrupt:
            bar.stop()
            say("stopped; the same command resumes the sweep")
            raise typer.Exit(INTERRUPTED) from None
    return runs


def prompts_of(
    prompts: str,
    text_column: str,
    split: str | None,
    limit: int | None,
    dedupe: bool,
    controls: str,
) -> list[CorpusPrompt]:
    """The prompts of a source; with all controls, wrong targets may lie beyond the limit."""
    if controls == "all":
        check_limit(limit)
        every = read_corpus(prompts, text_column=text_column, split=split)
        given = with_wrong_texts(every)[:limit]
    else:
        given = read_corpus(prompts, text_column=text_column, split=split, limit=limit)
    firsts = deduplicate(given) if dedupe else given
    if len(firsts) < len(given):
        typer.echo(f"left out {len(given) - len(firsts)} repeated texts", err=True)
    return firsts


def cut_and_sampled(
    model: Model | Skeleton,
    given: Sequence[CorpusPrompt],
    words: tuple[int, int] | None,
    count: int | None,
    seed: int,
) -> Sequence[CorpusPrompt]:
    """Cut and sample the prompts as the options say."""
    if words is not None:
        low, high = words
        # Only the tokenizer of the model is used, which a skeleton has too.
        tokenizer = own_tokenizer(cast(Model, model))
        cut = cut_to_words(
            lambda text: len(text_ids(tokenizer, text)),
            given,
            low,
            high,
            seed,
            functools.partial(ends_of_tokens, tokenizer),
        )
        left_out = {
            f"of fewer than {low} tokens": cut.too_short,
            f"that end no word within {low} to {high} tokens": cut.no_boundary,
        }
        for why, number in left_out.items():
            if number:
                typer.echo(f"left out {number} texts {why}", err=True)
        if not cut.prompts:
            raise ValueError(
                f"--words {low}:{high} leaves none of {len(given)} texts; widen the range"
            )
        given = cut.prompts
    return given if count is None else sample(given, count, seed)


def print_runs(runs: Mapping[Path, Run], out: Path, as_json: bool) -> None:
    """Print what the runs hold, or JSON."""
    if as_json:
        said = [_said(run, folder) for folder, run in runs.items()]
        print(json.dumps(said[0] if len(said) == 1 else said, allow_nan=False))
        return
    for folder, run in runs.items():
        for row in run.failures.to_dict("records"):
            typer.echo(f"prompt {row['prompt']} failed: {row['error']}", err=True)
        density = run.prompts["density"].to_numpy(dtype=np.float64)
        print(
            f"prompts measured: {len(run.prompts)} of {run.model} in {folder}, "
            f"mean density {density.mean():.3f}"
            + (f"; {len(run.failures)} failed" if len(run.failures) else "")
        )
    print(f"next: strace-lens phases {out}")


def _said(run: Run, folder: Path) -> dict[str, Any]:
    density = run.prompts["density"].to_numpy(dtype=np.float64)
    return {
        "out": str(folder),
        "model": run.model,
        "estimator": run.manifest["options"]["estimator"],
        "keep": run.manifest["options"]["keep"],
        "prompts": len(run.prompts),
        "failed": len(run.failures),
        "density": None if np.isnan(density).any() else float(density.mean()),
    }
