"""The plan of a sweep: against the plan of a loaded model, and against sweeps that were run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import strace_lens as sl
from strace_lens.corpus import plan as module
from strace_lens.corpus.parts import part_paths
from strace_lens.corpus.plan import plan_sweep
from strace_lens.density import cost
from strace_lens.density.cost import Speed, gradient_multiply_adds, multiply_adds
from strace_lens.model.checks import architecture_of
from strace_lens.model.skeleton import Skeleton, skeleton
from strace_lens.traces.ablation import ZERO
from strace_lens.traces.estimators import fitting_passes
from strace_lens.traces.fit import gradients, weighted_log_probs
from strace_lens.traces.rows import weighted_rows
from strace_lens.utils.choices import MEMORY_BUDGET
from tests import tiny
from tests.cases import REFUSED, architecture, model_of
from tests.live_bytes import LiveBytes

FAST = Speed("a machine of known speed", 1e9, 1e-9)
TEXTS = ["the capital of France is", "the city by the river was", "a new song of the king and his"]
NAMES = [name for name in tiny.BRIDGES if name not in REFUSED]


def known(name: str) -> Skeleton:
    found = skeleton(tiny.hf_model(name).config)
    return dataclasses.replace(found, tokenizer=tiny.tokenizer())


def prompts(texts: list[str]) -> list[sl.CorpusPrompt]:
    return [sl.CorpusPrompt(text) for text in texts]


@pytest.mark.parametrize(
    ("name", "options", "controls"),
    [
        *((name, {}, True) for name in ("llama", "gptj", "gpt2", "bloom")),
        ("llama", {}, False),
        *(("gptj", {"sizes": (0.1, 0.5), "refine": 0}, controls) for controls in (True, False)),
    ],
)
def test_one_prompt_costs_what_the_plan_of_its_curve_says(
    name: str, options: dict[str, Any], controls: bool
) -> None:
    model = model_of(name)
    curve = sl.plan(model, 11, controls=controls, **options)
    chosen = sl.Options(hidden=False, controls="size" if controls else "none", **options)
    told = plan_sweep(known(name), [11], chosen, speed=FAST)
    (run,) = told.combinations
    assert (run.rows, run.passes) == (curve.rows, curve.passes)
    assert told.pass_bytes == curve.bytes
    assert told.peak_bytes >= curve.peak_bytes
    # Reading the graph is one forward pass more.
    assert run.flops == 2 * (curve.multiply_adds + multiply_adds(architecture(name), 11))
    assert (run.forward, run.backward) == (1, 0)


def test_seconds_of_rows_are_those_of_the_plan_of_a_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "_seconds_of", lambda work: 1e-3)
    monkeypatch.setattr(module, "MEASURE_SECONDS", 0.0)
    curve = sl.plan(model_of("llama"), 11, controls=False)
    speed = cost.speed_here(torch.device("cpu"), torch.float32, 4, 11, curve.rows)
    told = plan_sweep(known("llama"), [11], sl.Options(controls="none"), speed=speed)
    arch = architecture("llama")
    edges = sl.token_graph(model_of("llama"), tiny.token_ids(11)).shape.edges
    whole = speed._replace(share=1.0)  # no part of the model is left out as the graph is read
    reading = cost.seconds_of_rows(arch, 11, 1, 1, whole) + edges * cost.EDGE_SECONDS
    assert told.seconds == pytest.approx(curve.seconds + reading)


def test_a_model_that_is_not_loaded_is_planned_for_as_the_loaded_one_is(tmp_path: Path) -> None:
    tiny.hf_model("llama").config.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    texts = prompts(TEXTS)
    told = plan_sweep(tmp_path, texts, speed=FAST)
    loaded = dataclasses.replace(
        known("llama"), name=tmp_path.name, architecture=architecture("llama")
    )
    assert told == plan_sweep(loaded, texts, speed=FAST)
    assert told.prompts == 3
    assert told.assumptions == ()
    lengths = [len(tiny.tokenizer()(text).input_ids) for text in TEXTS]
    assert (told.tokens, told.longest) == (sum(lengths), max(lengths))


def test_without_a_tokenizer_words_are_counted_and_said_to_be() -> None:
    bare = dataclasses.replace(known("llama"), tokenizer=None)
    told = plan_sweep(bare, prompts(TEXTS), speed=FAST)
    assert told.tokens == sum(round(1.4 * len(text.split())) for text in TEXTS)
    assert told.assumptions == ("the tokenizer cannot be read here: a word counts as 1.4 tokens",)


@pytest.mark.extended
@pytest.mark.parametrize("estimator", ["greedy", "fisher", "regularized"])
def test_fitting_takes_no_more_passes_than_planned(estimator: str) -> None:
    model = model_of("llama")
    trace = sl.estimate(model, sl.token_graph(model, tiny.token_ids(20)), estimator)
    made = trace.metadata.get("passes", {"forward": 0, "backward": 0})
    planned = dict(zip(("forward", "backward"), fitting_passes(estimator), strict=True))
    assert all(made[kind] <= planned[kind] <= 1.5 * made[kind] for kind in planned)
    told = plan_sweep(known("llama"), [20], estimators=[estimator], speed=FAST)
    (run,) = told.combinations
    assert (run.forward, run.backward) == (planned["forward"] + 1, planned["backward"])


@pytest.mark.parametrize("tokens", [12, 60])
@pytest.mark.parametrize("name", NAMES)
def test_a_backward_pass_multiplies_as_often_as_planned(name: str, tokens: int) -> None:
    model, arch = model_of(name), architecture(name)
    if arch.experts > 1:
        pytest.skip("torch does not count the product of groups that experts are run by")
    shape = sl.token_graph(model, tiny.token_ids(tokens)).shape
    rows = weighted_rows(
        torch.tensor(tiny.token_ids(tokens)),
        shape,
        shape.full(0, torch.int32),
        torch.ones(1, dtype=torch.int32),
        ZERO,
        torch.device("cpu"),
    )
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    log_probs = weighted_log_probs(model, arch, rows)
    with FlopCounterMode(display=False) as counter:
        gradients(log_probs.sum(), rows)
    counted = counter.get_total_flops() / 2
    # Nothing below the first layer's values asks for a gradient, which a deep model hardly notices.
    planned = gradient_multiply_adds(arch, tokens)
    assert counted <= planned
    assert planned <= counted * arch.layers / (arch.layers - 1.2)


@pytest.mark.extended
@pytest.mark.parametrize("hidden", [True, False])
def test_a_sweep_takes_no_more_than_planned(tmp_path: Path, hidden: bool) -> None:
    model, texts = model_of("llama"), prompts(TEXTS * 4)
    options = sl.Options(hidden=hidden, estimator="fisher")
    told = plan_sweep(known("llama"), texts, options, speed=FAST)
    seen = 0

    def count(module: Any, given: Any) -> None:
        nonlocal seen
        seen += 1

    architecture_of(model)  # is proven by passes of its own
    handle = model.original_model.register_forward_pre_hook(count)
    try:
        with LiveBytes() as live:
            run = sl.sweep(model, texts, tmp_path / "run", options, progress=lambda *_: None)
    finally:
        handle.remove()
    (planned,) = told.combinations
    assert told.prompts == len(run.prompts) == 12
    assert len(run.sizes) <= planned.rows
    assert 1 < seen <= planned.passes + planned.forward + 1  # one without any context
    assert live.most <= told.peak_bytes
    written = sum(path.stat().st_size for path in part_paths(tmp_path / "run"))
    assert written <= planned.disk_bytes <= 5 * written


def test_grown_prompts_are_planned_for_as_prompts_of_their_own() -> None:
    one = plan_sweep(known("llama"), [9], speed=FAST)
    grown = plan_sweep(known("llama"), [9], sl.Options(generate=2), speed=FAST)
    assert (grown.prompts, grown.tokens, grown.longest) == (3, 9 + 10 + 11, 11)
    assert grown.rows == 3 * one.rows
    at_the_end = plan_sweep(known("llama"), [63], sl.Options(generate=4), speed=FAST)
    assert at_the_end.longest == 64  # the context


def test_combinations_add_up_and_workers_share_them() -> None:
    told = plan_sweep(
        known("llama"),
        [9, 20],
        estimators=["greedy", "fisher"],
        keep=[(), ("attention", "mlp")],
        speed=FAST,
        workers=4,
    )
    named = [(run.estimator, run.keep) for run in told.combinations]
    kept: list[tuple[str, ...]] = [(), ("attention", "mlp")]
    assert named == [(name, kinds) for name in ("greedy", "fisher") for kinds in kept]
    assert told.rows == sum(run.rows for run in told.combinations)
    assert told.flops == sum(run.flops for run in told.combinations)
    assert told.seconds == sum(run.seconds for run in told.combinations) / 4
    assert told.gradient_bytes > 0
    assert json.loads(json.dumps(told.to_dict()))["seconds"] == told.seconds


def test_a_stated_device_takes_the_time_of_its_numbers() -> None:
    bare = known("llama")
    fast, slow = (plan_sweep(bare, [50] * 8, speed=flops) for flops in (1e9, 1e8))
    assert "1e+09 FLOP/s and 5e+06 byte/s, as given" in fast.speed
    assert slow.seconds - fast.seconds > 0.9 * fast.flops * 9e-9
    half = dataclasses.replace(bare, dtype=torch.bfloat16)
    single, double = (plan_sweep(x, [50] * 8, speed="h100") for x in (half, bare))
    assert "an H100 at 4e+14 FLOP/s" in single.speed
    assert "an H100 at 4e+13 FLOP/s" in double.speed
    here = plan_sweep(bare, [50])
    assert here.speed == "cpu, timed here" or not here.speed.startswith("cpu")


def test_a_larger_budget_needs_fewer_passes_of_more_bytes() -> None:
    tight = plan_sweep(known("llama"), [50] * 3, sl.Options(memory_budget=2**20), speed=FAST)
    wide = plan_sweep(known("llama"), [50] * 3, speed=FAST)
    assert tight.pass_bytes < 2**20 < wide.pass_bytes <= MEMORY_BUDGET
    assert tight.combinations[0].passes > wide.combinations[0].passes
    assert tight.rows == wide.rows


@pytest.mark.parametrize(
    ("lengths", "options", "message"),
    [
        ([], {}, "no prompt to plan for: give texts, or the number of tokens of each"),
        ([5], {"workers": 0}, "workers must be at least 1; got 0"),
        ([5], {"speed": "fast"}, "unknown speed 'fast'; choose from here, h100, or give FLOP"),
        ([5], {"speed": -1.0}, "FLOP a second must be positive; got -1"),
        ([5], {"estimators": ["best"]}, "unknown estimator 'best'; choose from greedy"),
        ([65], {}, "no prompt to plan for"),
    ],
)
def test_what_cannot_be_planned_is_refused(
    lengths: list[int], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        plan_sweep(known("llama"), lengths, **{"speed": FAST, **options})
