"""Ways of finding a circuit on models in half precision, where a norm may give single precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import strace_lens as sl
from strace_lens.circuits.discover.methods import METHODS
from tests import cases, tiny
from tests.circuits.made import REFUSED, tiny_task

DTYPES = (torch.bfloat16, torch.float16)
FEW_STEPS: dict[str, dict[str, Any]] = {
    "edge-pruning": {"steps": 3},
    "warm-edge-pruning": {"steps": 3},
    "hap": {"steps": 3, "screen": 1.0},
    "node-pruning": {"steps": 3},
    "acdc": {"screen": 16},
    "bootstrap": {"share": 0.0},
}
"""Options with which the methods of many passes end soon.

HAP and the bootstrap screen nothing out: on which side an edge falls is a matter of rounding.
"""


@pytest.mark.extended
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_method_agrees_with_single_precision_behind_a_norm(
    method: str, dtype: torch.dtype
) -> None:
    task = tiny_task(2, 6)
    options = FEW_STEPS.get(method, {})
    half, single = (
        sl.discover(model, task, method, **options).values.float()
        for model in (cases.fresh_bridge("gemma2", dtype), cases.model_of("gemma2"))
    )
    assert float((half - single).norm() / single.norm()) < 0.1


@pytest.mark.extended
@pytest.mark.parametrize("name", [name for name in tiny.BRIDGES if name not in REFUSED])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_family_runs_in_half_precision(name: str, dtype: torch.dtype) -> None:
    bridge, task = cases.fresh_bridge(name, dtype), tiny_task(1, 6)
    graph = sl.token_graph(bridge, tiny.token_ids(6))
    single = sl.token_graph(cases.model_of(name), tiny.token_ids(6))
    curve = sl.density_curve(bridge, sl.extract(graph), sizes=(0.5, 1.0), refine=0)
    assert curve.table["tv"].iloc[-1] < 0.02
    full = (g.activations.logits.double().softmax(-1) for g in (graph, single))
    assert float(torch.sub(*full).abs().sum() / 2) < 0.2
    for method in ("eap", "node-patching", "edge-patching"):
        scores = sl.discover(bridge, task, method)
        truth = sl.discover(cases.model_of(name), task, method).values
        gap = float((scores.values.float() - truth).norm() / truth.norm())
        assert gap < 0.3, f"{method}: {gap}"
