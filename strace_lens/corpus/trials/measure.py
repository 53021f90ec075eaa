"""Traces of one prompt, measured: on itself, against a wrong output, on a sibling, under noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from strace_lens.density.curve import DensityCurve, density_curves
from strace_lens.measures import distributions as measures
from strace_lens.model.architecture import Model
from strace_lens.model.checks import architecture_of
from strace_lens.model.forward import Hook, last_logits
from strace_lens.model.prompts import Prompt
from strace_lens.token_graph.ablation import Replacement
from strace_lens.token_graph.compute import compute_share, on_path
from strace_lens.token_graph.curve_rows import curve_rows
from strace_lens.token_graph.masked_run import masked_logits
from strace_lens.token_graph.trace import Trace
from strace_lens.utils.progress import no_progress

ROLES = ("own", "wrong", "sibling", "noise")
OWN_COLUMNS = (
    *("kl", "js", "head_error", "tail_error", "head_mass", "nucleus"),
    *("residual", "attention", "mlp", "mean_layer"),
    *("path_share", "path_tokens", "connected", "compute"),
)
"""Columns of role own alone."""


@dataclass(frozen=True, eq=False)
class Measuring:
    """How traces are measured: the model, the sizes, what replaces ablated edges, the budget."""

    model: Model
    sizes: Sequence[float]
    replacement: Replacement
    memory_budget: int

    def own(self, traces: Sequence[Trace]) -> list[pd.DataFrame]:
        """Each trace against its own prompt's output: one frame a trace, one row a size."""
        curves = density_curves(
            self.model,
            traces,
            sizes=self.sizes,
            refine=0,
            controls=False,
            replacements=[self.replacement] * len(traces),
            memory_budget=self.memory_budget,
            progress=no_progress,
        )
        return [self._own(curve) for curve in curves]

    def _own(self, curve: DensityCurve) -> pd.DataFrame:
        counts = curve.table["edges"].tolist()
        paths = on_path(curve.trace, counts)
        compute = compute_share(curve.trace, architecture_of(self.model), counts)
        columns = [c for c in ("size", "tv", "top1", *OWN_COLUMNS) if c in curve.table]
        return curve.table[columns].assign(
            head_mass=curve.head_mass,
            path_share=paths.share.numpy(),
            path_tokens=paths.tokens.numpy(),
            connected=paths.connected.numpy(),
            compute=compute.share.numpy(),
        )

    def against(
        self,
        traces: Sequence[Trace],
        prompt: Prompt,
        target: Float[Tensor, " vocab"] | None = None,
        hooks: Sequence[Hook] = (),
    ) -> list[pd.DataFrame]:
        """The edges of each trace, run on a prompt of equal length: TV and top-1 by size.

        Args:
            traces: whose ranks are run.
            prompt: what they are run on.
            target: logits to compare with; by default the model's own on that prompt.
            hooks: run before the masks, and in the model's own run.
        """
        architecture = architecture_of(self.model)
        if target is None:
            tokens = prompt.tensor[None]
            target = last_logits(self.model, architecture, tokens, hooks=hooks)[0]
        plans = [
            curve_rows(
                architecture,
                replace(trace, prompt=prompt),
                self.sizes,
                controls=False,
                replacement=self.replacement,
                seed=0,
            )
            for trace in traces
        ]
        logits = masked_logits(
            self.model,
            architecture,
            [group for rows in plans for group in rows.groups],
            hooks=hooks,
            memory_budget=self.memory_budget,
        )
        full = target.cpu().double().log_softmax(-1)[None]
        frames = []
        for rows, found in zip(plans, logits.split([len(rows) for rows in plans]), strict=True):
            ours = found[rows.trace].double().log_softmax(-1)
            frames.append(
                pd.DataFrame(
                    {
                        "size": [float(s) for s in self.sizes],
                        "tv": measures.total_variation(full, ours).numpy(),
                        "top1": measures.top1_agreement(full, ours).numpy(),
                    }
                )
            )
        return frames
