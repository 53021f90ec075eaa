"""`strace-lens text`: colour the tokens of a text by how much of the model they need."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from strace_lens.cli import options as opt
from strace_lens.cli.common import Bar, one_line_errors
from strace_lens.utils.choices import DTYPES, SMALL, TEXT_SIZES, estimator_name
from strace_lens.utils.disk import results_folder, write_whole

PAGE, TABLE = "text.html", "text.csv"


def text_command(
    text: Annotated[str | None, typer.Argument(help="The text whose tokens are measured.")] = None,
    text_file: Annotated[
        Path | None, opt.option("Read the text from this file.", dir_okay=False)
    ] = None,
    model: opt.Model = "smollm2",
    estimator: opt.Estimator = "greedy",
    keep: opt.Keep = "none",
    sizes: Annotated[
        str | None,
        opt.option(f"Relative sizes. Default: {', '.join(f'{s:g}' for s in TEXT_SIZES)}."),
    ] = None,
    small: Annotated[
        float, opt.option("Size of the trace whose predictions are shown with the model's.")
    ] = SMALL,
    min_context: Annotated[int, opt.option("Number of tokens before the first measured one.")] = 2,
    device: opt.Device = None,
    dtype: opt.Dtype = "float32",
    allow_pickle: opt.AllowPickle = False,
    revision: opt.Revision = None,
    out: Annotated[Path, opt.option(f"Folder for {PAGE} and {TABLE}.")] = Path("out"),
    seed: Annotated[int, opt.option("Seed of estimators with random draws.")] = 0,
    bos: opt.Bos = None,
    memory: opt.Memory = None,
    as_json: opt.Json = False,
) -> None:
    """Colour a text by how much of the model each of its tokens needs.

    The prefix before every token is traced and its density is measured. On hover, the page shows
    what the model and a small trace predict instead of the token.

    Example: strace-lens text "Paris is the capital of France, and Rome of Italy."
    """
    folder = results_folder(out, (PAGE, TABLE))
    with one_line_errors(), folder, Bar() as bar:
        given = opt.prompt_text(text, text_file, "a text", "--text-file")
        estimator_name(estimator)
        kept = opt.parse_keep(keep)
        grid = opt.parse_sizes(sizes) or TEXT_SIZES
        forward, backward = opt.budgets(memory)
        opt.expect_choice(dtype, DTYPES, "dtype")
        with bar.importing():
            from strace_lens.cli.text_results import page, print_density, table
            from strace_lens.density.along_text import text_density
            from strace_lens.model.checks import architecture_of
            from strace_lens.model.load import load_model
            from strace_lens.model.prompts import tokenize
        with bar.loading(model, dtype, device, revision):
            loaded = load_model(
                model, device=device, dtype=dtype, allow_pickle=allow_pickle, revision=revision
            )
        prompt = tokenize(loaded, architecture_of(loaded), given, bos)
        bar.step("tokens")
        tokens = text_density(
            loaded,
            prompt,
            sizes=grid,
            small=small,
            min_context=min_context,
            estimator=estimator,
            keep=kept,
            seed=seed,
            memory_budget=forward,
            gradient_budget=backward,
            progress=bar.tell,
        )
        write_whole(out / PAGE, page(loaded, tokens, small, estimator, kept).encode())
        write_whole(out / TABLE, table(tokens).to_csv(index=False).encode())
        bar.stop()
        print_density(loaded, tokens, out, as_json)
