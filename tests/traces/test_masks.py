"""Masked runs against the oracle's slow forward pass, on every architecture."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

import strace_lens as sl
from strace_lens.model.forward import bytes_per_row
from strace_lens.model.prompts import Prompt
from strace_lens.traces import ablation
from strace_lens.traces.ablation import ZERO, Replacement
from strace_lens.traces.edges import EdgeTensors, GraphShape
from strace_lens.traces.masked_run import masked_logits, passes
from strace_lens.traces.rows import MaskedRows
from strace_lens.traces.trace import Trace
from strace_lens.utils.choices import KINDS, MEMORY_BUDGET
from tests import cases, oracle, tiny
from tests.cases import NAMES, model_of, random_mask, relative_error, rows, run
from tests.families import family, hf_family

SHORT = tiny.token_ids(5)  # one more than the sliding window
TOKENS = tiny.token_ids(9)
ONE = torch.tensor([1])


def everything(shape: GraphShape) -> EdgeTensors:
    return shape.full(1.0, torch.bool)


@pytest.mark.extended
@pytest.mark.parametrize("name", NAMES)
def test_zeroing_any_one_edge_equals_the_slow_forward(name: str) -> None:
    shape = cases.shape(name, len(SHORT))
    masks = cases.single_edge_drops(shape)
    assert len(masks) == shape.edges
    ours = run(name, rows(SHORT, shape, masks))
    truth = torch.stack([oracle.masked_logits(name, SHORT, keep) for keep in masks])
    assert relative_error(ours, truth) < 1e-5
    full = oracle.masked_logits(name, SHORT, everything(shape))
    # A dropped edge moves the logits by far more than the tolerance, unless it carries nothing.
    moved = (truth - full).abs().amax(-1) > 1e-4 * full.abs().max()
    assert moved.double().mean() > 0.7


@pytest.mark.parametrize("density", [0.0, 0.3, 0.7])
@pytest.mark.parametrize("name", NAMES)
def test_random_masks_equal_the_slow_forward(name: str, density: float) -> None:
    shape = cases.shape(name, len(TOKENS))
    masks = [random_mask(shape, density, seed) for seed in range(3 if density else 1)]
    ours = run(name, rows(TOKENS, shape, masks))
    truth = torch.stack([oracle.masked_logits(name, TOKENS, keep) for keep in masks])
    assert relative_error(ours, truth) < 2e-5


@pytest.mark.parametrize("name", NAMES)
def test_the_trace_of_size_one_gives_the_models_logits(name: str) -> None:
    shape = cases.shape(name, len(TOKENS))
    ours = run(name, rows(TOKENS, shape, [everything(shape)]))[0]
    assert relative_error(ours, cases.full_logits(name, TOKENS)) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_a_row_of_a_batch_of_unequal_prompts_equals_that_row_alone(name: str) -> None:
    """The prompts hold the padding token too: as a first, an inner and a last token."""
    prompts = [[*SHORT, 0], [0, *tiny.token_ids(3, seed=1)], [*TOKENS[:4], 0, *TOKENS[5:]]]
    groups = []
    for i, tokens in enumerate(prompts):
        shape = cases.shape(name, len(tokens))
        masks = [random_mask(shape, 0.5, seed=i), everything(shape)]
        groups += rows(tokens, shape, masks)
    together = run(name, groups)
    alone = torch.cat([run(name, [group]) for group in groups])
    assert relative_error(together, alone) < 1e-5
    for i, tokens in enumerate(prompts):
        assert relative_error(together[2 * i + 1], cases.full_logits(name, tokens)) < 1e-5


@pytest.mark.parametrize("known", [True, False])
def test_rows_that_padding_would_change_run_apart_in_their_order(known: bool) -> None:
    """LongRoPE, whose positions change beyond eight tokens; or by rows found to change."""
    model, hf = family("phi3_longrope"), hf_family("phi3_longrope")
    arch = cases.architecture_of(model)
    if not known:
        arch = dataclasses.replace(arch, position_switches=(), padding_is_exact=False)
    prompts = [tiny.token_ids(n, seed=n) for n in (6, 12, 5, 4, 9)]
    groups = []
    for tokens in prompts:
        shape = GraphShape(arch.layers, arch.heads, len(tokens))
        masks = [everything(shape), random_mask(shape, 0.7, seed=0)]
        groups += rows(tokens, shape, masks)
    seen: list[int] = []
    together = masked_logits(model, arch, groups, advance=seen.append)
    alone = torch.cat([masked_logits(model, arch, [group]) for group in groups])
    assert relative_error(together, alone) < 1e-5
    with torch.no_grad():
        truth = torch.stack([hf(torch.tensor([tokens])).logits[0, -1] for tokens in prompts])
    assert relative_error(together[::2], truth) < 1e-5
    assert seen == ([2, 2, 4, 2] if known else [2, 2, 2, 2, 2])
    lengths = [len(tokens) for tokens in prompts for _ in range(2)]
    assert passes(arch, lengths, MEMORY_BUDGET) == len(seen)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gptj", "opt", "olmo2", "bloom"])
def test_rows_keep_the_ranks_from_start_to_stop(name: str) -> None:
    """All sizes of one ranking, and their complements, are rows of one group."""
    shape = cases.shape(name, len(TOKENS))
    ranks, _ = cases.ranks_that_keep(random_mask(shape, 0.5, seed=0), shape)
    half = shape.edges // 2
    start = torch.tensor([0, half, 3, half])
    stop = torch.tensor([half, shape.edges, shape.edges - 3, half])
    group = MaskedRows(torch.tensor(TOKENS), shape, ranks, start, stop)
    ours = run(name, [group])
    for row, a, b in zip(ours, start.tolist(), stop.tolist(), strict=True):
        keep = ranks.map(lambda r, a=a, b=b: (r >= a) & (r < b))
        assert relative_error(row, oracle.masked_logits(name, TOKENS, keep)) < 2e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_a_kind_of_edges_is_kept_whole(name: str, kind: str) -> None:
    shape = cases.shape(name, len(TOKENS))
    few, most = (random_mask(shape, density, seed=0) for density in (0.3, 0.8))
    mask = most._replace(**{kind: getattr(few, kind)})
    ours = run(name, rows(TOKENS, shape, [mask], keep=(kind,)))[0]
    lifted = mask._replace(**{kind: torch.ones_like(getattr(mask, kind))})
    truth = oracle.masked_logits(name, TOKENS, lifted)
    assert relative_error(ours, truth) < 1e-5
    moved = relative_error(oracle.masked_logits(name, TOKENS, mask), truth)
    # Without MLPs there is no such edge to keep.
    assert moved > 1e-2 or (kind == "mlp" and not shape.mlp)


@pytest.mark.parametrize("name", NAMES)
def test_with_every_kind_kept_the_output_is_the_models(name: str) -> None:
    """Whatever the ranks, and on bridges whose pattern cannot be written."""
    shape = cases.shape(name, len(TOKENS))
    ours = run(name, rows(TOKENS, shape, [random_mask(shape, 0.3, seed=0)], keep=KINDS))[0]
    assert relative_error(ours, cases.full_logits(name, TOKENS)) < 1e-6


def test_rows_that_keep_different_kinds_share_a_pass() -> None:
    """Attention is as the model computes it only where every row keeps it."""
    for name in ("llama", "gptj", "opt", "gpt2"):
        shape = cases.shape(name, len(TOKENS))
        mask = random_mask(shape, 0.4, seed=2)
        keeps = ((), ("attention",), ("residual", "attention"), ("mlp",))
        groups = [one for keep in keeps for one in rows(TOKENS, shape, [mask], keep=keep)]
        together = run(name, groups)
        alone = torch.cat([run(name, [group]) for group in groups])
        assert relative_error(together, alone) < 1e-5


@pytest.mark.extended
@pytest.mark.parametrize("name", ["llama", "opt"])
def test_groups_that_differ_share_a_pass_whatever_the_budget(name: str) -> None:
    groups = []
    for tokens in (SHORT, TOKENS):
        shape = cases.shape(name, len(tokens))
        ranks, _ = cases.ranks_that_keep(random_mask(shape, 0.5, seed=1), shape)
        stop = torch.arange(0, shape.edges, shape.edges // 4)
        start = torch.zeros_like(stop)
        group = MaskedRows(torch.tensor(tokens), shape, ranks, start, stop)
        groups += [group, dataclasses.replace(group, keep=("residual",))]
    total = sum(len(g) for g in groups)
    arch = cases.architecture(name)
    results = []
    for rows_a_pass in (1, 3, 1000):
        budget, seen = rows_a_pass * bytes_per_row(arch, len(TOKENS)), []
        results.append(run(name, groups, memory_budget=budget, advance=seen.append))
        assert sum(seen) == total
        assert max(seen) <= rows_a_pass
        lengths = [len(g.tokens) for g in groups for _ in range(len(g))]
        assert len(seen) == passes(arch, lengths, budget)
    assert relative_error(results[0], results[2]) < 1e-5
    assert relative_error(results[1], results[2]) < 1e-5


@pytest.mark.parametrize("name", tiny.BRIDGES)
def test_half_precision_runs_and_stays_near_the_truth(name: str) -> None:
    model = cases.fresh_bridge(name, torch.bfloat16)
    shape = cases.shape(name, len(TOKENS))
    arch = cases.architecture_of(model)
    masks = [everything(shape), random_mask(shape, 0.7, seed=0)]
    ours = masked_logits(model, arch, rows(TOKENS, shape, masks)).double()
    with torch.no_grad():
        untouched = model(torch.tensor([TOKENS]))[0, -1].double()
    assert relative_error(ours[0], untouched) < 0.1
    assert relative_error(ours[1], oracle.masked_logits(name, TOKENS, masks[1])) < 0.3


def _hook_counts(model: Any) -> dict[str, int]:
    return {name: len(point.fwd_hooks) for name, point in model.hook_dict.items()}


@pytest.mark.parametrize("name", ["llama", "gpt2", "gptj", *cases.HOOKED[:1]])
@pytest.mark.parametrize("fails", [False, True])
def test_no_hook_is_left_behind_and_the_users_own_stay(name: str, fails: bool) -> None:
    model = model_of(name)
    shape = cases.shape(name, len(TOKENS))
    groups = rows(TOKENS, shape, [everything(shape)])
    run(name, groups)
    clean, calls = _hook_counts(model), []

    def users(value: Tensor, hook: Any) -> None:
        calls.append(value.shape[0])
        if fails:
            raise KeyboardInterrupt

    point = model.hook_dict["blocks.1.hook_mlp_out"]
    point.add_hook(users)
    try:
        with_users = _hook_counts(model)
        if fails:
            with pytest.raises(KeyboardInterrupt):
                run(name, groups)
        else:
            run(name, groups)
        assert calls == [1]
        assert _hook_counts(model) == with_users != clean
    finally:
        point.remove_hooks("fwd")
    assert _hook_counts(model) == clean


@pytest.mark.parametrize("name", cases.POST_NORM)
def test_reading_a_norms_weights_does_not_run_the_users_hooks(name: str) -> None:
    if name in tiny.HOOKED and not tiny.HAS_HOOKED_TRANSFORMER:
        pytest.skip("no HookedTransformer")
    model = model_of(name)
    shape = cases.shape(name, len(TOKENS))
    seen: list[torch.Size] = []

    def users(value: Tensor, hook: Any) -> None:
        seen.append(value.shape)

    points = [model.hook_dict[f"blocks.0.{norm}.hook_scale"] for norm in ("ln1_post", "ln2_post")]
    for point in points:
        point.add_hook(users)
    try:
        run(name, rows(TOKENS, shape, [everything(shape)]))
    finally:
        for point in points:
            point.remove_hooks("fwd")
    assert seen == [(1, len(TOKENS), 1)] * 2


def test_rows_whose_parts_do_not_fit_each_other_are_refused() -> None:
    shape = cases.shape("llama", 5)
    ranks, count = cases.ranks_that_keep(everything(shape), shape)
    with pytest.raises(ValueError, match="9 tokens"):
        MaskedRows(torch.tensor(TOKENS), shape, ranks, ONE * 0, ONE * count)


def test_rows_slice_like_a_list() -> None:
    shape = cases.shape("llama", 5)
    ranks, _ = cases.ranks_that_keep(everything(shape), shape)
    stop = torch.arange(6)
    group = MaskedRows(torch.tensor(SHORT), shape, ranks, torch.zeros_like(stop), stop)
    part = group.rows(slice(2, 4))
    assert len(group) == 6
    assert part.stop.tolist() == [2, 3]
    kept = part.kept("attention")
    assert [int(k.sum()) for k in kept] == [2, 3]


HOOKED_TOKENS = tiny.token_ids(9)
SIZE = 0.4


def random_trace(name: str, seed: int = 0, density: float = SIZE) -> Trace:
    """A trace of HOOKED_TOKENS whose first edges are drawn at random."""
    shape = cases.shape(name, len(HOOKED_TOKENS))
    ranks, _ = cases.ranks_that_keep(cases.random_mask(shape, density, seed), shape)
    prompt = Prompt("", tuple(HOOKED_TOKENS), tuple(map(str, HOOKED_TOKENS)))
    return Trace(shape, prompt, ranks, {"model": cases.architecture(name).name})


def masked(
    name: str,
    trace: Trace,
    size: float,
    replacement: Replacement = ZERO,
    keep: tuple[str, ...] = (),
) -> Tensor:
    """The logits that `density_curve` would measure."""
    ends = torch.tensor([trace.edge_count(size)])
    row = MaskedRows(
        *(trace.prompt.tensor, trace.shape, trace.ranks, None, ends),
        keep=keep,
        replacement=replacement,
    )
    return masked_logits(model_of(name), cases.architecture(name), [row])[0]


def last_logits(model: Any, prompts: Tensor, hooks: list) -> Tensor:
    with torch.no_grad():
        return model.run_with_hooks(prompts, fwd_hooks=hooks)[:, -1]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_with_hooks_equals_the_masked_run(name: str) -> None:
    model, trace = model_of(name), random_trace(name)
    for size in (SIZE, 1.0):
        hooks = trace.hooks(size, model)
        truth = masked(name, trace, size)
        once = last_logits(model, trace.prompt.tensor[None], hooks)[0]
        assert relative_error(once, truth) < 1e-5
        # The same list again, on the prompt repeated, in the other way of TransformerLens.
        with torch.no_grad(), model.hooks(fwd_hooks=hooks):
            batch = model(trace.prompt.tensor.expand(3, -1))[:, -1]
        assert relative_error(batch, truth.expand(3, -1)) < 1e-5
    gap = relative_error(masked(name, trace, SIZE), cases.full_logits(name, HOOKED_TOKENS))
    assert gap > 1e-2  # the mask does something


@pytest.mark.parametrize("keep", [("attention",), ("mlp",), ("residual",), ("residual", "mlp")])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gptj", "opt", "gemma2", *cases.HOOKED[:1]])
def test_hooks_keep_the_kinds_that_a_curve_keeps(name: str, keep: tuple[str, ...]) -> None:
    size = 0.8  # of fewer edges drawn at random hardly any is read
    model, trace = model_of(name), random_trace(name, density=size)
    hooks = trace.hooks(size, model, keep=keep)
    ours = last_logits(model, trace.prompt.tensor.expand(2, -1), hooks)
    truth = masked(name, trace, size, keep=keep)
    assert relative_error(ours, truth.expand(2, -1)) < 1e-5
    assert relative_error(truth, masked(name, trace, size)) > 1e-3


def test_hooks_put_out_what_a_curve_that_keeps_kinds_measures() -> None:
    model, trace = model_of("llama"), sl.extract(sl.token_graph(model_of("llama"), HOOKED_TOKENS))
    for keep in ((), ("attention",), ("residual",)):
        curve = sl.density_curve(model, trace, sizes=[SIZE], controls=False, refine=0, keep=keep)
        hooks = trace.hooks(SIZE, model, keep=keep)
        ours = last_logits(model, trace.prompt.tensor[None], hooks)[0].double().softmax(-1)
        full = cases.full_logits("llama", HOOKED_TOKENS).double().softmax(-1)
        tv = float((ours - full).abs().sum()) / 2
        assert curve.table["tv"].tolist() == pytest.approx([tv], abs=1e-6)
        best = [p for _, p in curve.tops[0]]
        assert best == pytest.approx(ours.topk(len(best)).values.tolist(), abs=1e-6)


def test_kinds_that_are_none_are_refused() -> None:
    model, trace = model_of("llama"), random_trace("llama")
    with pytest.raises(ValueError, match="unknown kind of edge 'heads'; choose from residual"):
        trace.hooks(SIZE, model, keep=("heads",))
    with pytest.raises(ValueError, match="keep takes a sequence of kinds"):
        trace.hooks(SIZE, model, keep="attention")


@pytest.mark.parametrize("kind", ["mean", "resample"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gptj", "opt", "olmo2", *cases.HOOKED[:1]])
def test_ablated_edges_carry_the_replacement(name: str, kind: str) -> None:
    model, trace = model_of(name), random_trace(name)
    others = [HOOKED_TOKENS, tiny.token_ids(9, seed=5)]
    make = ablation.resample if kind == "resample" else ablation.mean
    reference = torch.tensor(others[1]) if kind == "resample" else list(map(torch.tensor, others))
    replacement = make(model, cases.architecture(name), reference)
    hooks = trace.hooks(SIZE, model, replacement=replacement)
    ours = last_logits(model, trace.prompt.tensor.expand(2, -1), hooks)
    truth = masked(name, trace, SIZE, replacement)
    assert relative_error(ours, truth.expand(2, -1)) < 1e-5
    assert relative_error(truth, masked(name, trace, SIZE)) > 1e-3


@pytest.mark.parametrize("name", ["llama", "gptj", "gpt2"])
def test_each_prompt_of_a_batch_is_masked_alike(name: str) -> None:
    model, trace = model_of(name), random_trace(name)
    prompts = torch.tensor([HOOKED_TOKENS, tiny.token_ids(9, seed=3)])
    hooks = trace.hooks(SIZE, model)
    together = last_logits(model, prompts, hooks)
    alone = torch.cat([last_logits(model, prompt[None], hooks) for prompt in prompts])
    assert relative_error(together, alone) < 1e-5
    assert relative_error(together[0], together[1]) > 1e-2


@pytest.mark.parametrize("name", ["llama", "gptj", *cases.HOOKED[:1]])
def test_a_run_that_fails_half_way_leaves_nothing_to_the_next(name: str) -> None:
    model, trace = model_of(name), random_trace(name)
    hooks = trace.hooks(SIZE, model)

    def fails(value: Tensor, hook: Any) -> None:
        raise KeyboardInterrupt

    broken, others = [*hooks, ("blocks.1.hook_mlp_out", fails)], [tiny.token_ids(9, seed=8)] * 4
    with pytest.raises(KeyboardInterrupt):
        last_logits(model, torch.tensor(others), broken)
    again = last_logits(model, trace.prompt.tensor[None], hooks)[0]
    assert relative_error(again, masked(name, trace, SIZE)) < 1e-5
    assert all(not point.fwd_hooks for point in model.hook_dict.values())


def test_a_prompt_of_another_length_is_refused() -> None:
    model, trace = model_of("llama"), random_trace("llama")
    hooks = trace.hooks(SIZE, model)
    for wrong in (HOOKED_TOKENS[:8], [*HOOKED_TOKENS, 5]):
        with pytest.raises(ValueError, match=rf"prompt of 9 tokens, but the run has {len(wrong)}"):
            last_logits(model, torch.tensor([wrong]), hooks)


def test_a_run_without_the_first_hook_is_refused() -> None:
    model, trace = model_of("llama"), random_trace("llama")
    with pytest.raises(RuntimeError, match=r"ran before blocks\.0\.hook_resid_pre"):
        last_logits(model, trace.prompt.tensor[None], trace.hooks(SIZE, model)[1:])


def test_another_model_is_refused() -> None:
    trace = random_trace("llama")
    with pytest.raises(ValueError, match=r"trace of tiny-llama .* does not fit tiny-gptj"):
        trace.hooks(SIZE, model_of("gptj"))
    # A model of the same shape is another model all the same.
    with pytest.raises(ValueError, match=r"trace of tiny-llama .* does not fit tiny-gpt2"):
        trace.hooks(SIZE, model_of("gpt2"))
    assert trace.shape == random_trace("gpt2").shape


def test_sizes_and_replacements_that_do_not_fit_are_refused() -> None:
    model, trace = model_of("llama"), random_trace("llama")
    with pytest.raises(ValueError, match="lie in"):
        trace.hooks(1.5, model)
    short = ablation.resample(model, cases.architecture("llama"), torch.tensor(HOOKED_TOKENS[:5]))
    with pytest.raises(ValueError, match="replacement has 5 tokens, the prompt 9"):
        trace.hooks(SIZE, model, replacement=short)
