"""What the commands share: options, loading the model, one-line errors, a progress bar."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from strace_lens.corpus.engine import LostWorkersError, MissingRayError
from strace_lens.corpus.measure import PromptMemoryError
from strace_lens.ground_truth.tracr import MissingTracrError
from strace_lens.model.architecture import Model
from strace_lens.model.forward import MEMORY_BUDGET
from strace_lens.model.load import DEFAULT, DTYPES, MAPS, load_model
from strace_lens.traces.edges import KINDS, kinds_to_keep
from strace_lens.traces.estimators import ESTIMATORS
from strace_lens.traces.fit import GRADIENT_BUDGET
from strace_lens.utils.disk import parse_object, read_prompt

Complete = Callable[[str], list[str]]


def completing(names: Iterable[str]) -> Complete:
    """Return the completion of an option that takes one name, or several separated by commas."""
    known = sorted(names)

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [before + comma + name for name in known if name.startswith(last)]

    return complete


ModelOption = Annotated[
    str,
    typer.Option(
        help="smollm2 (built in), a Hugging Face name, a local folder or a GGUF file.",
        autocompletion=completing([DEFAULT]),
    ),
]
EstimatorOption = Annotated[
    str,
    typer.Option(
        help=f"How edges are ranked: {', '.join(ESTIMATORS)}. greedy is the paper's; the later "
        "ones give tighter traces and take longer.",
        autocompletion=completing(ESTIMATORS),
    ),
]
KEEP_HELP = (
    "Kinds of edges that are never ablated: attention, mlp or residual, joined by + if there are "
    "several. none is the definition, attention what the authors' released evaluation computes."
)
KeepOption = Annotated[
    str, typer.Option(help=KEEP_HELP, autocompletion=completing(["none", *KINDS]))
]
BosOption = Annotated[
    bool | None,
    typer.Option(
        "--bos/--no-bos",
        help="Start with the beginning-of-sequence token, or without it. Default: as the model's "
        "tokenizer does.",
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(help="Device, as torch names it. Default: a GPU if there is one, else cpu."),
]
DeviceMapOption = Annotated[
    str | None,
    typer.Option(
        help=f"For models larger than one device: {', '.join(MAPS)}, or a .json file with the "
        "device of each part by its name.",
        autocompletion=completing(MAPS),
    ),
]
DtypeOption = Annotated[
    str,
    typer.Option(help="float32, bfloat16 or float16.", autocompletion=completing(DTYPES)),
]
AllowPickleOption = Annotated[
    bool,
    typer.Option(
        "--allow-pickle",
        help="Also read weights saved as a pickle (.bin), which can run code when they are read.",
    ),
]
RevisionOption = Annotated[
    str | None,
    typer.Option(
        help="Branch, tag or commit of a Hugging Face name, such as a checkpoint in training. "
        "Default: main."
    ),
]
RefineOption = Annotated[
    int,
    typer.Option(
        min=0,
        help="Add at most this many sizes where the curve moves fast and where head and tail are "
        "restored; 0 measures the grid alone.",
    ),
]
MemoryOption = Annotated[
    float | None,
    typer.Option(
        help="GiB that one pass may take. Default: "
        f"{MEMORY_BUDGET / 2**30:g} forward and {GRADIENT_BUDGET / 2**30:g} with gradients."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and no table.")]


def budgets(memory: float | None) -> tuple[int, int]:
    """Return the bytes of a forward pass, and of a forward and backward pass.

    Raises:
        ValueError: If the memory is not positive.
    """
    if memory is None:
        return MEMORY_BUDGET, GRADIENT_BUDGET
    if not memory > 0:
        raise ValueError(f"memory_budget must be positive; got {memory:g} GiB")
    given = int(memory * 2**30)
    return given, given


def parse_keep(text: str) -> tuple[str, ...]:
    """Parse kinds of edges joined by "+" or ",", as in attention+mlp; "none" means none.

    Raises:
        ValueError: If a kind is unknown.
    """
    given = [part.strip() for part in text.replace("+", ",").split(",")]
    return () if given == ["none"] else kinds_to_keep(given)


def parse_device_map(text: str | None) -> str | dict[str, str | int] | None:
    """Return the name of a device map, or the device map that a .json file holds.

    Raises:
        ValueError: If the file holds no device map.
        FileNotFoundError: If there is no such file.
    """
    if text is None or not text.endswith(".json"):
        return text
    found = parse_object(Path(text).read_bytes(), text)
    if not found or not all(type(value) in (str, int) for value in found.values()):
        raise ValueError(f"{text} must hold one object, with the device of each part by its name")
    return found


def parse_sizes(text: str | None) -> tuple[float, ...] | None:
    """Parse relative sizes separated by commas and sort them; None stays None.

    Raises:
        ValueError: If they are no numbers, or one lies outside (0, 1].
    """
    if text is None:
        return None
    try:
        sizes = sorted({float(part) for part in text.split(",")})
    except ValueError:
        raise ValueError(f"--sizes takes numbers separated by commas; got {text!r}") from None
    for size in sizes:
        if not 0 < size <= 1:
            raise ValueError(f"sizes must lie in (0, 1]; got {size}")
    return tuple(sizes)


def load_from_options(
    bar: Bar,
    model: str,
    *,
    device: str | None,
    device_map: str | None = None,
    dtype: str,
    allow_pickle: bool,
    revision: str | None,
) -> Model:
    """Load the model that the options of a command name, and show that it is being loaded."""
    bar.step(f"loading {model}")
    return load_model(
        model,
        device=device,
        device_map=parse_device_map(device_map),
        dtype=dtype,
        allow_pickle=allow_pickle,
        revision=revision,
    )


def prompt_text(
    given: str | None,
    file: Path | None,
    what: str = "a prompt",
    option: str = "--prompt-file",
) -> str:
    """Return the text that is given directly or in a file.

    Raises:
        ValueError: If both are given, or neither.
        OSError: If the file cannot be read.
    """
    if (given is None) == (file is None):
        raise ValueError(f"give either {what} or {option}, one of the two")
    return (given or "") if file is None else read_prompt(file)


_EXPECTED = (
    *(ValueError, OSError, FloatingPointError),
    *(MissingTracrError, MissingRayError, LostWorkersError, PromptMemoryError),
)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End errors that the user can fix in one line on standard error and exit status 2."""
    try:
        yield
    except _EXPECTED as error:
        print(f"strace-lens: {' '.join(str(error).split())}", file=sys.stderr)
        raise typer.Exit(2) from error


class Bar(Progress):
    """A bar on standard error that vanishes at the end; there is none outside a terminal."""

    def __init__(self, *more: ProgressColumn) -> None:
        console = Console(stderr=True)
        super().__init__(
            TextColumn("{task.description}", markup=False),  # it names models and files
            BarColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            *more,
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def step(self, what: str) -> None:
        """Show what is being done now instead of the step before."""
        for task in self.task_ids:
            self.update(task, visible=False)
        self.add_task(what, total=None)

    def tell(self, done: int, total: int, what: str) -> None:
        """Show how far the step is: what the `progress` of a verb is."""
        self.update(self.task_ids[-1], completed=done, total=total, description=what)
