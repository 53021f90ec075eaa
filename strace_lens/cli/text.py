"""`strace-lens text`: colour the tokens of a text by how much of the model they need."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from strace_lens.cli import options as opt
from strace_lens.cli.common import Bar, one_line_errors
from strace_lens.density.along_text import SMALL, TEXT_SIZES, text_density
from strace_lens.model.architecture import Model
from strace_lens.model.checks import architecture_of
from strace_lens.model.load import load_model
from strace_lens.model.prompts import tokenize
from strace_lens.report.text_density import text_density_page
from strace_lens.traces.estimators import estimator_of
from strace_lens.utils.disk import results_folder, write_whole

PAGE, TABLE = "text.html", "text.csv"
EXTREMES = 5
"""Tokens of the highest and of the lowest density that are printed."""


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
        float, opt.option("The size whose predictions are shown next to the model's.")
    ] = SMALL,
    min_context: Annotated[int, opt.option("Tokens before the first measured one.")] = 2,
    device: opt.Device = None,
    dtype: opt.Dtype = "float32",
    allow_pickle: opt.AllowPickle = False,
    revision: opt.Revision = None,
    out: Annotated[Path, opt.option(f"Folder for {PAGE} and {TABLE}.")] = Path("out"),
    seed: Annotated[int, opt.option("Seed of estimators that draw.")] = 0,
    bos: opt.Bos = None,
    memory: opt.Memory = None,
    as_json: opt.Json = False,
) -> None:
    """Colour a text by how much of the model each of its tokens needs.

    The prefix before every token is traced and its density is measured. The page shows on hover
    what the model and a small trace would have written in place of the token.

    Example: strace-lens text "Paris is the capital of France, and Rome of Italy."
    """
    folder = results_folder(out, (PAGE, TABLE))
    with one_line_errors(), folder, Bar() as bar:
        given = opt.prompt_text(text, text_file, "a text", "--text-file")
        estimator_of(estimator)
        kept = opt.parse_keep(keep)
        forward, backward = opt.budgets(memory)
        with bar.loading(model, dtype, device, revision):
            loaded = load_model(
                model, device=device, dtype=dtype, allow_pickle=allow_pickle, revision=revision
            )
        prompt = tokenize(loaded, architecture_of(loaded), given, bos)
        bar.step("tokens")
        tokens = text_density(
            loaded,
            prompt,
            sizes=opt.parse_sizes(sizes) or TEXT_SIZES,
            small=small,
            min_context=min_context,
            estimator=estimator,
            keep=kept,
            seed=seed,
            memory_budget=forward,
            gradient_budget=backward,
            progress=bar.tell,
        )
        write_whole(out / PAGE, _page(loaded, tokens, small, estimator, kept).encode())
        write_whole(out / TABLE, _table(tokens).to_csv(index=False).encode())
        bar.stop()
        _print(loaded, tokens, out, as_json)


def _page(
    model: Model, tokens: pd.DataFrame, small: float, estimator: str, keep: Sequence[str]
) -> str:
    left = f", edges of {' and '.join(keep)} left in place" if keep else ""
    return text_density_page(
        tokens,
        small,
        f"Density of every token: {architecture_of(model).name}",
        "Each token's colour is the density of its prediction from the tokens before it: the area "
        f"under the total variation between traces (estimator {estimator}{left}) and the model, "
        "over log s.",
    )


def _table(tokens: pd.DataFrame) -> pd.DataFrame:
    """Return the tokens with their alternatives as JSON."""
    texts = [
        json.dumps([[one.token, one.model, one.trace] for one in row], ensure_ascii=False)
        for row in tokens["alternatives"]
    ]
    return tokens.assign(alternatives=texts)


def _print(model: Model, tokens: pd.DataFrame, out: Path, as_json: bool) -> None:
    measured = tokens.dropna(subset=["density"])
    if as_json:
        summary = {
            "model": architecture_of(model).name,
            "tokens": len(tokens),
            "measured": len(measured),
            "density": float(measured["density"].to_numpy().mean()),
            "page": str(out / PAGE),
            "table": str(out / TABLE),
        }
        print(json.dumps(summary, allow_nan=False))
        return
    print(
        f"{architecture_of(model).name}: {len(measured)} of {len(tokens)} tokens measured, mean "
        f"density {measured['density'].to_numpy().mean():.3f}"
    )
    order = measured.sort_values("density", kind="stable")
    for what, rows in (("lowest", order.head(EXTREMES)), ("highest", order[::-1].head(EXTREMES))):
        named = ", ".join(
            f"{json.dumps(token, ensure_ascii=False)} {density:.3f}"
            for token, density in zip(rows["token"], rows["density"], strict=True)
        )
        print(f"{what}: {named}")
    print(f"wrote {out / PAGE} and {out / TABLE}")
