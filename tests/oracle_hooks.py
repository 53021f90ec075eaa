"""Masked forward passes of any Hugging Face decoder, by torch hooks on its own modules.

Nothing of TransformerLens, and no knowledge of a family beyond which modules are a layer's
attention, its output projection and its MLP. A layer is run as it is, several times over: with its
MLP silenced it adds to its input what attention writes, with its attention silenced what the MLP
writes, whatever norms and multipliers stand on the way. The values that attention reads are what it
gives when each token sees itself alone, so fused projections need not be taken apart; the value
bias is the value of an input of zeros.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from strace_lens.traces.edges import EdgeTensors, GraphShape
from tests.families import hf_family

Rows = Float[Tensor, "row pos d_model"]

_LAYERS = ("model.layers", "transformer.h", "gpt_neox.layers")
_OUTPUT = ("o_proj", "out_proj", "dense", "Wo", "c_proj")
_MLP = ("mlp", "feed_forward", "block_sparse_moe")


def masked_logits(name: str, tokens: list[int], masks: list[EdgeTensors]) -> Tensor:
    """Logits after the last token, a row for each mask, of edges that are True in it."""
    hf = copy.deepcopy(hf_family(name)).double()
    if hasattr(hf, "set_experts_implementation"):
        hf.set_experts_implementation("eager")  # the grouped product knows no float64
    for index, layer in enumerate(_layers(hf)):
        layer.register_forward_hook(_Masked(layer, index, masks), with_kwargs=True)
    rows = torch.tensor(tokens).expand(len(masks), -1)
    with torch.no_grad():
        return hf(rows, use_cache=False).logits[:, -1]


def graph_shape(name: str, tokens: int) -> GraphShape:
    """The shape of the family's token graph, from its layers alone."""
    hf = hf_family(name)
    heads = hf.config.get_text_config().num_attention_heads
    layers = _layers(hf)
    return GraphShape(len(layers), heads, tokens, parallel=_is_parallel(hf), mlp=True)


def _layers(hf: Any) -> list[nn.Module]:
    for path in _LAYERS:
        try:
            return list(hf.get_submodule(path))
        except AttributeError:
            continue
    raise AssertionError(f"where are the layers of {type(hf).__name__}?")


def _is_parallel(hf: Any) -> bool:
    """Whether what the MLP writes does not change when attention is silenced."""
    layer, seen = _layers(hf)[0], []
    parts = _Parts.of(layer)
    handle = parts.mlp.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(_first(args, kwargs)), with_kwargs=True
    )
    try:
        with torch.no_grad():
            hf(torch.tensor([[5, 6, 7]]), use_cache=False)
            with _returning(parts.attention, torch.zeros_like):
                hf(torch.tensor([[5, 6, 7]]), use_cache=False)
    finally:
        handle.remove()
    return torch.equal(seen[0], seen[1])


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


@dataclass(frozen=True)
class _Parts:
    """The modules of a layer that are told apart."""

    attention: nn.Module
    output: nn.Module
    mlp: nn.Module

    @staticmethod
    def of(layer: nn.Module) -> _Parts:
        attention = next(m for m in layer.children() if "Attention" in type(m).__name__)
        output = [m for n, m in attention.named_modules() if n.rsplit(".", 1)[-1] in _OUTPUT]
        mlp = [m for n, m in layer.named_children() if n in _MLP]
        (output,), (mlp,) = output, mlp
        return _Parts(attention, output, mlp)


@dataclass(frozen=True)
class _Masked:
    """A forward hook of a layer that runs it again, masked, and answers with that.

    Attributes:
        layer, index: of the model.
        masks: one a row.
    """

    layer: nn.Module
    index: int
    masks: list[EdgeTensors]
    parts: _Parts = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", _Parts.of(self.layer))

    def __call__(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        def run(stream: Rows, *, alone: bool = False) -> Rows:
            """The layer as it is on another input, its own hooks aside; each token alone."""
            mask = kwargs["attention_mask"]
            if alone:
                own = torch.eye(stream.shape[1], dtype=torch.bool)
                mask = torch.zeros(own.shape, dtype=mask.dtype).masked_fill(
                    ~own, torch.finfo(mask.dtype).min
                )[None, None]
            given = {**kwargs, "attention_mask": mask}
            if args:
                found = layer.forward(stream, *args[1:], **given)
            else:
                found = layer.forward(**{**given, "hidden_states": stream})
            return found[0] if isinstance(found, tuple) else found

        stream = _first(args, kwargs)
        attention = self._attention(run, stream)
        first = self._keep("residual", 0)[..., None] * stream + attention
        if self.masks[0].residual.shape[1] == 1:  # attention and MLP write into one sum
            result = first + self._mlp(run, stream)
        else:
            kept = self._keep("residual", 1)[..., None] * first
            result = kept + self._mlp(run, first)
        return (result, *output[1:]) if isinstance(output, tuple) else result

    def _keep(self, kind: str, *index: int) -> Tensor:
        """One row for each mask: 1.0 where an edge of this layer is kept."""
        return torch.stack([getattr(m, kind)[self.index][index] for m in self.masks]).double()

    def _attention(self, run: Any, stream: Rows) -> Rows:
        """What attention adds to the stream without the edges that are ablated."""
        keep = self._keep("attention").tril()
        with _returning(self.parts.mlp, torch.zeros_like):
            pattern, z = self._heads(lambda: run(stream))
            value = self._values(lambda: run(stream, alone=True))
            with _given(self.parts.attention, torch.zeros_like):
                bias = self._values(lambda: run(stream, alone=True))
            ablated = torch.einsum("bhqk,bhke->bhqe", (1 - keep) * pattern, value - bias)
            written = (z - ablated).transpose(1, 2).flatten(2)
            with _given(self.parts.output, lambda x: written.view(x.shape)):
                return run(stream) - stream

    def _values(self, run: Callable[[], Any]) -> Float[Tensor, "row head key d_head"]:
        """What each head reads of each token, from a run in which each sees itself alone."""
        pattern, z = self._heads(run)
        return z / pattern.diagonal(dim1=2, dim2=3)[..., None]  # less than one beside a sink

    def _heads(self, run: Callable[[], Any]) -> tuple[Tensor, Tensor]:
        """The pattern of a run of the layer, and what each head makes of it."""
        seen: dict[str, Tensor] = {}

        def read(x: Tensor) -> Tensor:
            return seen.setdefault("z", x)

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            seen["pattern"] = output[1]

        handle = self.parts.attention.register_forward_hook(keep)
        try:
            with _given(self.parts.output, read):
                run()
        finally:
            handle.remove()
        pattern = seen["pattern"].double()
        rows, heads, tokens, _ = pattern.shape
        return pattern, seen["z"].double().view(rows, tokens, heads, -1).transpose(1, 2)

    def _mlp(self, run: Any, stream: Rows) -> Rows:
        """What the MLP adds to a stream, only its bias where its edge is ablated."""
        keep = self._keep("mlp")[..., None]
        with _returning(self.parts.attention, torch.zeros_like):
            whole = run(stream) - stream
            if any(p.ndim == 3 for p in self.parts.mlp.parameters()):
                bias = torch.zeros_like(whole)  # experts' biases belong to the edge
            else:
                last = [m for m in self.parts.mlp.modules() if isinstance(m, nn.Linear)][-1]
                with _given(last, torch.zeros_like):
                    bias = run(stream) - stream
        return keep * whole + (1 - keep) * bias


@contextmanager
def _returning(module: nn.Module, change: Any) -> Iterator[None]:
    """Change what a module returns, the first where it returns several."""

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        return change(output)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _given(module: nn.Module, change: Any) -> Iterator[None]:
    """Change what a module is given."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
