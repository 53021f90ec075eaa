"""Curves on SmolLM2 against those that the authors' own code puts out (`tests.authors`)."""

from __future__ import annotations

import numpy as np
import pytest

import strace_lens as sl
from tests.authors import AUTHORS_CURVES
from tests.real import smollm2

TOLERANCE = {"all_masked": 0.01, "attention_open": 0.03}
"""Of TV. Their importances are float16, so that single ties fall otherwise; where attention is left
in place, small traces turn on those."""
AREA = {"77": 1e-3}
"""Of the area, where no tie falls otherwise; elsewhere it adds up over five decades of sizes."""
KEEP: dict[str, tuple[str, ...]] = {"all_masked": (), "attention_open": ("attention",)}
SLOW = pytest.mark.families  # each takes some ten seconds


@pytest.mark.parametrize(
    ("passage", "way"),
    [
        ("77", "all_masked"),
        pytest.param("68", "all_masked", marks=SLOW),
        *(pytest.param(n, "attention_open", marks=SLOW) for n in ("77", "68", "70", "73", "74")),
    ],
)
def test_curves_are_those_of_the_authors_code(passage: str, way: str) -> None:
    model, theirs = smollm2(), AUTHORS_CURVES[passage]
    trace = sl.extract(sl.token_graph(model, theirs["ids"]))
    assert trace.edges == theirs["edges"]
    curve = sl.density_curve(
        model, trace, sizes=theirs["sizes"], keep=KEEP[way], controls=False, refine=0
    )
    assert curve.table["edges"].tolist() == theirs["edges_kept"]
    tv = np.array(theirs[way]["tv"])
    np.testing.assert_allclose(curve.table["tv"], tv, rtol=0, atol=TOLERANCE[way])
    # Their area, by the trapezoid rule over the sizes that whole numbers of edges give.
    achieved = np.maximum(np.array(theirs["edges_kept"]) / theirs["edges"], 1e-8)
    area = np.trapezoid(tv, np.log10(achieved))
    assert curve.auc_paper == pytest.approx(area, abs=AREA.get(passage, 5e-3))
    agree = curve.table["top1"].to_numpy() == np.array(theirs[way]["top1"])
    assert agree.sum() >= len(agree) - 1
