"""What goes with a prompt's density: correlations, labels, parts and growing texts."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import kruskal, pearsonr, rankdata, spearmanr

from strace_lens.corpus.analyses.density import (
    density_by_label,
    density_correlations,
    density_parts,
    growth,
    growth_lines,
    part_correlations,
    rank_correlations,
)
from strace_lens.corpus.run_folder import Run
from strace_lens.measures.intervals import interval
from strace_lens.plot.corpus.density import plot_density_parts
from tests.corpus.synthetic import synthetic_run


def residuals(ranks: np.ndarray, held: np.ndarray) -> np.ndarray:
    design = np.column_stack([np.ones(len(ranks)), held])
    return ranks - design @ np.linalg.lstsq(design, ranks)[0]


def partial(values: np.ndarray) -> float:
    """Correlation of what a linear fit on the held variables' ranks leaves of the two ranks."""
    ranks = np.column_stack([rankdata(column) for column in values.T])
    first, second = (residuals(ranks[:, k], ranks[:, 2:]) for k in (0, 1))
    return float(pearsonr(first, second).statistic)


@given(st.integers(0, 9999), st.integers(7, 30), st.integers(0, 3), st.sampled_from([1, 3]))
def test_a_partial_correlation_is_that_of_the_residuals_of_ranks(seed, prompts, held, digits):
    draw = np.random.default_rng(seed)
    common = draw.normal(size=(prompts, 1))
    values = (draw.normal(size=(prompts, 2 + held)) + common).round(digits)  # ties, too
    ranks = np.column_stack([rankdata(column) for column in values.T])
    assume(np.linalg.matrix_rank(ranks - ranks.mean(0), tol=1e-3) == 2 + held)
    assert float(rank_correlations(values[None])[0]) == pytest.approx(partial(values), abs=1e-9)


def test_samples_are_taken_one_by_one() -> None:
    values = np.random.default_rng(0).normal(size=(4, 9, 4))
    assert rank_correlations(values).tolist() == pytest.approx([partial(v) for v in values])


def test_a_plain_correlation_is_spearmans() -> None:
    run = synthetic_run(prompts=40)
    table = density_correlations(run, resamples=50).set_index(["what", "given"])
    known = run.prompts[run.prompts["loss"].notna()]
    for what in ("entropy", "tokens", "loss"):
        frame = known if what == "loss" else run.prompts
        expected = spearmanr(frame["density"], frame[what])
        row = table.loc[(what, "")]
        assert row["prompts"] == len(frame)
        assert row["rho"] == pytest.approx(expected.statistic)
        assert row["p"] == pytest.approx(expected.pvalue)


def test_each_is_given_with_each_other_and_with_all_others() -> None:
    table = density_correlations(synthetic_run(prompts=12), resamples=20)
    assert list(table) == ["what", "given", "prompts", "rho", "low", "high", "p"]
    assert table.query("what == 'entropy'")["given"].tolist() == [
        *("", "tokens", "loss", "tokens, loss")
    ]
    assert len(table) == 12
    assert set(table.query("given == 'tokens, loss'")["prompts"]) == {9}


@pytest.mark.extended
def test_a_common_cause_is_held() -> None:
    run = synthetic_run(prompts=200)
    draw = np.random.default_rng(0)
    tokens = np.arange(200)
    run.prompts["tokens"] = tokens
    run.prompts["density"] = tokens + draw.normal(0, 20, 200)
    run.prompts["entropy"] = tokens + draw.normal(0, 20, 200)
    table = density_correlations(run, resamples=300).set_index(["what", "given"])
    plain, held = table.loc[("entropy", "")], table.loc[("entropy", "tokens")]
    assert plain["low"] > 0.8
    assert held["low"] < 0 < held["high"]
    assert held["p"] > 0.05


def test_the_interval_is_that_of_a_loop_over_resamples() -> None:
    run = synthetic_run(prompts=15)
    found = density_correlations(run, seed=4, resamples=60).set_index(["what", "given"])
    values = run.prompts[["density", "entropy", "tokens"]].to_numpy(dtype=float)
    draws = np.random.default_rng(4).integers(15, size=(60, 15))
    expected = np.quantile([partial(values[draw]) for draw in draws], [0.025, 0.975])
    assert found.loc[("entropy", "tokens"), ["low", "high"]].tolist() == pytest.approx(expected)
    assert found.equals(
        density_correlations(run, seed=4, resamples=60).set_index(["what", "given"])
    )


@pytest.mark.parametrize("prompts", [1, 3, 4, 5, 6])
def test_too_few_prompts_have_no_correlation(prompts) -> None:
    run = synthetic_run(prompts=prompts)
    run.prompts["loss"] = np.linspace(0, 1, prompts)
    table = density_correlations(run, resamples=20)
    assert (table["prompts"] == prompts).all()
    held = table["given"].map(lambda names: len(names.split(", ")) if names else 0)
    known = prompts >= 4 + held
    np.testing.assert_array_equal(table["rho"].notna(), known)
    np.testing.assert_array_equal(table["p"].notna(), known)


def test_what_is_constant_or_unknown_has_no_correlation() -> None:
    run = synthetic_run(prompts=8)
    run.prompts["tokens"] = 12
    run.prompts["loss"] = math.nan
    table = density_correlations(run, resamples=20).set_index(["what", "given"])
    assert math.isnan(table.loc[("tokens", ""), "rho"])
    assert math.isnan(table.loc[("entropy", "tokens"), "rho"])
    assert table.loc[("loss", ""), "prompts"] == 0
    assert not math.isnan(table.loc[("entropy", ""), "rho"])


def test_density_that_entropy_tells_has_a_correlation_of_one() -> None:
    run = synthetic_run(prompts=9)
    run.prompts["density"] = run.prompts["entropy"] ** 2
    row = density_correlations(run, resamples=30).iloc[0]
    assert row[["rho", "low", "high"]].tolist() == pytest.approx([1, 1, 1])
    assert row["p"] == pytest.approx(0, abs=1e-12)


@pytest.fixture
def labelled() -> Run:
    run = synthetic_run(prompts=12)
    run.prompts["label_part"] = ["a", "b", None, "a"] * 3
    run.prompts["label_number"] = np.arange(12) % 2 + 0.5
    run.prompts["label_same"] = "x"
    run.prompts["label_each"] = [f"value {k}" for k in range(11)] + [None]
    run.prompts["label_other"] = [f"value {k}" for k in range(12)]
    run.prompts["density"] = np.random.default_rng(0).random(12).round(1)  # ties
    return run


def test_means_by_label_and_the_share_between_them(labelled: Run) -> None:
    table = density_by_label(labelled)
    assert table["label"].unique().tolist() == ["kind", "part", "number", "each", "other"]
    for label in ("kind", "part", "number"):
        rows = table[table["label"] == label]
        column = labelled.prompts[f"label_{label}"]
        groups = [labelled.prompts["density"][column == value] for value in rows["value"]]
        assert rows["prompts"].tolist() == [len(g) for g in groups]
        assert rows["mean"].tolist() == pytest.approx([g.mean() for g in groups])
        assert (rows["low"] <= rows["mean"]).all()
        assert (rows["high"] >= rows["mean"]).all()
        test = kruskal(*groups)
        ranks = rankdata(np.concatenate(groups))
        middle = np.split(ranks, np.cumsum([len(g) for g in groups])[:-1])
        between = sum(len(m) * (m.mean() - ranks.mean()) ** 2 for m in middle)
        share = between / ((ranks - ranks.mean()) ** 2).sum()
        assert rows["h"].tolist() == pytest.approx([test.statistic] * len(rows))
        assert rows["p"].tolist() == pytest.approx([test.pvalue] * len(rows))
        assert rows["eta_squared"].tolist() == pytest.approx([share] * len(rows))


def test_a_value_of_one_prompt_has_no_interval(labelled: Run) -> None:
    rows = density_by_label(labelled).query("label == 'each'")
    assert set(rows["prompts"]) == {1}
    assert rows[["low", "high"]].isna().all().all()


def test_three_prompts_or_equal_densities_are_not_tested(labelled: Run) -> None:
    assert density_by_label(synthetic_run(prompts=3))[["h", "p", "eta_squared"]].isna().all().all()
    labelled.prompts["density"] = 0.5
    table = density_by_label(labelled)
    assert table[["h", "p", "eta_squared"]].isna().all().all()
    assert table["mean"].tolist() == [0.5] * len(table)


def test_a_run_without_labels_has_an_empty_table() -> None:
    run = synthetic_run(prompts=5)
    del run.prompts["label_kind"]
    table = density_by_label(run)
    assert table.empty
    assert "eta_squared" in table


SIZES = (0.001, 0.01, 0.1, 1.0)


def run_of(*curves: list[float]):
    plain = synthetic_run(prompts=len(curves), sizes=SIZES)
    return replace(plain, sizes=plain.sizes.assign(tv=np.concatenate(curves)))


def test_half_of_the_plateau_is_crossed_between_sizes() -> None:
    found = density_parts(
        run_of([0.8, 0.8, 0.2, 0.0], [0.8, 0.1, 0.6, 0.0], [0.5, 0.5, 0.5, 0.5], [0.0] * 4)
    )
    assert found["plateau"].tolist() == [0.8, 0.8, 0.5, 0.0]
    # From 0.8 at 10^-2 to 0.2 at 10^-1 it is 0.4 after two thirds of the decade.
    assert found["half_size"][0] == pytest.approx(10 ** (-2 + 2 / 3))
    assert found["half_size"][1] == pytest.approx(10 ** (-1 + 1 / 3))  # the last crossing counts
    assert found["half_size"][2:].isna().all()


def test_correlations_are_those_of_scipy() -> None:
    run = synthetic_run(prompts=12)
    parts = density_parts(run)
    table = part_correlations(run, resamples=100).set_index(["part", "what"])
    for part in ("plateau", "half_size"):
        for what in ("entropy", "tokens", "loss"):
            both = parts[[part, what]].dropna()
            rho = spearmanr(both[part], both[what]).statistic
            assert table.loc[(part, what), "rho"] == pytest.approx(rho)
            assert table.loc[(part, what), "prompts"] == len(both)


def test_the_figure_holds_every_prompt() -> None:
    run = synthetic_run(prompts=12)
    parts = density_parts(run).assign(run=run.name)
    correlations = part_correlations(run, resamples=100).assign(run=run.name)
    fig = plot_density_parts(parts, correlations)
    assert list(fig.data[0].y) == parts["plateau"].tolist()
    assert list(fig.data[1].y) == parts["half_size"].tolist()
    alone = synthetic_run(prompts=1)
    fig = plot_density_parts(
        density_parts(alone).assign(run="x"), part_correlations(alone).assign(run="x")
    )
    assert "too few or all alike (n = 1)" in fig.layout.annotations[0].text
    assert not plot_density_parts(parts.iloc[:0], correlations).data


PLAIN = synthetic_run(prompts=6)
RUN = replace(
    PLAIN,
    prompts=PLAIN.prompts.assign(
        label_of=["0", "0", "0", "1", "1", "1"], label_step=["0", "1", "2", "0", "1", "2"]
    ),
)


def test_lines_follow_each_text() -> None:
    lines = growth_lines(RUN)
    assert lines["of"].tolist() == [0, 0, 0, 1, 1, 1]
    assert lines["step"].tolist() == [0, 1, 2] * 2
    assert lines["density"].tolist() == RUN.prompts["density"].tolist()


def test_means_and_changes_over_texts() -> None:
    density = RUN.prompts["density"].to_numpy()
    table = growth(RUN)
    for step in range(3):
        both = density[[step, 3 + step]]
        assert table["density"][step] == pytest.approx(both.mean())
        assert table["change"][step] == pytest.approx((both - density[[0, 3]]).mean())
        assert table["prompts"][step] == 2
        assert table["low"][step] == pytest.approx(both.min())
    assert table["change"][0] == 0


def test_steps_that_not_all_texts_reach() -> None:
    short = replace(RUN, prompts=RUN.prompts.iloc[:5].reset_index(drop=True))
    table = growth(short)
    assert table["prompts"].tolist() == [2, 2, 1]
    assert np.isnan(table["low"][2])


def test_a_run_that_did_not_generate_has_no_row() -> None:
    assert growth(PLAIN).empty
    assert growth_lines(PLAIN).empty


def test_steps_are_numbers_in_whatever_order_the_prompts_come() -> None:
    run = synthetic_run(prompts=24)
    labels = {"label_of": ["3"] * 12 + ["15"] * 12, "label_step": [str(s) for s in range(12)] * 2}
    prompts = run.prompts.assign(**labels)
    table = growth(replace(run, prompts=prompts.sample(frac=1, random_state=0)))
    assert table["step"].tolist() == list(range(12))  # 10 comes after 9
    for step in (0, 5, 10):
        own = prompts.iloc[[step, 12 + step]]
        for name in ("density", "tokens", "entropy"):
            assert table[name][step] == pytest.approx(own[name].mean())
        low, high = interval(own["density"].to_numpy())
        assert table["low"][step] == pytest.approx(float(low))
        assert table["high"][step] == pytest.approx(float(high))
    assert growth_lines(replace(run, prompts=prompts))["of"].tolist() == [3] * 12 + [15] * 12


def test_texts_whose_start_failed_have_no_change() -> None:
    later = RUN.prompts[RUN.prompts["label_step"] != "0"]
    table = growth(replace(RUN, prompts=later))
    assert table["step"].tolist() == [1, 2]
    assert table["density"].notna().all()
    assert table["change"].isna().all()


@pytest.mark.parametrize(
    "labels",
    [
        {"label_step": ["0", "1"] * 3},
        {"label_of": ["tales", "birds"] * 3, "label_step": ["first", "last"] * 3},
        {"label_of": [None] * 6, "label_step": [None] * 6},
    ],
)
def test_labels_that_say_something_else_are_no_growth(labels) -> None:
    other = replace(PLAIN, prompts=PLAIN.prompts.assign(**labels))
    assert growth(other).empty
    assert list(growth(other)) == list(growth(RUN))
    assert list(growth_lines(other)) == list(growth_lines(RUN))
