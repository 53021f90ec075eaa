"""The whole way in one call is the steps one by one."""

from __future__ import annotations

import dataclasses
from typing import Any

import pandas as pd
import pytest

import strace_lens as sl
from tests import tiny
from tests.cases import model_of

SIZES = (0.01, 0.1, 0.3, 0.6, 1.0)


@pytest.mark.parametrize("estimator", ["greedy", "fisher"])
def test_it_is_what_its_steps_are(estimator: str) -> None:
    model = model_of("llama")
    keep, target = ("attention",), (5, 7)
    graph = sl.token_graph(model, tiny.PROMPT)
    swap = sl.replacement(model, graph.prompt, "mean")
    same: dict[str, Any] = {"keep": keep, "target": target, "replacement": swap, "seed": 3}
    ranked = sl.estimate(model, graph, estimator, **same)
    curve = sl.density_curve(model, ranked, sizes=SIZES, refine=2, **same)
    found = sl.trace(model, tiny.PROMPT, estimator=estimator, sizes=SIZES, refine=2, **same)
    pd.testing.assert_frame_equal(found.curve.table, curve.table)
    assert found.trace.to_pandas()["rank"].equals(ranked.to_pandas()["rank"])
    pd.testing.assert_frame_equal(found.trace.to_pandas(), ranked.to_pandas())
    assert found.trace.metadata == ranked.metadata
    assert repr(found.phases) == repr(sl.find_phases(curve))
    assert found.curve.keep == keep
    assert found.curve.target == curve.target


def first_for_good(table: pd.DataFrame) -> float:
    rows = list(zip(table["size"], table["top1"], strict=True))
    return next(s for i, (s, _) in enumerate(rows) if all(right for _, right in rows[i:]))


def test_it_prints_what_was_found() -> None:
    model = model_of("llama")
    found = sl.trace(model, tiny.PROMPT, sizes=SIZES, refine=0, controls=False)
    token, probability = found.curve.top[0]
    first, said, *rest = repr(found).splitlines()
    assert first == repr(found.trace)
    assert said.startswith(f"Density {found.curve.density:.3f}. The traces have the model's top")
    assert f"top token {token!r} (p = {probability:.3g}) from s = " in said
    assert float(said.split()[-2]) == pytest.approx(first_for_good(found.curve.table), rel=0.01)
    assert "\n".join(rest) == repr(found.phases)
    shown = found._repr_html_()
    assert "top token" in shown
    assert found.phases.describe().replace("<", "&lt;") in shown
    # Where no size is right, it says so; a single size has no density.
    table = found.curve.table.iloc[:1].assign(top1=False)
    poor = dataclasses.replace(found, curve=dataclasses.replace(found.curve, table=table))
    assert "at no measured size" in repr(poor)
    assert "Density" not in repr(poor)


def test_what_is_wrong_is_refused_before_the_model_runs() -> None:
    model = model_of("llama")
    with pytest.raises(ValueError, match="unknown estimator 'best'; choose from greedy"):
        sl.trace(model, tiny.PROMPT, estimator="best")
    with pytest.raises(ValueError, match="unknown kind"):
        sl.trace(model, tiny.PROMPT, keep=("heads",))
    with pytest.raises(ValueError, match=r"sizes must lie in \(0, 1\]"):
        sl.trace(model, tiny.PROMPT, sizes=[2.0])
