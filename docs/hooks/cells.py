"""What the pages show results with: `from cells import figure, run, table` in an example."""

from __future__ import annotations

import os
import shlex

import pandas as pd
import plotly.graph_objects as go
from typer.testing import CliRunner

from strace_lens.report.page import figure_html, table_html

COLUMNS = "100"
"""Width of a terminal, in characters, as the pages show it."""


def run(command: str, *, lines: int | None = None) -> str:
    """What a shell shows of a `strace-lens` command, run in this process for its models' sake.

    Args:
        command: as typed, also over several lines.
        lines: of the output at the most; what is left out is said.

    Raises:
        RuntimeError: the command fails.
    """
    from strace_lens.cli import app  # behind the hook that lets pages share models

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
    """A table as HTML, its first rows at the most."""
    left = len(frame) - rows
    more = f"<p>and {left:,} more rows</p>" if left > 0 else ""
    first = frame.head(rows).copy()
    for name in first.columns[first.dtypes.map(pd.api.types.is_extension_array_dtype)]:
        # pandas prints NA as <NA> whatever it is told.
        first[name] = first[name].astype(object).where(first[name].notna(), float("nan"))
    return table_html(first).replace(' class="dataframe"', "") + more


def figure(fig: go.Figure, name: str) -> str:
    """A figure as HTML; the hook adds plotly.js to a page that has one."""
    return f'<div class="example-figure">{figure_html(fig, name, "")}</div>'
