"""The paper's claims on runs in which they hold or fail by construction."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from strace_lens.corpus.analyses.claim_rules import (
    CANNOT_TELL,
    CLAIMS,
    HOLDS,
    HOLDS_NOT,
    STATISTICS,
)
from strace_lens.corpus.analyses.claims import (
    COLUMNS,
    SPARSE,
    claims,
    density_between,
    estimates,
    geometric_mean_of,
    lower_median_of,
    mean_of,
    no_test,
    share_of,
    sparse_sizes,
    top1_sizes,
)
from strace_lens.corpus.analyses.density import density_parts
from strace_lens.corpus.analyses.layer_phases import head_and_tail
from strace_lens.corpus.analyses.sizes import corpus_boundaries, prompt_boundaries
from strace_lens.corpus.run_folder import Run
from strace_lens.corpus.sweep import sweep
from tests.corpus import made
from tests.corpus.planted import planted_run, with_density, with_options
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
    found = density_between(one, other)
    assert found.prompts == 6
    assert found.value == pytest.approx(spearmanr(*np.array(pairs).T).statistic)
    assert density_between(other, one) == found


def test_runs_without_a_shared_prompt_have_no_correlation() -> None:
    apart = density_between(RUN, synthetic_run(prompts=5, seed=9))
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


@pytest.mark.extended
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


GOOD, BAD = planted_run(hold=True), planted_run(hold=False, name="bad")


def by_claim(table: pd.DataFrame) -> dict[int, str]:
    one = table.groupby("claim")["claim_verdict"].unique()
    assert one.map(len).eq(1).all()
    return {int(number): verdict[0] for number, verdict in one.items()}


@pytest.mark.parametrize(("run", "expected"), [(GOOD, HOLDS), (BAD, HOLDS_NOT)])
def test_planted_claims_are_found(run: Run, expected: str) -> None:
    table = claims(run)
    assert by_claim(table) == {**dict.fromkeys(range(1, 6), expected), 6: CANNOT_TELL}
    deciding = table[[STATISTICS[name].decides for name in table["statistic"]]]
    alone = deciding[deciding["claim"] < 6]
    assert alone["verdict"].eq(expected).all(), alone[["statistic", "value", "low", "high"]]


def test_where_construction_lies_is_told_beside_the_papers_place() -> None:
    rows = claims(GOOD).set_index("statistic")
    for name, planted in (("construction_start", 1e-4), ("construction_stop", 1e-2)):
        assert rows.loc[name, "verdict"] == HOLDS
        assert planted / 3 < rows.loc[name, "value"] < planted * 3
        assert rows.loc[name, "paper"] == f"drawn at {planted:g}"
    assert rows.loc["density_entropy", "paper"] == "not known here"
    shifted = GOOD.sizes["size"] ** 0.5  # the same curves, at larger sizes
    manifest = {**GOOD.manifest, "sizes": np.sqrt(GOOD.grid).tolist()}
    moved = dataclasses.replace(GOOD, sizes=GOOD.sizes.assign(size=shifted), manifest=manifest)
    rows = claims(moved).set_index("statistic")
    assert rows.loc["construction_start", "verdict"] == HOLDS_NOT
    assert rows.loc["two_phases", "claim_verdict"] == HOLDS


def test_each_row_says_what_was_asked_of_which_run() -> None:
    run = with_options(GOOD, estimator="fisher", keep=["attention", "mlp"])
    table = claims(run)
    assert table.columns.tolist() == list(COLUMNS)
    assert table["statistic"].tolist() == list(STATISTICS)
    assert table["claim"].tolist() == [asked.claim for asked in STATISTICS.values()]
    assert table["statement"].tolist() == [CLAIMS[n] for n in table["claim"]]
    assert table[["run", "model", "estimator", "keep"]].drop_duplicates().to_numpy().tolist() == [
        ["planted", "one", "fisher", "attention+mlp"]
    ]
    assert claims(GOOD)["keep"].eq("none").all()


def test_what_is_kept_changes_what_is_ablatable_alone() -> None:
    plain, kept = (
        claims(with_options(GOOD, keep=keep)).set_index("statistic")
        for keep in ([], ["residual", "mlp"])
    )
    of_all = [name for name in STATISTICS if "ablatable" not in name and name != "density_between"]
    assert kept.loc[of_all, "value"].tolist() == plain.loc[of_all, "value"].tolist()
    for name in ("head_depth", "added_depth"):
        assert plain.loc[name.replace("_", "_ablatable_"), "value"] == plain.loc[name, "value"]
    # The planted head subgraph is attention alone, a larger share of attention than of all edges.
    sizes = [table.loc["head_ablatable_size", "value"] for table in (plain, kept)]
    assert sizes[0] == pytest.approx(0.003, rel=1e-3)
    assert sizes[1] > 1.1 * sizes[0]
    assert kept.loc["head_ablatable_depth", "value"] != plain.loc["head_depth", "value"]


def test_sizes_called_sparse_are_noted() -> None:
    notes = claims(GOOD).set_index("statistic")["note"]
    assert notes["unigram"] == notes["no_context"] == "sparse: s up to 0.0001"
    assert notes["density_between"].startswith("no other run")
    assert notes.drop(["unigram", "no_context", "density_between"]).eq("").all()


def model(name: str, values: np.ndarray, **options: object) -> Run:
    run = with_density(GOOD, values, name=name, model=name)
    return with_options(run, **options)


def test_consistency_takes_two_models() -> None:
    rise = np.linspace(0.2, 0.8, len(GOOD.prompts))
    same, opposite = model("a", rise), model("b", rise**2)
    table = claims([same, opposite])
    assert [by_claim(table[table["run"] == name])[6] for name in ("a", "b")] == [HOLDS, HOLDS]
    fallen = model("c", -rise)
    table = claims([same, opposite, fallen])
    pairs = table[table["claim"] == 6].set_index(["run", "other"])
    assert set(pairs.index) == {(a, b) for a in "abc" for b in "abc" if a != b}
    assert pairs.loc[("a", "b"), "verdict"] == HOLDS
    assert pairs.loc[("a", "c"), "verdict"] == HOLDS_NOT
    assert pairs.loc[("a", "c"), "value"] == pytest.approx(-1)
    assert by_claim(table[table["run"] == "a"])[6] == HOLDS_NOT


def test_runs_that_differ_in_more_or_less_than_the_model_are_no_test() -> None:
    rise = np.linspace(0.2, 0.8, len(GOOD.prompts))
    one = model("a", rise, estimator="greedy")
    again = dataclasses.replace(one, name="again")
    fisher = model("b", rise, estimator="fisher")
    kept = model("b", rise, estimator="greedy", keep=["attention"])
    moved = dataclasses.replace(model("b", rise, estimator="greedy"), manifest=one.manifest)
    hashed = [
        dataclasses.replace(run, manifest={**run.manifest, "weights": "0" * 64})
        for run in (one, moved)
    ]
    assert no_test(one, moved) is None
    assert no_test(one, again) == "both are of one model"
    assert no_test(one, dataclasses.replace(one, model="a@step-100")) == "both are of one model"
    assert no_test(*hashed) == "both are of one model"
    assert no_test(one, fisher) == "the estimators differ"
    assert no_test(one, kept) == "different kinds of edges are kept"
    rows = claims([one, again])
    rows = rows[rows["claim"] == 6]
    assert rows["verdict"].eq(CANNOT_TELL).all()
    assert rows["value"].tolist() == pytest.approx([1, 1])
    assert rows["note"].eq("no test of the claim: both are of one model").all()


def test_one_prompt_tells_nothing() -> None:
    table = claims(synthetic_run(prompts=1))
    assert table["verdict"].eq(CANNOT_TELL).all()
    assert table["claim_verdict"].eq(CANNOT_TELL).all()
    assert table[["low", "high"]].isna().all(axis=None)


def test_a_run_alone_is_a_sequence_of_one_and_the_bytes_are_the_same() -> None:
    text = claims(GOOD).to_csv(index=False)
    assert claims([GOOD]).to_csv(index=False) == text
    assert claims(planted_run(hold=True)).to_csv(index=False) == text
    other = claims(GOOD, seed=1)
    assert other["value"].equals(claims(GOOD)["value"])
    assert not other["low"].equals(claims(GOOD)["low"])


def test_no_runs_and_runs_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="no runs to test the claims on"):
        claims([])
    with pytest.raises(ValueError, match="two runs are named planted"):
        claims([GOOD, GOOD])


@pytest.mark.extended
def test_runs_of_one_sweep_that_differ_in_what_they_keep_are_told_apart(tmp_path) -> None:
    runs = [
        sweep(made.model(), made.prompts(4), tmp_path / name, made.options(keep=keep))
        for name, keep in (("greedy", ()), ("greedy-keep-attention", ("attention",)))
    ]
    table = claims(runs)
    heads = table[["run", "estimator", "keep"]].drop_duplicates().to_numpy().tolist()
    assert heads == [["greedy", "greedy", "none"], ["greedy-keep-attention", "greedy", "attention"]]
    for run in runs:
        # The shares of ablatable edges are those that the sweep itself wrote beside each size.
        rows = pd.concat([run.sizes, run.refined]).set_index(["prompt", "size"])["ablatable_size"]
        for row in head_and_tail(run).to_dict("records"):
            written = rows[row["prompt"], row["head_size"]]
            assert row["head_ablatable_size"] == pytest.approx(written)
