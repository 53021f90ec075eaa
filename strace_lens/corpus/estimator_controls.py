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

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from strace_lens.corpus.parts import Row
from strace_lens.corpus.prompts import CorpusError, CorpusPrompt
from strace_lens.corpus.setting import Options
from strace_lens.measures.distributions import top1_agreement, total_variation
from strace_lens.model.architecture import Architecture, Model
from strace_lens.model.checks import architecture_of
from strace_lens.model.forward import Hook, last_logits
from strace_lens.model.prompts import Prompt, PromptError, tokenize
from strace_lens.traces.ablation import Replacement
from strace_lens.traces.compute import compute_share, on_path
from strace_lens.traces.curve_rows import curve_rows, most_rows
from strace_lens.traces.estimators import estimate, estimator_of
from strace_lens.traces.graph import TokenGraph
from strace_lens.traces.masked_run import masked_logits
from strace_lens.traces.noise import embedding_noise
from strace_lens.traces.trace import Trace
from strace_lens.utils.progress import no_progress

ROLES = ("own", "wrong", "sibling", "noise")
SEEDS = 2
"""How many seeds an estimator that draws is run with, the one of the sweep and those after it."""

CONTROL_LABELS = ("sibling", "wrong")
"""Labels of a prompt that name its controls: a text, and a text or the number of a prompt."""


def with_wrong_texts(prompts: Sequence[CorpusPrompt]) -> list[CorpusPrompt]:
    """Prompts whose label `wrong` is the text whose output is the wrong target.

    Args:
        prompts: a label `wrong` may hold the text, or the number of a prompt from 0; without one
            the next prompt is taken, after the last the first.

    Raises:
        CorpusError: a label that names no prompt, or the prompt itself; or a single prompt.
    """
    named = []
    for number, one in enumerate(prompts):
        wrong = one.labels.get("wrong", (number + 1) % len(prompts))
        where = f"prompt {number} (counted from 0)"
        if not isinstance(wrong, str):
            if len(prompts) == 1:
                raise CorpusError(
                    f"{where} has no other whose output could be its wrong target; add a prompt, "
                    "or name a text as its 'wrong'"
                )
            if isinstance(wrong, bool | float) or not 0 <= wrong < len(prompts):
                raise CorpusError(
                    f"{where}: 'wrong' must be a text or the number of a prompt, from 0 to "
                    f"{len(prompts) - 1}; got {wrong!r}"
                )
            wrong = prompts[wrong].text
        if wrong == one.text:
            raise CorpusError(
                f"{where}: its 'wrong' is its own text, whose output is the right target; name "
                "another prompt"
            )
        named.append(replace(one, labels={**one.labels, "wrong": wrong}))
    return named


def control_prompts(
    model: Model,
    architecture: Architecture,
    given: CorpusPrompt,
    prompt: Prompt,
    bos: bool | None,
) -> dict[str, Prompt]:
    """The tokens of a prompt's controls: of `wrong`, and of its `sibling` if it has one.

    Args:
        model: whose tokenizer is used.
        architecture: of the model.
        given: a prompt of `with_wrong_texts`.
        prompt: its tokens.
        bos: as for `tokenize`.

    Raises:
        PromptError: a text that cannot be traced, or a sibling of another number of tokens.
    """
    texts = {name: given.labels[name] for name in CONTROL_LABELS if name in given.labels}
    found = {name: tokenize(model, architecture, str(text), bos) for name, text in texts.items()}
    sibling = found.get("sibling")
    if sibling is not None and len(sibling.ids) != len(prompt.ids):
        raise PromptError(
            f"the sibling has {len(sibling.ids)} tokens, the prompt {len(prompt.ids)}; "
            "give texts of equal token length"
        )
    return found


def measure_controls(
    model: Model,
    options: Options,
    graph: TokenGraph,
    trace: Trace,
    replacement: Replacement,
    own: pd.DataFrame,
    *,
    wrong: Prompt,
    sibling: Prompt | None,
    noise_seed: int,
) -> list[list[Row]]:
    """What the controls of one prompt give, at each size of the grid.

    Args:
        model: the model.
        options: of the sweep.
        graph: the token graph of the prompt.
        trace: of the prompt, by the sweep's estimator and seed.
        replacement: what an ablated edge carries.
        own: `tv` and `top1` of the trace at each size of the grid.
        wrong: the prompt whose output is the wrong target.
        sibling: a prompt of the same length, or None.
        noise_seed: of the noise on the embeddings.

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
    target = last_logits(model, architecture, wrong.tensor[None])[0]
    # What fits nothing draws nothing and cannot be aimed: its own trace is measured instead.
    fitted = estimator_of(options.estimator).steps > 0
    traces = [trace, *(fit(seed=options.seed + n) for n in range(1, SEEDS if fitted else 1))]
    aimed = fit(seed=options.seed, target=target.float().softmax(-1)) if fitted else trace
    noise = embedding_noise(len(graph.prompt.ids), architecture.d_model, seed=noise_seed)
    run = partial(_run, model, options, replacement)
    frames = [
        ("own", [own, *run(traces[1:], graph.prompt)]),
        ("wrong", run([aimed], graph.prompt, target)),
        ("sibling", [] if sibling is None else run(traces, sibling)),
        ("noise", run(traces, graph.prompt, hooks=[noise])),
    ]
    by_size: list[list[Row]] = [[] for _ in options.sizes]
    for role, of_seeds in frames:
        for seed, frame in enumerate(of_seeds):
            if role == "own":
                frame = frame.assign(**_shape(architecture, traces[seed], options.sizes))
            if role in ("own", "wrong"):
                frame = frame.assign(**_passes(aimed if role == "wrong" else traces[seed]))
            for rows, values in zip(by_size, frame.to_dict("records"), strict=True):
                rows.append({"role": role, "seed": seed, **{str(k): v for k, v in values.items()}})
    return by_size


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
) -> list[pd.DataFrame]:
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
    frames = []
    for rows, found in zip(plans, logits.split([len(rows) for rows in plans]), strict=True):
        ours = found[rows.trace].double().log_softmax(-1)
        measured = {
            "tv": total_variation(full, ours).tolist(),
            "top1": top1_agreement(full, ours).tolist(),
        }
        frames.append(pd.DataFrame(measured))
    return frames


def _shape(
    architecture: Architecture, trace: Trace, sizes: Sequence[float]
) -> dict[str, list[float] | list[bool]]:
    """How far a trace of each size joins the prompt with the output, and what its run costs."""
    counts = [trace.edge_count(size) for size in sizes]
    paths = on_path(trace, counts)
    return {
        "path_share": paths.share.tolist(),
        "connected": paths.connected.tolist(),
        "compute": compute_share(trace, architecture, counts).share.tolist(),
    }


def _passes(trace: Trace) -> dict[str, int]:
    passes = trace.metadata.get("passes", {})
    return {name: int(passes.get(name, 0)) for name in ("forward", "backward")}
