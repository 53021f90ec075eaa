"""The command line: reads arguments, calls the verbs, prints what they return."""

from __future__ import annotations

import typer

from strace_lens.cli.compare import compare_command
from strace_lens.cli.estimators import estimators
from strace_lens.cli.phases import phases_command
from strace_lens.cli.report import report_command
from strace_lens.cli.sweep import sweep_command
from strace_lens.cli.trace import trace

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
app.command()(trace)
app.command()(estimators)
app.command("compare")(compare_command)
app.command("sweep")(sweep_command)
app.command("phases")(phases_command)
app.command("report")(report_command)


@app.callback()
def main() -> None:
    """How much of a language model does a prediction really use?"""
