"""Whether a TransformerLens model computes what the Hugging Face model behind it computes.

A bridge can be consistent in itself and still be another model: its parts add up, but a rotary
embedding or a norm is not the one that the weights were trained with. Only the original can tell,
so both run one probe prompt and their next-token distributions are compared.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from strace_lens.measures.distributions import total_variation
from strace_lens.model.architecture import Model, UnsupportedModelError, device_of, device_of_part
from strace_lens.model.hold import hold, verb

PROBE_TOKENS = 32
# Bridges of tiny models gave at most 1e-6 in single precision. Half precision by itself moves the
# median of SmolLM2 by 0.007 (float16) and 0.04 (bfloat16) from what it gives in single precision.
_SINGLE = 1e-3
_HALF = {torch.float16: 2e-2, torch.bfloat16: 1e-1}


@verb
def check_model(model: Model, against: Any = None) -> float:
    """Check that a model gives the next-token distributions of its Hugging Face original.

    `load_model` does this automatically. Call it for a bridge that you made yourself, especially
    one with processed weights or of a new architecture. It takes two forward passes of 32 tokens.
    In half precision, rounding hides all but large differences; check a model in float32.

    Args:
        model: a TransformerBridge or a HookedTransformer.
        against: the Hugging Face model to compare with. It must not be the one that was given to
            TransformerLens, which replaces the modules of the model that it wraps. If not given,
            the modules that a TransformerBridge wraps are run directly; this works only if the
            weights have not been processed.

    Returns:
        The largest total variation over the positions of the probe prompt.

    Raises:
        UnsupportedModelError: the distributions differ by more than rounding.
        FloatingPointError: a logit of either model is NaN or infinite.
        ValueError: `against` is not given, and the model is a HookedTransformer or its weights were
            processed, so that there is nothing to compare with.

    Example:
        >>> sl.check_model(sl.load_model()) < 1e-3  # total variation, the largest of the probe
        True
    """
    if against is None:
        against = _original(model)
    return expect_same(model, *reference_of(against))


def reference_of(
    hugging_face: Any,
) -> tuple[Int[Tensor, " pos"], Float[Tensor, "pos vocab"]]:
    """The probe prompt, and its logits by a Hugging Face model that no bridge has touched."""
    config = hugging_face.config.get_text_config()
    context = getattr(config, "max_position_embeddings", None) or PROBE_TOKENS
    generator = torch.Generator().manual_seed(0)
    length = min(PROBE_TOKENS, context)
    tokens = torch.randint(config.vocab_size, (length,), generator=generator)
    device = device_of_part(hugging_face)
    with hold(hugging_face), torch.no_grad():
        logits = hugging_face(tokens[None].to(device)).logits[0]
    return tokens, logits.cpu()


def expect_same(
    model: Model, tokens: Int[Tensor, " pos"], reference: Float[Tensor, "pos vocab"]
) -> float:
    """The largest total variation between a model and the reference; see `check_model`.

    In half precision rounding alone sends a token of a mixture to other experts, and everything at
    its position changes. So there the median over the positions decides, otherwise the largest.

    Raises:
        UnsupportedModelError: the distributions differ by more than rounding.
        FloatingPointError: a logit of either is NaN or infinite.
    """
    with hold(model), torch.no_grad():
        logits = model.run_with_hooks(
            tokens[None].to(device_of(model)), return_type="logits", padding_side="right"
        )[0].cpu()
    if logits.shape != reference.shape:
        raise _not_the_model(
            model,
            f"it gives {logits.shape[-1]} logits and the Hugging Face model {reference.shape[-1]}",
        )
    if not all(bool(x.isfinite().all()) for x in (logits, reference)):
        raise FloatingPointError(
            f"{_name(model)} gave NaN or infinite logits; load it in float32 or check its weights"
        )
    gaps = torch.stack(
        [
            # One position at a time, since log-probabilities in double take much memory.
            total_variation(theirs.double().log_softmax(-1), ours.double().log_softmax(-1))
            for theirs, ours in zip(reference, logits, strict=True)
        ]
    )
    largest, typical = float(gaps.max()), float(gaps.median())
    half = max(_HALF.get(x.dtype, 0.0) for x in (logits, reference))
    if not (typical <= half if half else largest <= _SINGLE):
        raise _not_the_model(
            model,
            "its next-token distribution and the Hugging Face model's have a total variation of "
            f"{largest:.1e} at position {int(gaps.argmax())} of a probe prompt, {typical:.1e} in "
            "the median",
        )
    return largest


def _name(model: Model) -> str:
    cfg: Any = model.cfg
    kind = getattr(cfg, "architecture", None) or type(model).__name__
    return f"{getattr(cfg, 'model_name', None) or 'the model'} ({kind})"


def _not_the_model(model: Model, difference: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{_name(model)} cannot be traced: the bridge is not the model: {difference}"
    )


def _original(model: Model) -> Any:
    """The model inside a bridge, without the bridge."""
    original = getattr(model, "original_model", None)
    if original is None:
        raise ValueError(
            f"a {type(model).__name__} does not hold the Hugging Face model that it was made of; "
            "give one with against="
        )
    if getattr(model, "_weights_processed", False):
        raise ValueError(
            "the weights of this bridge were processed, and those of its original model with them; "
            "give a fresh Hugging Face model with against="
        )
    return _unwrapped(original, {})


def _unwrapped(module: torch.nn.Module, done: dict[int, torch.nn.Module]) -> torch.nn.Module:
    """A copy of a tree of modules, sharing its tensors, with each wrapper left out.

    A bridge puts its own modules in the places of the original's and keeps these as their
    `original_component`. No hook of the tree is copied.
    """
    inner = module
    while isinstance(wrapped := getattr(inner, "original_component", None), torch.nn.Module):
        inner = wrapped
    if id(inner) not in done:
        twin = copy.copy(inner)
        done[id(inner)] = twin
        children = {
            name: None if child is None else _unwrapped(child, done)
            for name, child in inner._modules.items()
        }
        twin.__dict__.update(_modules=children)
        for hooks in ("_forward_hooks", "_forward_pre_hooks"):
            twin.__dict__[hooks] = type(inner.__dict__[hooks])()
    return done[id(inner)]
