"""One prompt traced in one call: token graph, ranking, density curve, phases."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from strace_lens.density.curve import DensityCurve, density_curve
from strace_lens.density.phases import Phases, find_phases
from strace_lens.density.ways import top_size
from strace_lens.model.architecture import Model
from strace_lens.model.hold import verb
from strace_lens.model.prompts import Prompt
from strace_lens.model.targets import TargetLike
from strace_lens.traces.ablation import ZERO, Replacement
from strace_lens.traces.estimators import estimate, estimator_of
from strace_lens.traces.graph import token_graph
from strace_lens.traces.trace import Trace
from strace_lens.utils.choices import GRADIENT_BUDGET, REFINE, SIZES
from strace_lens.utils.html_repr import facts
from strace_lens.utils.progress import Progress


@dataclass(frozen=True, eq=False)
class TracedPrompt:
    """The result of `trace` for one prompt.

    The token graph is not kept, since it holds all activations; `token_graph` of `trace.prompt`
    reads it again.

    Attributes:
        curve: the trace, measured at every size.
        phases: the phases of the curve.
    """

    curve: DensityCurve
    phases: Phases

    @property
    def trace(self) -> Trace:
        """The ranking of all edges."""
        return self.curve.trace

    def __repr__(self) -> str:
        return f"{self.trace!r}\n{self._found()}\n{self.phases!r}"

    def _repr_html_(self) -> str:
        line = f"{self.trace!r}. {self._found()}. Phases: {self.phases.describe()}."
        return facts(line, self.phases.layer_table(), self.trace.prompt.strings)

    def _found(self) -> str:
        """How dense the trace is, and from where on it has the model's top token."""
        curve, ((token, probability), *_) = self.curve, self.curve.top
        size, density = top_size(curve), curve.density
        where = "at no measured size" if math.isnan(size) else f"from s = {size:.3g} on"
        return ("" if math.isnan(density) else f"Density {density:.3f}. ") + (
            f"The traces have the model's top token {token!r} (p = {probability:.3g}) {where}"
        )


@verb
def trace(
    model: Model,
    prompt: str | Sequence[int] | Int[Tensor, " pos"] | Prompt,
    *,
    estimator: str = "greedy",
    keep: Sequence[str] = (),
    target: TargetLike | None = None,
    replacement: Replacement = ZERO,
    sizes: Sequence[float] = SIZES,
    refine: int = REFINE,
    controls: bool = True,
    bos: bool | None = None,
    seed: int = 0,
    memory_budget: int | None = None,
    gradient_budget: int = GRADIENT_BUDGET,
    progress: Progress | None = None,
) -> TracedPrompt:
    """Trace a prompt: read its token graph, rank all edges, run every size, find the phases.

    It calls `token_graph`, `estimate`, `density_curve` and `find_phases` one after another.
    The parameters `sizes`, `refine`, `controls`, `replacement`, `seed`, `memory_budget` and
    `progress` are as for `density_curve`.

    Args:
        model: a HookedTransformer or TransformerBridge.
        prompt: text or token ids.
        estimator: how edges are ranked, a key of `ESTIMATORS`.
        keep: kinds of edges ("attention", "mlp", "residual") that are never ablated.
        target: one token or a pair, as for `density_curve`; an estimator that is fitted ranks edges
            towards it.
        bos: whether the prompt starts with a BOS token; None leaves this to the tokenizer.
        gradient_budget: bytes of a forward and backward pass of an estimator that needs gradients.

    Raises:
        UnsupportedModelError: the model cannot be traced, or not on this prompt.
        PromptError: the prompt cannot be traced.
        ValueError: as for `estimate` and `density_curve`.
        FloatingPointError: the model's logits are not finite.

    Example:
        >>> paris = sl.trace(model, "The capital of France is", controls=False)
        >>> paris.curve.density, paris.phases.head.subgraph
    """
    estimator_of(estimator)  # before the model runs
    graph = token_graph(model, prompt, bos=bos)
    ranked = estimate(
        model,
        graph,
        estimator,
        keep=keep,
        target=target,
        replacement=replacement,
        seed=seed,
        memory_budget=gradient_budget,
        progress=progress,
    )
    del graph  # its activations, before the curve is run
    curve = density_curve(
        model,
        ranked,
        sizes=sizes,
        refine=refine,
        controls=controls,
        keep=keep,
        replacement=replacement,
        target=target,
        seed=seed,
        memory_budget=memory_budget,
        progress=progress,
    )
    return TracedPrompt(curve, find_phases(curve))
