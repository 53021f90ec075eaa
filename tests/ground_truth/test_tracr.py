"""Compiled programs against the RASP interpreter, and their truths against ablation by hand.

In one file, because compiling the ten programs takes most of the time and is done once a process.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass

import pytest
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from strace_lens.circuits.circuit import Circuit
from strace_lens.circuits.run_circuits import run_circuits
from strace_lens.ground_truth.models import GroundTruth, all_inputs_task, ground_truth
from strace_lens.ground_truth.tracr import (
    PROGRAMS,
    Compiled,
    MissingTracrError,
    compile_program,
    every_input,
    prompts,
    tracr_task,
)
from strace_lens.ground_truth.truth import changing
from strace_lens.ground_truth.weights import model_of
from tests.ground_truth import oracle

pytest.importorskip("tracr")

# Of known_circuits.md, which counts tokens and positions as two sources: all edges, W, Z, R.
# Its histogram row reads 13, 6, 4, one column to the right: 13 are all the edges. Its 11 for Z of
# sort-unique counts inputs with a token twice, for which the program is not defined: without, 9.
COUNTS = {
    "reverse": (94, 15, 9, 2),
    "fraction-of-previous": (32, 7, 5, 3),
    "histogram": (13, 6, 6, 4),
    "pair-balance": (61, 14, 10, 6),
    "count": (13, 6, 6, 3),
    "sort": (59, 15, 13, 7),
    "sort-unique": (32, 11, 9, 6),
    "detect-ab": (32, 10, 10, 5),
    "shift": (13, 6, 6, 2),
    "count-less-freq": (32, 13, 13, 6),
}
# The same with the one source `embed`.
MERGED = {
    "reverse": (77, 13, 8, 2),
    "fraction-of-previous": (23, 5, 5, 3),
    "histogram": (8, 6, 6, 4),
    "pair-balance": (46, 10, 10, 6),
    "count": (8, 6, 6, 3),
    "sort": (46, 13, 12, 7),
    "sort-unique": (23, 10, 9, 6),
    "detect-ab": (23, 8, 8, 5),
    "shift": (8, 4, 4, 2),
    "count-less-freq": (23, 13, 13, 6),
}

SHORT = ("reverse", "shift")
"""Programs on which every test runs in the first tier."""

each_program = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in SHORT else pytest.mark.extended) for name in PROGRAMS],
)


@functools.cache
def made(name: str) -> GroundTruth:
    return ground_truth(f"tracr-{name}")


def all_prompts(compiled: Compiled) -> Int[Tensor, "input pos"]:
    return prompts(compiled, every_input(compiled.program))


@dataclass(frozen=True, eq=False)
class Ablated:
    """Prompts, what replaces ablated edges on each, and the tolerance of "unchanged"."""

    tokens: Int[Tensor, "row pos"]
    replaced: Float[Tensor, "row source pos d_model"] | None


def ablations(compiled: Compiled, partners: int = 3, *, step: int = 1) -> dict[str, Ablated]:
    """Zero, mean, resampling from some other inputs, and large noise of what a source can write.

    Over every input, or every so many (`step`), which tells the same of single edges.
    """
    tokens = all_prompts(compiled)[::step]
    sources = oracle.run(compiled.weights, tokens).sources
    generator = torch.Generator().manual_seed(7)
    order = torch.cat([torch.randperm(len(tokens), generator=generator) for _ in range(partners)])
    shape = [(*tokens.shape, len(rows)) for rows in oracle.writers(compiled.weights)]
    noise = torch.stack(
        [
            50 * torch.randn(size, generator=generator, dtype=torch.float64) @ rows
            for size, rows in zip(shape, oracle.writers(compiled.weights), strict=True)
        ],
        1,
    )
    return {
        "zero": Ablated(tokens, None),
        "mean": Ablated(tokens, sources.mean(0, keepdim=True).expand_as(sources)),
        "resample": Ablated(tokens.repeat(partners, 1), sources[order]),
        "noise": Ablated(tokens, noise),
    }


def change(compiled: Compiled, keep: Tensor, ablated: Ablated) -> float:
    return oracle.largest_change(compiled.weights, ablated.tokens, keep, ablated.replaced)


def changing_alone(
    compiled: Compiled, candidates: Bool[Tensor, "destination source"], ablated: Ablated
) -> Bool[Tensor, "destination source"]:
    """Which of the candidates change an output by more than 1e-3 when ablated alone."""
    found = torch.zeros_like(candidates)
    for destination, source in candidates.nonzero().tolist():
        keep = torch.ones_like(candidates)
        keep[destination, source] = False
        found[destination, source] = change(compiled, keep, ablated) > 1e-3
    return found


@pytest.mark.extended
@each_program
def test_outputs_are_the_interpreters_on_every_input(name: str) -> None:
    compiled = compile_program(name)
    inputs = every_input(compiled.program)
    logits = model_of(compiled.weights, name)(prompts(compiled, inputs), return_type="logits")
    compared = 0
    for tokens, out in zip(inputs, logits, strict=True):
        wanted = compiled.interpret(list(tokens))
        for want, got in zip(wanted, compiled.decode(out), strict=True):
            if want is not None:  # the program says nothing there
                assert got == (want if compiled.values else pytest.approx(float(want), abs=1e-5))
                compared += 1
    undefined = len(inputs) if name in ("shift", "detect-ab") else 0
    assert compared == len(inputs) * compiled.program.length - undefined


@pytest.mark.extended
@each_program
def test_the_model_is_the_weights(name: str) -> None:
    compiled = compile_program(name)
    tokens = all_prompts(compiled)
    logits = made(name).model(tokens, return_type="logits")
    expected = oracle.run(compiled.weights, tokens).logits
    torch.testing.assert_close(logits.double(), expected, rtol=0, atol=2e-5)


@each_program
def test_the_truths_are_those_published(name: str) -> None:
    """With tokens and positions apart: W from the truth that has them together, Z and R by hand."""
    compiled = compile_program(name)
    exists = oracle.exists(compiled.weights)
    written = made(name).truths["written and read"].keep
    # A row of embeddings is written if what it adds to any reader is not zero.
    apart = torch.cat([written[:, :1], written], 1)
    for destination in range(len(written)):
        for source, own in enumerate((compiled.weights.W_E, compiled.weights.W_pos)):
            if written[destination, 0]:
                apart[destination, source] = is_read(compiled, destination, own)
    by = ablations(compiled, step=4)
    found = [changing_alone(compiled, apart, by[kind]) for kind in ("zero", "resample")]
    assert (int(exists.sum()), int(apart.sum()), *map(int, map(torch.sum, found))) == COUNTS[name]
    assert torch.equal(oracle.merged(found[1]), made(name).truth("resample").keep)


def is_read(compiled: Compiled, destination: int, rows: Tensor) -> bool:
    """Whether a destination's reading matrix, by hand, sees these rows."""
    w = compiled.weights
    layers, heads = w.W_Q.shape[:2]
    layer, place = divmod(destination, 3 * heads + 1)
    if layer == layers:
        return bool((rows @ w.W_U).abs().max() > 1e-9)
    if place == 3 * heads:
        assert w.W_in is not None
        return bool((rows @ w.W_in[layer]).abs().max() > 1e-9)
    kind, head = divmod(place, heads)
    left, right = (
        (w.W_Q, w.W_K.transpose(2, 3)),
        (w.W_K, w.W_Q.transpose(2, 3)),
        (w.W_V, w.W_O),
    )[kind]
    return bool((rows @ left[layer, head] @ right[layer, head]).abs().max() > 1e-9)


@each_program
def test_the_truths_nest_and_their_sizes_are_known(name: str) -> None:
    truths = made(name).truths
    written, zero, resample = (truths[k].keep for k in ("written and read", "zero", "resample"))
    assert bool((zero <= written).all())
    assert bool((resample <= zero).all())
    sizes = [truths["zero"].graph.edges, *(int(t.sum()) for t in (written, zero, resample))]
    assert tuple(sizes) == MERGED[name]
    assert torch.equal(truths["resample"].keep, made(name).truth("mean").keep)


@each_program
def test_truths_found_by_patching_are_those_found_by_hand(name: str) -> None:
    compiled = compile_program(name)
    by = ablations(compiled, step=4)
    written = made(name).truths["written and read"].keep
    for kind in ("zero", "mean", "resample"):
        found = torch.zeros_like(written)
        for destination, source in written.nonzero().tolist():
            keep = torch.ones_like(written)
            keep[destination, source] = False
            found[destination, source] = change(compiled, oracle.split(keep), by[kind]) > 1e-3
        assert torch.equal(found, made(name).truth(kind).keep), kind


@each_program
def test_all_that_is_not_written_and_read_can_go_at_once(name: str) -> None:
    compiled = compile_program(name)
    keep = oracle.split(made(name).truths["written and read"].keep)
    for kind, ablated in ablations(compiled).items():
        assert change(compiled, keep, ablated) < 1e-9, kind


@each_program
def test_the_truth_of_an_ablation_is_enough_under_it(name: str) -> None:
    compiled = compile_program(name)
    by = ablations(compiled)
    for kind in ("zero", "mean", "resample"):
        keep = oracle.split(made(name).truth(kind).keep)
        assert change(compiled, keep, by[kind]) < 1e-4, kind
        ran = run_circuits(
            made(name).model, made(name).task, [made(name).truth(kind)], ablation=kind
        )
        torch.testing.assert_close(ran, torch.ones_like(ran), rtol=0, atol=1e-4)


@each_program
def test_every_true_edge_is_needed_under_resampling(name: str) -> None:
    """On the few pairs of the task too, so that a method can find it there."""
    truth = made(name).truth("resample")
    on_task = changing(made(name).model, made(name).task, truth, "resample", first=1)
    assert torch.equal(on_task.keep, truth.keep)
    without = []
    for destination, source in truth.keep.nonzero().tolist():
        keep = truth.keep.clone()
        keep[destination, source] = False
        without.append(Circuit(truth.graph, keep))
    found = run_circuits(made(name).model, made(name).task, without)
    assert float(found.amin(1).max()) < 0.9


@each_program
def test_pairs_have_different_outputs(name: str) -> None:
    compiled = compile_program(name)
    task = tracr_task(compiled, pairs=20, seed=3)
    for texts in task.texts:
        clean, corrupted = (
            compiled.interpret([type(compiled.program.vocabulary[0])(t) for t in text.split()])
            for text in texts
        )
        assert clean != corrupted
    assert len(task) == 20
    assert bool((task.clean[:, 0] == compiled.bos).all())
    assert torch.equal(tracr_task(compiled, 20, 3).clean, task.clean)
    assert not torch.equal(tracr_task(compiled, 20, 4).clean, task.clean)


def test_every_input_is_resampled_from_several_others() -> None:
    compiled = compile_program("reverse")
    task = all_inputs_task(compiled, partners=2)
    assert torch.equal(task.clean[:243], all_prompts(compiled))
    assert torch.equal(task.clean[243:], all_prompts(compiled))
    assert not torch.equal(task.corrupted[:243], task.corrupted[243:])


def test_an_unknown_program_is_refused() -> None:
    with pytest.raises(ValueError, match="'rot13'; choose from reverse"):
        compile_program("rot13")


def test_a_missing_tracr_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tracr.compiler", None)
    monkeypatch.delitem(sys.modules, "tracr.compiler.compiling", raising=False)
    with pytest.raises(MissingTracrError, match=r"pip install strace-lens\[tracr\]"):
        compile_program("count")
