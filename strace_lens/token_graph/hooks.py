"""The mask of one trace as hooks of TransformerLens, to be run in anybody's own code.

`mask_hooks` needs to know its rows beforehand, and hands what a layer computed from hook to hook.
The hooks here learn the batch from the run itself: the first of them makes the masks of this run
anew, so nothing that a run left half done reaches the next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from strace_lens.model.architecture import Model, device_of
from strace_lens.model.checks import architecture_of
from strace_lens.model.forward import Hook
from strace_lens.token_graph.masks import mask_hooks
from strace_lens.token_graph.rows import MaskedRows

FIRST = "blocks.0.hook_resid_pre"


def run_hooks(model: Model, row: MaskedRows) -> list[Hook]:
    """Hooks that apply one row's mask to every prompt of a batch.

    Args:
        model: the model that will run.
        row: the mask, one row; its tokens only say how long a prompt is.

    Returns:
        Pairs of hook point and function, as `run_with_hooks(fwd_hooks=...)` takes them.
    """
    architecture = architecture_of(model)
    device = device_of(model)
    row = replace(row, ranks=row.ranks.map(lambda r: r.to(device)))
    # What each hook point does in the run that is under way.
    functions: dict[str, Callable[..., Tensor | None]] = {}

    def begin(stream: Tensor) -> None:
        batch, width = stream.shape[:2]
        tokens = row.shape.tokens
        if width != tokens:
            raise ValueError(
                f"these hooks mask a prompt of {tokens} tokens, but the run has {width}; run "
                f"token ids [batch, {tokens}], or make the hooks of a trace of that length"
            )
        rows = replace(row, start=row.start.expand(batch), stop=row.stop.expand(batch))
        functions.update(mask_hooks(model, architecture, [rows]))

    def hook_at(point: str, last: bool) -> Callable[..., Tensor | None]:
        def hook(value: Tensor, hook: Any) -> Tensor | None:
            if point == FIRST:
                begin(value)
            elif not functions:
                raise RuntimeError(
                    f"{point} ran before {FIRST}: a trace masks whole forward passes; start at the "
                    "first block and pass all hooks of the list"
                )
            result = functions[point](value, hook)
            if last:
                functions.clear()  # the run's activations go with them
            return result

        return hook

    points = [point for point, _ in mask_hooks(model, architecture, [row])]
    return [(point, hook_at(point, point == points[-1])) for point in points]
