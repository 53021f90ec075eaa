"""The table across ablations against the verbs that it is made of, and where nothing moves."""

from __future__ import annotations

import functools
from typing import Any

import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr

from strace_lens.circuits.discover.run_method import discover
from strace_lens.circuits.evaluate import faithfulness
from strace_lens.comparison.ablations import ALL_METHODS, across_ablations
from strace_lens.comparison.compare import split
from tests import cases
from tests.circuits.made import tiny_task

METHODS, ABLATIONS, FRACTIONS = ["eap", "ifr", "random"], ["resample", "zero"], (0.1, 0.4, 1.0)


@functools.cache
def table() -> pd.DataFrame:
    return across_ablations(
        cases.model_of("gpt2"), tiny_task(4, 4), METHODS, ablations=ABLATIONS, fractions=FRACTIONS
    )


def row(method: str, found: str, evaluated: str) -> Any:
    chosen: Any = table()
    for column, value in (("method", method), ("found", found), ("evaluated", evaluated)):
        chosen = chosen[chosen[column] == value]
    assert len(chosen) == 1
    return chosen.iloc[0]


def test_a_row_is_what_the_verbs_say() -> None:
    model, (first, second) = cases.model_of("gpt2"), split(tiny_task(4, 4))
    assert second is not None
    assert len(table()) == (len(METHODS) + 1) * len(ABLATIONS) ** 2
    scores = {a: discover(model, first, "eap", ablation=a) for a in ABLATIONS}
    for found in ABLATIONS:
        for evaluated in ABLATIONS:
            curve = faithfulness(
                model,
                second,
                scores[found],
                ablation=evaluated,
                ranking="absolute",
                fractions=FRACTIONS,
            )
            assert row("eap", found, evaluated)["cmd"] == pytest.approx(curve.cmd, rel=1e-4)
    exists = scores["zero"].graph.exists
    one, other = (scores[a].values[exists].abs().numpy() for a in ABLATIONS)
    wanted: Any = spearmanr(one, other)
    assert row("eap", "resample", "zero")["spearman"] == pytest.approx(wanted.statistic)
    assert wanted.statistic < 0.95  # the ablation does matter


def test_one_ablation_agrees_with_itself_and_random_scores_with_all() -> None:
    for ablation in ABLATIONS:
        assert row("eap", ablation, ablation)["spearman"] == pytest.approx(1)
        assert row(ALL_METHODS, ablation, ablation)["spearman"] == pytest.approx(1)
    for name in ("random", "ifr"):  # neither looks at what an ablated edge carries
        moved = row(name, "resample", "zero")
        assert moved["spearman"] == pytest.approx(1)
        assert moved["cmd"] == row(name, "zero", "zero")["cmd"]


def test_the_order_of_methods_is_correlated() -> None:
    cmds = [[row(m, a, a)["cmd"] for m in METHODS] for a in ABLATIONS]
    ranks = [torch.tensor(values).argsort().argsort().tolist() for values in cmds]
    gaps = sum((x - y) ** 2 for x, y in zip(*ranks, strict=True))
    n = len(METHODS)
    wanted = 1 - 6 * gaps / (n * (n * n - 1))
    assert row(ALL_METHODS, "resample", "zero")["spearman"] == pytest.approx(wanted)
    assert pd.isna(row(ALL_METHODS, "resample", "zero")["cmd"])


@pytest.mark.parametrize(
    ("methods", "ablations", "said"),
    [
        (["eap"], ["zero"], r"two or more different ablations; got \['zero'\]"),
        (["eap"], ["zero", "zero"], "two or more different ablations"),
        (["eep"], ["zero", "mean"], r"different ones of edge-patching, .*; got \['eep'\]"),
        ([], ["zero", "mean"], r"got \[\]"),
        (["eap"], ["zero", "noise"], "unknown ablation 'noise'"),
    ],
)
def test_what_does_not_fit_is_refused(methods: Any, ablations: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        across_ablations(cases.model_of("gpt2"), tiny_task(2, 4), methods, ablations=ablations)
