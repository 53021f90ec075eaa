"""A sweep: many prompts traced and measured into a folder, whatever stops it on the way.

Each batch is a Parquet part that is written whole. Starting again measures the batches whose part
is missing or torn and leaves the others alone; a folder of another run is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from strace_lens.architecture import Architecture, Model
from strace_lens.contract import architecture_of
from strace_lens.corpus.batches import Item, batches_of, items_of, prompts_hash
from strace_lens.corpus.engine import Engine, this_process
from strace_lens.corpus.manifest import open_run
from strace_lens.corpus.parts import is_whole, part_path, part_paths, write_part
from strace_lens.corpus.prompts import CorpusPrompt
from strace_lens.corpus.run_folder import Run, read_run
from strace_lens.corpus.setting import Options, setting_of
from strace_lens.progress import Counted, count_bar
from strace_lens.token_graph.graph import shape_of
from strace_lens.versions import versions


def sweep(
    model: Model,
    prompts: Sequence[CorpusPrompt],
    out: str | Path,
    options: Options | None = None,
    *,
    engine: Engine | None = None,
    progress: Counted | None = None,
) -> Run:
    """Trace and measure prompts into a folder, going on where an earlier sweep of it stopped.

    A prompt that cannot be traced or fails is recorded with its reason and does not end the sweep.

    Args:
        model: the model; with another engine it only reads the prompts.
        prompts: of `read_corpus`.
        out: folder, made if it is not there.
        options: what results depend on.
        engine: where batches are measured; in this process by default.
        progress: told how many prompts are done and how many there are, at the start and after each
            batch; a bar if not given.

    Raises:
        ValueError: no prompts, or an option out of its range.
        OtherRunError: the folder holds a run of another model, other prompts, options or versions.
        PartError: no prompt could be measured; the reasons are in the parts.
    """
    if not prompts:
        raise ValueError("no prompts to sweep; give at least one")
    options, folder = options or Options(), Path(out)
    architecture = architecture_of(model)
    items = items_of(model, architecture, prompts, options)
    batches = batches_of(architecture, items, options)
    labels = sorted({name for item in items for name in item.labels})
    manifest = open_run(
        folder,
        {
            "model": architecture.name,
            "dtype": str(next(cast(Any, model).parameters()).dtype),
            "prompts": prompts_hash(items),
            "options": asdict(options),
            "versions": versions(),
        },
        _about(architecture, items, labels, options, len(batches)),
    )
    run = manifest["id"]
    for stray in (folder / "parts").glob(".part-*"):  # a write that was killed
        stray.unlink()
    if len(part_paths(folder)) > len(batches):
        raise ValueError(f"{folder} has more parts than the run has batches; name another folder")
    numbers = {batch.number: [item.number for item in batch.items] for batch in batches}
    missing = [
        batch
        for batch in batches
        if not is_whole(part_path(folder, batch.number), run, numbers[batch.number])
    ]
    total, left = len(items), sum(len(batch.items) for batch in missing)
    with count_bar(progress, "prompts") as told:
        told(total - left, total)
        if missing:
            setting = setting_of(
                model, architecture, [item.prompt for item in items if item.prompt], options
            )
            for batch, rows in (engine or this_process(model))(setting, missing):
                path = part_path(folder, batch.number)
                write_part(path, rows, labels, run, numbers[batch.number])
                left -= len(batch.items)
                told(total - left, total)
    return read_run(folder)


def _about(
    architecture: Architecture,
    items: Sequence[Item],
    labels: Sequence[str],
    options: Options,
    batches: int,
) -> dict[str, Any]:
    """What of a run follows from its facts."""
    shape = shape_of(architecture, 2)
    return {
        "sizes": list(options.sizes),
        "head": options.head,
        "labels": list(labels),
        "given": len(items),
        "batches": batches,
        "shape": {
            "layers": shape.layers,
            "heads": shape.heads,
            "joins": shape.joins,
            "mlp": shape.mlp,
        },
    }
