"""What the tests of the component graph share: random tasks and masks, models in float64."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from hypothesis import strategies as st
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from strace_lens.circuits.experiment import Experiment, make_experiment
from strace_lens.circuits.graph import ComponentGraph
from strace_lens.circuits.task import Task
from tests import cases, oracle, tiny
from tests.circuits.oracle_patching import (
    Outputs,
    Patched,
    by_name,
    full_run,
    mean_outputs,
    patched_run,
    zero_outputs,
)

# The bridge of 3.9 runs no hook point at the input of OPT's MLP, and see `cases.REFUSED`.
REFUSED = {"opt", "olmo2"} if tiny.HAS_HOOKED_TRANSFORMER else set()
NAMES = [*(name for name in tiny.BRIDGES if name not in REFUSED), *cases.HOOKED]


GROUPED = ComponentGraph("grouped", layers=2, heads=4, kv_heads=2)


@st.composite
def graphs(draw: st.DrawFn) -> ComponentGraph:
    """Small graphs of every kind."""
    kv_heads = draw(st.integers(1, 3))
    mlp = draw(st.booleans())
    return ComponentGraph(
        "some",
        layers=draw(st.integers(1, 3)),
        heads=kv_heads * draw(st.integers(1, 3)),
        kv_heads=kv_heads,
        mlp=mlp,
        parallel=mlp and draw(st.booleans()),
    )


def tiny_task(
    pairs: int = 2,
    length: int = 6,
    *,
    seed: int = 0,
    metric: str = "logit_difference",
    **options: Any,
) -> Task:
    """Pairs of prompts of random words, with two answers and one wrong one each."""

    def prompts(first: int) -> Tensor:
        return torch.tensor([tiny.token_ids(length, first + pair) for pair in range(pairs)])

    ids = torch.arange(pairs)[:, None]
    return Task(
        name="words",
        clean=prompts(1),
        corrupted=prompts(501),
        lengths=options.pop("lengths", torch.full((pairs,), length)),
        answers=torch.cat([ids + 10, ids + 30], 1),
        incorrect=ids + 50,
        metric=metric,
        **options,
    )


def uneven_task() -> Task:
    """Three pairs of 3, 7 and 5 tokens, padded on the right with 0."""
    task = tiny_task(3, 7, lengths=torch.tensor([3, 7, 5]))
    padding = torch.arange(7) >= task.lengths[:, None]
    task.clean[padding] = 0
    task.corrupted[padding] = 0
    return task


def single_pairs(task: Task) -> list[Task]:
    """Each pair as a task of its own, without padding."""
    singles = [task.take([pair]) for pair in range(len(task))]
    return [
        Task(
            name=one.name,
            clean=one.clean[:, : int(one.lengths)],
            corrupted=one.corrupted[:, : int(one.lengths)],
            lengths=one.lengths,
            answers=one.answers,
            incorrect=one.incorrect,
            metric=one.metric,
        )
        for one in singles
    ]


def random_keep(
    graph: ComponentGraph, seed: int, *, soft: bool = False, positions: int = 0
) -> Tensor:
    """A mask of random edges, or of random weights; what is no edge is random too."""
    generator = torch.Generator().manual_seed(seed)
    shape = [graph.destinations, graph.sources] + [positions] * bool(positions)
    draw = torch.rand(shape, generator=generator)
    return draw if soft else draw < 0.6


MASKS = {
    "boolean": {},
    "soft": {"soft": True},
    "boolean by position": {"positions": 6},
    "soft by position": {"soft": True, "positions": 6},
}


@functools.cache
def double_model(name: str) -> Any:
    """The tiny model of that name in float64."""
    cases.model_of(name)  # skips where this TransformerLens cannot
    if name not in tiny.BRIDGES:
        return _to_double(copy.deepcopy(tiny.hooked(name)))
    hf: Any = copy.deepcopy(tiny.hf_model(name)).double()
    if name in ("mixtral", "gpt_oss"):
        hf.set_experts_implementation("eager")  # the grouped product knows no float64
    made = TransformerBridge.boot_transformers(
        f"tiny-{name}", hf_model=hf, tokenizer=tiny.tokenizer()
    )
    made.enable_compatibility_mode(no_processing=True)
    return made


def _to_double(model: Any) -> Any:
    """A HookedTransformer in float64; its config too, which its norms obey."""
    model = model.to(torch.float64)
    for part in model.modules():
        if hasattr(part, "cfg"):
            part.cfg.dtype = torch.float64
    return model


def double_experiment(name: str, task: Task, **options: Any) -> Experiment:
    """A task made ready on the model in float64."""
    return make_experiment(double_model(name), task, **options)


def slow_run(
    name: str,
    task: Task,
    pair: int,
    keep: Tensor,
    ablation: str = "resample",
    *,
    swap: bool = False,
) -> Patched:
    """One circuit on one pair by the oracle.

    Args:
        name: of the tiny model.
        task: whose prompts have one length, or whose pair has no padding.
        pair: which.
        keep: share of each edge that the run's own value makes up.
        ablation: what makes up the rest.
        swap: run the corrupted prompt and take replacements from the clean one.
    """
    model, graph = oracle.plain(name), plain_graph(name)
    run, other = task.clean, task.corrupted
    if swap:
        run, other = other, run
    length = int(task.lengths[pair])
    tokens, others = run[pair, :length].tolist(), other[pair, :length].tolist()
    return patched_run(model, tokens, by_name(graph, keep), replaced(name, task, others, ablation))


def replaced(name: str, task: Task, others: list[int], ablation: str) -> Outputs:
    """What ablated edges carry, by the oracle."""
    model = oracle.plain(name)
    if ablation == "mean":
        prompts = torch.cat([task.clean, task.corrupted]).tolist()
        return mean_outputs([full_run(model, tokens) for tokens in prompts])
    other = full_run(model, others)
    if ablation == "mean-over-positions":
        lengths = task.lengths.tolist() * 2
        padded = zip([*task.clean.tolist(), *task.corrupted.tolist()], lengths, strict=True)
        runs = [full_run(model, tokens[:length]).outputs for tokens, length in padded]
        return {
            name: torch.cat([run[name] for run in runs]).mean(0).expand_as(rows)
            for name, rows in other.outputs.items()
        }
    return zero_outputs(other) if ablation == "zero" else other.outputs


def plain_graph(name: str) -> ComponentGraph:
    """The graph of the tiny model, from the oracle's matrices alone."""
    model = oracle.plain(name)
    attention = model.layers[0].attention
    return ComponentGraph(
        name,
        len(model.layers),
        len(attention.W_O),
        len(attention.key.weight),
        mlp=model.layers[0].mlp is not None,
        parallel=model.parallel,
    )


def slow_metric(logits: Float[Tensor, "pos vocab"], task: Task, pair: int) -> float:
    """The logit difference of a pair, by hand."""
    last = logits[-1]
    right = sum(float(last[i]) for i in task.answers[pair]) / task.answers.shape[1]
    return right - sum(float(last[i]) for i in task.incorrect[pair]) / task.incorrect.shape[1]


def hooks_on(model: Any) -> dict[str, int]:
    """How many hooks each hook point holds, and whether the model's inputs are split."""
    points = model.hook_dict.items()
    counts = {name: len(point.fwd_hooks) + len(point.bwd_hooks) for name, point in points}
    flags = ("use_attn_result", "use_split_qkv_input", "use_attn_in", "use_hook_mlp_in")
    return counts | {flag: int(bool(getattr(model.cfg, flag, False))) for flag in flags}
