"""A trace's mask as hooks of one's own run, against `masked_logits` on every architecture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import strace_lens as sl
from strace_lens.token_graph.ablation import ZERO, Replacement
from strace_lens.token_graph.masked_run import masked_logits
from strace_lens.token_graph.rows import MaskedRows
from strace_lens.token_graph.trace import Trace
from tests import cases, tiny
from tests.cases import NAMES, model_of, relative_error

TOKENS = tiny.token_ids(9)
SIZE = 0.4


def random_trace(name: str, seed: int = 0, density: float = SIZE) -> Trace:
    """A trace of TOKENS whose first edges are drawn at random."""
    shape = cases.shape(name, len(TOKENS))
    ranks, _ = cases.ranks_that_keep(cases.random_mask(shape, density, seed), shape)
    prompt = sl.Prompt("", tuple(TOKENS), tuple(map(str, TOKENS)))
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
        trace.prompt.tensor, trace.shape, trace.ranks, ends * 0, ends, keep, replacement
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
    gap = relative_error(masked(name, trace, SIZE), cases.full_logits(name, TOKENS))
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
    model, trace = model_of("llama"), sl.extract(sl.token_graph(model_of("llama"), TOKENS))
    for keep in ((), ("attention",), ("residual",)):
        curve = sl.density_curve(model, trace, sizes=[SIZE], controls=False, refine=0, keep=keep)
        hooks = trace.hooks(SIZE, model, keep=keep)
        ours = last_logits(model, trace.prompt.tensor[None], hooks)[0].double().softmax(-1)
        full = cases.full_logits("llama", TOKENS).double().softmax(-1)
        tv = float((ours - full).abs().sum()) / 2
        assert curve.table["tv"].tolist() == pytest.approx([tv], abs=1e-6)
        best = [p for _, p in curve.table["top"][0]]
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
    others = [TOKENS, tiny.token_ids(9, seed=5)]
    make = sl.ablation.resample if kind == "resample" else sl.ablation.mean
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
    prompts = torch.tensor([TOKENS, tiny.token_ids(9, seed=3)])
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
    for wrong in (TOKENS[:8], [*TOKENS, 5]):
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
    short = sl.ablation.resample(model, cases.architecture("llama"), torch.tensor(TOKENS[:5]))
    with pytest.raises(ValueError, match="replacement has 5 tokens, the prompt 9"):
        trace.hooks(SIZE, model, replacement=short)
