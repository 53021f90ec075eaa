"""`strace-lens sweep`: many prompts traced and measured into a folder, resumable."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
import typer
from rich.progress import ProgressColumn, Task
from rich.text import Text

from strace_lens.cli.common import (
    KEEP_HELP,
    AllowPickleOption,
    Bar,
    BosOption,
    DeviceMapOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    MemoryOption,
    ModelOption,
    RefineOption,
    RevisionOption,
    budgets,
    completing,
    one_line_errors,
    parse_device_map,
    parse_keep,
    parse_sizes,
)
from strace_lens.cli.dry_run import (
    DryRunOption,
    SpeedOption,
    parse_speed,
    print_plan,
    stated_lengths,
)
from strace_lens.corpus.engine import Engine, ray_engine, this_process
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
from strace_lens.corpus.setting import CORRUPTIONS, WHICH_CONTROLS, Options
from strace_lens.corpus.sweep import sweep
from strace_lens.measures.sizes import ESTIMATOR_SIZES, REFINE, SIZES
from strace_lens.model.architecture import Model
from strace_lens.model.load import load_model
from strace_lens.model.prompts import own_tokenizer, text_ids
from strace_lens.model.skeleton import Skeleton, skeleton
from strace_lens.traces.edges import KINDS, keep_text
from strace_lens.traces.estimators import ESTIMATORS, estimator_of
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
        typer.Option(
            help="Folder of the run, with a folder within for each of several combinations of "
            "--estimator and --keep. Required unless --dry-run is given."
        ),
    ] = None,
    model: ModelOption = "smollm2",
    estimator: Annotated[
        str,
        typer.Option(
            help=f"How edges are ranked: {', '.join(ESTIMATORS)}. Several, separated by commas, "
            "are swept one after the other.",
            autocompletion=completing(ESTIMATORS),
        ),
    ] = "greedy",
    keep: Annotated[
        str,
        typer.Option(
            help=f"{KEEP_HELP} Several, separated by commas, are swept in turn.",
            autocompletion=completing(["none", *KINDS]),
        ),
    ] = "none",
    sizes: Annotated[
        str | None,
        typer.Option(
            help=f"Relative sizes; the paper's {len(SIZES)} if unsaid, and with --controls all the "
            f"{len(ESTIMATOR_SIZES)} at which estimators are compared."
        ),
    ] = None,
    refine: RefineOption = REFINE,
    controls: Annotated[
        str,
        typer.Option(
            help="What is run besides the trace: none; size, the random subgraph and the inverses "
            "of both; all, also the controls of the estimator: aimed at a wrong target, on a "
            "sibling prompt, under noise, from another seed.",
            autocompletion=completing(WHICH_CONTROLS),
        ),
    ] = "size",
    hidden: Annotated[bool, typer.Option(help="Keep the geometry of the hidden states.")] = True,
    ablation: Annotated[
        str, typer.Option(help="What replaces an ablated edge: zero or mean.")
    ] = "zero",
    words: Annotated[
        str | None,
        typer.Option(
            help="LOW:HIGH, as in 20:60. Cut each text after a word, at a length in that range."
        ),
    ] = None,
    dedupe: Annotated[bool, typer.Option("--dedupe", help="Leave out repeated texts.")] = False,
    count: Annotated[
        int | None, typer.Option("--sample", help="Draw this many prompts, by the seed.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Read only this many prompts.")] = None,
    generate: Annotated[
        int, typer.Option(help="Tokens that the model adds to each prompt, each traced in turn.")
    ] = 0,
    temperature: Annotated[
        float,
        typer.Option(help="Temperature of the added tokens; 0 adds the most probable ones."),
    ] = 0.0,
    top_p: Annotated[
        float,
        typer.Option(help="Draw from the most probable tokens that hold this much probability."),
    ] = 1.0,
    corrupt: Annotated[
        str,
        typer.Option(
            help="Trace each text corrupted: shuffle its words, or replace tokens by random ones.",
            autocompletion=completing(CORRUPTIONS),
        ),
    ] = "none",
    corrupt_rate: Annotated[
        float, typer.Option(help="Share of the words or tokens that are corrupted.")
    ] = 1.0,
    text_column: Annotated[
        str, typer.Option(help="Column that holds the text, in CSV, TSV, Parquet and datasets.")
    ] = "text",
    split: Annotated[
        str | None,
        typer.Option(help="Which split of a datasets folder or name. Default: train."),
    ] = None,
    engine: Annotated[str, typer.Option(help="local, or ray for several workers.")] = "local",
    workers: Annotated[int, typer.Option(help="Number of workers of the Ray engine.")] = 2,
    address: Annotated[
        str | None, typer.Option(help="Address of a Ray cluster. Default: one is started here.")
    ] = None,
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", help="Measure again the prompts that failed before."),
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option(help="Threads of each worker; the last bits of results depend on it."),
    ] = None,
    device: DeviceOption = None,
    device_map: DeviceMapOption = None,
    dtype: DtypeOption = "float32",
    allow_pickle: AllowPickleOption = False,
    revision: RevisionOption = None,
    seed: Annotated[
        int,
        typer.Option(help="Seed of cuts, samples, estimators, controls and added tokens."),
    ] = 0,
    bos: BosOption = None,
    memory: MemoryOption = None,
    dry_run: DryRunOption = False,
    speed: SpeedOption = "here",
    as_json: JsonOption = False,
) -> None:
    """Trace and measure many prompts into a folder, for `strace-lens phases` to read.

    If the sweep is stopped in any way, the same command resumes it.

    Example: strace-lens sweep builtin --estimator greedy,fisher --keep none,attention --out runs/x
    """
    with (
        one_line_errors(),
        _folder(out, dry_run) as folder,
        Bar(_Rate()) as bar,
    ):
        _check_engine(engine, workers)
        forward, backward = budgets(memory)
        estimators, keeps = _names(estimator), _keeps(keep)
        options = Options(
            sizes=parse_sizes(sizes) or (ESTIMATOR_SIZES if controls == "all" else SIZES),
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
        read = functools.partial(
            _given,
            prompts,
            text_column=text_column,
            split=split,
            limit=limit,
            dedupe=dedupe,
            controlled=controls == "all",
        )
        if folder is None:
            known = skeleton(model, dtype=dtype, revision=revision)
            lengths = stated_lengths(prompts)
            told = plan_sweep(
                known,
                _chosen(known, read(), words, count, seed) if lengths is None else lengths,
                options,
                estimators=estimators,
                keep=keeps,
                speed=parse_speed(speed),
                workers=workers if engine == "ray" else 1,
            )
            bar.stop()
            print_plan(told, as_json)
            return
        given = read()
        bar.step(f"loading {model}")
        load = functools.partial(
            load_model,
            model,
            device=device,
            device_map=parse_device_map(device_map),
            dtype=dtype,
            allow_pickle=allow_pickle,
            revision=revision,
        )
        loaded = load()
        chosen = _chosen(loaded, given, words, count, seed)
        runner = _engine(engine, loaded, load, workers, address)
        runs = _sweep_each(
            loaded,
            chosen,
            options,
            itertools.product(estimators, keeps),
            folder,
            engine=runner,
            retry_failed=retry_failed,
            bar=bar,
        )
        bar.stop()
        _say(runs, folder, as_json)


def _sweep_each(
    model: Model,
    prompts: Sequence[CorpusPrompt],
    options: Options,
    combinations: Iterable[tuple[str, tuple[str, ...]]],
    folder: Path,
    *,
    engine: Engine,
    retry_failed: bool,
    bar: Bar,
) -> dict[Path, Run]:
    """Sweep the prompts with each combination of estimator and kept kinds, one after the other.

    Returns:
        The runs by folder: the given one, or one within it for each of several combinations.
    """
    runs = {}
    several = list(combinations)
    for estimator, keep in several:
        name = _folder_name(estimator, keep)
        into = folder / name if len(several) > 1 else folder
        bar.step(name)
        try:
            runs[into] = sweep(
                model,
                prompts,
                into,
                dataclasses.replace(options, estimator=estimator, keep=keep),
                engine=engine,
                retry_failed=retry_failed,
                progress=lambda done, total, _, name=name: bar.tell(done, total, name),
            )
        except KeyboardInterrupt:
            bar.stop()
            typer.echo("strace-lens: stopped; the same command goes on from here", err=True)
            raise typer.Exit(INTERRUPTED) from None
    return runs


def _names(text: str) -> list[str]:
    """Parse estimators separated by commas and drop repetitions."""
    names = list(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in names:
        estimator_of(name)
    return names


def _keeps(text: str) -> list[tuple[str, ...]]:
    """Parse kinds of edges to keep, in combinations separated by commas, and drop repetitions."""
    return list(dict.fromkeys(parse_keep(part) for part in text.split(",")))


def _folder_name(estimator: str, keep: Sequence[str]) -> str:
    return f"{estimator}-keep-{keep_text(keep)}" if keep else estimator


class _Rate(ProgressColumn):
    """Prompts a minute, once some are measured."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{60 * speed:.1f} a minute" if speed else "")


@contextlib.contextmanager
def _folder(out: Path | None, dry_run: bool) -> Iterator[Path | None]:
    """Test the folder of the run before any work is done; yield None for a dry run."""
    if dry_run:
        yield None
        return
    if out is None:
        raise ValueError("name the folder of the run with --out, or add --dry-run")
    parts = part_path(out, 0).parent
    with results_folder(parts if parts.exists() else out):
        yield out


def _given(
    prompts: str,
    *,
    text_column: str,
    split: str | None,
    limit: int | None,
    dedupe: bool,
    controlled: bool,
) -> list[CorpusPrompt]:
    """The prompts of a source; wrong targets may lie beyond the limit."""
    if controlled:
        check_limit(limit)
        every = read_corpus(prompts, text_column=text_column, split=split)
        given = with_wrong_texts(every)[:limit]
    else:
        given = read_corpus(prompts, text_column=text_column, split=split, limit=limit)
    if not dedupe:
        return given
    firsts = deduplicate(given)
    if len(firsts) < len(given):
        typer.echo(f"left out {len(given) - len(firsts)} repeated texts", err=True)
    return firsts


def _check_engine(engine: str, workers: int) -> None:
    if engine not in ENGINES:
        raise ValueError(f"unknown engine {engine!r}; choose from {', '.join(ENGINES)}")
    if workers < 1:
        raise ValueError(f"workers must be at least 1; got {workers}")


def _engine(
    name: str,
    model: Model,
    load: functools.partial[Model],
    workers: int,
    address: str | None,
) -> Engine:
    return this_process(model) if name == "local" else ray_engine(load, workers, address=address)


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
