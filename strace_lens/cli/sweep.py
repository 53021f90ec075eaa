"""`strace-lens sweep`: many prompts traced and measured into a folder, resumable."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
import typer
from rich.progress import ProgressColumn, Task
from rich.text import Text

from strace_lens.cli import options as opt
from strace_lens.cli.common import Bar, one_line_errors, say
from strace_lens.cli.dry_run import parse_speed, print_plan, stated_lengths
from strace_lens.corpus.engine import ray_engine, this_process
from strace_lens.corpus.parts import part_path
from strace_lens.corpus.plan import plan_sweep
from strace_lens.corpus.prompts import (
    CorpusPrompt,
    cut_to_words,
    deduplicate,
    ends_of_tokens,
    sample,
    with_wrong_texts,
)
from strace_lens.corpus.read import BUILTIN, check_limit, read_corpus
from strace_lens.corpus.run_folder import Run
from strace_lens.corpus.setting import Options
from strace_lens.corpus.sweep import sweep
from strace_lens.measures.sizes import ESTIMATOR_SIZES, REFINE, SIZES
from strace_lens.model.architecture import Model
from strace_lens.model.load import load_model
from strace_lens.model.prompts import own_tokenizer, text_ids
from strace_lens.model.skeleton import Skeleton, skeleton
from strace_lens.traces.edges import keep_text
from strace_lens.traces.estimators import estimator_of
from strace_lens.utils.disk import results_folder
from strace_lens.utils.interrupt import INTERRUPTED

ENGINES = ("local", "ray")


def sweep_command(
    prompts: Annotated[
        str,
        typer.Argument(
            help="A file (.txt, .jsonl, .json, .csv, .tsv, .parquet), a datasets folder or name, "
            f"or {BUILTIN}: the 104 prompts of the package."
        ),
    ],
    out: Annotated[
        Path | None,
        opt.option(
            "Folder of the run, with a folder within for each of several combinations of "
            "--estimator and --keep. Required unless --dry-run is given."
        ),
    ] = None,
    model: opt.Model = "smollm2",
    estimator: opt.Estimators = "greedy",
    keep: opt.Keeps = "none",
    sizes: opt.Sizes = None,
    refine: opt.Refine = REFINE,
    controls: opt.Controls = "size",
    hidden: Annotated[bool, opt.option("Keep the geometry of the hidden states.")] = True,
    ablation: Annotated[str, opt.option("What replaces an ablated edge: zero or mean.")] = "zero",
    words: opt.Words = None,
    dedupe: Annotated[bool, opt.option("Leave out repeated texts.", "--dedupe")] = False,
    count: Annotated[
        int | None, opt.option("Draw this many prompts, by the seed.", "--sample")
    ] = None,
    limit: Annotated[int | None, opt.option("Read only this many prompts.")] = None,
    generate: Annotated[
        int, opt.option("Tokens that the model adds to each prompt, each traced in turn.")
    ] = 0,
    temperature: Annotated[
        float, opt.option("Temperature of the added tokens; 0 adds the most probable ones.")
    ] = 0.0,
    top_p: Annotated[
        float, opt.option("Draw from the most probable tokens that hold this much probability.")
    ] = 1.0,
    corrupt: opt.Corrupt = "none",
    corrupt_rate: Annotated[
        float, opt.option("Share of the words or tokens that are corrupted.")
    ] = 1.0,
    text_column: Annotated[
        str, opt.option("Column that holds the text, in CSV, TSV, Parquet and datasets.")
    ] = "text",
    split: Annotated[
        str | None, opt.option("Which split of a datasets folder or name. Default: train.")
    ] = None,
    engine: Annotated[str, opt.option("local, or ray for several workers.")] = "local",
    workers: Annotated[int, opt.option("Number of workers of the Ray engine.")] = 2,
    address: Annotated[
        str | None, opt.option("Address of a Ray cluster. Default: one is started here.")
    ] = None,
    retry_failed: Annotated[
        bool, opt.option("Measure again the prompts that failed before.", "--retry-failed")
    ] = False,
    threads: Annotated[
        int | None,
        opt.option("Threads of each worker; the last bits of results depend on it."),
    ] = None,
    device: opt.Device = None,
    device_map: opt.DeviceMap = None,
    dtype: opt.Dtype = "float32",
    allow_pickle: opt.AllowPickle = False,
    revision: opt.Revision = None,
    seed: Annotated[
        int, opt.option("Seed of cuts, samples, estimators, controls and added tokens.")
    ] = 0,
    bos: opt.Bos = None,
    memory: opt.Memory = None,
    dry_run: Annotated[
        bool,
        opt.option(
            "Estimate the cost of the sweep and run nothing; only the configuration of the model "
            "is read. PROMPTS may be COUNTxTOKENS, as 5000x50.",
            "--dry-run",
        ),
    ] = False,
    speed: opt.Speed = "here",
    as_json: opt.Json = False,
) -> None:
    """Trace and measure many prompts into a folder, for `strace-lens phases` to read.

    If the sweep is stopped in any way, the same command resumes it.

    Example: strace-lens sweep builtin --estimator greedy,fisher --keep none,attention --out runs/x
    """
    with one_line_errors(), _folder(out, dry_run), Bar(_Rate()) as bar:
        opt.expect_choice(engine, ENGINES, "engine")
        if workers < 1:
            raise ValueError(f"workers must be at least 1; got {workers}")
        forward, backward = opt.budgets(memory)
        estimators = opt.parse_names(estimator)
        for name in estimators:
            estimator_of(name)
        keeps = list(dict.fromkeys(opt.parse_keep(part) for part in keep.split(",")))
        options = Options(
            sizes=opt.parse_sizes(sizes) or (ESTIMATOR_SIZES if controls == "all" else SIZES),
            refine=refine,
            controls=controls,
            ablation=ablation,
            seed=seed,
            bos=bos,
            hidden=hidden,
            generate=generate,
            temperature=temperature,
            top_p=top_p,
            corrupt=corrupt,
            corrupt_rate=corrupt_rate,
            memory_budget=forward,
            gradient_budget=backward,
            threads=threads or torch.get_num_threads(),
        )
        load = functools.partial(
            load_model,
            model,
            device=device,
            device_map=opt.parse_device_map(device_map),
            dtype=dtype,
            allow_pickle=allow_pickle,
            revision=revision,
        )
        lengths = stated_lengths(prompts) if dry_run else None
        given = [] if lengths else _given(prompts, text_column, split, limit, dedupe, controls)
        if dry_run:
            bar.step(f"reading the configuration of {model}")
            loaded = skeleton(model, dtype=dtype, revision=revision)
        else:
            with bar.loading(model, dtype, device or device_map, revision):
                loaded = load()
        chosen = [] if lengths else _chosen(loaded, given, words, count, seed)
        if isinstance(loaded, Skeleton):
            told = plan_sweep(
                loaded,
                lengths or chosen,
                options,
                estimators=estimators,
                keep=keeps,
                speed=parse_speed(speed),
                workers=workers if engine == "ray" else 1,
            )
            bar.stop()
            print_plan(told, as_json)
            return
        run = functools.partial(
            sweep,
            loaded,
            chosen,
            engine=this_process(loaded)
            if engine == "local"
            else ray_engine(load, workers, address=address),
            retry_failed=retry_failed,
        )
        runs = _sweep_each(run, options, estimators, keeps, cast(Path, out), bar)
        bar.stop()
        _say(runs, cast(Path, out), as_json)


def _sweep_each(
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
            say("stopped; the same command goes on from here")
            raise typer.Exit(INTERRUPTED) from None
    return runs


class _Rate(ProgressColumn):
    """Prompts a minute, once some are measured."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{60 * speed:.1f} a minute" if speed else "")


def _folder(out: Path | None, dry_run: bool) -> AbstractContextManager[None]:
    """Test the folder of the run before any work is done; a dry run has none."""
    if dry_run:
        return nullcontext()
    if out is None:
        raise ValueError("name the folder of the run with --out, or add --dry-run")
    parts = part_path(out, 0).parent
    return results_folder(parts if parts.exists() else out)


def _given(
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


def _chosen(
    model: Model | Skeleton,
    given: Sequence[CorpusPrompt],
    words: str | None,
    count: int | None,
    seed: int,
) -> Sequence[CorpusPrompt]:
    """Cut and sample the prompts as the options say."""
    if words is not None:
        try:
            low, high = (int(part) for part in words.split(":"))
        except ValueError:
            raise ValueError(f"--words takes LOW:HIGH in tokens, as 20:60; got {words!r}") from None
        # Nothing of a model is asked for but its tokenizer, which a skeleton has too.
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
            raise ValueError(f"--words {words} leaves none of {len(given)} texts; widen the range")
        given = cut.prompts
    return given if count is None else sample(given, count, seed)


def _say(runs: Mapping[Path, Run], out: Path, as_json: bool) -> None:
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
