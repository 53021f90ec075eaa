"""What replaces an ablated edge: zero, its mean over references, or its value on another prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

import torch
from jaxtyping import Float, Int
from torch import Tensor

from strace_lens.model.architecture import Architecture, Model
from strace_lens.model.checks import architecture_of
from strace_lens.model.forward import Activations, read_activations
from strace_lens.model.hold import noted, verb
from strace_lens.model.prompts import Prompt, PromptError, own_tokenizer, tokenize, windows
from strace_lens.model.weights import expect_same_weights, remembered_hash
from strace_lens.utils.choices import ABLATIONS

REFERENCES = 8


@dataclass(frozen=True, eq=False)
class Replacement:
    """Values that replace those of ablated edges; zeros if `references` is empty.

    The mean of an attention edge is the mean of its vectors pattern * value, so patterns and values
    of every reference are kept and summed in the run; the others are averaged here.

    Attributes:
        kind: one of `ABLATIONS`.
        references: pattern and value of each reference prompt.
        residual: what an ablated residual edge carries, by layer and sublayer.
        mlp: what an ablated MLP edge carries.
        weights: hash of the weights that the references were run with (`weights_hash`); None for
            zeros, which fit any model.
    """

    kind: str
    references: tuple[
        tuple[Float[Tensor, "layer head query key"], Float[Tensor, "layer key kv_head d_head"]], ...
    ] = ()
    residual: Float[Tensor, "layer sublayer pos d_model"] | None = None
    mlp: Float[Tensor, "mlp_layer pos d_model"] | None = None
    weights: str | None = None

    @property
    def length(self) -> int | None:
        """Number of tokens of the references; None if prompts may have any length."""
        return None if self.residual is None else self.residual.shape[2]

    def expect_model(self, model: Model, *, allow_other_model: bool = False) -> None:
        """Refuse a model with other weights than the references were run with.

        Args:
            model: a HookedTransformer or a TransformerBridge.
            allow_other_model: accept any weights, such as those of another checkpoint.

        Raises:
            ValueError: the hashes of the weights differ.
        """
        if not allow_other_model:
            made = {"weights": self.weights}
            expect_same_weights(f"the {self.kind} replacement", made, model)


ZERO = Replacement("zero")


@verb
def replacement(
    model: Model,
    prompt: Prompt,
    kind: str = "zero",
    *,
    corrupted: str | Sequence[int] | None = None,
    references: Sequence[str] | None = None,
) -> Replacement:
    """Return what ablated edges of a prompt carry, for a kind of ablation.

    Args:
        model: the model.
        prompt: the prompt whose edges are to be ablated; references get its length and BOS.
        kind: one of `ABLATIONS`.
        corrupted: the second prompt, for resample ablation.
        references: texts, cut into windows over which mean ablation averages; by default a page of
            prose in the package, cut into eight windows.

    Raises:
        ValueError: an unknown kind, or resample ablation without a second prompt.
        PromptError: a corrupted prompt of another number of tokens, or references too short.

    Example:
        >>> other = "The capital of Japan is"
        >>> swap = sl.replacement(model, graph.prompt, "resample", corrupted=other)
        >>> sl.density_curve(model, trace, replacement=swap, controls=False).ablation
        'resample'
    """
    if kind not in ABLATIONS:
        raise ValueError(f"unknown ablation {kind!r}; choose from {', '.join(ABLATIONS)}")
    if kind == "zero":
        return ZERO
    architecture = architecture_of(model)
    bos = getattr(own_tokenizer(model), "bos_token_id", None)
    has_bos = bos is not None and prompt.ids[0] == bos
    if kind == "mean":
        own = files("strace_lens").joinpath("data/reference.txt")
        texts = [own.read_text("utf-8")] if references is None else references
        first = prompt.ids[:1] if has_bos else ()
        cut = windows(model, texts, len(prompt.ids), REFERENCES, first)
        return mean(model, architecture, cut)
    if corrupted is None:
        raise ValueError("resample ablation needs a second prompt; pass corrupted=")
    other = tokenize(model, architecture, corrupted, bos=has_bos)
    if len(other.ids) != len(prompt.ids):
        raise PromptError(
            f"the corrupted prompt has {len(other.ids)} tokens, the prompt {len(prompt.ids)}; "
            "resample ablation needs equal lengths"
        )
    return resample(model, architecture, other.tensor)


@verb
def resample(
    model: Model, architecture: Architecture, corrupted: Int[Tensor, " pos"]
) -> Replacement:
    """Replace ablated edges by their values on another prompt of the same length."""
    return _from_references(model, "resample", [read_activations(model, architecture, corrupted)])


@verb
def mean(
    model: Model, architecture: Architecture, references: Sequence[Int[Tensor, " _"]]
) -> Replacement:
    """Replace ablated edges by their mean over reference prompts, position by position.

    Raises:
        ValueError: no reference, or references of unequal length.
    """
    lengths = {len(r) for r in references}
    if len(lengths) != 1:
        raise ValueError(
            f"mean ablation needs references of one length; got lengths {sorted(lengths)}"
        )
    runs = [read_activations(model, architecture, r) for r in references]
    return _from_references(model, "mean", runs)


def _from_references(model: Model, kind: str, runs: Sequence[Activations]) -> Replacement:
    layers = runs[0].pattern.shape[0]
    nodes = torch.stack([r.nodes for r in runs]).mean(0)
    return Replacement(
        kind=kind,
        references=tuple((r.pattern, r.value) for r in runs),
        residual=nodes[:-1].unflatten(0, (layers, -1)),
        mlp=torch.stack([r.mlp for r in runs]).mean(0),
        weights=noted(remembered_hash, model),
    )
