"""The command line: reads arguments, calls the verbs, prints what they return."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from strace_lens.cost import Plan
    from strace_lens.density import DensityCurve

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

PAGE = "trace.html"
RESULT = "trace.safetensors"


@app.callback()
def main() -> None:
    """How much of a language model does a prediction really use?"""


@app.command()
def trace(
    prompt: Annotated[
        str | None, typer.Argument(help="The text whose next token is traced.")
    ] = None,
    prompt_file: Annotated[
        Path | None, typer.Option(help="Read the prompt from a file instead.", dir_okay=False)
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            help="smollm2 (built in), a Hugging Face name, a local folder or a GGUF file."
        ),
    ] = "smollm2",
    sizes: Annotated[
        str | None,
        typer.Option(help="Relative sizes, as in 0.001,0.01,0.1; the paper's 27 if unsaid."),
    ] = None,
    importance: Annotated[
        str, typer.Option(help="l1, l2, proximity, cosine, leverage(k) or random.")
    ] = "l1",
    ablation: Annotated[
        str, typer.Option(help="What replaces an ablated edge: zero, mean or resample.")
    ] = "zero",
    corrupted: Annotated[
        str | None, typer.Option(help="The second prompt of --ablation resample, equally long.")
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(help="Text for --ablation mean; a page is built in.", dir_okay=False),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="As torch names it; a GPU if there is one, else cpu.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    out: Annotated[
        Path, typer.Option(help="Folder for trace.html and trace.safetensors.", file_okay=False)
    ] = Path("out"),
    seed: Annotated[
        int, typer.Option(help="Of the random control, and of --importance random.")
    ] = 0,
    bos: Annotated[
        bool | None,
        typer.Option("--bos/--no-bos", help="Force a BOS; the tokenizer's way if unsaid."),
    ] = None,
    memory: Annotated[float, typer.Option(help="GiB that one forward pass may take.")] = 0.125,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object and no table.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell passes, bytes and rough seconds; run nothing.")
    ] = False,
) -> None:
    """Trace one prompt: every size measured beside its controls, phases, a page of figures."""
    with _one_line_errors(), _progress() as progress:
        text = _prompt_text(prompt, prompt_file)
        grid = _parse_sizes(sizes)
        progress.add_task("importing torch", total=None)
        import strace_lens as sl
        from strace_lens.contract import architecture_of
        from strace_lens.prompts import tokenize
        from strace_lens.tables import print_curve
        from strace_lens.token_graph.importance import importance_function

        grid = sl.SIZES if grid is None else grid
        importance_function(importance)
        _step(progress, f"loading {model}")
        loaded = sl.load_model(model, device=device, dtype=dtype)
        tokens = tokenize(loaded, architecture_of(loaded), text, bos)
        budget = int(memory * 2**30)
        cost = sl.plan(loaded, len(tokens.ids), sizes=grid, memory_budget=budget)
        if dry_run:
            progress.stop()
            _print_plan(cost, as_json)
            return

        _step(progress, "reading the token graph")
        replacement = sl.replacement(
            loaded, tokens, ablation, corrupted=corrupted, references=_reference(reference)
        )
        graph = sl.token_graph(loaded, tokens)
        ranked = sl.extract(graph, importance, seed=seed, memory_budget=budget)
        bar = _step(progress, "running masks", total=cost.rows)
        same = {"replacement": replacement, "seed": seed, "memory_budget": budget}
        curve = sl.density_curve(
            loaded, ranked, sizes=grid, progress=lambda n: progress.advance(bar, n), **same
        )
        phases = curve.phases()
        _step(progress, "ablating the phases")
        ablated = sl.phase_ablation(loaded, curve, **same)
        _step(progress, "drawing")
        _write(out, curve, sl.trace_report(curve, phases, ablated))
        progress.stop()
        if as_json:
            print(json.dumps(sl.summarize(curve, phases, ablated), allow_nan=False))
        else:
            print_curve(curve, phases, ablated)
            print(f"wrote {out / PAGE} and {out / RESULT}")


def _prompt_text(prompt: str | None, prompt_file: Path | None) -> str:
    if (prompt is None) == (prompt_file is None):
        raise ValueError("give either a prompt or --prompt-file, one of the two")
    if prompt_file is None:
        return prompt or ""
    return prompt_file.read_text(encoding="utf-8").removesuffix("\n")


def _reference(path: Path | None) -> list[str] | None:
    return None if path is None else [path.read_text(encoding="utf-8")]


def _write(folder: Path, curve: DensityCurve, page: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PAGE).write_text(page, encoding="utf-8")
    curve.save(folder / RESULT)


def _parse_sizes(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        sizes = sorted({float(part) for part in text.split(",")})
    except ValueError:
        raise ValueError(f"--sizes takes numbers parted by commas; got {text!r}") from None
    for size in sizes:
        if not 0 < size <= 1:
            raise ValueError(f"sizes must lie in (0, 1]; got {size}")
    return tuple(sizes)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """What a user can mend ends in one line on standard error and exit status 2."""
    try:
        yield
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"strace-lens: {' '.join(str(error).split())}", file=sys.stderr)
        raise typer.Exit(2) from error


def _progress() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,  # a log has no use for a bar
    )


def _step(progress: Progress, what: str, total: int | None = None) -> TaskID:
    """Show what is being done now, in place of what was done before."""
    for task in progress.task_ids:
        progress.update(task, visible=False)
    return progress.add_task(what, total=total)


def _print_plan(cost: Plan, as_json: bool) -> None:
    if as_json:
        print(json.dumps(vars(cost)))
        return
    print(
        f"{cost.rows} rows in {cost.passes} forward passes, at most {cost.bytes / 2**20:,.0f} MiB "
        f"each, about {cost.seconds:.1f} seconds"
    )


if __name__ == "__main__":
    app()
