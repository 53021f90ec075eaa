"""Methods side by side: against the verbs run one by one, and on models whose circuit is known."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Iterator

import pytest
import torch

import strace_lens as sl
from strace_lens.circuits.agreement import auroc, missed_edges
from strace_lens.circuits.criteria import COSTLY, minimality
from strace_lens.circuits.discover.methods import METHODS
from strace_lens.circuits.discover.run_method import discover
from strace_lens.circuits.evaluate import faithfulness
from strace_lens.circuits.experiment import make_experiment
from strace_lens.circuits.run_circuits import run_circuits
from strace_lens.circuits.task import Task
from strace_lens.comparison.compare import (
    check_methods,
    compare,
    split,
)
from strace_lens.comparison.comparison import (
    COLUMNS,
    FIGURES,
    Comparison,
    MethodResult,
    chance_level,
)
from strace_lens.ground_truth.linear import linear_weights
from strace_lens.ground_truth.models import GroundTruth, ground_truth
from strace_lens.measures.intervals import interval_text
from strace_lens.report.summary import summarize_comparison
from strace_lens.report.tables import (
    comparison_cells,
    comparison_facts,
    difference_lines,
    truth_lines,
)
from tests import cases
from tests.circuits.made import tiny_task
from tests.ground_truth.exact_effects import exact_effects

DRAWS = 3
KEYS = [
    *("method", "cpr", "cmd", "auroc", "edges_at_85", "completeness", "minimality"),
    *("forwards", "backwards", "seconds", "peak_mb", "faithfulness"),
    *("intervals", "better_than"),
]


def seen() -> Task:
    return tiny_task(3, 5)


def others() -> Task:
    return tiny_task(2, 5, seed=1)


@pytest.fixture(autouse=True, scope="module")
def fewer_draws() -> Iterator[None]:
    """So many random rankings as the package draws are slow under the tests' type checks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["strace_lens.comparison.compare"], "_DRAWS", DRAWS)
        yield


@pytest.fixture(scope="module")
def told() -> list[tuple[int, int, str]]:
    return []


@pytest.fixture(scope="module")
def found(told) -> Comparison:
    return compare(
        cases.model_of("gpt2"),
        seen(),
        ["eap", "edge-patching", "ifr", "eap"],
        evaluation=others(),
        options={"edge-patching": {"max_rows": 10}},
        sample=4,
        progress=lambda *said: told.append(said),
    )


@pytest.mark.extended
def test_each_method_is_what_its_verbs_give_one_by_one(found):
    model = cases.model_of("gpt2")
    assert [r.method for r in found.results] == ["eap", "ifr", "random"]
    for result in found.results:
        scores = discover(model, seen(), result.method)
        assert torch.equal(result.scores.values, scores.values)
        assert (result.scores.forwards, result.scores.backwards) == (
            scores.forwards,
            scores.backwards,
        )
        curve = faithfulness(model, others(), scores)
        assert result.faithfulness == curve
        assert torch.equal(result.circuit.keep, scores.top(curve.edges_at_85).keep)
        rest = float(run_circuits(model, others(), [~result.circuit]).double().mean())
        share = (rest - curve.empty) / (curve.full - curve.empty)
        assert result.completeness == pytest.approx(share, abs=1e-5)
        assert result.peak_mb >= 0
        assert (result.auroc, result.precision, result.missed) == (None, None, ())


def test_minimality_is_of_a_sample_drawn_by_the_seed(found):
    experiment = make_experiment(cases.model_of("gpt2"), others())
    for result in found.results:
        costs = minimality(experiment, result.circuit, sample=4, seed=0).values()
        assert result.minimality == sum(cost >= COSTLY for cost in costs) / len(costs)


def test_a_method_that_scores_edges_by_position_is_skipped():
    with pytest.raises(ValueError, match="no method ran beside random; peap: it scores edges at"):
        compare(cases.model_of("gpt2"), seen(), ["peap", "random"])


@pytest.mark.extended
def test_what_is_too_large_is_skipped_with_its_reason(found):
    assert list(found.skipped) == ["edge-patching"]
    assert "max_rows=10" in found.skipped["edge-patching"]
    with pytest.raises(ValueError, match=r"no method ran beside random; edge-patching: .*max_rows"):
        compare(
            cases.model_of("gpt2"),
            seen(),
            ["edge-patching", "random"],
            options={"edge-patching": {"max_rows": 1}},
        )


def test_a_comparison_says_what_it_stands_on(found):
    assert (found.task, found.model) == ("words", "tiny-gpt2")
    assert (found.pairs, found.evaluated_pairs, found.held_out) == (3, 2, True)
    standing = sl.accuracy(cases.model_of("gpt2"), others())
    assert (found.accuracy, found.metric_clean, found.metric_corrupted) == (
        standing.accuracy,
        standing.clean,
        standing.corrupted,
    )
    assert found.truth is found.truth_name is None
    assert found.metadata["options"] == {"edge-patching": {"max_rows": 10}}
    assert "measured" not in found.memory  # it follows that word


def test_the_steps_told_of_are_those_announced(found, told):
    assert {total for _, total, _ in told} == {2 * 4 + 2}
    done = [steps for steps, _, _ in told]
    assert done == sorted(done)
    assert done[-1] == 2 * 4 + 2
    assert (2, 10, "edge-patching: discovering") in told
    assert (4, 10, "edge-patching: skipped") in told


@pytest.mark.extended
def test_random_is_drawn_again_and_again_on_a_small_graph(found):
    model = cases.model_of("gpt2")
    by_hand = [
        faithfulness(model, others(), discover(model, seen(), "random", seed=seed)).cmd
        for seed in range(DRAWS)
    ]
    assert found.random_cmd == pytest.approx(tuple(by_hand))
    assert found.random_auroc == ()
    assert found.results[-1].faithfulness.cmd == found.random_cmd[0]


def with_metrics(result: MethodResult, rise: tuple[float, ...]) -> MethodResult:
    """A result whose circuits of each inner size do so well on each pair, on a scale of 0 to 1."""
    sizes = result.faithfulness.pairs.sizes
    pairs = tuple(map(tuple, [(0.0,) * len(rise), *[rise] * (len(sizes) - 2), (1.0,) * len(rise)]))
    curve = dataclasses.replace(
        result.faithfulness, pairs=result.faithfulness.pairs._replace(metrics=pairs, by_sign=())
    )
    return dataclasses.replace(result, faithfulness=curve)


def test_a_method_beats_random_above_the_level_of_chance_and_beyond_doubt(found):
    eap, other, random = (with_metrics(r, (0.4, 0.2, 0.4)) for r in found.results)
    cmd = eap.faithfulness.cmd
    assert found.beats_random(random) is None
    for rise, parts in (((0.9, 0.8, 0.9), True), ((0.9, 0.1, 0.3), False)):
        eap = with_metrics(eap, rise)
        made = dataclasses.replace(found, results=(eap, other, random))
        worse = dataclasses.replace(made, random_cmd=(cmd + 0.2, cmd + 0.1))
        assert worse.beats_random(eap) is parts
        rows = worse.differences().query("method == 'eap' and other == 'random'")
        assert rows["better"].tolist() == [parts]
        equal = dataclasses.replace(made, random_cmd=(cmd + 0.2, cmd))
        assert equal.beats_random(eap) is False
    assert "method eap does not beat random beyond doubt: over 2 pairs the interval of" in (
        worse.why_not_better(eap)
    )
    assert equal.why_not_better(eap) == (
        f"method eap does not beat random: its CMD of {cmd:.3f} is below 1 of 2 random rankings"
    )
    equal = dataclasses.replace(equal, random_cmd=(other.faithfulness.cmd,))
    assert equal.why_not_better(other).endswith(
        "; it reads the clean run alone, not what an ablation would change"
    )


def test_the_best_is_better_only_than_those_that_the_pairs_tell_it_from(found):
    eap, other, random = found.results
    made = dataclasses.replace(
        found,
        results=(
            with_metrics(eap, (0.9, 0.8, 0.9)),
            with_metrics(random, (0.4, 0.2, 0.4)),
            with_metrics(other, (0.8, 0.9, 0.9)),
        ),
    )
    best = min(made.results, key=lambda r: r.faithfulness.cmd).method
    line = next(line for line in difference_lines(made) if line.startswith("lowest CMD"))
    rows = made.differences("cmd").query("method == @best").set_index("other")["better"]
    assert line.startswith(f"lowest CMD: {best}, ")
    for name, told in rows.items():
        words, _, rest = line.partition("not told apart from")
        assert (name in words) == told
        assert (name in rest) != told
    with pytest.raises(ValueError, match="unknown measure 'auroc'"):
        made.differences("auroc")


def test_measures_that_are_not_asked_for_are_left_out():
    model, wanted = cases.model_of("gpt2"), {"minimality": False, "completeness": False}
    made = compare(model, seen(), ["random"], evaluation=others(), **wanted)
    (random,) = made.results
    assert (random.completeness, random.minimality) == (None, None)
    assert made.table[["completeness", "minimality"]].isna().all(axis=None)
    assert not {"compl.", "minimal"} & {*comparison_cells(made)}
    assert summarize_comparison(made)["methods"][0]["minimality"] is None


def test_where_the_truth_is_known_it_decides_what_beats_random(found):
    eap = dataclasses.replace(found.results[0], auroc=0.7)
    for cmd in (-1e9, 1e9):
        for best, beats in ((0.6, True), (0.7, False)):
            made = dataclasses.replace(found, random_cmd=(cmd,), random_auroc=(0.5, best))
            assert made.beats_random(eap) is beats
    assert "its AUROC of 0.700 is above 1 of 2" in made.why_not_better(eap)


@pytest.mark.parametrize(("draws", "may"), [(1, 0), (19, 0), (38, 0), (39, 1), (59, 2), (99, 4)])
def test_one_in_twenty_random_rankings_may_do_as_well(draws, may):
    assert (may + 1) / (draws + 1) <= max(0.05, 1 / (draws + 1)) < (may + 2) / (draws + 1)
    values = [i / 100 for i in range(draws)]
    assert chance_level(values) == pytest.approx(values[-1 - may], abs=2e-6)
    with pytest.raises(ValueError, match="nothing to beat"):
        chance_level([])


def test_what_does_not_beat_random_is_warned_of(found):
    for result in found.results:
        warned = [w for w in found.warnings if w.startswith(f"method {result.method} does not")]
        assert len(warned) == (found.beats_random(result) is False)


@pytest.mark.extended
def test_a_task_that_the_model_cannot_do_is_warned_of(found):
    assert found.accuracy is not None  # a random model knows no answers
    warned = any("tiny-gpt2 does words on" in w for w in found.warnings)
    assert warned == (found.accuracy < 0.9)
    model, task = cases.model_of("gpt2"), others()
    if found.metric_clean > found.metric_corrupted:
        task = dataclasses.replace(task, answers=task.incorrect, incorrect=task.answers)
    swapped = compare(model, task, ["random"])
    assert any("there is nothing to restore" in w for w in swapped.warnings)
    assert swapped.held_out is False


@pytest.mark.extended
def test_pairs_on_which_nothing_changes_are_warned_of_once(found, recwarn):
    task = seen()
    task.corrupted[1] = task.clean[1]
    made = compare(cases.model_of("gpt2"), task, ["eap"], evaluation=others(), sample=1)
    said = [w for w in made.warnings if "are the same tokens in 1 of 3 pairs" in w]
    assert len(said) == 1
    assert not [w for w in recwarn if "same tokens" in str(w.message)]


@pytest.mark.extended
def test_what_acdc_did_not_test_is_noted():
    options = {"acdc": {"screen": 5}}
    made = compare(cases.model_of("gpt2"), seen(), ["acdc"], options=options, sample=1)
    (note,) = [said for said in made.notes if said.startswith("method acdc")]
    assert note.startswith(
        f"method acdc tested 5 of {made.graph.edges:,} edges; those that it did not"
    )
    assert "order of eap" in note
    from strace_lens.report.compare import comparison_page
    from tests.report.test_trace import Page

    assert note.removeprefix("method") in Page(comparison_page(made)).text


def test_the_table_has_a_row_a_method(found):
    table = found.table
    assert tuple(table) == COLUMNS
    for row, result in zip(table.to_dict("records"), found.results, strict=True):
        assert row["method"] == result.method
        assert row["cpr"] == result.faithfulness.cpr
        assert row["cmd"] == result.faithfulness.cmd
        assert row["edges_at_85"] == result.faithfulness.edges_at_85
        assert row["forwards"] == result.scores.forwards
        assert row["peak_mb"] == result.peak_mb
        assert math.isnan(row["auroc"])
        assert row["beats_random"] == found.beats_random(result)


def test_the_summary_has_the_promised_keys_and_no_other(found):
    made = json.loads(json.dumps(summarize_comparison(found), allow_nan=False))
    assert list(made) == ["task", "model", "accuracy", "methods"]
    assert (made["task"], made["model"]) == ("words", "tiny-gpt2")
    for row, result in zip(made["methods"], found.results, strict=True):
        assert list(row) == KEYS
        assert row["auroc"] is None
        curve = result.faithfulness
        pairs = list(zip(curve.fractions, curve.values, strict=True))
        assert [tuple(pair) for pair in row["faithfulness"]] == pairs
        low, high = result.interval("cpr")
        assert row["intervals"]["cpr"] == (None if math.isnan(low) else [low, high])
        assert list(row["intervals"]) == [*FIGURES, "faithfulness"]
        assert len(row["intervals"]["faithfulness"]) == len(pairs)
        rows = found.differences().query("method == @result.method and better")
        assert row["better_than"] == rows["other"].tolist()


def test_the_printed_cells_are_those_of_the_table(found):
    cells = comparison_cells(found)
    assert cells["method"].tolist() == found.table["method"].tolist()
    assert "AUROC" not in cells  # no truth is known
    assert cells["> random"].tolist()[-1] == "-"
    shown = [interval_text(r.faithfulness.cpr, *r.interval("cpr"), "{:.3f}") for r in found.results]
    assert cells["CPR"].tolist() == shown
    facts = " ".join(comparison_facts(found).values())
    for words in ("3 seen", "2 others", "resample", f"{DRAWS} random"):
        assert words in facts
    assert truth_lines(found) == []


def test_a_trace_is_laid_against_every_circuit(found):
    assert found.projection is not None
    assert found.projection["circuit"].unique().tolist() == ["eap", "ifr", "random"]
    assert found.projection.query("size == 1")["recall"].tolist() == [1.0] * 6


@pytest.mark.extended
def test_another_seed_draws_other_rankings(found):
    other = compare(cases.model_of("gpt2"), seen(), ["random"], evaluation=others(), seed=2)
    assert not torch.equal(other.results[0].scores.values, found.results[2].scores.values)
    assert other.random_cmd[0] == pytest.approx(found.random_cmd[2])


@pytest.mark.extended
def test_signed_scores_rank_effects_and_leave_rankings(found):
    model = cases.model_of("gpt2")
    again = compare(model, seen(), ["eap"], evaluation=others(), ranking="signed", sample=1)
    scores = discover(model, seen(), "eap")
    assert again.results[0].faithfulness == faithfulness(model, others(), scores, ranking="signed")
    assert torch.equal(
        again.results[0].circuit.keep,
        scores.top(len(again.results[0].circuit), absolute=False).keep,
    )
    assert again.results[1].faithfulness.values == found.results[2].faithfulness.values


@pytest.mark.extended
def test_a_large_graph_has_options_of_its_own_and_one_random_ranking(monkeypatch):
    monkeypatch.setattr(sys.modules["strace_lens.comparison.compare"], "SMALL_GRAPH", 10)
    given = {"acdc": {"tau": 0.5}, "eap-ig": {"steps": 1}}
    made = compare(cases.model_of("gpt2"), seen(), ["acdc"], options=given, sample=1)
    screen = METHODS["acdc"].large_options["screen"]
    assert made.metadata["options"] == {"acdc": {"screen": screen, "tau": 0.5}}
    by_hand = discover(cases.model_of("gpt2"), seen(), "acdc", screen=screen, tau=0.5)
    assert torch.equal(made.results[0].scores.values, by_hand.values)
    assert len(made.random_cmd) == 1


# ------------------------------------------------------------------ models whose circuit is known


@pytest.fixture(scope="module")
def linear() -> GroundTruth:
    return ground_truth("linear", pairs=8)


@pytest.fixture(scope="module")
def of_linear(linear) -> Comparison:
    first, second = split(linear.task)
    names = ["edge-patching", "eap", "eap-ig", "acdc"]
    return compare(linear.model, first, names, evaluation=second, ground_truth=linear, sample=2)


@pytest.mark.extended
def test_the_truth_is_held_against_every_ranking(linear, of_linear):
    truth = linear.truth("resample")
    assert of_linear.truth is truth
    assert of_linear.truth_name == linear.ablation_truth["resample"]
    assert len(of_linear.random_auroc) == len(of_linear.random_cmd) == DRAWS
    for result in of_linear.results:
        assert result.auroc == auroc(result.scores, truth)
        assert result.missed == missed_edges(result.scores, truth)
        assert result.precision == pytest.approx(1 - len(result.missed) / len(truth))
    assert of_linear.random_auroc[0] == of_linear.results[-1].auroc
    rows = [row["auroc"] for row in summarize_comparison(of_linear)["methods"]]
    assert rows == of_linear.table["auroc"].tolist()


def test_a_gradient_is_exact_on_the_linear_model(linear, of_linear):
    patched, eap, integrated, *_ = of_linear.results
    exact = exact_effects(linear_weights(), split(linear.task)[0]).mean(0).float()
    torch.testing.assert_close(patched.scores.values, exact, rtol=0, atol=2e-5)
    largest = float(patched.scores.values.abs().max())
    for result in (eap, integrated):
        gap = float((result.scores.values - patched.scores.values).abs().max())
        assert gap < 1e-4 * largest


def test_the_truth_is_printed_with_the_edges_missed(of_linear):
    cells, lines = comparison_cells(of_linear), truth_lines(of_linear)
    assert cells["AUROC"].tolist() == [f"{x:.3f}" for x in of_linear.table["auroc"]]
    assert f"{len(of_linear.truth)} edges" in comparison_facts(of_linear)["true circuit"]
    for result, line in zip(of_linear.results, lines, strict=True):
        said = f"misses {len(result.missed)} true" if result.missed else "misses no true edge"
        assert line.startswith(f"{result.method} {said}")


def test_the_truth_is_among_the_circuits_of_the_projection(of_linear):
    assert of_linear.projection is not None
    assert of_linear.projection["circuit"].unique()[0] == "truth"


@pytest.mark.extended
@pytest.mark.parametrize("ablation", ["resample", "zero"])
def test_a_compiled_program_is_held_against_the_truth_of_its_ablation(ablation):
    pytest.importorskip("tracr")
    subject = ground_truth("tracr-count", pairs=8)
    first, second = split(subject.task)
    names = ["edge-patching", "eap", "ifr", "random"]
    made = compare(
        subject.model,
        first,
        names,
        evaluation=second,
        ground_truth=subject,
        ablation=ablation,
        sample=4,
    )
    assert made.truth is subject.truths[ablation]
    assert made.projection is None  # it reads in both directions
    assert made.accuracy is None
    by_name = {result.method: result for result in made.results}
    assert list(by_name) == names
    patched = by_name["edge-patching"]
    assert patched.missed == ()
    assert made.beats_random(patched)  # the truth, which few random rankings are
    for result in made.results:
        warned = any(w.startswith(f"method {result.method} does not") for w in made.warnings)
        assert warned == (made.beats_random(result) is False)


# ------------------------------------------------------------------ pairs, and what will not do


def test_pairs_are_divided_where_there_are_enough():
    task = tiny_task(5)
    first, second = split(task)
    assert second is not None
    assert torch.equal(torch.cat([first.clean, second.clean]), task.clean)
    assert (len(first), len(second)) == (3, 2)
    few = tiny_task(3)
    assert split(few) == (few, None)


def test_random_is_always_among_the_methods():
    assert check_methods(["random", "eap"]) == ["random", "eap"]
    assert check_methods(["eap", "acdc", "eap"]) == ["eap", "acdc", "random"]
    assert check_methods(METHODS) == list(METHODS)


@pytest.mark.extended
@pytest.mark.parametrize(
    ("methods", "options", "words"),
    [
        (["eap", "best"], {}, r"unknown method 'best'; choose from edge-patching, .*, or all"),
        ([], {}, "no method to compare"),
        (["eap"], {"options": {"best": {}}}, "unknown method 'best'"),
        (["eap-ig"], {"options": {"eap-ig": {"stops": 3}}}, "eap-ig has no option 'stops'"),
        (["eap"], {"ablation": "half"}, "unknown ablation 'half'"),
        (["eap"], {"metric": "charm"}, "unknown metric 'charm'"),
        (["eap"], {"sample": 0}, "sample must be at least 1"),
        (["eap"], {"ranking": "sign"}, "unknown ranking 'sign'; choose from mib, signed, absolute"),
    ],
)
def test_what_a_caller_can_mend_is_a_clear_error(methods, options, words):
    with pytest.raises(ValueError, match=words):
        compare(cases.model_of("gpt2"), seen(), methods, **options)


def test_a_task_without_a_difference_is_refused():
    task = dataclasses.replace(seen(), corrupted=seen().clean)
    with pytest.raises(ValueError, match="faithfulness needs the two to differ"):
        compare(cases.model_of("gpt2"), task, ["eap"])
