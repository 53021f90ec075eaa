"""The density of every token of a text: how much of the model its prediction needs.

Source: the released code of s-Trace (arXiv 2605.27033) colours texts in this way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
from jaxtyping import Int
from torch import Tensor

from strace_lens.density.curve import density_curves
from strace_lens.model.architecture import Model
from strace_lens.model.checks import architecture_of
from strace_lens.model.forward import all_logits
from strace_lens.model.hold import verb
from strace_lens.model.predictions import TopToken
from strace_lens.model.prompts import Prompt, cut, tokenize
from strace_lens.traces.estimators import estimate
from strace_lens.traces.graph import token_graph
from strace_lens.utils.choices import GRADIENT_BUDGET, SMALL, TEXT_SIZES
from strace_lens.utils.progress import Progress, no_progress, reporting

_TOGETHER = 8  # prefixes whose rows share passes


@verb
def text_density(
    model: Model,
    text: str | Sequence[int] | Int[Tensor, " pos"] | Prompt,
    *,
    sizes: Sequence[float] = TEXT_SIZES,
    small: float = SMALL,
    min_context: int = 2,
    estimator: str = "greedy",
    keep: Sequence[str] = (),
    bos: bool | None = None,
    seed: int = 0,
    memory_budget: int | None = None,
    gradient_budget: int = GRADIENT_BUDGET,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Trace the prefix before every token of a text and measure how dense its prediction is.

    Each prefix is traced as a separate prompt, so the work grows at least with the square of the
    text's length.

    Args:
        model: the model.
        text: the text, or its token ids.
        sizes: increasing relative sizes at which each prefix is measured.
        small: one of the sizes, whose predictions are returned with the model's.
        min_context: number of tokens before the first measured one, at least two.
        estimator: how edges are ranked, a key of `ESTIMATORS`.
        keep: kinds of edges that are never ablated, as in `density_curve`.
        bos: as in `tokenize`.
        seed: seed of estimators with random draws.
        memory_budget: bytes that one forward pass may take; by default it depends on the device
            (`byte_budget`).
        gradient_budget: bytes of a forward and backward pass.
        progress: called for each token; by default a progress bar.

    Returns:
        One row per token. Columns `position`, `token` (its label), `density` (area under the total
        variation over log10 s, divided by the range of log10 s), `entropy` (nats, of the model's
        distribution for this token), `probability` (that the model gave this token), and
        `alternatives`: the most probable tokens of the model and of the trace of size `small`, with
        the probability of each in both (`predictions.TopToken`). The first `min_context` tokens
        have NaN and no alternatives.

    Raises:
        ValueError: sizes outside (0, 1] or not increasing, a `small` that is not one of them, an
            unknown estimator or kind of edges to keep, or no token with enough context.
        PromptError: as in `tokenize`.

    Example:
        >>> sl.text_density(model, "The capital of France is Paris.")[["token", "density"]]
    """
    if small not in sizes:
        listed = ", ".join(f"{size:g}" for size in sizes)
        raise ValueError(f"small must be one of the sizes; got {small:g}, of {listed}")
    if len(sizes) < 2:
        raise ValueError("a density needs at least two sizes; give more")
    if min_context < 2:
        raise ValueError(f"min_context must be at least 2, as a trace needs; got {min_context}")
    architecture = architecture_of(model)
    prompt = tokenize(model, architecture, text, bos)
    if len(prompt.ids) <= min_context:
        raise ValueError(
            f"the text has {len(prompt.ids)} tokens, and the first to be measured is number "
            f"{min_context + 1}; give a longer text or lower min_context"
        )
    logits = all_logits(model, architecture, prompt.tensor[None])[0].double().log_softmax(-1)
    following = prompt.tensor[1:].to(logits.device)
    probabilities = logits[:-1].gather(-1, following[:, None]).exp()[:, 0].tolist()
    measured = pd.DataFrame({"position": range(len(prompt.ids)), "token": prompt.strings})
    measured[["density", "entropy", "probability"]] = math.nan
    alternatives: list[tuple[TopToken, ...]] = [()] * min_context
    positions = range(min_context, len(prompt.ids))
    with reporting(progress, "tokens", len(positions)) as advance:
        for first in range(0, len(positions), _TOGETHER):
            here = positions[first : first + _TOGETHER]
            traces = [
                estimate(
                    model,
                    token_graph(model, cut(model, prompt, position)),
                    estimator,
                    keep=keep,
                    seed=seed,
                    memory_budget=gradient_budget,
                    progress=no_progress,
                )
                for position in here
            ]
            curves = density_curves(
                model,
                traces,
                sizes=sizes,
                refine=0,
                controls=False,
                keeps=[keep] * len(traces),
                memory_budget=memory_budget,
                progress=no_progress,
            )
            for position, curve in zip(here, curves, strict=True):
                found = curve.density, curve.entropy, probabilities[position - 1]
                measured.loc[position, ["density", "entropy", "probability"]] = found
                alternatives.append(curve.top_tokens[list(sizes).index(small)])
                advance()
    return measured.assign(alternatives=alternatives)
