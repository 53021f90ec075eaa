"""Density, shallow statistics and growth: what is drawn is what the tables hold."""

from __future__ import annotations

import numpy as np
import pytest

from strace_lens.plot.corpus.density import (
    AGAINST,
    TARGETS,
    plot_between_runs,
    plot_density_against,
    plot_density_by_label,
    plot_density_of_prompts,
    plot_growth,
    plot_nearest,
    plot_shallow,
)
from tests.plot import made
from tests.plot.corpus.made_runs import NAMES, bands, on, one, prompts, table
from tests.plot.corpus.made_runs import rows as rows_of


def test_every_prompt_with_a_value_is_a_dot_of_its_label() -> None:
    frame = prompts()
    fig = plot_density_against(frame, table("density_correlations"))
    for run, name in enumerate(NAMES):
        for col, what in enumerate(AGAINST):
            own = rows_of(frame, run=name).dropna(subset=what)
            drawn = {
                (x, y, item.name)
                for item in on(fig, 3 * run + col)
                for x, y in zip(item.x, item.y, strict=True)
            }
            assert drawn == set(own[[what, "density", "label"]].itertuples(index=False, name=None))


def test_titles_tell_rho_its_interval_and_the_prompts() -> None:
    correlations = table("density_correlations")
    heads = made.texts(plot_density_against(prompts(), correlations))
    plain = correlations.query("given == ''")
    for head, row in zip(heads, plain.to_dict("records"), strict=True):
        assert f"ρ = {row['rho']:.2f} [{row['low']:.2f}, {row['high']:.2f}]" in head
        assert f"n = {row['prompts']}" in head


def test_too_few_prompts_are_said_instead_of_a_rho() -> None:
    fig = plot_density_against(prompts(1, 1), table("density_correlations", 1, 1))
    assert all("too few" in head for head in made.texts(fig))


def test_many_labels_or_one_are_left_uncoloured() -> None:
    frame = prompts()
    for labels in ([str(i) for i in range(len(frame))], ""):
        fig = plot_density_against(frame.assign(label=labels), table("density_correlations"))
        assert len({item.marker.color for item in fig.data}) == frame["run"].nunique()
        assert fig.layout.showlegend is False


def test_labels_of_prompts_are_no_markup() -> None:
    hostile = prompts().assign(label="<script>")
    fig = plot_density_against(hostile, table("density_correlations"))
    assert not any("<script>" in text for text in made.hovers(fig))


def test_density_by_label_is_the_tables_least_first() -> None:
    labels = table("density_by_label").query("label == 'kind'")
    fig = plot_density_by_label(labels)
    for run, name in enumerate(NAMES):
        rows = rows_of(labels, run=name).sort_values("mean")
        (dots,) = on(fig, run)
        assert list(dots.x) == rows["mean"].tolist()
        assert list(dots.y) == rows["value"].tolist()
        assert np.add(dots.x, dots.error_x.array) == pytest.approx(rows["high"].to_numpy())
        assert f"p = {rows['p'].iloc[0]:.2g}" in made.texts(fig)[run]


def test_cells_between_runs_hold_rho_and_its_interval() -> None:
    between = table("between_runs")
    fig = plot_between_runs(between)
    (heat,) = fig.data
    rho = between.set_index(["a", "b"])["rho"]
    z = np.array(heat.z, dtype=float)
    assert z[0, 1] == pytest.approx(rho[NAMES[0], NAMES[1]])
    assert z[1, 1] == pytest.approx(1)
    row = between.iloc[1]
    assert heat.text[0][1] == f"{row['rho']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
    assert f"{row['mean_difference']:.3g}" in heat.hovertext[0][1]
    assert "se<b>cond" not in heat.hovertext[0][1]
    assert plot_between_runs(between.head(0)).data == ()


def test_prompts_stand_by_their_mean_density_each_over_itself() -> None:
    frame = prompts()
    fig = plot_density_of_prompts(frame.query("not (run == 'first' and prompt == 0)"))
    z = np.array(fig.data[0].z, dtype=float)
    means = np.nanmean(z, axis=0)
    assert (np.diff(means) >= 0).all()
    order = [int(text.split("prompt ")[1].split("<")[0]) for text in fig.data[0].text[0]]
    own = rows_of(frame, run=NAMES[1]).set_index("prompt")["density"]
    assert z[1] == pytest.approx(own[order].to_numpy())
    assert np.isnan(z[0]).sum() == 1
    assert not bands(fig)
    assert plot_density_of_prompts(frame.head(0)).data == ()


@pytest.mark.parametrize("target", list(TARGETS))
def test_tv_to_each_target_is_the_tables(target: str) -> None:
    shallow = table("shallow")
    fig = plot_shallow(shallow, table("shallow_full_model"))
    for run, name in enumerate(NAMES):
        rows = rows_of(shallow, run=name, target=target)
        line = one(fig, run, f"to {TARGETS[target][0]}")
        assert list(line.x) == rows["size"].tolist()
        assert list(line.y) == rows["tv"].tolist()
        assert f"{rows['prompts'].iloc[0]} prompts" in line.hovertext[0]


@pytest.mark.parametrize("target", ["unigram", "no_context"])
def test_the_full_models_own_distance_is_dotted_in_each_panel(target: str) -> None:
    full = table("shallow_full_model")
    fig = plot_shallow(table("shallow"), full)
    for run, name in enumerate(NAMES):
        line = one(fig, run, f"full model to {TARGETS[target][0]}")
        expected = rows_of(full, run=name, target=target)["tv"].item()
        assert list(line.y) == [expected, expected]
        assert line.line.dash == "dot"
        assert line.line.color == one(fig, run, f"to {TARGETS[target][0]}").line.color


def test_a_target_that_was_not_measured_is_not_drawn() -> None:
    shallow = table("shallow").query("target != 'unigram'")
    full = table("shallow_full_model").query("target != 'unigram'")
    drawn = {item.name for item in plot_shallow(shallow, full).data}
    assert not any(name and "unigram" in name for name in drawn)
    assert f"to {TARGETS['full'][0]}" in drawn


def test_shares_of_near_prompts_are_the_tables() -> None:
    nearest = table("nearest")
    fig = plot_nearest(nearest)
    for run, name in enumerate(NAMES):
        for col, column in enumerate(("nearer", "nearest")):
            drawn = {item.name: list(item.y) for item in on(fig, 2 * run + col)}
            for target, (called, *_) in TARGETS.items():
                if target == "full" and column == "nearer":
                    assert f"to {called}" not in drawn
                    continue
                rows = rows_of(nearest, run=name, target=target)
                assert drawn[f"to {called}"] == rows[column].tolist()


def test_growth_is_a_line_a_text_and_their_mean() -> None:
    growth, lines = table("growth"), table("growth_lines")
    fig = plot_growth(growth, lines)
    assert list(one(fig, 0, "mean").y) == growth["density"].tolist()
    texts = [item for item in on(fig, 0) if item.name == "one text"]
    for text, (_, own) in zip(texts, lines.groupby("of"), strict=True):
        assert list(text.x) == own["step"].tolist()
        assert list(text.y) == own["density"].tolist()
    assert "nothing more" in texts[0].hovertext[0]  # prompt 0 has no next token
    assert '" next"' in texts[1].hovertext[0]
