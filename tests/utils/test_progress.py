"""When a bar is shown and what it counts, and which line a warning names."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import sys
import types
import warnings
from collections.abc import Iterator

import pytest

import strace_lens as sl
from strace_lens.utils import progress
from tests import cases, tiny
from tests.circuits.made import tiny_task


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class ZMQInteractiveShell:
    """Named as the shell of a notebook's kernel."""


@pytest.fixture(autouse=True)
def at_once(monkeypatch) -> None:
    monkeypatch.setattr(progress, "DELAY", 0)
    monkeypatch.setattr(progress, "EVERY", 0)


@contextlib.contextmanager
def terminal() -> Iterator[Terminal]:
    """A terminal in place of standard error, within the test: pytest takes it back before."""
    stream = Terminal()
    with contextlib.redirect_stderr(stream):
        yield stream


def curve(**options) -> sl.DensityCurve:
    model = tiny.bridge("llama")
    trace = sl.extract(sl.token_graph(model, tiny.PROMPT))
    return sl.density_curve(model, trace, sizes=(0.1, 1.0), **options)


def test_a_pipe_sees_nothing(capsys) -> None:
    curve()
    assert capsys.readouterr() == ("", "")


def test_a_terminal_sees_the_work_and_the_bar_is_gone_afterwards() -> None:
    with terminal() as stream:
        curve()
    shown = stream.getvalue()
    assert "running masks" in shown
    assert shown.endswith("\r")
    assert shown.rstrip("\r").split("\r")[-1].strip() == ""


def test_a_caller_who_asks_to_be_told_sees_no_bar() -> None:
    told: list[tuple[int, int, str]] = []
    with terminal() as stream:
        curve(progress=lambda *said: told.append(said))
    done, total, what = told[-1]
    assert 0 < done <= total
    assert what == "running masks"
    assert stream.getvalue() == ""


def test_a_notebook_is_watched_though_its_stream_is_no_terminal(monkeypatch) -> None:
    assert not progress.is_watched()
    notebook = types.SimpleNamespace(get_ipython=ZMQInteractiveShell)
    monkeypatch.setitem(sys.modules, "IPython", notebook)
    assert progress.is_watched()


def test_the_bars_count_to_their_totals() -> None:
    with terminal() as stream:
        with progress.reporting(None, "copying", 3) as advance:
            advance(1, "reading")
            advance(2, "writing")
        with progress.reporting(None, "prompts", 5) as advance:
            advance(2)
            advance(3)
    shown = stream.getvalue()
    assert "writing: 100%" in shown
    assert "3/3" in shown
    assert "prompts:  40%" in shown
    assert "5/5" in shown


def test_each_long_verb_shows_a_bar_that_ends_full(tmp_path) -> None:
    model = tiny.bridge("llama")
    graph = sl.token_graph(model, tiny.PROMPT)
    prompts, options = [sl.CorpusPrompt(tiny.PROMPT)], sl.Options(sizes=(0.1, 1.0), hidden=False)
    with terminal() as stream:
        sl.learn(model, graph, start=sl.extract(graph), steps=2)
        sl.sweep(model, prompts, tmp_path / "run", options)
    shown = stream.getvalue()
    assert "learning" in shown
    assert "2/2" in shown
    assert "prompts" in shown
    assert "1/1" in shown
    assert "greedy" not in shown  # what a sweep calls shows no bar below its own


def test_a_warning_points_at_the_first_caller_outside_of_the_package() -> None:
    task = tiny_task(3, 5)
    corrupted = task.corrupted.clone()
    corrupted[0] = task.clean[0]
    scope = {"__name__": "of_a_user", "sl": sl, "model": cases.model_of("gpt2")}
    scope["task"] = dataclasses.replace(task, corrupted=corrupted)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(compile("sl.discover(model, task, 'eap')", "of_a_user.py", "exec"), scope)
    assert [w.category for w in caught] == [progress.StraceLensWarning]
    assert not caught[0].filename.startswith(str(sl.__path__[0]))
