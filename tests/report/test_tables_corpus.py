"""The short tables of sweeps say what the analyses found."""

from __future__ import annotations

import pytest

from strace_lens.corpus.analyses.all import ANALYSES, analyse
from strace_lens.corpus.analyses.claims import claims
from strace_lens.report.tables_corpus import corpus_sections
from tests.corpus.synthetic import synthetic_run

TEXTS = [f"prompt {p} of both" for p in range(8)]
ONE = synthetic_run(prompts=8, texts=TEXTS)
TWO = synthetic_run(prompts=8, texts=TEXTS, seed=1, name="second")


@pytest.fixture(scope="module")
def tables():
    return analyse([ONE, TWO])


@pytest.mark.extended
def test_every_analysis_is_there_with_the_name_of_its_run(tables) -> None:
    assert set(tables) == {
        *ANALYSES,
        "claims",
        "between_runs",
        "shared_curves",
        "shared_boundaries",
    }
    for name in ANALYSES:
        frame = tables[name]
        assert frame.columns[0] == "run"
        if len(frame):
            assert frame["run"].unique().tolist() == ["made-up", "second"]
    assert set(analyse([ONE])) == {*ANALYSES, "claims"}
    assert tables["claims"].equals(claims([ONE, TWO]))


@pytest.mark.extended
def test_a_seed_gives_the_same_tables(tables) -> None:
    again = analyse([ONE, TWO])
    assert all(again[name].equals(frame) for name, frame in tables.items())


def test_runs_of_one_name_and_no_runs_are_refused() -> None:
    with pytest.raises(ValueError, match="made-up"):
        analyse([ONE, ONE])
    with pytest.raises(ValueError, match="no runs to analyse"):
        analyse([])


def test_cells_hold_values_with_their_intervals(tables) -> None:
    sections = corpus_sections([ONE, TWO], tables)
    runs = sections["Runs, and 95 % bootstrap intervals over prompts"].set_index("run")
    assert runs.loc["made-up", "density"].startswith(f"{ONE.prompts['density'].mean():.3g} [")
    assert runs.loc["second", "prompts"] == 8
    boundaries = sections["Phase boundaries of the mean curve"]
    truth = tables["corpus_boundaries"].query(
        "run == 'second' and quantity == 'construction_start'"
    )
    cell = boundaries.query("run == 'second' and quantity == 'construction start'")["value"].item()
    assert cell.startswith(f"{truth['value'].item():.3g}")
    needed = sections["Smallest relative size that is enough: median and quartiles over prompts"]
    for rule in ("stable", "first"):
        chosen = f"run == 'made-up' and rule == '{rule}'"
        truth = tables["size_needed"].query(f"{chosen} and what == 'top1'")
        cell = needed.query(f"{chosen} and `for` == 'top1'")["size"].item()
        assert cell == (
            f"{truth['median'].item():.3g} [{truth['q1'].item():.3g}, {truth['q3'].item():.3g}]"
        )
    between = sections["Density between runs, prompts that both have"]
    truth = tables["between_runs"].query("a == 'made-up' and b == 'second'")
    assert between["rho"].item().startswith(f"{truth['rho'].item():.2f} [")


def test_one_prompt_has_no_brackets() -> None:
    alone = synthetic_run(prompts=1)
    sections = corpus_sections([alone], analyse([alone]))
    (density,) = sections["Runs, and 95 % bootstrap intervals over prompts"]["density"]
    assert density == f"{alone.prompts['density'][0]:.3g}"
    assert "Density by label" not in sections
