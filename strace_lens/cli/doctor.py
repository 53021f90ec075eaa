"""`strace-lens doctor`: what this machine has."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from strace_lens.cli.common import one_line_errors
from strace_lens.report.doctor import examine, summary_line
from strace_lens.report.tables import wide_console


def doctor_command(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object and no table.")
    ] = False,
) -> None:
    """Say which models, devices and optional parts this machine has, and how to bring the rest.

    Loads no model and needs no network. Ends with status 1 if a needed package is missing or out
    of the range that strace_lens works with.
    """
    with one_line_errors():
        findings = examine()
        if as_json:
            print(json.dumps({"findings": [asdict(f) for f in findings]}, allow_nan=False))
        else:
            table = Table("kind", "name", "there", box=box.SIMPLE)
            table.add_column("detail", overflow="fold")
            table.add_column("to bring it", overflow="fold")
            for f in findings:
                table.add_row(f.kind, f.name, "yes" if f.found else "no", f.detail, f.remedy)
            wide_console().print(table)
            print(summary_line(findings))
        if any(f.needed and not f.found for f in findings):
            raise typer.Exit(1)
