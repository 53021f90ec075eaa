"""The table of claims: planted runs in which they hold and fail, pairs of runs, determinism."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from strace_lens.corpus.analyses.claim_rules import (
    CANNOT_TELL,
    CLAIMS,
    HOLDS,
    HOLDS_NOT,
    STATISTICS,
)
from strace_lens.corpus.analyses.claims import COLUMNS, claims, no_test
from strace_lens.corpus.analyses.layer_phases import head_and_tail
from strace_lens.corpus.run_folder import Run
from strace_lens.corpus.sweep import sweep
from tests.corpus import made
from tests.corpus.planted import planted_run, with_density, with_options
from tests.corpus.synthetic import synthetic_run

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
