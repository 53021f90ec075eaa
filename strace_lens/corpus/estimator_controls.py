"""Controls of an estimator, which tell a trace of the model's own computation from a fit.

A ranking can be fitted to anything, so its density alone says little. A sweep with `controls="all"`
therefore measures each prompt in four roles: "own", against the model's output, with every seed of
an estimator that draws; "wrong", a trace that the same estimator fits, with the same budget, to the
output of another prompt; "sibling", the same edges run on another text of equal length; and
"noise", the same edges with 10 % noise on the embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from jaxtyping import Float
from torch import Tensor

from strace_lens.corpus.batches import Item
from strace_lens.corpus.parts import Row
from strace_lens.corpus.setting import Options
from strace_lens.measures.distributions import top1_agreement, total_variation
from strace_lens.model.architecture import Model
from strace_lens.model.checks import architecture_of
from strace_lens.model.forward import Hook, last_logits
from strace_lens.model.prompts import Prompt
from strace_lens.traces.ablation import Replacement
from strace_lens.traces.compute import compute_share, on_path
from strace_lens.traces.curve_rows import curve_rows, most_rows
from strace_lens.traces.estimators import estimate, estimator_of
from strace_lens.traces.graph import TokenGraph
from strace_lens.traces.masked_run import embedding_noise, masked_logits
from strace_lens.traces.trace import Trace
from strace_lens.utils.progress import no_progress

ROLES = ("own", "wrong", "sibling", "noise")
SEEDS = 2
"""How many seeds an estimator that draws is run with, the one of the sweep and those after it."""


def measure_controls(
    model: Model,
    options: Options,
    item: Item,
    graph: TokenGraph,
    trace: Trace,
    replacement: Replacement,
    own: Sequence[Row],
) -> list[list[Row]]:
    """What the controls of one prompt give, at each size of the grid.

    Args:
        model: the model.
        options: of the sweep.
        item: the prompt, with the tokens of its controls.
        graph: its token graph.
        trace: of the prompt, by the sweep's estimator and seed.
        replacement: what an ablated edge carries.
        own: rows with `tv` and `top1` of the trace at each size of the grid.

    Returns:
        For each size a row a role and seed: `role`, `seed` (0 is the sweep's own), `tv`, `top1`;
        of traces aimed at something, `forward` and `backward`, the rows of the passes that they
        were fitted with; and of role own `path_share`, `connected` and `compute`.
    """
    architecture = architecture_of(model)
    fit = partial(
        estimate,
        model,
        graph,
        options.estimator,
        keep=options.keep,
        replacement=replacement,
        memory_budget=options.gradient_budget,
        progress=no_progress,
    )
    assert item.wrong is not None
    target = last_logits(model, architecture, item.wrong.tensor[None])[0]
    # What fits nothing draws nothing and cannot be aimed: its own trace is measured instead.
    fitted = estimator_of(options.estimator).steps > 0
    traces = [trace, *(fit(seed=options.seed + n) for n in range(1, SEEDS if fitted else 1))]
    aimed = fit(seed=options.seed, target=target.float().softmax(-1)) if fitted else trace
    noise = embedding_noise(len(graph.prompt.ids), architecture.d_model, seed=item.number)
    run = partial(_run, model, options, replacement)
    given: list[Row] = [{name: row[name] for name in ("tv", "top1")} for row in own]
    by_role = {
        "own": [given, *run(traces[1:], graph.prompt)],
        "wrong": run([aimed], graph.prompt, target),
        "sibling": [] if item.sibling is None else run(traces, item.sibling),
        "noise": run(traces, graph.prompt, hooks=[noise]),
    }
    for ours, rows in zip([*traces, aimed], [*by_role["own"], *by_role["wrong"]], strict=True):
        for row in rows:
            row |= _passes(ours)
    counts = [trace.edge_count(float(size)) for size in options.sizes]
    for ours, rows in zip(traces, by_role["own"], strict=True):
        paths, compute = on_path(ours, counts), compute_share(ours, architecture, counts)
        for place, row in enumerate(rows):
            row["path_share"] = float(paths.share[place])
            row["connected"] = bool(paths.connected[place])
            row["compute"] = float(compute.share[place])
    return [
        [
            {"role": role, "seed": seed, **rows[place]}
            for role, of_seeds in by_role.items()
            for seed, rows in enumerate(of_seeds)
        ]
        for place in range(len(options.sizes))
    ]


def control_rows(estimator: str, sizes: Sequence[float]) -> tuple[int, int]:
    """What the controls of one prompt run at the most: rows, and fits besides that of its trace."""
    fitted = estimator_of(estimator).steps > 0
    seeds = SEEDS if fitted else 1
    # Role own runs the further seeds, wrong one trace, sibling and noise the traces of all seeds.
    masked = (seeds - 1 + 1 + 2 * seeds) * most_rows(sizes, controls=False)
    return masked + len(ROLES), fitted * SEEDS


def _run(
    model: Model,
    options: Options,
    replacement: Replacement,
    traces: Sequence[Trace],
    prompt: Prompt,
    target: Float[Tensor, " vocab"] | None = None,
    hooks: Sequence[Hook] = (),
) -> list[list[Row]]:
    """The edges of each trace, run on a prompt of equal length: TV and top-1 by size.

    They are compared with the target's logits, by default the model's own on that prompt. Hooks
    run before the masks, and in the model's own run.
    """
    if not traces:
        return []
    architecture = architecture_of(model)
    if target is None:
        target = last_logits(model, architecture, prompt.tensor[None], hooks=hooks)[0]
    plans = [
        curve_rows(
            architecture,
            replace(trace, prompt=prompt),
            options.sizes,
            controls=False,
            replacement=replacement,
            seed=0,
            keep=options.keep,
        )
        for trace in traces
    ]
    logits = masked_logits(
        model,
        architecture,
        [group for rows in plans for group in rows.groups],
        hooks=hooks,
        memory_budget=options.memory_budget,
    )
    full = target.to(logits.device).double().log_softmax(-1)[None]
    found: list[list[Row]] = []
    for rows, of_trace in zip(plans, logits.split([len(rows) for rows in plans]), strict=True):
        ours = of_trace[rows.trace].double().log_softmax(-1)
        tv, top1 = total_variation(full, ours).tolist(), top1_agreement(full, ours).tolist()
        found.append([{"tv": a, "top1": b} for a, b in zip(tv, top1, strict=True)])
    return found


def _passes(trace: Trace) -> Row:
    """Rows of the passes that a trace was fitted with."""
    passes = trace.metadata.get("passes", {})
    return {name: int(passes.get(name, 0)) for name in ("forward", "backward")}
