"""The command line: reads arguments, calls the verbs, prints what they return."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from strace_lens.cli.compare import compare_command
from strace_lens.cli.doctor import doctor_command
from strace_lens.cli.phases import phases_command
from strace_lens.cli.report import report_command
from strace_lens.cli.sweep import sweep_command
from strace_lens.cli.text import text_command
from strace_lens.cli.trace import trace
from strace_lens.utils.interrupt import interruptible
from strace_lens.utils.versions import VERSION


class _Commands(TyperGroup):
    """The commands, each of which ends in one line when it is interrupted."""

    def invoke(self, ctx: Any) -> Any:
        with interruptible():
            return super().invoke(ctx)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="Start with: strace-lens trace 'The capital of France is'",
)
app.command()(trace)
app.command("text")(text_command)
app.command("compare")(compare_command)
app.command("sweep")(sweep_command)
app.command("phases")(phases_command)
app.command("report")(report_command)
app.command("doctor")(doctor_command)


def _print_version(wanted: bool) -> bool:
    if wanted:
        print(f"strace-lens {VERSION}")
        raise typer.Exit
    return wanted


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """How much of a language model does a prediction really use?

    A trace of relative size s is the first s of all edges of the model's computation graph, ranked;
    it is run with every other edge ablated, and its next-token distribution is compared with the
    model's. `strace-lens doctor` prints what is installed on this machine.
    """
