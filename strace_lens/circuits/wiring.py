"""How a model's heads and MLPs read the residual stream and write to it, proven before it is used.

A destination reads `W norm(stream) + offset`: heads at `attn.hook_q`, `hook_k` and `hook_v`, which
can be written in every supported model, where split inputs cannot; MLPs at the input of the module,
behind their norm, or on a HookedTransformer at `hook_mlp_in`, before it. So one path serves all.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from strace_lens.circuits.graph import ComponentGraph
from strace_lens.model.architecture import (
    Architecture,
    Model,
    UnsupportedModelError,
    attention_output,
    block_of,
    describe,
    device_of,
    refuse_other_classes,
)
from strace_lens.model.checks import (
    PROBE_TOKENS,
    at_least_single,
    check_sums,
    expect_equal_rows,
    padding_is_exact,
    probe_tokens,
    tolerance,
)
from strace_lens.model.forward import Hook, last_logits
from strace_lens.model.hold import verb
from strace_lens.model.norms import Norm, read_norm
from strace_lens.model.sparse import (
    block_outputs,
    mlps_are_pointwise,
    projection,
    skipped_blocks,
    zero_projections,
)
from strace_lens.model.weights import remembered

Input = Literal["q", "k", "v"]
INPUTS: tuple[Input, ...] = ("q", "k", "v")


@dataclass(frozen=True, eq=False)
class Wiring:
    """What patching needs of a model beside its weights.

    Attributes:
        architecture, graph: of the model.
        attention_norms, mlp_norms: norms before attention and MLP, None where there is none. A
            HookedTransformer norms the MLP's input behind the hook point, so there it is None too.
        mlp_point: hook point inside a block at which the MLP's input can be written.
        centred: every norm that a stream passes takes its mean away first, the last one too, so a
            change of the mean alone is never seen.
        positions: added to the normed input of q and k (shortformer), by token position.
        block_outputs: what blocks return, for `skipped_blocks`; None where none may be skipped.
        zero_projections: q, k and v need not be worked out where they are overwritten, nor what
            attention writes where that is not read.
        separate_heads: what one head reads changes no other head of its block.
    """

    architecture: Architecture
    graph: ComponentGraph
    attention_norms: tuple[Norm | None, ...]
    mlp_norms: tuple[Norm | None, ...]
    mlp_point: str
    centred: bool
    positions: Float[Tensor, "context d_model"] | None
    block_outputs: int | None = None
    zero_projections: bool = False
    separate_heads: bool = False


def input_projection(
    model: Model, wiring: Wiring, layer: int, kind: Input, tokens: int
) -> tuple[Float[Tensor, "head d_model d_head"], Float[Tensor, "pos head d_head"]]:
    """Weight and offset of q, k or v of one block: `centre(x) / scale(x) @ weight + offset`.

    The gain of the norm is folded into the weight. The offset, of biases and of what positions add,
    has one row a token position, or one row where all are alike.
    """
    attn = block_of(model, layer).attn
    weight = getattr(attn, f"W_{kind.upper()}").detach()
    arch = wiring.architecture
    heads = arch.heads if kind == "q" else arch.kv_heads
    # TransformerLens repeats grouped weights in some classes; one of each group is the head's own.
    weight = weight[:: weight.shape[0] // heads]
    bias = getattr(attn, f"b_{kind.upper()}", None)
    offset = weight.new_zeros(heads, weight.shape[-1])
    if bias is not None:
        offset = bias.detach()[:: bias.shape[0] // heads]
    offset = offset[None]
    if wiring.positions is not None and kind != "v":
        offset = offset + torch.einsum("pm,hme->phe", wiring.positions[:tokens], weight)
    norm = wiring.attention_norms[layer]
    if norm is not None:
        offset = offset + torch.einsum("m,hme->he", norm.bias, weight)
        weight = norm.gain[:, None] * weight
    return weight, offset


def head_writer(model: Model, wiring: Wiring, layer: int) -> Float[Tensor, "head d_head d_model"]:
    """W_O of every head, with the gain and centring of a norm after attention folded in.

    A head's contribution is `z @ weight`, over the scale of that norm in the same run.
    """
    out = attention_output(model, wiring.architecture, layer)
    return out.linear_norm(out.weight) if wiring.architecture.post_norm else out.weight


@verb
def wiring_of(model: Model) -> Wiring:
    """The wiring of a model, proven on probe tokens the first time and remembered after.

    It is read and proven again when the model's weights, dtype, device or settings have changed.

    Raises:
        UnsupportedModelError: the model cannot be patched; the message says where it fails.
    """
    refuse_other_classes(model)
    return remembered(model, "wiring", lambda: _proven(model))


def _proven(model: Model) -> Wiring:
    wiring = _describe(model)
    tokens = probe_tokens(wiring.architecture)[None].to(device_of(model))
    with torch.no_grad(), warnings.catch_warnings(), mlp_input_hooks(model, wiring):
        warnings.simplefilter("ignore")  # TransformerLens warns of a write that it discards
        arch = check_sums(model, wiring.architecture, tokens[0])
        twice = model.run_with_hooks(
            tokens.expand(2, -1), return_type="logits", padding_side="right"
        )
        expect_equal_rows(arch, twice)
        arch = replace(
            arch,
            padding_is_exact=padding_is_exact(model, arch, tokens[0]),
            pointwise_mlps=arch.mlp
            and mlps_are_pointwise(
                model, arch.layers, lambda: model.run_with_hooks(tokens, padding_side="right")
            ),
        )
        outputs = _skipped_output(model, arch, tokens)
        wiring = replace(
            wiring,
            architecture=arch,
            block_outputs=outputs,
            zero_projections=_projections_are_free(model, arch, tokens),
            separate_heads=_heads_are_separate(model, arch, tokens),
        )
        _check_readers(model, wiring, tokens)
        _check_writes(model, wiring, tokens)
    return wiring


def component_graph(model: Model) -> ComponentGraph:
    """Return the component graph of a model: edges from heads and MLPs to q, k, v and MLP inputs.

    Raises:
        UnsupportedModelError: the model cannot be patched; the message says why.

    Example:
        >>> sl.component_graph(sl.load_model()).edges
        70651
    """
    return wiring_of(model).graph


def graph_of(architecture: Architecture) -> ComponentGraph:
    """The component graph of a model of this architecture, whether or not it can be patched."""
    arch = architecture
    return ComponentGraph(
        arch.name, arch.layers, arch.heads, arch.kv_heads, arch.mlp, arch.parallel
    )


def _describe(model: Model) -> Wiring:
    arch = describe(model, causal_only=False)
    layers = range(arch.layers)
    hooks = cast(Any, model).hook_dict
    needed = [f"blocks.{n}.attn.hook_{kind}" for n in layers for kind in INPUTS]
    missing = [name for name in needed if name not in hooks]
    if missing:
        raise UnsupportedModelError(f"{arch.name} cannot be patched: it has no {missing[0]}")
    behind_norm = "blocks.0.mlp.hook_in" in hooks
    shared = not hasattr(block_of(model, 0), "ln2")  # one norm feeds attention and MLP alike
    mlp_norm = "ln1" if shared and arch.parallel else "ln2"
    cfg: Any = model.cfg
    like = block_of(model, 0).attn.W_O.detach().flatten(0, -2)[0]

    def norm(layer: int, name: str) -> Norm | None:
        return read_norm(getattr(block_of(model, layer), name, None), like, cfg)

    all_norms = [norm(n, name) for n in layers for name in ("ln1", mlp_norm)[: 1 + arch.mlp]]
    all_norms.append(read_norm(getattr(model, "ln_final", None), like, cfg))
    shortformer = getattr(cfg, "positional_embedding_type", "") == "shortformer"
    return Wiring(
        architecture=arch,
        graph=graph_of(arch),
        attention_norms=tuple(norm(n, "ln1") for n in layers),
        mlp_norms=tuple(norm(n, mlp_norm) if behind_norm and arch.mlp else None for n in layers),
        mlp_point="mlp.hook_in" if behind_norm else "hook_mlp_in",
        centred=all(norm is not None and norm.centred for norm in all_norms),
        positions=cast(Any, model).W_pos.detach() if shortformer else None,
    )


@contextlib.contextmanager
def mlp_input_hooks(model: Model, wiring: Wiring) -> Iterator[None]:
    """Have `hook_mlp_in` run where it is needed; the model's flag is as before afterwards."""
    cfg: Any = model.cfg
    if wiring.mlp_point != "hook_mlp_in" or not wiring.architecture.mlp:
        yield
        return
    before = bool(cfg.use_hook_mlp_in)
    cast(Any, model).set_use_hook_mlp_in(True)
    try:
        yield
    finally:
        cast(Any, model).set_use_hook_mlp_in(before)


def stream_point(wiring: Wiring, layer: int) -> str:
    """Hook point of the stream that a block's MLP reads."""
    sequential = wiring.architecture.mlp and not wiring.architecture.parallel
    return f"blocks.{layer}.hook_resid_{'mid' if sequential else 'pre'}"


def stream_points(wiring: Wiring) -> list[str]:
    """Hook points of the streams that the blocks' heads and MLPs read, each once."""
    layers = range(wiring.graph.layers)
    streams = [f"blocks.{layer}.hook_resid_pre" for layer in layers]
    return list(dict.fromkeys([*streams, *(stream_point(wiring, layer) for layer in layers)]))


def read_points(wiring: Wiring) -> list[str]:
    """Hook points at which heads and MLPs read."""
    points = [f"attn.hook_{kind}" for kind in INPUTS] + [wiring.mlp_point] * wiring.graph.mlp
    return [f"blocks.{layer}.{point}" for layer in range(wiring.graph.layers) for point in points]


def keep_hooks(names: Iterable[str], kept: dict[str, Tensor], *, detach: bool = True) -> list[Hook]:
    """Hooks that keep values by the names asked for, since a hook's own name can be an alias."""

    def keep(name: str) -> Callable[..., None]:
        def hook(value: Tensor, hook: Any) -> None:
            kept[name] = value.detach() if detach else value

        return hook

    return [(name, keep(name)) for name in names]


# ------------------------------------------------------------------ proof


def _check_readers(model: Model, wiring: Wiring, tokens: Int[Tensor, "1 pos"]) -> None:
    """What we work out from the stream must be what the model's hook points carry."""
    arch = wiring.architecture
    found: dict[str, Tensor] = {}
    hooks = keep_hooks([*stream_points(wiring), *read_points(wiring)], found)
    model.run_with_hooks(tokens, fwd_hooks=hooks, padding_side="right")
    for layer in range(arch.layers):
        stream = found[f"blocks.{layer}.hook_resid_pre"]
        norm = wiring.attention_norms[layer]
        centred = stream if norm is None else norm.centre(stream)
        normed = centred if norm is None else centred / norm.scale(centred)
        for kind in INPUTS:
            weight, offset = input_projection(model, wiring, layer, kind, PROBE_TOKENS)
            ours = torch.einsum("rpm,hme->rphe", normed, weight) + offset
            _expect_equal(arch, f"blocks.{layer}.attn.hook_{kind}", ours, found)
        if arch.mlp:
            stream = found[stream_point(wiring, layer)]
            norm = wiring.mlp_norms[layer]
            name = f"blocks.{layer}.{wiring.mlp_point}"
            _expect_equal(arch, name, stream if norm is None else norm(stream), found)


def _expect_equal(arch: Architecture, name: str, ours: Tensor, found: dict[str, Tensor]) -> None:
    if name not in found:
        raise UnsupportedModelError(f"{arch.name} cannot be patched: {name} never runs")
    theirs = at_least_single(found[name]).reshape(ours.shape)
    gap = float((at_least_single(ours) - theirs).norm() / theirs.norm().clamp_min(1e-30))
    if not gap < tolerance(found[name].dtype):
        raise UnsupportedModelError(
            f"{arch.name} cannot be patched: what {name} carries is not worked out from the stream "
            f"by its norm and weights (relative gap {gap:.1e})"
        )


def _skipped_output(model: Model, arch: Architecture, tokens: Int[Tensor, "1 pos"]) -> int | None:
    """What blocks return, where a run from the second block on is the whole run."""
    name, kept = "blocks.1.hook_resid_pre", {}

    def run(hooks: Sequence[Hook] = ()) -> Tensor:
        return last_logits(model, arch, tokens, hooks=hooks)

    found = block_outputs(model, arch.layers, run)
    if found is None or arch.layers < 2:
        return None
    whole = run(keep_hooks([name], kept))
    with skipped_blocks(model, [0], found):
        late = run([(name, lambda value, hook: kept[name])])
    return found if torch.equal(late, whole) else None


def _projections_are_free(model: Model, arch: Architecture, tokens: Int[Tensor, "1 pos"]) -> bool:
    """Whether a run without the projections, with what they gave written, is the whole run."""
    layers = range(arch.layers)
    parts = [(layer, kind) for layer in layers for kind in (*INPUTS, "o")]
    if any(projection(model, *part) is None for part in parts):
        return False
    names = [f"blocks.{n}.attn.hook_{kind}" for n in layers for kind in INPUTS]
    names += [f"blocks.{n}.hook_attn_out" for n in layers]
    kept: dict[str, Tensor] = {}

    def write(name: str) -> Callable[..., Tensor]:
        return lambda value, hook: kept[name]

    whole = last_logits(model, arch, tokens, hooks=keep_hooks(names, kept))
    if len(kept) < len(names):
        return False
    with zero_projections(model, parts):
        without = last_logits(model, arch, tokens, hooks=[(name, write(name)) for name in names])
    return torch.equal(without, whole)


def _heads_are_separate(model: Model, arch: Architecture, tokens: Int[Tensor, "1 pos"]) -> bool:
    """Whether a head's queries, keys and values leave the others of its block as they are.

    Some models norm queries and keys over all heads at once. Of three rows the first has other
    queries of one head, the second other keys and values; every block reads what the third does.
    """
    group, same = arch.heads // arch.kv_heads, []

    def changed(row: int, heads: int) -> Callable[..., Tensor]:
        def hook(value: Tensor, hook: Any) -> Tensor:
            by_head = value.reshape(*value.shape[:2], heads, -1).clone()
            by_head[row, :, 0] = 100 * by_head[row, :, 0] + 1
            return by_head.reshape(value.shape)

        return hook

    def compare(value: Tensor, hook: Any) -> None:
        z = value.reshape(*value.shape[:2], arch.heads, -1).float()
        gap = (z[0, :, 1:] - z[2, :, 1:]).norm() + (z[1, :, group:] - z[2, :, group:]).norm()
        same.append(bool(gap <= 16 * torch.finfo(value.dtype).eps * z[2].norm()))

    hooks: list[Hook] = []
    for block in (f"blocks.{layer}." for layer in range(arch.layers)):
        hooks.append((block + "hook_resid_pre", lambda x, hook: x[2:].expand_as(x).clone()))
        hooks.append((block + "attn.hook_q", changed(0, arch.heads)))
        hooks += [(block + f"attn.hook_{kind}", changed(1, arch.kv_heads)) for kind in ("k", "v")]
        hooks.append((block + "attn.hook_z", compare))
    last_logits(model, arch, tokens.expand(3, -1), hooks=hooks)
    return len(same) == arch.layers and all(same)


_Write = tuple[str, str | None, tuple[str, ...]]  # a point, one behind it, points beside it


def _check_writes(model: Model, wiring: Wiring, tokens: Int[Tensor, "1 pos"]) -> None:
    """A write at each hook point that patching uses must change what is worked out from it.

    That is looked for right behind it, because compiled models hold heads and MLPs whose weights
    are zero, which no write could carry to the output.
    """
    arch = wiring.architecture
    writes: list[_Write] = []
    for block in (f"blocks.{layer}." for layer in range(arch.layers)):
        query, key, value = (f"{block}attn.hook_{kind}" for kind in INPUTS)
        # Heads whose keys are all alike answer any query alike, so the other side is noise too.
        writes.append((query, f"{block}attn.hook_pattern", (key,)))
        writes.append((key, f"{block}attn.hook_pattern", (query,)))
        writes.append((value, f"{block}attn.hook_z", ()))
        if arch.mlp:
            writes.append((block + wiring.mlp_point, f"{block}hook_mlp_out", ()))
    writes.append((f"blocks.{arch.layers - 1}.hook_resid_post", None, ()))
    before, after = (
        _run_writes(model, arch, tokens, writes, write=write) for write in (False, True)
    )
    for (point, behind, _), still, moved in zip(writes, before, after, strict=True):
        # An MLP of zeros answers every token alike, and no write can change that.
        if point.endswith(wiring.mlp_point) and bool((still == still[:1]).all()):
            continue
        if not float((moved - still).norm()) > 1e-4 * float(still.norm()):
            raise UnsupportedModelError(
                f"{arch.name} cannot be patched: a write at {point} does not reach "
                + (behind or "the output")
            )


def _run_writes(
    model: Model,
    arch: Architecture,
    tokens: Int[Tensor, "1 pos"],
    writes: Sequence[_Write],
    *,
    write: bool,
) -> list[Tensor]:
    """What lies behind each write, all in one pass, each in a row of its own.

    The points beside one hold the same noise whether it is written or not. They are small, because
    a pattern of large numbers is often the same.
    """
    seen: dict[int, Tensor] = {}

    def noise(row: int, seed: int, *, small: bool) -> Callable[..., Tensor]:
        def hook(value: Tensor, hook: Any) -> Tensor:
            value, generator = value.clone(), torch.Generator().manual_seed(seed)
            drawn = torch.randn(value[row].shape, generator=generator).to(value)
            value[row] = drawn if small else drawn * (1 + value[row].abs().max())
            return value

        return hook

    def read(row: int) -> Callable[..., None]:
        return lambda value, hook: seen.__setitem__(row, value[row].float())

    hooks: list[Hook] = []
    for row, (point, behind, beside) in enumerate(writes):
        hooks += [(name, noise(row, 1, small=True)) for name in beside]
        hooks += [(point, noise(row, 2, small=bool(beside)))] * write
        hooks += [(behind, read(row))] if behind else []
    logits = last_logits(model, arch, tokens.expand(len(writes), -1), hooks=hooks)
    for row, (point, behind, _) in enumerate(writes):
        if behind and row not in seen:
            raise UnsupportedModelError(
                f"{arch.name} cannot be patched: {behind}, behind {point}, never runs"
            )
        seen.setdefault(row, logits[row])
    return [seen[row] for row in range(len(writes))]
