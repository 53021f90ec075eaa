"""`strace-lens compare`: discovery methods side by side on one task."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from strace_lens.circuits.discover.methods import METHODS
from strace_lens.circuits.evaluate import RANKED_BY, ranks_by_magnitude
from strace_lens.circuits.metrics import METRICS
from strace_lens.circuits.outputs import ABLATIONS
from strace_lens.circuits.task import Task
from strace_lens.circuits.tasks.generate import TASKS, make_task
from strace_lens.circuits.tasks.read import read_task
from strace_lens.cli.common import (
    AllowPickleOption,
    Bar,
    DeviceOption,
    DtypeOption,
    JsonOption,
    MemoryOption,
    RevisionOption,
    budgets,
    completing,
    load_from_options,
    one_line_errors,
)
from strace_lens.comparison.compare import check_methods, compare, split
from strace_lens.comparison.comparison import COLUMNS, TIMINGS, Comparison
from strace_lens.comparison.files import FOLDERS, PAGE, PROJECTION, TABLE, TIMES
from strace_lens.ground_truth.models import GROUND_TRUTHS, GroundTruth, ground_truth
from strace_lens.model.architecture import Model
from strace_lens.model.load import DEFAULT
from strace_lens.report.compare import comparison_report
from strace_lens.report.summary import summarize_comparison
from strace_lens.report.tables_compare import print_comparison
from strace_lens.utils.disk import JsonError, parse_json, results_folder, write_whole

OUT = Path("out/compare")
PAIRS = 16


@dataclass(frozen=True, eq=False)
class Subject:
    """What methods are compared on: a model, all pairs of a task, and the truth if it is known."""

    model: Model
    task: Task
    truth: GroundTruth | None


def compare_command(
    task: Annotated[
        str,
        typer.Option(
            help=f"{', '.join(TASKS)}; {', '.join(GROUND_TRUTHS)}, which bring a model of their "
            "own whose circuit is known; or a JSONL file with clean, corrupted, answers and "
            "wrong_answers.",
            autocompletion=completing([*TASKS, *GROUND_TRUTHS]),
        ),
    ],
    methods: Annotated[
        str,
        typer.Option(
            help=f"Names separated by commas, or all: {', '.join(METHODS)}.",
            autocompletion=completing([*METHODS, "all"]),
        ),
    ] = "eap,eap-ig,random",
    model: Annotated[
        str | None,
        typer.Option(
            help=f"A Hugging Face name, a local folder or a GGUF file. Default: {DEFAULT} (built "
            "in)."
        ),
    ] = None,
    pairs: Annotated[
        int | None,
        typer.Option(
            help="Number of pairs that methods see, and of other pairs that circuits are evaluated "
            f"on. Default: {PAIRS}, or all pairs of a file. Pairs of a file are drawn by the seed."
        ),
    ] = None,
    ablation: Annotated[
        str,
        typer.Option(help=f"What an edge outside a circuit carries: {', '.join(ABLATIONS)}."),
    ] = "resample",
    metric: Annotated[
        str | None, typer.Option(help=f"{', '.join(METRICS)}. Default: the task's own.")
    ] = None,
    ranking: Annotated[
        str,
        typer.Option(
            help="How estimated effects are ranked. mib: by sign for CPR, by magnitude for CMD, "
            "circuits and all else. signed: by sign, so that edges which hurt the metric come "
            "last. absolute: by magnitude.",
            autocompletion=completing(RANKED_BY),
        ),
    ] = "mib",
    option: Annotated[
        list[str] | None,
        typer.Option(help="Option of a method, as acdc.screen=2000; may be given several times."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the pairs and of methods that draw.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for compare.html, CSV tables, circuits/ and scores/, with a file for each "
            "method. The same command resumes if it was stopped; another comparison is refused.",
            show_default=f"{OUT.as_posix()}/ and the names of the task and of a --model",
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Discard what another comparison left in the folder of --out."
        ),
    ] = False,
    device: DeviceOption = None,
    dtype: DtypeOption = "float32",
    allow_pickle: AllowPickleOption = False,
    revision: RevisionOption = None,
    memory: MemoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare ways of finding a circuit on one task, each against random rankings.

    A task is a set of pairs of clean and corrupted prompts. A circuit is a set of edges between
    heads and MLPs that keeps the clean answer while all other edges carry the values of the
    corrupted prompt.

    Example: strace-lens compare --task ioi --methods eap,eap-ig,random
    """
    out = default_folder(task, model, revision) if out is None else out
    folder = results_folder(out, (PAGE, TABLE, TIMES, PROJECTION), FOLDERS)
    with one_line_errors(), folder, Bar() as bar:
        names = check_methods(METHODS if methods == "all" else _names(methods))
        ranks_by_magnitude(ranking)
        options = _options(option or [])
        forward, _ = budgets(memory)
        subject = _subject(
            task, model, pairs, seed, metric, device, dtype, allow_pickle, revision, bar
        )
        seen, others = split(subject.task)
        bar.step("comparing")
        found = compare(
            subject.model,
            seen,
            names,
            evaluation=others,
            ground_truth=subject.truth,
            ablation=ablation,
            metric=metric,
            seed=seed,
            ranking=ranking,
            options=options,
            folder=out,
            overwrite=overwrite,
            memory_budget=forward,
            progress=bar.tell,
        )
        bar.step("drawing")
        _write(found, out)
        bar.stop()
        if as_json:  # the table has them in its head
            for line in found.warnings:
                print(f"strace-lens: warning: {line}", file=sys.stderr)
        for name, reason in found.skipped.items():
            print(f"strace-lens: skipped {name}: {reason}", file=sys.stderr)
        if as_json:
            print(json.dumps(summarize_comparison(found), allow_nan=False))
        else:
            print_comparison(found)
            print(f"wrote {PAGE}, {TABLE}, circuits/ and scores/ to {out}")


def default_folder(task: str, model: str | None, revision: str | None = None) -> Path:
    """Return the default folder for the results of a task, a model and its revision.

    Only the last part of a file, a folder or a name with an owner (`openai/gpt2`) counts. If two of
    them share it, they share a folder, and the second comparison is refused there.
    """
    name = task if task in TASKS or task in GROUND_TRUTHS else Path(task).stem
    if model not in (None, DEFAULT):
        name = f"{name}-{Path(model).name}"
    if revision is not None:
        name = f"{name}-{revision}"
    safe = re.sub(r"[^\w.]+", "-", name)[:60].strip("-.")  # 60 characters are at most 240 bytes
    return OUT / (safe or "task")


def _names(methods: str) -> list[str]:
    return [name.strip() for name in methods.split(",") if name.strip()]


def _options(given: list[str]) -> dict[str, dict[str, Any]]:
    """Parse texts like `acdc.screen=2000` into options by method.

    Raises:
        ValueError: If a text has another form or names an unknown method.
    """
    options: dict[str, dict[str, Any]] = {}
    for text in given:
        found = re.fullmatch(r"([\w-]+)\.(\w+)=(.+)", text)
        if found is None:
            raise ValueError(f"--option takes method.name=value, as acdc.screen=2000; got {text!r}")
        method, name, value = found.groups()
        check_methods([method])
        own = options.setdefault(method, {})
        try:
            own[name] = parse_json(value, f"--option {method}.{name}")
        except JsonError:
            if not re.fullmatch(r"[a-z][\w-]*", value):  # a bare name is a text
                raise
            own[name] = value
    return options


def _subject(
    task: str,
    model: str | None,
    pairs: int | None,
    seed: int,
    metric: str | None,
    device: str | None,
    dtype: str,
    allow_pickle: bool,
    revision: str | None,
    bar: Bar,
) -> Subject:
    """Load or build the model, and make the pairs to discover circuits on and to evaluate them on.

    Raises:
        ValueError: If the task is unknown or has its own model and one is given, or if there is not
            at least one pair.
    """
    if pairs is not None and pairs < 1:
        raise ValueError(f"a task needs at least one pair; got --pairs {pairs}")
    wanted = 2 * (PAIRS if pairs is None else pairs)
    if task in GROUND_TRUTHS:
        if (model, device, revision) != (None, None, None) or dtype != "float32":
            raise ValueError(
                f"task {task} brings its own model, in float32 on the CPU: leave out --model, "
                "--device, --dtype and --revision"
            )
        bar.step(f"building the model of {task}")
        made = ground_truth(task, seed=seed, pairs=wanted)
        return Subject(made.model, made.task, made)
    if task not in TASKS and not Path(task).is_file():
        raise ValueError(
            f"unknown task {task!r}; choose from {', '.join([*TASKS, *GROUND_TRUTHS])}, or give "
            "the path of a JSONL file"
        )
    loaded = load_from_options(
        bar,
        model or DEFAULT,
        device=device,
        dtype=dtype,
        allow_pickle=allow_pickle,
        revision=revision,
    )
    if task in TASKS:
        return Subject(loaded, make_task(loaded, task, wanted, seed, metric), None)
    read = read_task(loaded, task, metric or "logit_difference")
    return Subject(loaded, read.sample(None if pairs is None else wanted, seed), None)


def _write(found: Comparison, out: Path) -> None:
    """Write the tables and then the page; `compare` writes what each method found."""
    for name, columns in (
        (TABLE, [column for column in COLUMNS if column not in TIMINGS]),
        (TIMES, ["method", *TIMINGS]),
    ):
        write_whole(out / name, found.table[columns].to_csv(index=False).encode())
    if found.projection is not None:
        write_whole(out / PROJECTION, found.projection.to_csv(index=False).encode())
    comparison_report(found, out / PAGE)
