"""The statistics of the claims against loops over prompts; their intervals against the truth."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from strace_lens.corpus.analyses.boundaries import corpus_boundaries, prompt_boundaries
from strace_lens.corpus.analyses.claim_rules import STATISTICS
from strace_lens.corpus.analyses.claim_values import (
    SPARSE,
    between,
    estimates,
    geometric_mean_of,
    lower_median_of,
    mean_of,
    share_of,
    sparse_sizes,
    top1_sizes,
)
from strace_lens.corpus.analyses.density_parts import density_parts
from strace_lens.corpus.analyses.layer_phases import head_and_tail
from strace_lens.corpus.run_folder import Run
from tests.corpus.planted import planted_run, with_density
from tests.corpus.synthetic import synthetic_run

RUN = synthetic_run(prompts=9, added=(0.0005, 0.3))


@pytest.fixture(scope="module")
def found():
    return estimates(RUN)


def jumpy() -> Run:
    """Prompts whose top token comes and goes, and one that never has it."""
    run = synthetic_run(prompts=7, added=(0.0005, 0.3))
    draw = np.random.default_rng(0)
    for frame in (run.sizes, run.refined):
        frame["top1"] = (draw.random(len(frame)) < 0.4) & (frame["prompt"] != 2)
    return run


def test_every_statistic_of_one_run_is_there_in_order(found) -> None:
    assert list(found) == [name for name in STATISTICS if name != "density_between"]


def test_sizes_of_the_top_token_against_a_search() -> None:
    run = jumpy()
    sizes = top1_sizes(run)
    for place, prompt in enumerate(run.prompts["prompt"]):
        rows = [
            (row["size"], row["top1"])
            for frame in (run.sizes, run.refined)
            for row in frame[frame["prompt"] == prompt].to_dict("records")
        ]
        rows.sort()
        first = next((s for s, right in rows if right), 1.0)
        stable = next((s for k, (s, _) in enumerate(rows) if all(r for _, r in rows[k:])), 1.0)
        assert sizes["top1_first"][place] == first
        assert sizes["top1_stable"][place] == stable
    assert sizes["top1_first"][2] == sizes["top1_stable"][2] == 1.0
    assert (sizes["top1_first"] < sizes["top1_stable"]).any()
    half = sorted(sizes["top1_first"])[3]
    assert estimates(run)["top1_first"].value == half


def test_phases_and_sizes_against_their_tables(found) -> None:
    rows = prompt_boundaries(RUN, resamples=0)
    both = [not math.isnan(stop) for stop in rows["construction_stop"]]
    assert found["two_phases"].value == pytest.approx(np.mean(both))
    assert found["two_phases"].prompts == 9
    for name in ("construction_start", "construction_stop"):
        values = rows[name].dropna()
        assert found[name].value == pytest.approx(np.prod(values) ** (1 / len(values)))
        assert found[name].prompts == len(values)
    parts = head_and_tail(RUN)
    for name in ("head_size", "head_ablatable_size"):
        assert found[name].value == pytest.approx(np.prod(parts[name]) ** (1 / 9))
    for name, column in (
        ("head_depth", "head_depth_vs_graph"),
        ("added_depth", "tail_depth_vs_left"),
        ("added_attention", "tail_attention_vs_left"),
    ):
        values = parts[column].dropna()
        assert found[name].value == pytest.approx(values.mean())
        assert found[name].prompts == len(values)
    later = parts["tail_depth"] - parts["head_depth"]
    assert found["added_depth_from_head"].value == pytest.approx(later.dropna().mean())
    more = (parts["tail_attention"] - parts["head_attention"]).dropna()
    assert found["added_attention_from_head"].value == pytest.approx(more.mean())


def test_a_head_that_no_size_restores_counts_with_the_whole_graph() -> None:
    run = dataclasses.replace(RUN, sizes=RUN.sizes.copy())
    run.sizes.loc[run.sizes["prompt"] == 4, "head_error"] = 0.9
    sizes = head_and_tail(run)["head_size"]
    assert math.isnan(sizes[4])
    expected = np.prod(sizes.fillna(1)) ** (1 / 9)
    assert estimates(run)["head_size"].value == pytest.approx(expected)
    assert estimates(run)["head_size"].prompts == 9


def test_correlations_are_spearmans(found) -> None:
    parts = density_parts(RUN)
    for name, part in (("density_entropy", "density"), ("half_size_entropy", "half_size")):
        there = parts[[part, "entropy"]].dropna()
        assert found[name].value == pytest.approx(spearmanr(*there.to_numpy().T).statistic)
        assert found[name].low <= found[name].value <= found[name].high


def test_shallow_distances_prompt_by_prompt(found) -> None:
    start = corpus_boundaries(RUN).set_index("quantity").loc["construction_start", "value"]
    for name in ("unigram", "no_context"):
        differences = []
        for row in RUN.prompts.to_dict("records"):
            mine = RUN.sizes[(RUN.sizes["prompt"] == row["prompt"]) & (RUN.sizes["edges"] > 0)]
            sparse = mine[mine["size"] <= start]
            if len(sparse):
                differences.append(sparse[f"{name}_tv"].mean() - row[f"{name}_tv"])
        assert found[name].prompts == len(differences)
        assert found[name].value == pytest.approx(np.mean(differences))


def test_sparse_sizes_without_a_plateau_are_fixed() -> None:
    straight = planted_run(hold=False)
    rows = corpus_boundaries(straight).set_index("quantity")
    assert math.isnan(rows.loc["construction_start", "value"])
    assert sparse_sizes(straight).tolist() == (straight.grid <= SPARSE).tolist()
    large = synthetic_run(prompts=4, sizes=(0.2, 0.4, 1.0))
    assert sparse_sizes(large).tolist() == [True, False, False]


def test_densities_between_runs_are_matched_by_text() -> None:
    texts = [f"text {i}" for i in range(9)]
    one = synthetic_run(prompts=9, texts=texts, name="one")
    other = with_density(
        synthetic_run(prompts=6, texts=texts[:1:-1][:6], seed=1, name="other"), np.arange(6) / 9
    )
    mine = dict(zip(one.prompts["text"], one.prompts["density"], strict=True))
    pairs = [(mine[row["text"]], row["density"]) for row in other.prompts.to_dict("records")]
    found = between(one, other)
    assert found.prompts == 6
    assert found.value == pytest.approx(spearmanr(*np.array(pairs).T).statistic)
    assert between(other, one) == found


def test_runs_without_a_shared_prompt_have_no_correlation() -> None:
    apart = between(RUN, synthetic_run(prompts=5, seed=9))
    assert apart.prompts == 0
    assert math.isnan(apart.value)


def test_a_single_prompt_has_no_interval() -> None:
    for estimate in estimates(synthetic_run(prompts=1)).values():
        assert math.isnan(estimate.low)
        assert math.isnan(estimate.high)


def test_a_share_of_one_is_still_uncertain() -> None:
    found = share_of(np.ones(8, dtype=bool))
    assert found.value == 1
    assert 0.6 < found.low < 0.7
    assert found.high == 1


def covered(statistic, draw_values, truth: float, studies: int = 300) -> float:
    """In how many studies of 40 prompts the interval holds the truth."""
    draw = np.random.default_rng(7)
    hits = 0
    for study in range(studies):
        found = statistic(draw_values(draw, 40), study)
        hits += found.low <= truth <= found.high
    return hits / studies


@pytest.mark.parametrize(
    ("statistic", "draw_values", "truth"),
    [
        (mean_of, lambda draw, n: draw.exponential(2.0, n), 2.0),
        (geometric_mean_of, lambda draw, n: np.exp(draw.normal(-3, 1, n)), math.exp(-3)),
        (lower_median_of, lambda draw, n: np.exp(draw.normal(-3, 1, n)), math.exp(-3)),
        (lambda have, _: share_of(have), lambda draw, n: draw.random(n) < 0.8, 0.8),
    ],
)
def test_intervals_hold_the_truth_about_as_often_as_they_say(statistic, draw_values, truth) -> None:
    assert 0.88 <= covered(statistic, draw_values, truth) <= 0.99
