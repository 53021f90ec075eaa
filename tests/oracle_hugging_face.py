"""A Hugging Face model's weights as the plain float64 matrices that `oracle` computes on.

Of the model's own code only embeddings, MLPs and unembeddings are called; no TransformerLens, no
hooks, nothing of the package.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tests import tiny
from tests.oracle_model import Attention, Layer, Model, Norm, Projection, Rows


def from_hugging_face(name: str) -> Model:
    """The tiny model of that name as plain matrices."""
    hf: Any = copy.deepcopy(tiny.hf_model(name)).double()
    if name in ("mixtral", "gpt_oss"):
        hf.set_experts_implementation("eager")  # the grouped product knows no float64
    return _BUILDERS.get(name, _llama_like)(hf)


def _llama_like(hf: Any) -> Model:
    """Llama, Mistral, Mixtral, Qwen 3 and, with changes below, OLMo 2, Gemma and Phi."""
    rotary = hf.model.rotary_emb
    layers = []
    for block in hf.model.layers:
        attention = _attention(hf.config, block.self_attn, rotary=getattr(rotary, "inv_freq", None))
        layers.append(
            Layer(
                replace(attention, window=getattr(block.self_attn, "sliding_window", None)),
                attention_norm=_norm(getattr(block, "input_layernorm", None)),
                mlp=_rows(block.mlp),
                mlp_bias=getattr(getattr(block.mlp, "down_proj", None), "bias", None),
                mlp_norm=_norm(getattr(block, "post_attention_layernorm", None)),
            )
        )
    norm = _norm(getattr(hf.model, "norm", None))
    return Model(hf.model.embed_tokens, layers, lambda x: hf.lm_head(norm(x) if norm else x))


def _mistral(hf: Any) -> Model:
    layers = [
        replace(x, attention=replace(x.attention, window=hf.config.sliding_window))
        for x in _llama_like(hf).layers
    ]
    return replace(_llama_like(hf), layers=layers)


def _olmo2(hf: Any) -> Model:
    """Norms after attention and MLP and none before; queries and keys normed over all heads."""
    plain = _llama_like(hf)
    layers = [
        replace(
            layer,
            attention_norm=None,
            attention_post=_norm(block.post_attention_layernorm),
            mlp_norm=None,
            mlp_post=_norm(block.post_feedforward_layernorm),
        )
        for layer, block in zip(plain.layers, hf.model.layers, strict=True)
    ]
    return replace(plain, layers=layers)


def _gemma(hf: Any) -> Model:
    """Norms before and after, stored less one; soft caps (Gemma 2); two rotary bases (Gemma 3)."""
    plain, config, rotary = _llama_like(hf), hf.config, hf.model.rotary_emb
    layers = []
    for layer, block, kind in zip(plain.layers, hf.model.layers, config.layer_types, strict=True):
        own = getattr(rotary, f"{kind}_inv_freq", None)
        inside = block.self_attn
        attention = replace(
            layer.attention,
            scale=config.query_pre_attn_scalar**-0.5,
            query_norm=_norm(getattr(inside, "q_norm", None), offset=1),
            key_norm=_norm(getattr(inside, "k_norm", None), offset=1),
            frequencies=layer.attention.frequencies if own is None else own.tolist(),
            cap=config.attn_logit_softcapping,
            window=config.sliding_window if kind == "sliding_attention" else None,
        )
        layers.append(
            replace(
                layer,
                attention=attention,
                attention_norm=_norm(block.input_layernorm, offset=1),
                attention_post=_norm(block.post_attention_layernorm, offset=1),
                mlp_norm=_norm(block.pre_feedforward_layernorm, offset=1),
                mlp_post=_norm(block.post_feedforward_layernorm, offset=1),
            )
        )
    norm, cap = _norm(hf.model.norm, offset=1), config.final_logit_softcapping

    def unembed(x: Tensor) -> Tensor:
        logits = hf.lm_head(norm(x))
        return cap * torch.tanh(logits / cap) if cap else logits

    return replace(plain, layers=layers, unembed=unembed)


def _olmo_clipped(hf: Any) -> Model:
    """Queries, keys and values are clipped; the norms have no weights."""
    plain, clip = _llama_like(hf), hf.config.clip_qkv
    layers = [replace(x, attention=replace(x.attention, clip=clip)) for x in plain.layers]
    return replace(plain, layers=layers)


def _granite(hf: Any) -> Model:
    """What a sublayer writes, the embedding, the scores and the logits are multiplied."""
    plain, config = _llama_like(hf), hf.config
    share = config.residual_multiplier
    layers = [
        replace(
            layer,
            attention=replace(
                layer.attention,
                W_O=layer.attention.W_O * share,
                b_O=layer.attention.b_O * share,
                scale=config.attention_multiplier,
            ),
            mlp=lambda x, mlp=layer.mlp: mlp(x) * share,
            mlp_bias=layer.mlp_bias * share,
        )
        for layer in plain.layers
    ]
    return Model(
        lambda ids: plain.embed(ids) * config.embedding_multiplier,
        layers,
        lambda x: plain.unembed(x) / config.logits_scaling,
    )


def _gpt_oss(hf: Any) -> Model:
    """Attention sinks, every other layer with a window; a mixture of experts."""
    plain, config = _llama_like(hf), hf.config
    layers = [
        replace(
            layer,
            attention=replace(
                layer.attention,
                sinks=block.self_attn.sinks,
                window=config.sliding_window if kind == "sliding_attention" else None,
            ),
            mlp=lambda x, mlp=block.mlp: mlp(x[None])[0][0],
        )
        for layer, block, kind in zip(
            plain.layers, hf.model.layers, config.layer_types, strict=True
        )
    ]
    return replace(plain, layers=layers)


def _phi(hf: Any) -> Model:
    """Parallel: attention and MLP read the stream through one norm."""
    layers = [
        replace(layer, mlp_bias=block.mlp.fc2.bias, mlp_norm=layer.attention_norm)
        for layer, block in zip(_llama_like(hf).layers, hf.model.layers, strict=True)
    ]
    norm = _norm(hf.model.final_layernorm)
    return Model(hf.model.embed_tokens, layers, lambda x: hf.lm_head(norm(x)), parallel=True)


def _gptj(hf: Any) -> Model:
    """Parallel through one norm; rotates adjacent pairs of the first `rotary_dim` coordinates."""
    n = hf.config.rotary_dim
    frequencies = 10000.0 ** (-torch.arange(0, n, 2, dtype=torch.float64) / n)
    layers = []
    for block in hf.transformer.h:
        attention = _attention(hf.config, block.attn, output="out_proj", rotary=frequencies)
        norm = _norm(block.ln_1)
        layers.append(
            Layer(
                replace(attention, adjacent=True),
                attention_norm=norm,
                mlp=_rows(block.mlp),
                mlp_bias=block.mlp.fc_out.bias,
                mlp_norm=norm,
            )
        )
    norm = _norm(hf.transformer.ln_f)
    return Model(hf.transformer.wte, layers, lambda x: hf.lm_head(norm(x)), parallel=True)


def _gpt_neox(hf: Any) -> Model:
    """Parallel through two norms; queries, keys and values fused head by head."""
    body = hf.gpt_neox
    layers = [
        Layer(
            _fused(hf.config, block.attention, rotary=body.rotary_emb.inv_freq),
            attention_norm=_norm(block.input_layernorm),
            mlp=_rows(block.mlp),
            mlp_bias=block.mlp.dense_4h_to_h.bias,
            mlp_norm=_norm(block.post_attention_layernorm),
        )
        for block in body.layers
    ]
    norm, output = _norm(body.final_layer_norm), hf.get_output_embeddings()
    return Model(body.embed_in, layers, lambda x: output(norm(x)), parallel=True)


def _bloom(hf: Any) -> Model:
    """ALiBi; fused as GPT-NeoX; a norm after the embedding; the MLP module adds the stream."""
    body, heads = hf.transformer, hf.config.n_head
    slopes = [2.0 ** (-8 * (head + 1) / heads) for head in range(heads)]
    layers = [
        Layer(
            replace(_fused(hf.config, block.self_attention), slopes=slopes),
            attention_norm=_norm(block.input_layernorm),
            mlp=lambda x, mlp=block.mlp: mlp(x, torch.zeros_like(x)),
            mlp_bias=block.mlp.dense_4h_to_h.bias,
            mlp_norm=_norm(block.post_attention_layernorm),
        )
        for block in body.h
    ]
    first, last = _norm(body.word_embeddings_layernorm), _norm(body.ln_f)
    return Model(
        lambda ids: first(body.word_embeddings(ids)), layers, lambda x: hf.lm_head(last(x))
    )


def _gpt2(hf: Any) -> Model:
    """Learned positions; queries, keys and values fused one after another, weights transposed."""
    body, heads = hf.transformer, hf.config.n_head
    layers = []
    for block in body.h:
        weights = block.attn.c_attn.weight.T.chunk(3)
        biases = block.attn.c_attn.bias.chunk(3)
        query, key, value = (_projection(w, b, heads) for w, b in zip(weights, biases, strict=True))
        output, bias = block.attn.c_proj.weight.T, block.attn.c_proj.bias
        layers.append(
            Layer(
                _attention_of(query, key, value, output, bias),
                attention_norm=_norm(block.ln_1),
                mlp=_rows(block.mlp),
                mlp_bias=block.mlp.c_proj.bias,
                mlp_norm=_norm(block.ln_2),
            )
        )
    norm = _norm(body.ln_f)
    return Model(
        lambda ids: body.wte(ids) + body.wpe.weight[: len(ids)],
        layers,
        lambda x: hf.lm_head(norm(x)),
    )


def _opt(hf: Any) -> Model:
    """Learned positions that begin at row 2 of their table."""
    body = hf.model.decoder
    layers = [
        Layer(
            _attention(hf.config, block.self_attn, output="out_proj"),
            attention_norm=_norm(block.self_attn_layer_norm),
            mlp=lambda x, block=block: block.fc2(block.activation_fn(block.fc1(x))),
            mlp_bias=block.fc2.bias,
            mlp_norm=_norm(block.final_layer_norm),
        )
        for block in body.layers
    ]
    norm = _norm(body.final_layer_norm)
    return Model(
        lambda ids: body.embed_tokens(ids) + body.embed_positions.weight[2 : len(ids) + 2],
        layers,
        lambda x: hf.lm_head(norm(x)),
    )


_BUILDERS: dict[str, Callable[[Any], Model]] = {
    "mistral": _mistral,
    "olmo2": _olmo2,
    "gemma2": _gemma,
    "gemma3": _gemma,
    "olmo_clipped": _olmo_clipped,
    "granite": _granite,
    "gpt_oss": _gpt_oss,
    "gptj": _gptj,
    "gpt_neox": _gpt_neox,
    "phi": _phi,
    "gpt2": _gpt2,
    "opt": _opt,
    "bloom": _bloom,
}


def _attention(
    config: Any, module: Any, output: str | None = None, rotary: Tensor | None = None
) -> Attention:
    """An attention layer with separate q_proj, k_proj and v_proj."""
    heads = config.num_attention_heads
    grouped = getattr(config, "num_key_value_heads", None) or heads
    out = getattr(module, output or ("o_proj" if hasattr(module, "o_proj") else "dense"))
    attention = _attention_of(
        _projection(module.q_proj.weight, module.q_proj.bias, heads),
        _projection(module.k_proj.weight, module.k_proj.bias, grouped),
        _projection(module.v_proj.weight, module.v_proj.bias, grouped),
        out.weight,
        out.bias,
    )
    return replace(
        attention,
        query_norm=_norm(getattr(module, "q_norm", None)),
        key_norm=_norm(getattr(module, "k_norm", None)),
        frequencies=[] if rotary is None else rotary.tolist(),
    )


def _fused(config: Any, module: Any, rotary: Tensor | None = None) -> Attention:
    """An attention layer whose fused rows are, for each head: its query, its key, its value."""
    heads, fused = config.num_attention_heads, module.query_key_value
    weights = fused.weight.view(heads, 3, -1, fused.weight.shape[1]).unbind(1)
    biases = fused.bias.view(heads, 3, -1).unbind(1)
    query, key, value = (
        Projection(w.transpose(1, 2), b) for w, b in zip(weights, biases, strict=True)
    )
    attention = _attention_of(query, key, value, module.dense.weight, module.dense.bias)
    return replace(attention, frequencies=[] if rotary is None else rotary.tolist())


def _attention_of(
    query: Projection, key: Projection, value: Projection, output: Tensor, bias: Tensor | None
) -> Attention:
    heads, _, d_head = query.weight.shape
    W_O = output.T.reshape(heads, d_head, -1)
    b_O = torch.zeros_like(output[:, 0]) if bias is None else bias
    return Attention(query, key, value, W_O, b_O, scale=d_head**-0.5)


def _projection(
    weight: Float[Tensor, "out d_model"], bias: Float[Tensor, " out"] | None, heads: int
) -> Projection:
    by_head = weight.reshape(heads, -1, weight.shape[1]).transpose(1, 2)
    bias = torch.zeros_like(weight[:, 0]) if bias is None else bias
    return Projection(by_head, bias.reshape(heads, -1))


def _norm(module: Any, offset: float = 0.0) -> Norm | None:
    """RMSNorm has no bias, LayerNorm has one. Gemma's weights are stored less one."""
    if module is None:
        return None
    if not hasattr(module, "weight"):  # OLMo's LayerNorm
        weight = torch.ones(module.normalized_shape, dtype=torch.float64)
        return Norm(weight, torch.zeros_like(weight), eps=1e-5, centre=True)
    eps = getattr(module, "eps", None)
    bias = getattr(module, "bias", None)
    weight = module.weight + offset
    return Norm(
        weight,
        torch.zeros_like(weight) if bias is None else bias,
        eps=module.variance_epsilon if eps is None else eps,
        centre=bias is not None,
    )


def _rows(module: Any) -> Callable[[Rows], Rows]:
    """A Hugging Face MLP (a batch in, a batch out) as a function of one sequence."""
    return lambda x: module(x[None])[0]
