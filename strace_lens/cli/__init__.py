"""The command line: reads arguments, calls the verbs, prints what they return."""

from __future__ import annotations

import importlib
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from strace_lens.utils.interrupt import interruptible
from strace_lens.utils.versions import VERSION

COMMANDS = {
    "trace": "Trace one prompt: how much of the model does its next token need?",
    "text": "Colour a text by how much of the model each of its tokens needs.",
    "compare": "Compare ways of finding a circuit on one task, each against random rankings.",
    "ablations": "Run methods under several ablations and show how far they agree.",
    "circuit-test": "Test the claims about a saved circuit: five tests with p-values.",
    "sweep": "Trace and measure many prompts into a folder, for `strace-lens phases` to read.",
    "phases": (
        "Analyse sweeps: test the paper's claims, find where construction ends, compare runs."
    ),
    "report": "Put traces on one interactive page, with a slider over s.",
    "doctor": "Print versions, devices, and which models and optional packages are installed.",
}
"""The commands and the first line of their help.

A command is the function `..._command` in the module of its name, with underscores for hyphens. The
module is imported only when its command is named; the command imports the rest of the package, and
with it torch, only once its arguments have been read.
"""


class _Commands(TyperGroup):
    """The commands, each of which ends in one line when it is interrupted."""

    def invoke(self, ctx: Any) -> Any:
        with interruptible():
            return super().invoke(ctx)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, listed, rest = super().resolve_command(ctx, args)
        if listed is None or name is None:
            return name, listed, rest
        place = name.replace("-", "_")
        module = importlib.import_module(f"{__name__}.{place}")
        alone = typer.Typer()
        alone.command(name)(getattr(module, f"{place}_command"))
        return name, typer.main.get_command(alone), rest


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="Start with: strace-lens trace 'The capital of France is'",
)


def _listed() -> None:
    """A command in the list of commands; `resolve_command` puts the real one in its place."""


for _name, _summary in COMMANDS.items():
    app.command(_name, help=_summary)(_listed)


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

    All edges of the model's computation graph are ranked; a trace of relative size s is the first
    fraction s of them. The model is run with every other edge ablated, and its next-token
    distribution is compared with the full model's. `strace-lens doctor` prints what is installed.
    """
