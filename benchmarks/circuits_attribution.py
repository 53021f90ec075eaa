"""Edge attribution patching against auto-circuit, TransformerLens' own and the plain forward.

All score the same pairs on the same random weights, TransformerBridge for all; scores that differ
are an error. Ours makes the task ready each time and takes two forward passes and one backward. The
plain forward runs the clean prompts and unembeds the last position. Functions take turns and ratios
are those of their fastest runs. Peak memory is what a run adds to the process.
Run: python -m benchmarks.circuits_attribution
"""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

import strace_lens as sl
from benchmarks.circuits_models import PAIRS, TOKENS, gpt2_shape, random_gpt2, random_task
from benchmarks.circuits_peers import (
    INSTALL,
    AutoCircuit,
    has_auto_circuit,
    scores_edges,
    transformer_lens_scores,
)
from benchmarks.common import device, fastest, info, report, smollm2
from strace_lens.model.architecture import Model
from strace_lens.model.checks import architecture_of
from strace_lens.model.forward import last_logits
from strace_lens.utils.peak_memory import peak_memory

TOLERANCE = 1e-3
FASTER_THAN_AUTO_CIRCUIT, MEMORY_OF_AUTO_CIRCUIT = 2.5, 0.5
FASTER_THAN_TRANSFORMER_LENS = 10
TIMES_PLAIN, TIMES_PLAIN_SMOLLM2 = 4, 4.5
REPEATS = 5


def expect_equal(
    name: str,
    ours: Float[Tensor, "destination source"],
    theirs: Float[Tensor, "destination source"],
) -> float:
    """The largest difference over the largest score; an error if it is more than the tolerance."""
    ours, theirs = ours.cpu(), theirs.cpu()
    gap = float((ours - theirs).abs().max() / theirs.abs().max())
    if not gap <= TOLERANCE:
        raise RuntimeError(f"{name} scores edges differently: by {gap:.1e} of the largest score")
    return gap


def peak_megabytes(function: Callable[[], object]) -> float:
    """Memory that a run adds at its peak, in MB."""
    with peak_memory(device()) as peak:
        function()
    return peak.bytes / 1e6


def eap(model: Model, task: sl.Task) -> Callable[[], sl.Scores]:
    """Ours, from the task on."""
    return lambda: sl.discover(model, task, "eap")


def plain_forward(model: Model, task: sl.Task) -> Callable[[], Tensor]:
    """A forward pass over the clean prompts."""
    architecture = architecture_of(model)
    return lambda: last_logits(model, architecture, task.clean, task.lengths)


def against_auto_circuit(
    name: str, build: Callable[[], TransformerBridge], repeats: int, *, memory: bool
) -> None:
    """Time and, for models large enough to measure, memory."""
    model = build()
    task = random_task(model)
    ours, peer = eap(model, task), AutoCircuit(build(), task)  # which takes its model to pieces
    scores = ours()
    gap = expect_equal("auto-circuit", scores.values, peer.values(scores.graph))
    info(f"{name}, {peer.edges} edges, {PAIRS} x {TOKENS}: scores equal to {gap:.1e}")
    mine, theirs = fastest([ours, peer.eap], repeats)
    report(f"EAP against auto-circuit, {name}", theirs / mine, FASTER_THAN_AUTO_CIRCUIT)
    mine, theirs = peak_megabytes(ours), peak_megabytes(peer.eap)
    if memory:
        goal = MEMORY_OF_AUTO_CIRCUIT
        report(f"EAP's memory against auto-circuit's, {name}", mine / theirs, goal, at_most=True)
    info(f"peak above the model: ours {mine:.0f} MB, auto-circuit {theirs:.0f} MB")


def against_transformer_lens(
    name: str, build: Callable[[], TransformerBridge], repeats: int
) -> None:
    """Time; scores summed over positions."""
    model = build()
    task = random_task(model)
    ours = eap(model, task)
    scores = ours()
    theirs = lambda: transformer_lens_scores(model, task, scores.graph)  # noqa: E731
    gap = expect_equal("TransformerLens", scores.values, theirs())
    info(f"{name}: scores, summed over positions, equal to {gap:.1e}")
    mine, peer = fastest([ours, theirs], repeats)
    goal = FASTER_THAN_TRANSFORMER_LENS
    report(f"EAP against TransformerLens' attribution_patching, {name}", peer / mine, goal)


def against_plain_forward(name: str, model: Model, goal: float, repeats: int) -> None:
    """Time of the whole of EAP by that of one forward pass."""
    task = random_task(model)
    ours, plain = eap(model, task), plain_forward(model, task)
    edges = ours().graph.edges
    plain()
    mine, forward = fastest([ours, plain], repeats)
    report(f"EAP, times the plain forward, {name}", mine / forward, goal, at_most=True)
    memory = peak_megabytes(ours)
    info(f"{edges} edges, {PAIRS} x {TOKENS}: {mine:.2f} s, peak above the model {memory:.0f} MB")


def tiny() -> TransformerBridge:
    """Three layers of four heads, 64 wide."""
    return random_gpt2(layers=3, heads=4, d_head=16, vocabulary=512)


def main() -> None:
    """Compare on a tiny model, the GPT-2 small shape and SmolLM2."""
    shape = "GPT-2 small's shape"
    against_plain_forward(shape, gpt2_shape(), TIMES_PLAIN, REPEATS)
    against_plain_forward("SmolLM2", smollm2(), TIMES_PLAIN_SMOLLM2, REPEATS)
    if has_auto_circuit():
        against_auto_circuit("tiny", tiny, REPEATS, memory=False)
        against_auto_circuit(shape, random_gpt2, 3, memory=True)
    else:
        print(f"EAP against auto-circuit: skipped: {INSTALL}", flush=True)
    if scores_edges():
        against_transformer_lens(shape, gpt2_shape, 1)
    else:
        print("EAP against TransformerLens' own: skipped: its version scores no edges", flush=True)


if __name__ == "__main__":
    main()
