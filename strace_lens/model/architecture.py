"""What a TransformerLens model is made of: the facts both graphs need, read off the model.

This is the one place that knows a `HookedTransformer` from a `TransformerBridge`. Nothing here runs
the model; `model/checks.py` proves on a real forward pass that what is said here is true. The parts
of a model lie on one device, on several, or in part on the disk: a `device_map` of transformers has
the accelerate package bring each part when it is needed, and until then its parameters are on
torch's meta device and hold no values.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from strace_lens.model.norms import hooks_aside, norm_weights

if TYPE_CHECKING:
    # The protocol is new in TransformerLens 4; HookedTransformer 3.9 satisfies it all the same.
    from transformer_lens.model_protocol import TransformerLensModel as Model
else:
    Model = Any


def device_of_part(part: torch.nn.Module) -> torch.device:
    """The device that a module computes on, wherever its weights lie meanwhile."""
    first = next(part.parameters()).device
    if first.type != "meta":
        return first
    for module in part.modules():
        for hook in _hooks(module):
            if hook.execution_device is not None:
                return torch.device(hook.execution_device)
    return first


@contextlib.contextmanager
def at_hand(part: torch.nn.Module) -> Iterator[None]:
    """Bring the weights of a module that lie elsewhere, for as long as the context is open.

    A tensor that was read inside keeps its values afterwards.
    """
    away = [m for m in part.modules() if any(hook.offload for hook in _hooks(m))]
    if not away:
        yield
        return
    from accelerate.utils import align_module_device

    with contextlib.ExitStack() as stack:
        for module in away:
            stack.enter_context(align_module_device(module))
        yield


def is_away(part: torch.nn.Module) -> bool:
    """Whether some weights of a module are brought only when they are needed."""
    return any(p.device.type == "meta" for p in part.parameters())


def _hooks(module: torch.nn.Module) -> list[Any]:
    """The hooks of accelerate that place a module."""
    # Not getattr: a bridge answers for the module that it wraps.
    hook = vars(module).get("_hf_hook")
    every = [hook, *getattr(hook, "hooks", ())]
    return [one for one in every if hasattr(one, "execution_device")]


class UnsupportedModelError(ValueError):
    """Raised when a model's computation cannot be written as a token graph, with the reason."""


@dataclass(frozen=True)
class Architecture:
    """Shape and wiring of a model.

    Attributes:
        name: the model's own name, for messages and results.
        layers, heads, kv_heads: blocks, query heads and key-value heads.
        d_model, d_head, d_mlp, d_vocab: widths.
        context: longest prompt the positions allow.
        parallel: attention and MLP read the same `hook_resid_pre`.
        mlp: False for an attention-only model.
        post_norm: a norm stands between attention (and MLP) and the residual stream.
        unembed_input: hook point where all positions but the last can be dropped.
        pattern_is_live: a write at `attn.hook_pattern` reaches the output. Where it does not,
            attention is recomputed from its pattern where the residual stream is written.
        silent_without_input: a residual stream of zeros stays zero through every block, as in
            models without biases.
        pointwise_mlps: MLPs can be run on some tokens alone (`sparse_mlp`).
        gated: the MLP has a third matrix, that of its gate.
        experts: MLPs that one token passes through in a block: 1, or the active experts of a
            mixture, each of width d_mlp.
        position_switches: lengths beyond which a prompt's positions are encoded in another way
            (LongRoPE), rising.
        padding_is_exact: a prompt padded on the right, not beyond one of these lengths, gives the
            logits that it gives alone.
        rows_can_branch: hooks that write the stream may make several rows of one, which run from
            there on as if they had been several all along.
        value_clip: values are clipped to this magnitude between `attn.hook_v` and the pattern; None
            where they are not.
        attention_scales, mlp_scales: what each layer's attention and MLP are multiplied by before
            they reach the stream, as in Granite; `hook_attn_out` and `hook_mlp_out` carry the
            product. They are empty until a run has told them, which stands for 1 throughout.
    """

    name: str
    layers: int
    heads: int
    kv_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    d_vocab: int
    context: int
    parallel: bool
    mlp: bool
    post_norm: bool
    unembed_input: str
    pattern_is_live: bool = True
    silent_without_input: bool = False
    pointwise_mlps: bool = False
    gated: bool = False
    experts: int = 1
    position_switches: tuple[int, ...] = ()
    padding_is_exact: bool = True
    rows_can_branch: bool = False
    value_clip: float | None = None
    attention_scales: tuple[float, ...] = ()
    mlp_scales: tuple[float, ...] = ()

    @property
    def mlp_weights(self) -> int:
        """Entries of the matrices that one token passes through in the MLP of one block.

        So many multiply-adds does it take; the router of a mixture of experts is left out.
        """
        matrices = 3 if self.gated else 2
        return matrices * self.d_model * self.d_mlp * self.experts if self.mlp else 0

    def padding_class(self, length: int) -> int:
        """Prompts of two lengths may share a forward pass, padded, if their class is the same."""
        if not self.padding_is_exact:
            return length
        return sum(length > switch for switch in self.position_switches)


def describe(model: Model, *, causal_only: bool = True) -> Architecture:
    """Read the architecture of a model, unverified; models without one are refused by the reason.

    With `causal_only`, so are models of bidirectional attention, which have no token graph.
    """
    refuse_other_classes(model)
    cfg: Any = model.cfg
    name = str(getattr(cfg, "model_name", None) or type(model).__name__)
    hooks = getattr(model, "hook_dict", {})
    layers = int(cfg.n_layers)
    _refuse_other_kinds(name, cfg, model, causal_only)

    attention_only = bool(getattr(cfg, "attn_only", False))
    parallel = bool(getattr(cfg, "parallel_attn_mlp", False))
    unembed = "unembed.hook_in"
    if unembed not in hooks:  # a HookedTransformer, whose unembedding follows the last block
        unembed = f"blocks.{layers - 1}.hook_resid_post"
    kv_heads = int(getattr(cfg, "n_key_value_heads", None) or cfg.n_heads)
    found = Architecture(
        name=name,
        layers=layers,
        heads=int(cfg.n_heads),
        kv_heads=kv_heads,
        d_model=int(cfg.d_model),
        d_head=int(cfg.d_head),
        d_mlp=_mlp_width(model, cfg),
        d_vocab=int(cfg.d_vocab),
        context=int(cfg.n_ctx),
        parallel=parallel and not attention_only,
        mlp=not attention_only,
        post_norm=hasattr(block_of(model, 0), "ln1_post"),
        unembed_input=unembed,
        gated=bool(getattr(cfg, "gated_mlp", False)),
        experts=int(getattr(cfg, "experts_per_token", None) or 1),
        position_switches=_position_switches(model),
        value_clip=_value_clip(model),
    )
    missing = [h for h in hook_points(found) if h not in hooks]
    if missing:
        raise UnsupportedModelError(
            f"{name} cannot be traced: it has no hook point {missing[0]}"
            + (f" (nor {len(missing) - 1} others)" if len(missing) > 1 else "")
        )
    return found


def _position_switches(model: Model) -> tuple[int, ...]:
    """Lengths at which LongRoPE changes the frequencies of every position of a prompt.

    Dynamic NTK scaling changes them beyond the length that the configuration gives as the longest,
    which no prompt exceeds here.
    """
    config = getattr(getattr(model, "original_model", None), "config", None)
    if config is None:
        return ()
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    # One for all layers, or one for each type of layer.
    each = [rope] if "rope_type" in rope else [x for x in rope.values() if isinstance(x, dict)]
    longest = [x["original_max_position_embeddings"] for x in each if x["rope_type"] == "longrope"]
    return tuple(sorted({int(length) for length in longest}))


def refuse_other_classes(model: object) -> None:
    """Refuse what is no model of TransformerLens."""
    if not hasattr(model, "cfg") or not hasattr(model, "run_with_hooks"):
        raise UnsupportedModelError(
            f"{type(model).__name__} is not a TransformerLens model; wrap it first with "
            "TransformerBridge.boot_transformers(name, hf_model=model, tokenizer=tokenizer)"
        )


def _mlp_width(model: Model, cfg: Any) -> int:
    """Width of an MLP from its weights, where they can be read: a bridge's cfg is wrong for OPT."""
    mlp: Any = getattr(block_of(model, 0), "mlp", None)
    try:
        shape = getattr(getattr(mlp, "W_out", None), "shape", ())
    except NotImplementedError:  # a bridge gives out no weight that is on the meta device
        # Linear layers keep their matrix turned round, those of GPT-2 do not.
        shape = sorted(mlp.out.original_component.weight.shape, key=cfg.d_model.__eq__)
    if len(shape) == 2 and shape[1] == cfg.d_model:
        return int(shape[0])
    return int(getattr(cfg, "d_mlp", None) or 0)


def _value_clip(model: Model) -> float | None:
    """The magnitude that OLMo, OLMoE and MPT clip queries, keys and values to, behind their hooks.

    A module that names none and clips all the same is found out by the sums that are checked on
    every prompt.
    """
    module = getattr(block_of(model, 0).attn, "original_component", None)
    for holder in (module, getattr(module, "config", None)):
        clip = getattr(holder, "clip_qkv", None)
        if isinstance(clip, int | float):
            return float(clip)
    return None


def _refuse_other_kinds(name: str, cfg: Any, model: Model, causal_only: bool) -> None:
    class_name = type(model).__name__
    # A bridge answers for the modules of the model that it wraps, and some decoders call the matrix
    # of their unembedding `decoder`.
    encoder_decoder = (
        hasattr(model, "decoder_blocks")
        or (hasattr(model, "encoder") and hasattr(model, "decoder"))
        or "T5" in class_name
    )
    stateful = bool(getattr(cfg, "is_stateful", False))
    bidirectional = causal_only and str(getattr(cfg, "attention_dir", "causal")) != "causal"
    architecture = getattr(cfg, "architecture", None) or class_name
    for wrong, kind in (
        (encoder_decoder, "an encoder-decoder"),
        (stateful, "a state-space model"),
        (bidirectional, "not causal"),
        (not hasattr(model, "blocks"), "without transformer blocks"),
    ):
        if wrong:
            raise UnsupportedModelError(
                f"{name} ({architecture}) cannot be traced: it is {kind}; "
                "the token graph is defined for causal decoders with attention"
            )
    if "blocks.0.attn.hook_kv_latent" in getattr(model, "hook_dict", {}):
        raise UnsupportedModelError(
            f"{name} ({architecture}) cannot be traced: its attention is multi-head latent (MLA); "
            "the token graph needs heads with values of their own"
        )


def hook_points(architecture: Architecture) -> list[str]:
    """Every hook point that a trace of this architecture reads or writes."""
    names = ["hook_resid_pre", "attn.hook_pattern", "attn.hook_v", "attn.hook_z", "hook_attn_out"]
    if architecture.mlp:
        names.append("hook_mlp_out")
        if not architecture.parallel:
            names.append("hook_resid_mid")
    if architecture.post_norm:
        names.append("ln1_post.hook_scale")
    names.append("hook_resid_post")
    blocks = [f"blocks.{layer}.{n}" for layer in range(architecture.layers) for n in names]
    return [*blocks, architecture.unembed_input]


@dataclass(frozen=True, eq=False)
class AttentionOutput:
    """How the heads of one block write to the stream: `norm(sum_h z[h] @ weight[h] + bias)`.

    Attributes:
        weight: W_O of every query head, times what the model multiplies attention by (Granite).
        bias: b_O, times the same; it belongs to no edge and is always present.
        value_bias: b_V of every query head; it too belongs to no edge, and adds b_V W_O to a node
            times the sum of the pattern's row. That sum is 1 unless the model has attention sinks
            (GPT-OSS). Zeros where values are clipped, which leaves no part of a value to the bias:
            there b_V belongs to the edges.
        gain: weight of the norm after attention, ones where there is none.
        norm_bias: bias of that norm.
        centred: that norm subtracts the mean (LayerNorm, not RMSNorm).
    """

    weight: Float[Tensor, "head d_head d_model"]
    bias: Float[Tensor, " d_model"]
    value_bias: Float[Tensor, "head d_head"]
    gain: Float[Tensor, " d_model"]
    norm_bias: Float[Tensor, " d_model"]
    centred: bool

    def to(self, device: torch.device) -> AttentionOutput:
        """The same weights on a device; itself where they lie there."""
        if self.weight.device == device:
            return self
        moved = {
            name: value.to(device)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)

    def linear_norm(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """The norm after attention without its bias and its division by the scale."""
        if self.centred:
            x = x - x.mean(-1, keepdim=True)
        return x * self.gain

    def constant(
        self, scale: Float[Tensor, " pos"], row_sums: Float[Tensor, "head pos"]
    ) -> Float[Tensor, "pos d_model"]:
        """What biases alone add to the stream, by the norm's scale and the pattern's row sums."""
        carried = torch.einsum("he,hed->hd", self.value_bias, self.weight)
        # Patterns are in single precision in some models whose weights are in half or in double.
        wide = torch.promote_types(carried.dtype, row_sums.dtype)
        summed = torch.einsum("hq,hd->qd", row_sums.to(wide), carried.to(wide)) + self.bias
        return self.linear_norm(summed) / scale[:, None] + self.norm_bias


def attention_output(model: Model, architecture: Architecture, layer: int) -> AttentionOutput:
    """Weights with which the heads of one block write to the residual stream, detached."""
    attn = block_of(model, layer).attn
    scale = architecture.attention_scales[layer] if architecture.attention_scales else 1.0
    heads, d_head, d_model = architecture.heads, architecture.d_head, architecture.d_model
    with at_hand(attn):
        weight = attn.W_O.detach() if scale == 1 else attn.W_O.detach() * scale
        bias, value_bias = getattr(attn, "b_O", None), getattr(attn, "b_V", None)
    weight = weight.reshape(heads, d_head, d_model)
    zeros = weight.new_zeros(d_model)
    if value_bias is None or architecture.value_clip is not None:
        value_bias = weight.new_zeros(heads, d_head)
    gain, norm_bias, centred = torch.ones_like(zeros), zeros, False
    if architecture.post_norm:
        gain, norm_bias, centred = norm_weights(block_of(model, layer).ln1_post, zeros)
    return AttentionOutput(
        weight=weight,
        bias=zeros if bias is None else bias.detach() * scale,
        value_bias=per_query_head(value_bias.detach(), heads, dim=0),
        gain=gain,
        norm_bias=norm_bias,
        centred=centred,
    )


def mlp_constant(model: Model, architecture: Architecture, layer: int) -> Float[Tensor, " d_model"]:
    """What stays of `hook_mlp_out` when the MLP's edge is ablated: its output bias.

    Normed where a norm follows the MLP, and multiplied as the model multiplies it. Zeros for an MLP
    without a bias, and for a mixture of experts, whose experts' biases (if any) are part of the
    edge.
    """
    block = block_of(model, layer)
    bias = getattr(block.mlp, "b_out", None)
    if bias is not None and bias.is_meta:  # a bridge's alias, from when no weights were at hand
        module = block.mlp.out.original_component
        with at_hand(module):
            bias = module.bias.detach()
    dtype = next(block.attn.parameters()).dtype
    zeros = torch.zeros(architecture.d_model, dtype=dtype, device=device_of_part(block.attn))
    scale = architecture.mlp_scales[layer] if architecture.mlp_scales else 1.0
    constant = zeros if bias is None else bias.detach() * scale
    if architecture.post_norm:
        with torch.no_grad(), hooks_aside(block.ln2_post):
            constant = block.ln2_post(constant.view(1, 1, -1)).view(-1)
    return constant


def block_of(model: Model, layer: int) -> Any:
    """One transformer block, whose parts the two model classes name alike."""
    return cast(Any, model).blocks[layer]


def device_of(model: Model) -> torch.device:
    """The device that a model reads tokens on, where what is read of a run is gathered."""
    return device_of_part(cast(Any, model))


def device_of_layer(model: Model, layer: int) -> torch.device:
    """The device that a block runs on."""
    return device_of_part(block_of(model, layer))


def clipped(architecture: Architecture, value: Tensor) -> Tensor:
    """What heads read of `attn.hook_v`, whose entries some models clip behind that hook point."""
    clip = architecture.value_clip
    return value if clip is None else value.clamp(-clip, clip)


def per_query_head(x: Tensor, heads: int, dim: int) -> Tensor:
    """Repeat key-value heads so that query head h sees the head of its group, h // group size."""
    group = heads // x.shape[dim]
    return x if group == 1 else x.repeat_interleave(group, dim)
