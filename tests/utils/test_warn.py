"""A warning names the line of the user, not one of ours."""

from __future__ import annotations

import dataclasses
import warnings

import strace_lens as sl
from tests import cases
from tests.component_graph.made import tiny_task


def test_a_warning_points_at_the_first_caller_outside_of_the_package() -> None:
    task = tiny_task(3, 5)
    corrupted = task.corrupted.clone()
    corrupted[0] = task.clean[0]
    scope = {"__name__": "of_a_user", "sl": sl, "model": cases.model_of("gpt2")}
    scope["task"] = dataclasses.replace(task, corrupted=corrupted)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        exec(compile("sl.discover(model, task, 'eap')", "of_a_user.py", "exec"), scope)
    assert [w.category for w in told] == [UserWarning]
    assert not told[0].filename.startswith(str(sl.__path__[0]))
