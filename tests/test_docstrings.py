"""The examples in the docstrings of the public verbs run, and print what they say."""

from __future__ import annotations

import doctest
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import strace_lens as sl

VERBS = [name for name in sl.__all__ if inspect.isfunction(getattr(sl, name))]
WRITTEN_BY = {"sweep": "runs/first", "save": "trace.safetensors"}
"""Folders that examples read, by the verb whose example writes them."""
pytestmark = [pytest.mark.extended, pytest.mark.every_case]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What the examples take for granted: a model, what a prompt comes to, a task; a folder."""
    model = sl.load_model()
    graph = sl.token_graph(model, "The capital of France is")
    trace = sl.extract(graph)
    curve = sl.density_curve(model, trace)
    task = sl.make_task(model, "ioi", pairs=2)
    folder = tmp_path_factory.mktemp("examples")
    pair = {"clean": "In France they eat", "corrupted": "In Japan they eat"}
    pair |= {"answers": [" bread"], "wrong_answers": [" rice"]}
    (folder / "pairs.jsonl").write_text(json.dumps(pair))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield {
            "sl": sl,
            "Path": Path,
            "model": model,
            "graph": graph,
            "trace": trace,
            "curve": curve,
            "task": task,
        }


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_the_example_of_a_verb_runs(verb: str, names: dict[str, Any]) -> None:
    # Some read the folder that the example of another writes, which may run in another worker.
    for needed, folder in WRITTEN_BY.items():
        if verb != needed and folder in source(verb) and not Path(folder).exists():
            run_example(needed, names)
    run_example(verb, names)


def source(verb: str) -> str:
    """The docstring of a verb."""
    return inspect.getdoc(getattr(sl, verb)) or ""


def run_example(verb: str, names: dict[str, Any]) -> None:
    """Run the example of a verb and compare what it prints."""
    examples = doctest.DocTestParser().get_examples(source(verb))
    assert examples, f"{verb} has no example"
    for example in examples:
        try:
            value = repr(eval(example.source, names))
        except SyntaxError:  # a statement
            exec(example.source, names)
            value = ""
        if example.want:
            assert value == example.want.rstrip("\n"), example.source
