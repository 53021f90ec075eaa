"""`strace-lens ablations`: how far a comparison of methods depends on what ablated edges carry."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

from strace_lens.cli import options as opt
from strace_lens.cli.common import Bar, one_line_errors
from strace_lens.cli.task_options import ModelOptions, PairsAndOthers, TaskOptions, check_task
from strace_lens.utils.choices import EDGE_ABLATIONS, expect_methods, known_methods
from strace_lens.utils.disk import results_folder, write_whole


def ablations_command(
    task: opt.Task,
    methods: opt.Methods = "eap,eap-ig,random",
    ablations: Annotated[
        str,
        opt.option(
            f"Two or more names separated by commas: {', '.join(EDGE_ABLATIONS)}.",
            choices=EDGE_ABLATIONS,
        ),
    ] = "resample,mean,zero",
    model: opt.TaskModel = None,
    pairs: PairsAndOthers = None,
    metric: opt.Metric = None,
    prepend_bos: opt.PrependBos = False,
    seed: Annotated[int, opt.option("Seed of the pairs and of methods with random draws.")] = 0,
    out: Annotated[
        Path | None, opt.option("CSV file for the whole table; none is written by default.")
    ] = None,
    device: opt.Device = None,
    dtype: opt.Dtype = "float32",
    allow_pickle: opt.AllowPickle = False,
    revision: opt.Revision = None,
    memory: opt.Memory = None,
    as_json: opt.Json = False,
) -> None:
    """Run methods under several ablations and show how far they agree.

    Every method ranks edges under each ablation, and its circuits are evaluated under each on other
    pairs. A result under one ablation alone is a finding about that ablation (Miller et al. 2024).

    Example: strace-lens ablations --task ioi --methods eap,eap-ig,random --ablations resample,zero
    """
    folder = nullcontext() if out is None else results_folder(out.parent, [out.name])
    with one_line_errors(), folder, Bar() as bar:
        given = list(known_methods()) if methods == "all" else opt.parse_names(methods)
        expect_methods(given)
        named = opt.parse_names(ablations)
        for name in named:
            opt.expect_choice(name, EDGE_ABLATIONS, "ablation")
        if len(named) < 2:
            raise ValueError(f"--ablations takes two or more different names; got {ablations!r}")
        forward, _ = opt.budgets(memory)
        loading = ModelOptions(model, device, dtype, allow_pickle, revision)
        asked = TaskOptions(task, loading, pairs, seed, metric, prepend_bos)
        check_task(asked)
        with bar.importing():
            from strace_lens.cli.tasks import task_on_model
            from strace_lens.comparison.ablations import across_ablations
            from strace_lens.model.checks import architecture_of
            from strace_lens.report.summary import records
            from strace_lens.report.tables_ablations import print_ablations
        on = task_on_model(asked, times=2, bar=bar)
        bar.step(f"comparing under {', '.join(named)}")
        table = across_ablations(
            on.model,
            on.task,
            given,
            ablations=named,
            metric=metric,
            seed=seed,
            memory_budget=forward,
        )
        if out is not None:
            write_whole(out, table.to_csv(index=False).encode())
        bar.stop()
        if as_json:
            name = architecture_of(on.model).name
            facts = {"model": name, "task": on.task.name, "rows": records(table)}
            print(json.dumps(facts, allow_nan=False))
            return
        print_ablations(table)
        if out is not None:
            print(f"wrote {out}")
