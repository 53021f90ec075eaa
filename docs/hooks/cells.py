"""How examples show their results: `from cells import figure, run, table`."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from typer.testing import CliRunner

from strace_lens.report.page import figure_html, table_html

COLUMNS = "100"
"""The width of the terminal that the pages show, in characters."""

DOCS = Path(__file__).parents[1]
"""The folder of the pages and their tables; examples run in another."""


def run(command: str, *, lines: int | None = None) -> str:
    """Return what a shell shows of a `strace-lens` command.

    The command runs in this process, so that models are loaded once.

    Args:
        command: As typed, possibly over several lines.
        lines: The most lines of output to show; the number of the others is given.

    Raises:
        RuntimeError: If the command fails.
    """
    from strace_lens.cli import app  # after the hook that lets pages share models

    name, *arguments = shlex.split(command.replace("\\\n", " "))
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = COLUMNS
    try:
        result = CliRunner().invoke(app, arguments, prog_name=name)
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
    if result.exit_code != 0:
        raise RuntimeError(
            f"{command} ended with status {result.exit_code}: {result.output}"
        ) from result.exception
    shown = [line.rstrip() for line in result.stdout.strip("\n").splitlines()]
    if lines is not None and len(shown) > lines:
        shown = [*shown[:lines], f"... and {len(shown) - lines} more lines"]
    return "\n".join([f"$ {command}", *shown])


def table(frame: pd.DataFrame, rows: int = 12) -> str:
    """Return the first rows of a table as HTML."""
    left = len(frame) - rows
    more = f"<p>and {left:,} more rows</p>" if left > 0 else ""
    first = frame.head(rows).copy()
    for name in first.columns[first.dtypes.map(pd.api.types.is_extension_array_dtype)]:
        # pandas prints NA as <NA> whatever na_rep says.
        first[name] = first[name].astype(object).where(first[name].notna(), float("nan"))
    return table_html(first).replace(' class="dataframe"', "") + more


def figure(fig: go.Figure, name: str) -> str:
    """Return a figure as HTML; the hook adds plotly.js to the page."""
    return f'<div class="example-figure">{figure_html(fig, name, "")}</div>'
