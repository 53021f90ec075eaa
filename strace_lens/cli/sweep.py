"""`strace-lens sweep`: many prompts traced and measured into a folder, resumable."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.progress import ProgressColumn, Task
from rich.text import Text

from strace_lens.cli import options as opt
from strace_lens.cli.common import Bar, one_line_errors
from strace_lens.utils.choices import (
    BUILTIN,
    DTYPES,
    REFINE,
    SIZES,
    SWEEP_ABLATIONS,
    check_sweep_choices,
    estimator_name,
)
from strace_lens.utils.disk import results_folder

ENGINES = ("local", "processes", "ray")


def sweep_command(
    prompts: Annotated[
        str,
        typer.Argument(
            help="A file (.txt, .jsonl, .json, .csv, .tsv, .parquet), the folder or name of a "
            f"Hugging Face data set, or {BUILTIN}: the 104 prompts of the package."
        ),
    ],
    out: Annotated[
        Path | None,
        opt.option(
            "Folder of the run. With several combinations of --estimator and --keep, each has a "
            "subfolder. Required unless --dry-run is given."
        ),
    ] = None,
    model: opt.Model = "smollm2",
    estimator: opt.Estimators = "greedy",
    keep: opt.Keeps = "none",
    sizes: opt.Sizes = None,
    refine: opt.Refine = REFINE,
    controls: opt.Controls = "size",
    hidden: Annotated[bool, opt.option("Store the geometry of the hidden states.")] = True,
    ablation: Annotated[
        str, opt.option("What replaces an ablated edge: zero or mean.", choices=SWEEP_ABLATIONS)
    ] = "zero",
    words: opt.Words = None,
    dedupe: Annotated[bool, opt.option("Leave out repeated texts.", "--dedupe")] = False,
    count: Annotated[
        int | None, opt.option("Draw this many prompts at random.", "--sample")
    ] = None,
    limit: Annotated[int | None, opt.option("Read only this many prompts.")] = None,
    generate: Annotated[
        int, opt.option("Number of tokens that the model adds to each prompt; each is traced.")
    ] = 0,
    temperature: Annotated[
        float, opt.option("Temperature of the added tokens; 0 adds the most probable ones.")
    ] = 0.0,
    top_p: Annotated[
        float, opt.option("Draw added tokens from the most probable, up to this probability.")
    ] = 1.0,
    corrupt: opt.Corrupt = "none",
    corrupt_rate: Annotated[
        float, opt.option("Share of the words or tokens that are corrupted.")
    ] = 1.0,
    text_column: Annotated[
        str, opt.option("Column that holds the text, in CSV, TSV, Parquet and data sets.")
    ] = "text",
    split: Annotated[
        str | None, opt.option("Split of a Hugging Face data set. Default: train.")
    ] = None,
    engine: Annotated[
        str,
        opt.option(
            "Where to run. local: in this process; processes: in several processes on this machine "
            "(on a CPU, faster with --threads 1); ray: on a cluster.",
            choices=ENGINES,
        ),
    ] = "local",
    workers: Annotated[int, opt.option("Number of processes or of Ray workers.")] = 2,
    address: Annotated[
        str | None, opt.option("Address of a Ray cluster. Default: start one on this machine.")
    ] = None,
    retry_failed: Annotated[
        bool, opt.option("Measure again the prompts that failed before.", "--retry-failed")
    ] = False,
    threads: Annotated[
        int | None,
        opt.option("Threads per worker; the last bits of the results depend on it."),
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
            "is read. PROMPTS may then be COUNTxTOKENS, such as 5000x50.",
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
            estimator_name(name)
        keeps = list(dict.fromkeys(opt.parse_keep(part) for part in keep.split(",")))
        grid = opt.parse_sizes(sizes)
        check_sweep_choices(ablation, controls, corrupt)
        span, rate = opt.parse_words(words), opt.parse_speed(speed)
        placed = opt.parse_device_map(device_map)
        opt.expect_choice(dtype, DTYPES, "dtype")
        with bar.importing():
            import torch

            from strace_lens.cli.dry_run import print_plan, stated_lengths
            from strace_lens.cli.sweep_runs import (
                cut_and_sampled,
                print_runs,
                prompts_of,
                sweep_each,
            )
            from strace_lens.corpus.engine import process_engine, ray_engine
            from strace_lens.corpus.plan import plan_sweep
            from strace_lens.corpus.setting import Options
            from strace_lens.corpus.sweep import sweep
            from strace_lens.measures.sizes import ESTIMATOR_SIZES
            from strace_lens.model.load import load_model
            from strace_lens.model.skeleton import Skeleton, skeleton
        options = Options(
            sizes=grid or (ESTIMATOR_SIZES if controls == "all" else SIZES),
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
            device_map=placed,
            dtype=dtype,
            allow_pickle=allow_pickle,
            revision=revision,
        )
        lengths = stated_lengths(prompts) if dry_run else None
        given = [] if lengths else prompts_of(prompts, text_column, split, limit, dedupe, controls)
        if dry_run or engine != "local":  # workers load the model, each its own
            bar.step(f"reading the configuration of {model}")
            known = skeleton(model, dtype=dtype, revision=revision)
        else:
            with bar.loading(model, dtype, device or device_map, revision):
                known = load()
        chosen = [] if lengths else cut_and_sampled(known, given, span, count, seed)
        if dry_run:
            told = plan_sweep(
                cast(Skeleton, known),
                lengths or chosen,
                options,
                estimators=estimators,
                keep=keeps,
                speed=rate,
                workers=1 if engine == "local" else workers,
            )
            bar.stop()
            print_plan(told, as_json)
            return
        made = {
            "local": lambda: None,
            "processes": lambda: process_engine(load, workers),
            "ray": lambda: ray_engine(load, workers, address=address),
        }[engine]()
        run = functools.partial(
            sweep,
            None if isinstance(known, Skeleton) else known,
            chosen,
            engine=made,
            retry_failed=retry_failed,
        )
        runs = sweep_each(run, options, estimators, keeps, cast(Path, out), bar)
        bar.stop()
        print_runs(runs, cast(Path, out), as_json)


class _Rate(ProgressColumn):
    """Prompts per minute, once some have been measured."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{60 * speed:.1f} a minute" if speed else "")


def _folder(out: Path | None, dry_run: bool) -> AbstractContextManager[None]:
    """Test the folder of the run before any work is done; a dry run has none."""
    if dry_run:
        return nullcontext()
    if out is None:
        raise ValueError("name the folder of the run with --out, or add --dry-run")
    parts = out / "parts"  # as `corpus.parts` names it
    return results_folder(parts if parts.exists() else out)
