"""The committed notebooks: run from top to bottom, a still image beside each figure, in order.

That they run is `make notebooks`.
"""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

PATHS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("*.ipynb"))
PLOTLY, STILL = "application/vnd.plotly.v1+json", "image/png"


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def notebook(request) -> nbformat.NotebookNode:
    found = nbformat.read(request.param, as_version=4)
    nbformat.validate(found)
    return found


def outputs(notebook) -> list:
    return [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]


def test_there_are_five_in_order() -> None:
    assert [path.stem for path in PATHS] == [
        "01_which_heads",
        "02_what_is_ablated",
        "03_compare_circuit_discovery",
        "04_your_own_model",
        "05_compare_two_runs",
    ]


def test_every_cell_ran_in_order_without_an_error(notebook) -> None:
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert all(output.output_type != "error" for output in outputs(notebook))


def test_a_still_image_stands_beside_each_figure(notebook) -> None:
    figures = [o.data for o in outputs(notebook) if PLOTLY in o.get("data", {})]
    assert figures
    assert all(STILL in data for data in figures)


def test_it_starts_with_a_question_and_ends_with_an_answer(notebook) -> None:
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    title = texts[0].splitlines()[0]
    assert title.startswith("# ")
    assert title.endswith("?")
    (answer,) = [place for place, text in enumerate(texts) if text.startswith("**Answer.**")]
    assert answer == len(texts) - 1
    # The figure that answers stands before the answer.
    last = [cell for cell in notebook.cells if cell.cell_type == "code"][-1]
    assert any(PLOTLY in output.get("data", {}) for output in last.outputs)


def test_nothing_of_the_machine_or_the_run_is_left(notebook) -> None:
    text = nbformat.writes(notebook)
    assert "/work/" not in text
    assert "site-packages" not in text
    assert "widget-view" not in text
    assert set(notebook.metadata) == {"kernelspec"}
    assert len(text) < 1.5e6
