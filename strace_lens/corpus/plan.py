"""The cost of a sweep, estimated from the model's configuration and the prompts' lengths."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from strace_lens.corpus.batches import Item, batches_of, items_of
from strace_lens.corpus.estimator_controls import ROLES, control_rows
from strace_lens.corpus.prompts import CorpusPrompt
from strace_lens.corpus.setting import Options
from strace_lens.density.cost import (
    EDGE_SECONDS,
    Speed,
    gradient_multiply_adds,
    graph_bytes,
    most_rows,
    multiply_adds,
    peak_bytes,
    random_bytes,
    random_edges,
    seconds_of_rows,
    speed_here,
    trace_bytes,
)
from strace_lens.model.architecture import Architecture, Model
from strace_lens.model.forward import bytes_per_row, rows_per_pass
from strace_lens.model.prompts import Prompt
from strace_lens.model.skeleton import TOKENS_A_WORD, Skeleton, skeleton
from strace_lens.traces.estimators import fitting_passes, steps
from strace_lens.traces.fit import bytes_per_gradient_row
from strace_lens.traces.graph import shape_of
from strace_lens.traces.masked_run import passes
from strace_lens.utils.choices import DEFAULT_MODEL as DEFAULT
from strace_lens.utils.choices import expect_speed

MEASURE_SECONDS = 1.5e-7
"""What it costs the CPU to measure one entry of the distribution that a row puts out."""

_PART_BYTES, _PROMPT_BYTES, _ROW_BYTES = 16_384, 1_024, 256
_COUNT_BYTES, _GEOMETRY_BYTES, _CONTROL_BYTES = 2, 20, 200
"""On disk, compressed: a count of edges of one component; five numbers of one layer; what the
controls of an estimator give at one size."""

H100 = {2: 4e14, 4: 4e13}
"""FLOP a second of an H100 by bytes of a number: 40 % of its peak in half precision, and 60 % of
that in single precision without TF32."""
H100_BYTES = 2e12
"""Bytes a second that an H100 reads and writes: 60 % of its peak."""
FLOPS_PER_BYTE = 200
"""Of a device whose FLOP a second alone are given; an H100 has as many in half precision."""


@dataclass(frozen=True)
class Combination:
    """An upper bound on the cost of one run of a sweep.

    Attributes:
        estimator: how edges are ranked.
        keep: kinds of edges that are never ablated.
        rows: number of masks that the curves run.
        passes: number of forward passes that run them.
        forward, backward: rows of the passes that reading the graphs and ranking their edges take.
        flops: FLOP of all these, two per multiply-add.
        seconds: time of one process; see `SweepPlan.seconds` for all.
        disk_bytes: size of the parts.
    """

    estimator: str
    keep: tuple[str, ...]
    rows: int
    passes: int
    forward: int
    backward: int
    flops: float
    seconds: float
    disk_bytes: int


@dataclass(frozen=True)
class SweepPlan:
    """An upper bound on the cost of a sweep.

    Attributes:
        model: name of the model.
        dtype: dtype of its weights.
        prompts: number of prompts that can be traced.
        tokens: number of tokens of all of them.
        longest: number of tokens of the longest.
        combinations: the runs, one for each estimator and each combination of kinds kept.
        weights_bytes: memory of the model's weights.
        pass_bytes: memory of the largest forward pass, without the weights.
        gradient_bytes: memory of the largest forward and backward pass, without the weights; 0 if
            no estimator needs a gradient.
        peak_bytes: the most memory that one process uses at once, without the weights, on its
            device and on the machine together.
        workers: number of processes that share the work, each with its own weights.
        speed: speed of a worker, in words.
        assumptions: the assumptions that were made, one sentence each.
    """

    model: str
    dtype: str
    prompts: int
    tokens: int
    longest: int
    combinations: tuple[Combination, ...]
    weights_bytes: int
    pass_bytes: int
    gradient_bytes: int
    peak_bytes: int
    workers: int
    speed: str
    assumptions: tuple[str, ...]

    @property
    def rows(self) -> int:
        """Number of masks of all runs."""
        return sum(run.rows for run in self.combinations)

    @property
    def flops(self) -> float:
        """FLOP of all runs."""
        return sum(run.flops for run in self.combinations)

    @property
    def seconds(self) -> float:
        """Time of all runs, with the work shared evenly by the workers; loading is not counted."""
        return sum(run.seconds for run in self.combinations) / self.workers

    @property
    def disk_bytes(self) -> int:
        """Size of the parts of all runs."""
        return sum(run.disk_bytes for run in self.combinations)

    def to_dict(self) -> dict[str, Any]:
        """The plan as a JSON object."""
        totals = ("rows", "flops", "seconds", "disk_bytes")
        return {**asdict(self), **{name: getattr(self, name) for name in totals}}


def plan_sweep(
    model: str | Path | Skeleton | Any = DEFAULT,
    prompts: Sequence[CorpusPrompt] | Sequence[int] = (),
    options: Options | None = None,
    *,
    estimators: Sequence[str] | None = None,
    keep: Sequence[Sequence[str]] = ((),),
    dtype: str = "float32",
    speed: str | float | Speed = "here",
    workers: int = 1,
) -> SweepPlan:
    """Estimate the cost of `sweep` from the model's configuration; no weights are read.

    Counts are upper bounds: rows whose masks are equal are run only once, and a curve that does not
    change needs no further sizes. Seconds are rough: they cover matrix products, elementwise
    operations and the launching of operations, and, on one CPU thread, the search for rankings and
    the measuring of outputs.

    Args:
        model: as for `load_model`, of which only the configuration and the tokenizer are read; a
            configuration of transformers; or a `skeleton`.
        prompts: prompts from `read_corpus`; or the number of tokens of each.
        options: options of the sweep; their estimator is one of `estimators`.
        estimators: estimators to run one after the other; by default that of the options.
        keep: combinations of kinds of edges that are never ablated; each is a run for each
            estimator.
        dtype: float32, bfloat16 or float16.
        speed: "here" times this machine (under half a second); "h100" is 4e14 FLOP per second in
            half precision and 4e13 in single; a number is the FLOP per second that forward passes
            achieve.
        workers: number of processes that share the work.

    Raises:
        ModelNotFoundError: there is no configuration under that name.
        UnsupportedModelError: a model of that configuration cannot be traced.
        ValueError: no prompt can be traced, there is no worker, or the dtype, an estimator or the
            speed is unknown.

    Example:
        >>> plan = plan_sweep("smollm2", sl.read_corpus("builtin"), keep=[(), ("attention",)])
        >>> print(f"{plan.seconds / 60:.0f} minutes, {plan.disk_bytes / 2**20:.0f} MiB")
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1; got {workers}")
    known = model if isinstance(model, Skeleton) else skeleton(model, dtype=dtype)
    architecture, options = known.architecture, (options or Options()).on(_device(speed))
    items, assumptions = _items(known, prompts, options)
    batches = [
        tuple(item.length for item in batch.items)
        for batch in batches_of(architecture, items, options)
        if batch.items[0].prompt is not None
    ]
    if not batches:
        first = items[0].error if items else "give texts, or the number of tokens of each"
        raise ValueError(f"no prompt to plan for: {first}")
    lengths = [length for batch in batches for length in batch]
    device = _speed(speed, known, sorted(lengths)[len(lengths) // 2])
    named = [options.estimator] if estimators is None else list(estimators)
    texts = sum(len(one.text.encode()) for one in prompts if isinstance(one, CorpusPrompt))
    runs = tuple(
        _combination(
            architecture,
            batches,
            replace(options, estimator=name, keep=tuple(kinds)),
            device,
            texts * (1 + options.generate),
        )
        for name in named
        for kinds in keep
    )
    gradient = 0
    if any(fitting_passes(name)[1] for name in named):
        # A backward pass has as many rows as the budget allows, one at the least.
        each = bytes_per_gradient_row(architecture, max(lengths))
        gradient = max(1, options.gradient_budget // each) * each
    rows = _rows(options)
    return SweepPlan(
        model=known.name,
        dtype=str(known.dtype).removeprefix("torch."),
        prompts=len(lengths),
        tokens=sum(lengths),
        longest=max(lengths),
        combinations=runs,
        weights_bytes=known.weights_bytes,
        pass_bytes=max(
            min(rows * len(batch), rows_per_pass(architecture, max(batch), options.pass_bytes))
            * bytes_per_row(architecture, max(batch))
            for batch in set(batches)
        ),
        gradient_bytes=gradient,
        peak_bytes=max(_peak(known, batch, options, gradient) for batch in set(batches)),
        workers=workers,
        speed=device.name,
        assumptions=(*known.assumptions, *assumptions),
    )


def _items(
    known: Skeleton, prompts: Sequence[CorpusPrompt] | Sequence[int], options: Options
) -> tuple[list[Item], list[str]]:
    """The prompts as a sweep numbers them, and what was assumed of their tokens."""
    texts = [one for one in prompts if isinstance(one, CorpusPrompt)]
    assumptions: list[str] = []
    if texts and known.tokenizer is not None:
        # Nothing of a model is asked for but its tokenizer, which the skeleton has too.
        alone = replace(options, generate=0, temperature=0.0, top_p=1.0, controls="none")
        items = items_of(cast(Model, known), known.architecture, texts, alone)
        lengths = [len(item.prompt.ids) for item in items if item.prompt is not None]
        refused = [item for item in items if item.prompt is None]
    else:
        if texts:
            assumptions.append(
                f"the tokenizer cannot be read here: a word counts as {TOKENS_A_WORD} tokens"
            )
        lengths = [
            one if isinstance(one, int) else max(2, round(TOKENS_A_WORD * len(one.text.split())))
            for one in prompts
        ]
        refused = []
    every = [
        length + step
        for length in lengths
        for step in range(options.generate + 1)
        if length + step <= known.architecture.context
    ]
    made = [Item(n, "", Prompt("", (0,) * length, ())) for n, length in enumerate(every)]
    return [*made, *refused], assumptions


def _rows(options: Options) -> int:
    return most_rows(options.sizes, options.size_controls, options.refine)


def _combination(
    architecture: Architecture,
    batches: Sequence[tuple[int, ...]],
    options: Options,
    speed: Speed,
    text_bytes: int,
) -> Combination:
    rows, more, fits = _rows(options), 0, 0
    if options.controls == "all":
        more, fits = control_rows(options.estimator, options.sizes)
    fitted_forward, fitted_backward = (
        (1 + fits) * count for count in fitting_passes(options.estimator)
    )
    searches = 1 + (1 + fits) * steps(options.estimator)

    @functools.cache
    def of_batch(batch: tuple[int, ...]) -> tuple[int, float, float]:
        """Passes, FLOP and seconds."""
        # Every size that is added may be a round of its own.
        each = rows - options.refine
        masks = [length for length in batch for _ in range(each)]
        count = passes(architecture, masks, options.pass_bytes) + options.refine
        # Each role of the controls, and each seed at the most, begins passes of its own.
        more_passes = {
            tokens: passes(architecture, [tokens] * more, options.pass_bytes) + 2 * len(ROLES)
            if more
            else 0
            for tokens in set(batch)
        }
        flops = seconds = 0.0
        for place, tokens in enumerate(batch):
            forward = multiply_adds(architecture, tokens)
            backward = gradient_multiply_adds(architecture, tokens)
            flops += 2 * (1 + fitted_forward + rows + more) * forward
            flops += 2 * fitted_backward * backward
            # The passes of a batch are shared by its prompts, reading and fitting are not.
            shared = 0 if place else count
            seconds += seconds_of_rows(architecture, tokens, rows, shared, speed)
            seconds += seconds_of_rows(architecture, tokens, more, more_passes[tokens], speed)
            # Neither reading nor fitting leaves out any part, and a backward pass launches twice
            # what a forward pass does.
            alone, launched = 1 + fitted_forward + fitted_backward, 1 + fitted_forward
            seconds += seconds_of_rows(
                architecture,
                tokens,
                alone,
                launched + 2 * fitted_backward,
                speed._replace(share=1.0),
            )
            ranked = searches * shape_of(architecture, tokens).edges
            if options.size_controls:
                ranked += random_edges(architecture, tokens, options.sizes)
            seconds += ranked * EDGE_SECONDS
            seconds += (rows + more) * architecture.d_vocab * MEASURE_SECONDS
        return count + sum(more_passes[tokens] for tokens in batch), flops, seconds

    found = [of_batch(batch) for batch in batches]
    prompts = sum(map(len, batches))
    return Combination(
        estimator=options.estimator,
        keep=options.keep,
        rows=prompts * (rows + more),
        passes=sum(count for count, _, _ in found),
        forward=prompts * (1 + fitted_forward),
        backward=prompts * fitted_backward,
        flops=sum(flops for _, flops, _ in found),
        seconds=sum(seconds for _, _, seconds in found),
        disk_bytes=_disk_bytes(architecture, len(batches), prompts, options) + text_bytes,
    )


def _disk_bytes(architecture: Architecture, parts: int, prompts: int, options: Options) -> int:
    sizes = len(options.sizes) + options.refine
    sublayers = shape_of(architecture, 2).sublayers
    components = architecture.layers * (architecture.heads + sublayers + architecture.mlp)
    row = _ROW_BYTES + _COUNT_BYTES * components
    # Floats in single precision, which compression makes hardly smaller.
    geometry = _GEOMETRY_BYTES * architecture.layers + 4 * architecture.d_model
    hidden = len(options.sizes) * geometry * options.hidden
    controls = len(options.sizes) * _CONTROL_BYTES * (options.controls == "all")
    return parts * _PART_BYTES + prompts * (_PROMPT_BYTES + sizes * row + hidden + controls)


def _peak(known: Skeleton, batch: tuple[int, ...], options: Options, gradient: int) -> int:
    """The most that measuring a batch holds at once."""
    architecture, rows = known.architecture, _rows(options)
    itemsize, longest = known.dtype.itemsize, max(batch)
    graphs = [graph_bytes(architecture, tokens, itemsize) for tokens in batch]
    drawn = len(options.sizes) * options.size_controls
    ranks = [
        trace_bytes(architecture, tokens) + random_bytes(architecture, tokens, drawn)
        for tokens in batch
    ]
    at_once = min(rows * len(batch), rows_per_pass(architecture, longest, options.pass_bytes))
    one = peak_bytes(architecture, longest, rows, at_once, itemsize, drawn=drawn)
    others = sum(graphs) + sum(ranks) - max(graphs) - max(ranks)
    outputs = 4 * rows * len(batch) * architecture.d_vocab
    states = 4 * rows * len(batch) * (architecture.layers + 2) * architecture.d_model
    return max(one + others + outputs + states * options.hidden, sum(graphs) + gradient)


def _device(speed: str | float | Speed) -> torch.device:
    """The device that a sweep is planned for, by its speed; a number says nothing of it."""
    return torch.device(
        "cuda" if speed == "h100" else torch.accelerator.current_accelerator() or "cpu"
    )


def _speed(speed: str | float | Speed, known: Skeleton, tokens: int) -> Speed:
    """The speed of a name, a number of FLOP a second, or this machine."""
    itemsize = known.dtype.itemsize
    if isinstance(speed, Speed):
        return speed
    if isinstance(speed, str):
        expect_speed(speed)
        if speed == "here":
            return speed_here(_device(speed), known.dtype, known.architecture.heads, tokens, 1)
        flops, bandwidth = H100[itemsize], H100_BYTES
        name = f"an H100 at {flops:.3g} FLOP/s and {bandwidth:.3g} byte/s, both assumed"
    elif not speed > 0:
        raise ValueError(f"FLOP a second must be positive; got {speed:g}")
    else:
        flops, bandwidth = float(speed), speed / FLOPS_PER_BYTE
        name = f"{flops:.3g} FLOP/s and {bandwidth:.3g} byte/s, as given"
    # An entry that is worked on is read once and written once.
    return Speed(name=name, multiply_adds=flops / 2, touch=2 * itemsize / bandwidth)
