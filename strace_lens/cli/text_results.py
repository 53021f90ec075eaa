"""What `strace-lens text` makes of its tokens: the page, the table and what is printed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from strace_lens.cli.text import PAGE, TABLE
from strace_lens.model.architecture import Model
from strace_lens.model.checks import architecture_of
from strace_lens.report.text_density import text_density_page

EXTREMES = 5
"""Tokens of the highest and of the lowest density that are printed."""


def page(
    model: Model, tokens: pd.DataFrame, small: float, estimator: str, keep: Sequence[str]
) -> str:
    """Draw the text."""
    left = f", edges of {' and '.join(keep)} left in place" if keep else ""
    return text_density_page(
        tokens,
        small,
        f"Density of every token: {architecture_of(model).name}",
        "Each token's colour is the density of its prediction from the tokens before it: the area "
        f"under the total variation between traces (estimator {estimator}{left}) and the model, "
        "over log s.",
    )


def table(tokens: pd.DataFrame) -> pd.DataFrame:
    """Return the tokens with their alternatives as JSON."""
    texts = [
        json.dumps([[one.token, one.model, one.trace] for one in row], ensure_ascii=False)
        for row in tokens["alternatives"]
    ]
    return tokens.assign(alternatives=texts)


def print_density(model: Model, tokens: pd.DataFrame, out: Path, as_json: bool) -> None:
    """Print the mean density and the tokens of the lowest and the highest, or JSON."""
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
