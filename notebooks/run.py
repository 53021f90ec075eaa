"""Run the notebooks and write their outputs anew: `python notebooks/run.py [NAME ...]`.

Every figure is kept twice in its output, for plotly and as a PNG, so that a notebook reads well
where nothing runs. What differs between two runs (times, bars, widgets) is left out.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from strace_lens.utils.disk import write_whole

FOLDER = Path(__file__).parent
SECONDS = 180
"""Of one notebook: what a reader is asked to wait."""


def run(path: Path) -> nbformat.NotebookNode:
    """A notebook as it comes out of a new kernel, in a folder of its own.

    Raises:
        CellExecutionError: a cell failed.
        CellTimeoutError: a cell took too long.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=SECONDS,
            kernel_name="python3",
            record_timing=False,
            resources={"metadata": {"path": folder}},
        )
        client.execute()
    return without_traces_of_the_run(notebook)


def without_traces_of_the_run(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Drop progress bars, warnings on standard error, widgets and the kernel's version."""
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if not _is_noise(out)]
    return notebook


def _is_noise(output: nbformat.NotebookNode) -> bool:
    widget = "application/vnd.jupyter.widget-view+json" in output.get("data", {})
    return widget or (output.output_type == "stream" and output.name == "stderr")


def main(names: list[str]) -> None:
    """Run the named notebooks, or all of them, and write each whole."""
    # Read when plotly and the hub's client are imported, in the kernel.
    os.environ["PLOTLY_RENDERER"] = "plotly_mimetype+png"
    os.environ["HF_HUB_OFFLINE"] = "1"
    for path in sorted(FOLDER.glob("*.ipynb")):
        if names and path.stem not in names:
            continue
        text = nbformat.writes(run(path))
        write_whole(path, f"{text}\n".encode())
        print(f"{path.name}: {len(text) / 1e6:.2f} MB")


if __name__ == "__main__":
    main(sys.argv[1:])
