"""The figure of the density curve against the table it draws."""

from __future__ import annotations

import pytest

from strace_lens.density.change_points import Phase
from strace_lens.density.phases import Phases, find_phases
from strace_lens.plot.density import plot_density
from tests.plot import made

CURVE = {
    "trace": "tv",
    "random subgraph": "random_tv",
    "inverse of the trace": "inverse_tv",
    "inverse of the random subgraph": "random_inverse_tv",
    "head error": "head_error",
    "tail error": "tail_error",
}


CONTROLS = ("random subgraph", "inverse of the trace", "inverse of the random subgraph")


@pytest.mark.parametrize("name", CURVE)
def test_every_line_is_its_column_over_the_sizes(name: str) -> None:
    table = made.curve().table
    if name in CONTROLS:
        assert table["refined"].any()
        table = table[~table["refined"]]  # a control has no value there: its line goes on
    line = made.named(plot_density(made.curve(), find_phases(made.curve())), name)
    assert list(line.x) == table["size"].tolist()
    assert list(line.y) == table[CURVE[name]].tolist()


def test_sizes_are_on_a_log_axis() -> None:
    assert plot_density(made.curve(), made.NO_PHASES).layout.xaxis.type == "log"


def test_head_and_tail_error_are_stacked_up_to_the_curve() -> None:
    fig = plot_density(made.curve(), made.NO_PHASES)
    assert made.named(fig, "head error").stackgroup == made.named(fig, "tail error").stackgroup


def test_markers_say_where_the_top_token_agrees() -> None:
    table = made.curve().table
    fig = plot_density(made.curve(), made.NO_PHASES)
    same, other = made.named(fig, "same top-1 token"), made.named(fig, "another top-1 token")
    assert list(same.x) == table[table["top1"]]["size"].tolist()
    assert list(other.x) == table[~table["top1"]]["size"].tolist()
    assert same.x[-1] == 1.0
    assert same.marker.color != other.marker.color


def test_hover_text_has_the_exact_numbers_and_token() -> None:
    curve = made.curve()
    row = curve.table.iloc[3]
    text = made.named(plot_density(curve, made.NO_PHASES), "trace").hovertext[3]
    for part in (f"s = {row['size']:.10g}", f"{row['edges']} edges", f"KL {row['kl']:.4g}"):
        assert part in text
    token, probability = curve.tops[3][0]
    assert f'"{token}", p = {probability:.3g}' in text


def test_phases_are_labelled_bands_at_their_sizes() -> None:
    along = (
        Phase("plateau", 1e-3, 0.1, 1.0, 0.9),
        Phase("construction", 0.1, 0.4, 0.9, 0.2),
        Phase("refinement", 0.4, 1.0, 0.2, 0.0),
    )
    fig = plot_density(made.curve(), Phases(along, None, None))
    bands = [(shape.x0, shape.x1) for shape in fig.layout.shapes]
    assert bands == [(p.start, p.stop) for p in along]
    assert made.texts(fig) == [f"<b>{p.name}</b>" for p in along]
    at = {a.text: a.x for a in fig.layout.annotations}  # annotations take log10 of the size
    assert at["<b>construction</b>"] == pytest.approx((-1 + -0.3979400) / 2)


def test_the_axis_begins_a_decade_before_construction() -> None:
    along = (
        Phase("plateau", 1e-3, 0.1, 1.0, 0.9),
        Phase("construction", 0.1, 0.4, 0.9, 0.2, (0.03, 0.1), (0.2, 0.4)),
    )
    cropped = plot_density(made.curve(), Phases(along, None, None))
    start, stop = cropped.layout.xaxis.range
    assert start == pytest.approx(-2, abs=0.05)
    assert stop == pytest.approx(0, abs=0.1)
    marks = dict(zip(cropped.layout.xaxis.ticktext, cropped.layout.xaxis.tickvals, strict=True))
    assert all(float(text) == value for text, value in marks.items())
    assert {"0.01", "0.02", "0.05", "1"} <= set(marks)
    plateau = next(a for a in cropped.layout.annotations if "plateau" in a.text)
    assert plateau.x == pytest.approx(-2)  # in sight, though the phase begins further left
    whole = plot_density(made.curve(), made.NO_PHASES)
    assert whole.layout.xaxis.range[0] < -3


def test_brackets_span_the_sizes_between_which_construction_starts_and_ends() -> None:
    phase = Phase("construction", 0.05, 0.3, 0.9, 0.2, (0.03, 0.1), (0.2, 0.4))
    bracket = made.named(
        plot_density(made.curve(), Phases((phase,), None, None)), "a boundary lies between"
    )
    assert list(bracket.x) == [0.03, 0.1, None, 0.2, 0.4, None]
    assert list(bracket.y) == [0.9, 0.9, None, 0.2, 0.2, None]


def test_a_curve_without_controls_or_phases_says_so() -> None:
    fig = plot_density(made.bare(1), made.NO_PHASES)
    names = {item.name for item in fig.data}
    assert "random subgraph" not in names
    assert "inverse of the trace" not in names
    assert made.texts(fig) == ["no phases along the sizes were found"]


def test_tokens_in_hover_texts_are_escaped() -> None:
    fig = plot_density(made.with_token("<script>"), made.NO_PHASES)
    assert not any("<script>" in text for text in made.hovers(fig))
    assert any("&lt;script&gt;" in text for text in made.hovers(fig))
