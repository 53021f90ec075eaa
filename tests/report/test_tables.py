"""What a terminal shows is what was named: square brackets and colons are no markup."""

from __future__ import annotations

import dataclasses
import io

import pandas as pd
import pytest
from rich.console import Console

from strace_lens.cli import common
from strace_lens.density.phases import find_phases
from strace_lens.report.tables import frame_table, print_comparison, print_curve, wide_console
from tests.plot import made, made_comparison

NAMES = ("[/inst]", "[red]", "[bold]x", "[link=x]", ":smile:", "x\\[y", "[1, 2]")


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_shown_as_it_is_in_every_place_of_a_table(name: str, capsys) -> None:
    wide_console().print(frame_table(name, pd.DataFrame({name: [f"a{name}"], "other": [name]})))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    shown = [line for line in lines if line and "─" not in line]
    assert shown == [name, f"{name} other", f"a{name} {name}"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_shown_as_it_is_in_every_line_of_a_comparison(name: str, capsys) -> None:
    print_comparison(made_comparison.renamed(made_comparison.comparison(), name))
    shown = capsys.readouterr().out
    assert f"{name} on {name}\n" in shown  # model and task
    assert f"warning: {name}\n" in shown
    assert f"measured {name}\n" in shown
    assert f"edges, by {name}\n" in shown  # the truth
    assert sum(line.split()[:1] == name.split()[:1] for line in shown.splitlines()) >= 2


def test_a_model_is_shown_by_its_name_above_a_curve(capsys) -> None:
    whole = made.curve()
    trace = dataclasses.replace(whole.trace, metadata={**whole.trace.metadata, "model": "[/inst]"})
    curve = dataclasses.replace(whole, trace=trace)
    print_curve(curve, find_phases(curve), pd.DataFrame())
    assert capsys.readouterr().out.startswith("[/inst]: ")


@pytest.mark.parametrize("name", NAMES)
def test_a_bar_says_what_is_loaded_by_its_name(name: str, monkeypatch) -> None:
    shown = io.StringIO()

    def terminal(**options: object) -> Console:
        return Console(file=shown, force_terminal=True, width=200, color_system=None)

    monkeypatch.setattr(common, "Console", terminal)
    with common.Bar() as bar:
        bar.step(f"loading {name}")
        bar.refresh()
        bar.tell(1, 4, f"reading {name}")
        bar.refresh()
    assert f"loading {name} " in shown.getvalue()
    assert f"reading {name} " in shown.getvalue()
    assert (bar.tasks[-1].completed, bar.tasks[-1].total) == (1, 4)
