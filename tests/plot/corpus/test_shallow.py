"""Shallow statistics, hidden states and growth: what is drawn is what the tables hold."""

from __future__ import annotations

import numpy as np
import pytest

from strace_lens.plot.corpus.geometry import plot_geometry, plot_path
from strace_lens.plot.corpus.growth import plot_growth
from strace_lens.plot.corpus.shallow import TARGETS, plot_nearest, plot_shallow
from tests.plot.corpus.made_runs import NAMES, on, one, table
from tests.plot.corpus.made_runs import rows as rows_of


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


@pytest.mark.parametrize("run", [0, 1])
def test_cosine_and_cka_are_the_tables_by_layer_and_size(run: int) -> None:
    geometry = table("geometry_by_layer")
    fig = plot_geometry(geometry)
    rows = rows_of(geometry, run=NAMES[run])
    for col, column in enumerate(("cosine", "cka")):
        (heat,) = on(fig, 2 * run + col)
        wide = rows.pivot(index="layer", columns="size", values=column)
        assert np.array(heat.z, dtype=float) == pytest.approx(wide.to_numpy(), nan_ok=True)
        assert list(heat.y) == wide.index.tolist()
        assert len(heat.x) == wide.shape[1] + 1


def test_a_cosine_below_zero_is_said_at_the_scale() -> None:
    geometry = table("geometry_by_layer")
    ticks = [
        plot_geometry(frame).layout.coloraxis.colorbar.ticktext[0]
        for frame in (geometry, geometry.assign(cosine=-0.1))
    ]
    assert ticks == ["0", "≤ 0"]


@pytest.mark.parametrize("column", ["velocity", "curvature"])
def test_the_path_is_the_tables_beside_the_full_models(column: str) -> None:
    geometry = table("geometry_by_layer")
    fig = plot_path(geometry)
    panel = 2 + ["velocity", "curvature"].index(column)
    for size in (0.001, 0.4):
        rows = rows_of(geometry, run=NAMES[1], size=size)
        line = one(fig, panel, f"s = {size:g}")
        assert list(line.x) == rows["layer"].tolist()
        assert list(line.y) == pytest.approx(rows[column].tolist(), nan_ok=True)
    full = rows_of(geometry, run=NAMES[1]).drop_duplicates("layer")[f"full_{column}"]
    drawn = one(fig, panel, "full model").y
    assert list(drawn) == pytest.approx(full.tolist(), nan_ok=True)


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
