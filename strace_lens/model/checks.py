"""Proof, on a real forward pass, that a model does what both graphs take for granted.

Some hook points of some models can be read but not written: a mask put there would silently do
nothing. So before a model is traced, what is read must add up to the residual stream, and each hook
point that is written is perturbed, layer by layer, and the output must move. A model that fails is
refused by name. `tolerance` says how closely two ways to the same number must agree in a dtype.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from strace_lens.model.architecture import (
    Architecture,
    Model,
    UnsupportedModelError,
    attention_output,
    clipped,
    describe,
    device_of,
    hook_points,
    per_query_head,
    refuse_other_classes,
)
from strace_lens.model.forward import FIRST
from strace_lens.model.hold import verb
from strace_lens.model.sparse import mlps_are_pointwise
from strace_lens.model.weights import remembered

_HALF = 2e-2
_SINGLE = 1e-4
_DOUBLE = 1e-6


def tolerance(dtype: torch.dtype) -> float:
    """Largest relative difference that rounding alone explains, between sums of a dtype.

    Single precision agrees to about 1e-6 where no fact is wrong, and double precision to about
    1e-7, because some models compute their norms and patterns in single precision whatever their
    dtype. Half precision rounds the residual stream itself. Where torch has been allowed to take
    matrix products in a lower precision, single precision is held to no more than half precision.
    """
    if dtype == torch.float64:
        return _DOUBLE
    if dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest":
        return _SINGLE
    return _HALF


def at_least_single(x: Tensor) -> Tensor:
    """The tensor in single precision if it is in half; single and double stay as they are."""
    return x if x.dtype == torch.float64 else x.float()


FROM_A_RUN = (
    *("attention_scales", "mlp_scales", "pattern_is_live", "silent_without_input"),
    *("pointwise_mlps", "padding_is_exact", "rows_can_branch"),
)
"""The facts of an architecture that only a run can tell."""

PROBE_TOKENS = 3
_PADDED = 12
_MLP_MODULE = "mlp.hook_out"
"""Hook point that carries what the MLP's module answers, where a model has it."""


def probe_tokens(architecture: Architecture) -> Int[Tensor, " pos"]:
    """The tokens on which a model is proven."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(architecture.d_vocab, (PROBE_TOKENS,), generator=generator)


@verb
def architecture_of(model: Model, proven: Mapping[str, Any] | None = None) -> Architecture:
    """The architecture of a model, proven by `check` the first time and remembered after.

    It is proven again when the model's weights, dtype, device or settings have changed.

    Args:
        model: the model.
        proven: as for `check`, where it is known already.

    Raises:
        UnsupportedModelError: the model cannot be traced; the message says why.
    """
    refuse_other_classes(model)
    return remembered(model, "architecture", lambda: check(model, describe(model), proven))


def check(
    model: Model, architecture: Architecture, proven: Mapping[str, Any] | None = None
) -> Architecture:
    """Prove the architecture on probe tokens; returns it with the facts that only a run can tell.

    Costs seven small forward passes, and two of (4 x layers) rows of three tokens.

    Args:
        model: the model.
        architecture: what is to be proven.
        proven: what the passes found before, with the same weights, code and device, where they
            refused nothing (`FROM_A_RUN`); None has them run.

    Raises:
        UnsupportedModelError: the residual stream is not the sum of what the hook points carry, or
            a write at one of them does not reach the output.
    """
    if proven is not None:
        return dataclasses.replace(architecture, **proven)
    tokens = probe_tokens(architecture)
    with torch.no_grad(), warnings.catch_warnings():
        # TransformerLens warns of a write that it discards; to find those is what this is for.
        warnings.simplefilter("ignore")
        architecture = check_sums(model, architecture, tokens)
        pattern_is_live = _pattern_is_live(model, architecture, tokens)
        silent = _is_silent(model, architecture, tokens)
        rows = tokens[None].to(device_of(model))
        pointwise = architecture.mlp and mlps_are_pointwise(
            model, architecture.layers, lambda: model.run_with_hooks(rows, padding_side="right")
        )
        padding = padding_is_exact(model, architecture, tokens)
        branch = rows_can_branch(model, architecture, tokens)
    return dataclasses.replace(
        architecture,
        pattern_is_live=pattern_is_live,
        silent_without_input=silent,
        pointwise_mlps=pointwise,
        padding_is_exact=padding,
        rows_can_branch=branch,
    )


def check_sums(model: Model, arch: Architecture, tokens: Int[Tensor, " pos"]) -> Architecture:
    """Each node must be the sum of what its in-edges carry, to the precision of the model.

    Returns:
        The architecture with what attention and MLPs are multiplied by before they are added.
    """
    outputs = {f"blocks.{layer}.{_MLP_MODULE}" for layer in range(arch.layers)}
    wanted = outputs & set(cast(Any, model).hook_dict) | set(hook_points(arch))
    _, cache = model.run_with_cache(
        tokens[None].to(device_of(model)),
        names_filter=lambda name: name in wanted,
        padding_side="right",
    )
    dtype = cache["blocks.0.hook_resid_pre"].dtype
    scales: list[float] = []
    mlp_scales: list[float] = []
    for layer in range(arch.layers):

        def at(name: str, layer: int = layer) -> Tensor:
            return at_least_single(cache[f"blocks.{layer}.{name}"][0])

        def expect(name: str, node: Tensor, parts: list[Tensor], layer: int = layer) -> None:
            gap = float((node - torch.stack(parts).sum(0)).norm() / node.norm().clamp_min(1e-30))
            if not gap < tolerance(dtype):
                raise UnsupportedModelError(
                    f"{arch.name} cannot be traced: at blocks.{layer} the parts of {name} do not "
                    f"add up to it (relative gap {gap:.1e})"
                )

        attention = _attention_by_hand(model, arch, layer, at)
        # Behind a norm no multiple can be told from the norm's gain.
        scales.append(1.0 if arch.post_norm else _multiple(at("hook_attn_out"), attention, dtype))
        expect("hook_attn_out", at("hook_attn_out"), [scales[-1] * attention])
        stream = [at("hook_resid_pre"), at("hook_attn_out")]
        if arch.mlp and not arch.parallel:
            expect("hook_resid_mid", at("hook_resid_mid"), stream)
        if arch.mlp:
            stream.append(at("hook_mlp_out"))
            known = f"blocks.{layer}.{_MLP_MODULE}" in cache and not arch.post_norm
            answer = at(_MLP_MODULE) if known else at("hook_mlp_out")
            mlp_scales.append(_multiple(at("hook_mlp_out"), answer, dtype))
        expect("hook_resid_post", at("hook_resid_post"), stream)
        if layer + 1 < arch.layers:
            following = at_least_single(cache[f"blocks.{layer + 1}.hook_resid_pre"][0])
            following = following.to(stream[0].device)  # the next block may run elsewhere
            expect("the next hook_resid_pre", following, [at("hook_resid_post")])
    return dataclasses.replace(arch, attention_scales=tuple(scales), mlp_scales=tuple(mlp_scales))


def _attention_by_hand(
    model: Model, arch: Architecture, layer: int, at: Callable[[str], Tensor]
) -> Float[Tensor, "pos d_model"]:
    """What the heads of a block add up to, before the model multiplies it by anything."""
    out = attention_output(model, arch, layer)
    value = per_query_head(clipped(arch, at("attn.hook_v")), arch.heads, dim=1)
    # A model may keep its pattern in single precision and its values in double.
    z = torch.einsum("hqk,khe->qhe", at("attn.hook_pattern").to(value.dtype), value)
    weight = at_least_single(out.weight)
    result = torch.einsum("qhe,hed->qd", z, weight.to(z.dtype)) + at_least_single(out.bias)
    if arch.post_norm:
        result = out.linear_norm(result) / at("ln1_post.hook_scale") + out.norm_bias
    return result


def _multiple(whole: Tensor, part: Tensor, dtype: torch.dtype) -> float:
    """The number by which the part is to be multiplied to give the whole, 1 where there is none.

    Whether the product is the whole is for the caller to check.
    """
    whole, part = whole.double().flatten(), part.reshape(whole.shape).double().flatten()
    scale = float(whole @ part / (part @ part).clamp_min(1e-300))
    if scale <= 0 or not math.isfinite(scale) or abs(scale - 1) < tolerance(dtype):
        return 1.0
    exact = (whole - scale * part).norm() < tolerance(dtype) * whole.norm()
    return scale if exact else 1.0


def _pattern_is_live(model: Model, arch: Architecture, tokens: Int[Tensor, " pos"]) -> bool:
    """Whether writes to attention patterns reach the output, as all other writes must."""
    dead = _dead_writes(model, arch, tokens)
    pattern = {point for point in dead if point.endswith("hook_pattern")}
    if pattern and (len(pattern) < arch.layers or arch.post_norm):
        raise UnsupportedModelError(f"{arch.name} cannot be traced: {min(pattern)} is dead")
    for point in dead - pattern:
        raise UnsupportedModelError(
            f"{arch.name} cannot be traced: a write at {point} does not reach the output"
        )
    return not pattern


def _dead_writes(model: Model, arch: Architecture, tokens: Int[Tensor, " pos"]) -> set[str]:
    """Hook points at which a write leaves the logits of its row exactly as they were."""
    points = _writes(arch)
    rows = tokens.expand(len(points), -1).to(device_of(model))

    def corrupt_row(row: int, change: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
        def hook(value: Tensor, hook: Any) -> Tensor:
            value = value.clone()
            value[row] = change(value[row])
            return value

        return hook

    hooks = [(name, corrupt_row(i, change)) for i, (name, change) in enumerate(points)]
    # The two passes have the same shape, so a row nothing reaches is equal to the last bit.
    clean, moved = (
        model.run_with_hooks(rows, fwd_hooks=h, return_type="logits", padding_side="right")
        for h in ([], hooks)
    )
    expect_equal_rows(arch, clean)
    same = (clean[:, -1] == moved[:, -1]).all(-1)
    return {name for (name, _), unmoved in zip(points, same.tolist(), strict=True) if unmoved}


def expect_equal_rows(arch: Architecture, logits: Float[Tensor, "row pos vocab"]) -> None:
    """Equal prompts must have equal logits, or no two runs can be compared."""
    same = logits[:1].expand_as(logits)
    if not torch.allclose(logits, same, rtol=1e-2, atol=1e-2, equal_nan=True):
        raise UnsupportedModelError(
            f"{arch.name} cannot be traced: equal rows give different logits, so something in it "
            "is drawn at random (as by a hook of yours) or depends on the other rows"
        )


def _is_silent(model: Model, arch: Architecture, tokens: Int[Tensor, " pos"]) -> bool:
    """Whether zeros instead of embeddings are still zeros after the last block."""
    last: list[Tensor] = []

    def erase(value: Tensor, hook: Any) -> Tensor:
        return torch.zeros_like(value)

    def read(value: Tensor, hook: Any) -> None:
        last.append(value)

    hooks = [("blocks.0.hook_resid_pre", erase)]
    hooks += [(f"blocks.{arch.layers - 1}.hook_resid_post", read)]
    model.run_with_hooks(tokens[None].to(device_of(model)), fwd_hooks=hooks, padding_side="right")
    return not bool(last[0].any())


def padding_is_exact(model: Model, arch: Architecture, tokens: Int[Tensor, " pos"]) -> bool:
    """Whether the probe tokens, padded on the right, give the logits that they give alone.

    The row is kept on this side of the lengths at which positions are known to change.
    """
    width = min(_PADDED, arch.context, *arch.position_switches)
    if width <= len(tokens):
        return True
    padded = torch.nn.functional.pad(tokens, (0, width - len(tokens)))
    alone, beside = (
        model.run_with_hooks(
            row[None].to(device_of(model)), return_type="logits", padding_side="right"
        )[0, : len(tokens)]
        for row in (tokens, padded)
    )
    gap = (at_least_single(alone) - at_least_single(beside)).norm()
    return bool(gap <= tolerance(alone.dtype) * at_least_single(alone).norm())


def rows_can_branch(model: Model, arch: Architecture, tokens: Int[Tensor, " pos"]) -> bool:
    """Whether one row that hooks turn into four gives the logits of four rows.

    What is made once a pass, as a mask or the encoding of positions, may fit only the first number.
    """
    points = (FIRST, "blocks.0.hook_resid_post")
    seen: list[int] = []

    def branch(value: Tensor, hook: Any) -> Tensor:
        return torch.cat([value, -value])

    def negate(rows: list[int]) -> Callable[..., Tensor]:
        signs = torch.ones(4, 1, 1)
        signs[rows] = -1
        return lambda value, hook: value * signs.to(value)

    def count(value: Tensor, hook: Any) -> None:
        seen.append(len(value))

    def run(rows: int, hooks: list[Callable[..., Tensor]]) -> Tensor:
        counting = [("blocks.0.hook_mlp_out", count)] if arch.mlp else []
        return model.run_with_hooks(
            tokens.expand(rows, -1).to(device_of(model)),
            fwd_hooks=[*zip(points, hooks, strict=True), *counting],
            return_type="logits",
            padding_side="right",
        )

    whole = at_least_single(run(4, [negate([1, 3]), negate([2, 3])]))
    try:
        branched = at_least_single(run(1, [branch, branch]))
    # Where something was made for one row, what fails depends on the model's code.
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError):
        return False
    # OPT's MLP works on rows and tokens together, and a bridge parts them by the rows that it was
    # given, so that hooks would see one long row.
    if branched.shape != whole.shape or (arch.mlp and seen != [4, 2]):
        return False
    return bool((branched - whole).norm() <= tolerance(whole.dtype) * whole.norm())


def _writes(arch: Architecture) -> list[tuple[str, Callable[[Tensor], Tensor]]]:
    """The hook points a masked run writes, each with a change no model can fail to notice."""
    points: list[tuple[str, Callable[[Tensor], Tensor]]] = [(arch.unembed_input, lambda x: -x)]
    for layer in range(arch.layers):
        block = f"blocks.{layer}."
        points.append((block + "attn.hook_pattern", torch.zeros_like))
        points.append((block + "attn.hook_z", torch.zeros_like))
        points.append((block + "hook_resid_post", lambda x: -x))
        if arch.mlp and not arch.parallel:
            points.append((block + "hook_resid_mid", lambda x: -x))
    return points
