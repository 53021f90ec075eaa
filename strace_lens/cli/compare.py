"""`strace-lens compare`: discovery methods side by side on one task."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

from strace_lens.cli import options as opt
from strace_lens.cli.common import Bar, one_line_errors
from strace_lens.cli.task_options import (
    ModelOptions,
    PairsAndOthers,
    TaskOptions,
    check_task,
)
from strace_lens.comparison.places import FOLDERS, PAGE, PROJECTION, TABLE, TIMES
from strace_lens.utils.choices import (
    DEFAULT_MODEL,
    EDGE_ABLATIONS,
    GROUND_TRUTHS,
    RANKED_BY,
    TASKS,
    expect_methods,
    known_methods,
)
from strace_lens.utils.disk import JsonError, parse_json, results_folder

OUT = Path("out/compare")
FORMATS = ("page", "mib")

FOLDER = Path("submission")
"""Where submissions go unless told otherwise."""


def compare_command(
    task: opt.Task,
    methods: opt.Methods = "eap,eap-ig,random",
    model: opt.TaskModel = None,
    pairs: PairsAndOthers = None,
    ablation: opt.CircuitAblation = "resample",
    metric: opt.Metric = None,
    prepend_bos: opt.PrependBos = False,
    ranking: opt.Ranking = "mib",
    method_options: Annotated[
        list[str] | None,
        opt.option(
            "Option of a method, as acdc.screen=2000; may be given several times.", "--option"
        ),
    ] = None,
    completeness: Annotated[
        bool, opt.option("Run the complement of each method's circuit.")
    ] = True,
    minimality: Annotated[
        bool, opt.option("Run each method's circuit without each of 16 of its edges.")
    ] = True,
    seed: Annotated[int, opt.option("Seed of the pairs and of methods that draw.")] = 0,
    out: Annotated[
        Path | None,
        opt.option(
            "Folder for compare.html, CSV tables, circuits/ and scores/, with a file for each "
            "method. The same command resumes if it was stopped; another comparison is refused. "
            f"With --format mib the folder of the submission, by default {FOLDER}/.",
            show_default=f"{OUT.as_posix()}/ and the names of the task and of a --model",
        ),
    ] = None,
    format: Annotated[
        str,
        opt.option(
            "page, or mib to write besides what the circuit track of the MIB benchmark takes: for "
            "each method a folder with the importances of this task and model.",
            choices=FORMATS,
        ),
    ] = "page",
    overwrite: Annotated[
        bool,
        opt.option("Discard what another comparison left in the folder of --out.", "--overwrite"),
    ] = False,
    device: opt.Device = None,
    dtype: opt.Dtype = "float32",
    allow_pickle: opt.AllowPickle = False,
    revision: opt.Revision = None,
    memory: opt.Memory = None,
    dry_run: Annotated[
        bool,
        opt.option(
            "Estimate the cost, from the configuration of the model and its tokenizer alone.",
            "--dry-run",
        ),
    ] = False,
    as_json: opt.Json = False,
) -> None:
    """Compare ways of finding a circuit on one task, each against random rankings.

    A task is a set of pairs of clean and corrupted prompts. A circuit is a set of edges between
    heads and MLPs that keeps the clean answer while all other edges carry the values of the
    corrupted prompt.

    Example: strace-lens compare --task ioi --methods eap,eap-ig,random
    """
    submission = (out or FOLDER) if format == "mib" else None
    if out is None or submission is not None:
        out = default_folder(task, model, revision)
    place = nullcontext() if submission is None or dry_run else results_folder(submission)
    written = (PAGE, TABLE, TIMES, PROJECTION)
    folder = nullcontext() if dry_run else results_folder(out, written, FOLDERS)
    with one_line_errors(), place, folder, Bar(stages=True) as bar:
        opt.expect_choice(format, FORMATS, "format")
        given = list(known_methods()) if methods == "all" else opt.parse_names(methods)
        expect_methods(given)
        opt.expect_choice(ranking, RANKED_BY, "ranking")
        options = _options(method_options or [])
        forward, _ = opt.budgets(memory)
        loading = ModelOptions(model, device, dtype, allow_pickle, revision)
        asked = TaskOptions(task, loading, pairs, seed, metric, prepend_bos)
        check_task(asked)
        opt.expect_choice(ablation, EDGE_ABLATIONS, "ablation")
        with bar.importing():
            from strace_lens.cli.compare_results import print_results, write_comparison
            from strace_lens.cli.dry_run import print_comparison_plan
            from strace_lens.cli.submission import check_free, write_submission
            from strace_lens.cli.tasks import task_on_model, task_on_skeleton
            from strace_lens.comparison.compare import compare, split
            from strace_lens.comparison.plan import plan_comparison
            from strace_lens.model.checks import architecture_of
        named = Path(task).stem, model or (task if task in GROUND_TRUTHS else DEFAULT_MODEL)
        if submission is not None and not overwrite:
            check_free(submission, given, ablation, *named)
        if dry_run:
            known, whole = task_on_skeleton(asked, times=2, bar=bar)
            plan = plan_comparison(
                known,
                whole,
                given,
                options,
                ranking=ranking,
                completeness=completeness,
                minimality=minimality,
                memory_budget=forward,
            )
            bar.stop()
            print_comparison_plan(plan, as_json)
            return
        loaded, whole, truth = task_on_model(asked, times=2, bar=bar)
        seen, others = split(whole)
        bar.step("comparing")
        found = compare(
            loaded,
            seen,
            given,
            evaluation=others,
            ground_truth=truth,
            ablation=ablation,
            metric=metric,
            seed=seed,
            ranking=ranking,
            completeness=completeness,
            minimality=minimality,
            options=options,
            folder=out,
            overwrite=overwrite,
            memory_budget=forward,
            progress=bar.tell,
        )
        bar.step("drawing")
        write_comparison(found, out)
        entries = None
        if submission is not None:
            width = architecture_of(loaded).d_model
            entries = write_submission(
                found, given, submission, task=named[0], model=named[1], d_model=width
            )
        bar.stop()
        print_results(found, out, entries, as_json)


def default_folder(task: str, model: str | None, revision: str | None = None) -> Path:
    """Return the default folder for the results of a task, a model and its revision.

    Only the last part of a file, a folder or a name with an owner (`openai/gpt2`) counts. If two of
    them share it, they share a folder, and the second comparison is refused there.
    """
    name = task if task in TASKS or task in GROUND_TRUTHS else Path(task).stem
    if model not in (None, DEFAULT_MODEL):
        name = f"{name}-{Path(model).name}"
    if revision is not None:
        name = f"{name}-{revision}"
    safe = re.sub(r"[^\w.]+", "-", name)[:60].strip("-.")  # 60 characters are at most 240 bytes
    return OUT / (safe or "task")


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
        expect_methods([method])
        own = options.setdefault(method, {})
        try:
            own[name] = parse_json(value, f"--option {method}.{name}")
        except JsonError:
            if not re.fullmatch(r"[a-z][\w-]*", value):  # a bare name is a text
                raise
            own[name] = value
    return options
