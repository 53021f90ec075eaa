"""A sweep: many prompts traced and measured into a folder, resumable after any interruption.

Each batch is a Parquet part that is written atomically. Starting again measures the batches whose
part is missing or damaged and leaves the others alone; a folder of another run is refused, as is
one that another sweep is writing to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from strace_lens.corpus.batches import Batch
from strace_lens.corpus.engine import Engine, this_process
from strace_lens.corpus.parts import DamagedPartError, part_path, part_paths, read_part, write_part
from strace_lens.corpus.prepare import prepare
from strace_lens.corpus.prompts import CorpusPrompt, with_wrong_texts
from strace_lens.corpus.run_folder import (
    Run,
    as_begun,
    only_writer,
    open_run,
    prompt_key,
    read_run,
)
from strace_lens.corpus.setting import Options
from strace_lens.model.architecture import Model
from strace_lens.model.checks import architecture_of
from strace_lens.model.hold import verb
from strace_lens.utils.disk import remove_strays, results_folder
from strace_lens.utils.progress import Progress, reporting


@verb
def sweep(
    model: Model | None,
    prompts: Sequence[CorpusPrompt],
    out: str | Path,
    options: Options | None = None,
    *,
    engine: Engine | None = None,
    retry_failed: bool = False,
    progress: Progress | None = None,
) -> Run:
    """Trace and measure prompts into a folder, resuming an earlier sweep of the same run.

    A prompt that cannot be traced or fails is recorded with its reason and does not end the sweep.
    If memory runs out, the batch is halved and run again, down to single prompts and smaller
    passes.

    Args:
        model: the model; None if an engine is given whose workers load it. With both, the model
            reads the prompts, and workers that load other weights are refused.
        prompts: prompts from `read_corpus`; with `controls="all"`, their labels `wrong` and
            `sibling` name the controls of each (`estimator_controls`).
        out: folder, which is created if it does not exist.
        options: the options that results depend on.
        engine: where batches are measured; by default in this process.
        retry_failed: measure prompts that failed in an earlier sweep again, and the rest of their
            batches; prompts that cannot be traced at all are not tried again.
        progress: called at the start and after each batch; by default a progress bar.

    Raises:
        ValueError: no prompts, neither a model nor an engine, or an option out of range.
        OtherResultsError: the folder holds a run of another model or of other weights, prompts,
            options or versions. The prompts may be in another order: they keep the numbers that
            they had when the run was started.
        LockedRunError: another sweep is writing to the folder.
        PromptMemoryError: a single prompt does not fit in memory; finished batches are kept.
        PartError: no prompt could be measured; the reasons are in the parts.

    Example:
        >>> prompts = sl.read_corpus("builtin", limit=2)
        >>> run = sl.sweep(sl.load_model(), prompts, "runs/first", sl.Options(keep=("attention",)))
        >>> run.prompts[["text", "density"]]
    """
    if not prompts:
        raise ValueError("no prompts to sweep; give at least one")
    if engine is None:
        if model is None:
            raise ValueError("no model to sweep with; give one, or an engine whose workers load it")
        engine = this_process(model)
    if model is not None:
        architecture_of(model)  # what cannot be traced leaves no folder
    options, folder = options or Options(), Path(out)
    if options.controls == "all":
        prompts = with_wrong_texts(prompts)
    with (
        results_folder(folder),
        only_writer(folder),
        _threads(options.threads),
        engine(options.threads) as workers,
    ):
        remove_strays(folder / "parts")
        prompts = as_begun(folder, prompts)
        made = (
            workers.prepare(prompts, options) if model is None else prepare(model, prompts, options)
        )
        keys = [prompt_key(prompt) for prompt in prompts]
        manifest = open_run(folder, {**made.facts, "prompts": keys})
        if len(part_paths(folder)) > len(made.batches):
            raise ValueError(
                f"{folder} has more parts than the run has batches; name another folder"
            )
        missing = [b for b in made.batches if not _is_done(folder, manifest, b, retry_failed)]
        with reporting(progress, "prompts", manifest["given"]) as advance:
            advance(manifest["given"] - sum(len(batch.items) for batch in missing))
            for batch, rows in workers.measure(made.setting, missing):
                write_part(part_path(folder, batch.number), rows, manifest, batch.numbers)
                advance(len(batch.items))
    return read_run(folder)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Have torch compute with so many threads; afterwards with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _is_done(folder: Path, manifest: Mapping[str, Any], batch: Batch, retry_failed: bool) -> bool:
    """Whether the part of a batch is there as it should be, and holds nothing to try again.

    The whole part is read: damage in any column is found here, not when the run is analysed.
    """
    path = part_path(folder, batch.number)
    if not path.is_file():
        return False
    try:
        frame = read_part(path, manifest, batch.numbers)
    except DamagedPartError:
        return False
    traceable = {item.number for item in batch.items if item.prompt is not None}
    failed = frame.loc[frame["error"].notna(), "prompt"]
    return not retry_failed or traceable.isdisjoint(failed)
