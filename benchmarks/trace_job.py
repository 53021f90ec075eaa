"""The whole trace job against running every subgraph alone, as the paper's authors do.

Both do the same job: token graph, extraction, 27 sizes with all controls, every measure. Ours is
`density_curve`. In theirs every subgraph is a forward pass of one row, its masks are stored as
tensors, every position is unembedded, and each output is measured by itself; graph, extraction and
the formulas are our own on both sides, so the ratio is that of running and measuring.
Run: python -m benchmarks.trace_job
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

import strace_lens as sl
from benchmarks.common import (
    TOKENS,
    device,
    info,
    interleaved_seconds,
    real_prompt,
    report,
    smollm2,
)
from strace_lens.measures import distributions as measures
from strace_lens.model.architecture import Model
from strace_lens.model.forward import Hook
from strace_lens.traces.edges import EdgeTensors
from strace_lens.traces.random_control import grow

GOAL = 3
REPEATS = 3
TOLERANCE = 1e-4


def whole_job(model: Model, ids: Sequence[int], sizes: Sequence[float]) -> sl.DensityCurve:
    """From token ids to a density curve with all controls, at the sizes given alone."""
    trace = sl.extract(sl.token_graph(model, ids))
    return sl.density_curve(model, trace, sizes=sizes, refine=0)


def one_by_one(model: Model, ids: Sequence[int], sizes: Sequence[float]) -> pd.DataFrame:
    """Measures of the trace and its controls at each size, one forward pass each.

    The model has sequential blocks without biases or norms after them, as SmolLM2 has.
    """
    trace = sl.extract(sl.token_graph(model, ids))
    tokens = trace.prompt.tensor[None].to(device())
    full = _last_log_probs(model, tokens, [])

    def output(kept: EdgeTensors) -> Float[Tensor, "1 vocab"]:
        return _last_log_probs(model, tokens, stored_masks(kept.map(lambda x: x.to(device()))))

    def tv(kept: EdgeTensors) -> float:
        return float(measures.total_variation(full, output(kept)))

    def with_residual(kept: EdgeTensors) -> EdgeTensors:
        return kept._replace(residual=torch.ones_like(kept.residual))

    rows = []
    for count in map(trace.edge_count, sizes):
        random = trace.shape.full(0, torch.int32)
        grow(random, 1, trace.shape, 0, count)
        random = random.map(Tensor.bool)
        own = trace.first(count).kept
        ours = output(own)
        head, tail = measures.head_tail_error(full, ours)
        rows.append(
            {
                "tv": float(measures.total_variation(full, ours)),
                "kl": float(measures.kl_divergence(full, ours)),
                "js": float(measures.jensen_shannon(full, ours)),
                "head_error": float(head),
                "tail_error": float(tail),
                "top1": float(measures.top1_agreement(full, ours)),
                "nucleus": float(measures.shared_nucleus(full, ours)),
                "random_tv": tv(with_residual(random)),
                "inverse_tv": tv(with_residual(own.map(torch.logical_not))),
                "random_inverse_tv": tv(with_residual(random.map(torch.logical_not))),
            }
        )
    return pd.DataFrame(rows)


def stored_masks(kept: EdgeTensors) -> list[Hook]:
    """Hooks that multiply by masks kept in memory: [L, H, T, T] and one a stream."""
    read: dict[str, Tensor] = {}

    def reader(name: str) -> Callable[..., None]:
        def hook(value: Tensor, hook: Any) -> None:
            read[name] = value

        return hook

    def layer_hooks(layer: int) -> list[Hook]:
        into_mid, into_post = kept.residual[layer, :, :, None]
        from_mlp = kept.mlp[layer, :, None]

        def pattern(value: Tensor, hook: Any) -> Tensor:
            return value * kept.attention[layer]

        def mid(value: Tensor, hook: Any) -> Tensor:
            read["mid"] = read["attn_out"] + into_mid * read["pre"]
            return read["mid"]

        def post(value: Tensor, hook: Any) -> Tensor:
            return from_mlp * read["mlp_out"] + into_post * read["mid"]

        hooks = {
            "hook_resid_pre": reader("pre"),
            "attn.hook_pattern": pattern,
            "hook_attn_out": reader("attn_out"),
            "hook_resid_mid": mid,
            "hook_mlp_out": reader("mlp_out"),
            "hook_resid_post": post,
        }
        return [(f"blocks.{layer}.{name}", hook) for name, hook in hooks.items()]

    return [hook for layer in range(len(kept.mlp)) for hook in layer_hooks(layer)]


def _last_log_probs(model: Model, tokens: Tensor, hooks: list[Hook]) -> Float[Tensor, "1 vocab"]:
    with torch.no_grad():
        logits = model.run_with_hooks(
            tokens, fwd_hooks=hooks, return_type="logits", padding_side="right"
        )
    return logits[:, -1].double().log_softmax(-1)


def largest_difference(curve: sl.DensityCurve, alone: pd.DataFrame) -> float:
    """Largest difference of a total variation between the two ways."""
    columns = ["tv", "random_tv", "inverse_tv", "random_inverse_tv"]
    return float((curve.table[columns] - alone[columns]).abs().to_numpy().max())


def main() -> None:
    """Compare on a 47-token prompt of SmolLM2 at the 27 default sizes."""
    model = smollm2()
    ids, sizes = real_prompt(model, TOKENS), sl.SIZES
    results: dict[str, Any] = {}

    def ours() -> None:
        results["ours"] = whole_job(model, ids, sizes)

    def theirs() -> None:
        results["theirs"] = one_by_one(model, ids, sizes)

    whole_job(model, ids, sizes[-2:])  # warm up
    one_by_one(model, ids, sizes[-2:])
    job, alone = map(min, interleaved_seconds((ours, theirs), REPEATS))
    gap = largest_difference(results["ours"], results["theirs"])
    if not gap < TOLERANCE:
        raise RuntimeError(f"the two ways differ in total variation by {gap:.1e}")

    report(f"trace job, {len(sizes)} sizes and all controls", alone / job, GOAL)
    info(
        f"fastest of {REPEATS}: the job {job:.2f} s, one by one {alone:.2f} s; "
        f"largest difference of TV {gap:.1e}"
    )


if __name__ == "__main__":
    main()
