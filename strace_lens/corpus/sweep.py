"""A sweep: many prompts traced and measured into a folder, whatever stops it on the way.

Each batch is a Parquet part that is written whole. Starting again measures the batches whose part
is missing or damaged and leaves the others alone; a folder of another run is refused, and so is one
that another sweep is writing into.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from strace_lens.corpus.batches import Batch, Item, batches_of, items_of
from strace_lens.corpus.engine import Engine, this_process
from strace_lens.corpus.parts import DamagedPartError, part_path, part_paths, read_part, write_part
from strace_lens.corpus.prompts import CorpusPrompt, with_wrong_texts
from strace_lens.corpus.run_folder import (
    Run,
    as_begun,
    only_writer,
    open_run,
    prompt_key,
    read_run,
)
from strace_lens.corpus.setting import Options, setting_of
from strace_lens.model.architecture import Architecture, Model, device_of
from strace_lens.model.checks import architecture_of
from strace_lens.model.hold import verb
from strace_lens.model.weights import weights_hash
from strace_lens.traces.graph import shape_of
from strace_lens.utils.choices import kinds_to_keep
from strace_lens.utils.disk import remove_strays, results_folder
from strace_lens.utils.progress import Progress, reporting
from strace_lens.utils.versions import versions


@verb
def sweep(
    model: Model,
    prompts: Sequence[CorpusPrompt],
    out: str | Path,
    options: Options | None = None,
    *,
    engine: Engine | None = None,
    retry_failed: bool = False,
    progress: Progress | None = None,
) -> Run:
    """Trace and measure prompts into a folder, going on where an earlier sweep of it stopped.

    A prompt that cannot be traced or fails is recorded with its reason and does not end the sweep.
    That memory runs out is no reason: the batch is halved, down to single prompts and smaller
    passes.

    Args:
        model: the model; with another engine it only reads the prompts.
        prompts: of `read_corpus`; with `controls="all"`, their labels `wrong` and `sibling` name
            the controls of each (`estimator_controls`).
        out: folder, made if it is not there.
        options: what results depend on.
        engine: where batches are measured; in this process by default.
        retry_failed: measure prompts again that failed in an earlier sweep, their batches with
            them; a prompt that cannot be traced at all stays as it is.
        progress: told of prompts at the start and after each batch; a bar if not given.

    Raises:
        ValueError: no prompts, or an option out of its range.
        OtherResultsError: the folder holds a run of another model, other weights, other prompts,
            options or versions. The order of the prompts is no difference: they keep the numbers
            that they had when the run was begun.
        LockedRunError: another sweep is writing into the folder.
        PromptMemoryError: a prompt does not fit in memory on its own; what is done is kept.
        PartError: no prompt could be measured; the reasons are in the parts.

    Example:
        >>> prompts = sl.read_corpus("builtin", limit=2)
        >>> run = sl.sweep(sl.load_model(), prompts, "runs/first", sl.Options(keep=("attention",)))
        >>> run.prompts[["text", "density"]]
    """
    if not prompts:
        raise ValueError("no prompts to sweep; give at least one")
    architecture = architecture_of(model)  # what cannot be traced leaves no folder
    options, folder = (options or Options()).on(device_of(model)), Path(out)
    if options.controls == "all":
        prompts = with_wrong_texts(prompts)
    with results_folder(folder), only_writer(folder):
        remove_strays(folder / "parts")
        prompts = as_begun(folder, prompts)
        items = items_of(model, architecture, prompts, options)
        batches = batches_of(architecture, items, options)
        manifest = open_run(
            folder,
            {
                **_facts(model, architecture, options),
                "prompts": [prompt_key(prompt) for prompt in prompts],
                "tokens": _tokens_hash(items),
                "labels": sorted({name for item in items for name in item.labels}),
                "given": len(items),
                "batches": len(batches),
            },
        )
        if len(part_paths(folder)) > len(batches):
            raise ValueError(
                f"{folder} has more parts than the run has batches; name another folder"
            )
        missing = [b for b in batches if not _is_done(folder, manifest, b, retry_failed)]
        with reporting(progress, "prompts", len(items)) as advance:
            advance(len(items) - sum(len(batch.items) for batch in missing))
            if missing:
                traceable = [item.original or item.prompt for item in items if item.prompt]
                setting = setting_of(model, architecture, traceable, options, manifest["weights"])
                for batch, rows in (engine or this_process(model))(setting, missing):
                    write_part(part_path(folder, batch.number), rows, manifest, batch.numbers)
                    advance(len(batch.items))
    return read_run(folder)


def _facts(model: Model, architecture: Architecture, options: Options) -> dict[str, Any]:
    """What a manifest says of the model, the options and the versions."""
    shape = shape_of(architecture, 2)
    return {
        "model": architecture.name,
        "dtype": str(next(cast(Any, model).parameters()).dtype),
        "weights": weights_hash(model),
        "options": {**asdict(options), "keep": kinds_to_keep(options.keep)},
        "versions": versions(),
        "sizes": list(options.sizes),
        "head": options.head,
        "shape": {name: getattr(shape, name) for name in ("layers", "heads", "sublayers", "mlp")},
    }


def _tokens_hash(items: Sequence[Item]) -> str:
    """Hash of the tokens of all prompts of a run, in their order."""
    ids = [item.prompt.ids if item.prompt else () for item in items]
    return hashlib.sha256(repr(ids).encode()).hexdigest()[:16]


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
