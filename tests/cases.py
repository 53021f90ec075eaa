"""Every tiny model by name, and masks over its edges: what the tests of the token graph run on."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
import transformers as tf
from hypothesis import strategies as st
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from strace_lens.model.architecture import Architecture
from strace_lens.model.checks import architecture_of
from strace_lens.traces.ablation import ZERO, Replacement
from strace_lens.traces.edges import UNREACHABLE, EdgeTensors, GraphShape
from strace_lens.traces.masked_run import masked_logits
from strace_lens.traces.random_control import grow
from strace_lens.traces.rows import MaskedRows
from tests import oracle, tiny

HOOKED = [pytest.param(name, marks=tiny.needs_hooked_transformer) for name in tiny.HOOKED]
NAMES = [*tiny.BRIDGES, *HOOKED]
POST_NORM = ("olmo2", "gemma2", "gemma3", "norms_before_and_after")
PARALLEL = ("gptj", "gpt_neox", "phi", "parallel")
DEAD_PATTERN = ("gptj", "opt")

# The bridge of 3.9 has no norm after OLMo 2's attention: `test_contract` sees it refused.
REFUSED = {"olmo2"} if tiny.HAS_HOOKED_TRANSFORMER else set()

SHAPES = st.builds(
    GraphShape,
    layers=st.integers(1, 3),
    heads=st.integers(1, 3),
    tokens=st.integers(1, 5),
    parallel=st.booleans(),
    mlp=st.booleans(),
)
"""Shapes of small graphs, for hypothesis."""


def random_ranks(shape: GraphShape, seed: int, edges: int | None = None) -> EdgeTensors:
    """The edges of a random subgraph in the order in which they are taken, all by default."""
    numbers = shape.full(0, torch.int32)
    grow(numbers, 0, shape, seed, shape.edges if edges is None else edges)
    return numbers.map(lambda number: (number - 1).masked_fill(number == 0, UNREACHABLE))


def skip_refused(name: str) -> None:
    """Skips the calling test where the bridge of this TransformerLens is refused for the model."""
    if name in REFUSED:
        pytest.skip(f"the bridge of this TransformerLens cannot be traced for {name}")


def model_of(name: str) -> Any:
    """The tiny model of that name; skips the calling test where this TransformerLens cannot."""
    skip_refused(name)
    return tiny.bridge(name) if name in tiny.BRIDGES else tiny.hooked(name)


def fresh_bridge(name: str, dtype: torch.dtype = torch.float32) -> TransformerBridge:
    """A bridge of one's own, to be damaged; skips as `model_of` does."""
    skip_refused(name)
    return bridge_of(tiny.BRIDGES[name]().to(dtype), f"tiny-{name}")


def bridge_of(
    hf: tf.PreTrainedModel, name: str = "mine", *, processed: bool = False
) -> TransformerBridge:
    """A bridge around a Hugging Face model, whose modules it replaces."""
    made = TransformerBridge.boot_transformers(name, hf_model=hf, tokenizer=tiny.tokenizer())
    made.enable_compatibility_mode(no_processing=not processed)
    return made


def architecture(name: str) -> Architecture:
    return architecture_of(model_of(name))


def full_logits(name: str, tokens: Sequence[int]) -> Float[Tensor, " vocab"]:
    """The untouched model's logits after the last token."""
    with torch.no_grad():
        return model_of(name)(torch.tensor([tokens]))[0, -1]


def random_mask(shape: GraphShape, density: float, seed: int) -> EdgeTensors:
    """Each edge kept with the same probability."""
    generator = torch.Generator().manual_seed(seed)
    return shape.full(0.0, torch.float32).map(
        lambda x: torch.rand(x.shape, generator=generator) < density
    )


def single_edge_drops(shape: GraphShape) -> list[EdgeTensors]:
    """One mask for each edge that can reach the output: all kept but that one."""
    masks = []
    for edge in shape.reachable().flat().nonzero()[:, 0].tolist():
        keep = torch.ones_like(shape.reachable().flat())
        keep[edge] = False
        masks.append(shape.split(keep))
    return masks


def ranks_that_keep(keep: EdgeTensors, shape: GraphShape) -> tuple[EdgeTensors, int]:
    """Ranks whose first edges are the kept ones, and how many those are."""
    kept, reachable = keep.flat(), shape.reachable().flat()
    order = torch.cat([(reachable & kept).nonzero()[:, 0], (reachable & ~kept).nonzero()[:, 0]])
    ranks = torch.full(kept.shape, UNREACHABLE, dtype=torch.int32)
    ranks[order] = torch.arange(len(order), dtype=torch.int32)
    return shape.split(ranks), int((reachable & kept).sum())


def rows(
    tokens: Sequence[int],
    shape: GraphShape,
    masks: Sequence[EdgeTensors],
    *,
    keep: Sequence[str] = (),
    replacement: Replacement = ZERO,
) -> list[MaskedRows]:
    """One group of one row for each mask."""
    groups = []
    for mask in masks:
        ranks, count = ranks_that_keep(mask, shape)
        groups.append(
            MaskedRows(
                tokens=torch.tensor(tokens),
                shape=shape,
                ranks=ranks,
                start=torch.tensor([0]),
                stop=torch.tensor([count]),
                keep=tuple(keep),
                replacement=replacement,
            )
        )
    return groups


@contextlib.contextmanager
def everywhere(model: Any) -> Iterator[None]:
    """While somebody's hook stands in the model, every part of it runs at every place."""
    point = model.blocks[0].hook_resid_pre
    point.add_hook(lambda value, hook: value)
    try:
        yield
    finally:
        point.remove_hooks()


def run(name: str, groups: Sequence[MaskedRows], **options: Any) -> Float[Tensor, "row vocab"]:
    return masked_logits(model_of(name), architecture(name), groups, **options)


@functools.cache
def shape(name: str, tokens: int) -> GraphShape:
    return oracle.graph_shape(name, tokens)


def relative_error(ours: Tensor, truth: Tensor) -> float:
    """Largest difference over the largest magnitude (over 0.01 where the truth is smaller)."""
    return float((ours - truth).abs().max() / truth.abs().max().clamp_min(1e-2))


def as_tensor(tokens: Sequence[int]) -> Int[Tensor, " pos"]:
    return torch.tensor(tokens, dtype=torch.int64)
