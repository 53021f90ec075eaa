"""Optimal ablation: the constant for each component with which its absence costs the model least.

Li and Janson (2024), "Optimal ablation for interpretability" (arXiv 2409.09951). An ablated
component carries one vector whatever the prompt, and that vector is chosen to keep the loss of the
ablated model lowest: what is lost all the same is what its variation was worth. A zero or a mean
may cost more, since it can mislead what reads it. Where all prompts have one length, there is a
vector for each position, as in mean ablation; else one for all positions, as in the paper.

The best constants depend on which components are ablated together. As where the paper searches for
circuits, one set of constants serves them all: it is learned by gradient descent over circuits in
which every component is ablated or not at random, more of them in some circuits than in others. The
loss is the KL divergence from the clean output, or, where the output is a single number, the square
of the difference.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from strace_lens.circuits.metrics import Logits, PerRow, Reference, kl_divergence
from strace_lens.circuits.outputs import Outputs, Run
from strace_lens.circuits.patching import plan_pass, run_plan
from strace_lens.circuits.task import Task
from strace_lens.circuits.wiring import Wiring
from strace_lens.model.architecture import Model
from strace_lens.model.forward import even_chunks
from strace_lens.model.hold import fixed_weights

STEPS = 50
"""Of gradient descent."""

ROWS = 16
"""Runs of a step: one circuit on so many prompts, or several on fewer."""

RATE = 0.1
"""First learning rate, in standard deviations of what a component writes; it falls to zero."""

_CHECKED = 4  # circuits on every prompt by which constants are judged
_TAIL = 4  # the last 1 / 4 of the steps are averaged


class Ablated(NamedTuple):
    """Prompts with components ablated on each of them."""

    pairs: Int[Tensor, " row"]
    sources: Bool[Tensor, "row source"]


class Learner(NamedTuple):
    """What constants are learned on.

    Attributes:
        model, wiring, task: run on the clean prompts.
        clean: the run of these.
        rows_at_once: in a pass forward and backward.
    """

    model: Model
    wiring: Wiring
    task: Task
    clean: Run
    rows_at_once: int

    def loss(
        self, constants: Outputs, ablated: Ablated, *, backward: bool = False
    ) -> Float[Tensor, " row"]:
        """The loss of each row, in float64; `backward` adds the gradient of the mean.

        Args:
            constants: of one row, with one position for all or each of its own.
            ablated: the rows.
            backward: constants ask for gradients.
        """
        graph, losses = self.wiring.graph, []
        device = constants.embed.device
        exists = graph.exists.to(device)
        for rows in even_chunks(len(ablated.pairs), self.rows_at_once):
            pairs = ablated.pairs[rows]
            cut = (exists & ablated.sources[rows].to(device)[:, None]).float()
            width = self.task.clean.shape[1]
            carried = constants.map(lambda x: x.expand(len(pairs), width, *x.shape[2:]))  # noqa: B023
            plan = plan_pass(self.model, self.wiring, cut, carried, width, gradient=backward)
            with torch.set_grad_enabled(backward):
                logits = run_plan(
                    self.model,
                    self.wiring,
                    self.task.clean[pairs],
                    self.task.lengths[pairs],
                    plan,
                    every_position=self.task.every_position,
                    gradient=backward,
                )
                loss = output_loss(logits, self.clean.logits[pairs.to(device)])
            if backward and loss.requires_grad:
                (loss.sum() / len(ablated.pairs)).backward()
            losses.append(loss.detach().double())
        return torch.cat(losses)


def output_loss(logits: Logits, clean: Logits) -> PerRow:
    """KL(clean || row) in nats, or the squared difference of outputs that are a single number."""
    if logits.shape[-1] == 1:
        return (logits - clean).float().square().flatten(1).mean(1)
    none = torch.full((len(logits), 1), -1, device=logits.device)
    return -kl_divergence(logits, Reference(clean, clean, none, none))


def by_position(outputs: Outputs) -> Outputs:
    """Means over prompts of one length, as one row."""
    return outputs.map(lambda x: x.mean(0, keepdim=True))


def pooled(outputs: Outputs, read: Bool[Tensor, "row pos"]) -> Outputs:
    """Means over the tokens read of all prompts, as one row of one position."""
    share = read / read.sum()
    return outputs.map(lambda x: torch.einsum("rp,rp...->...", share.to(x), x)[None, None])


def spread(outputs: Outputs, read: Bool[Tensor, "row pos"]) -> Outputs:
    """The root mean square deviation of each component's values from their means."""
    means = pooled(outputs, read)
    squares = outputs.map(lambda x, mean: (x - mean).square().mean(-1, keepdim=True), means)
    return pooled(squares, read).map(torch.sqrt)


def optimal_constants(
    learner: Learner, starts: list[Outputs], scale: Outputs, *, seed: int = 0
) -> Outputs:
    """The constants of lowest loss, learned from the best of some starts in `STEPS` of Adam.

    They are judged by circuits that the seed draws, each on every prompt, and by the circuit in
    which all is ablated: the loss over these is never above that of any start.

    Args:
        learner: what they are learned on.
        starts: of one row, all with one position or all with each, as means over prompts.
        scale: what a step of size 1 moves each value by, one number for each component.
        seed: of the circuits and the order of the prompts.
    """
    generator = torch.Generator().manual_seed(seed)
    pairs = len(learner.task)
    sources = learner.wiring.graph.sources
    checked = _drawn(_CHECKED * pairs, sources, generator)
    checked[:pairs] = True
    judge = Ablated(torch.arange(pairs).repeat(_CHECKED), checked)

    def judged(constants: Outputs) -> float:
        return float(learner.loss(constants, judge).mean())

    best_loss, best = min(((judged(s), n) for n, s in enumerate(starts)))
    start = starts[best]
    moves = start.map(torch.zeros_like)
    steps = STEPS
    optimizer = torch.optim.Adam(_all(moves), lr=RATE, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1 - n / steps)
    tail = moves.map(torch.zeros_like)
    averaged = max(1, steps // _TAIL)
    with fixed_weights(learner.model), torch.enable_grad():
        for step in range(steps):
            optimizer.zero_grad()
            # A circuit on all pairs, if they are few: so the steps do not differ in their prompts.
            chosen = torch.randperm(pairs, generator=generator)[:ROWS]
            circuits = _drawn(max(1, ROWS // pairs), sources, generator)
            ablated = Ablated(
                chosen.repeat(len(circuits)), circuits.repeat_interleave(len(chosen), 0)
            )
            # Leaves of their own, since a step may take several passes backward.
            constants = _moved(start, scale, moves).map(lambda x: x.requires_grad_())
            learner.loss(constants, ablated, backward=True)
            for move, size, constant in zip(_all(moves), _all(scale), _all(constants), strict=True):
                move.grad = (
                    torch.zeros_like(move) if constant.grad is None else constant.grad * size
                )
            optimizer.step()
            schedule.step()
            if step >= steps - averaged:
                tail = tail.map(lambda sums, move: sums + move.detach() / averaged, moves)
    learned = _moved(start, scale, tail)
    return learned if judged(learned) < best_loss else start


def _moved(start: Outputs, scale: Outputs, moves: Outputs) -> Outputs:
    return start.map(lambda a, size, move: (a + size * move).detach(), scale, moves)


def _all(outputs: Outputs) -> list[Tensor]:
    return [outputs.embed, *outputs.z, *outputs.mlp]


def _drawn(rows: int, sources: int, generator: torch.Generator) -> Bool[Tensor, "row source"]:
    """Which components each row ablates: each alike often, few in some rows and most in others."""
    rates = torch.rand(rows, 1, generator=generator)
    return torch.rand(rows, sources, generator=generator) < rates
