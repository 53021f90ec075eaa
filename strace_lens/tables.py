"""Results as tables for a terminal."""

from __future__ import annotations

import math

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from strace_lens.density import DensityCurve
from strace_lens.phases import Phases

WIDTH = 132


def print_curve(curve: DensityCurve, phases: Phases, ablated: pd.DataFrame) -> None:
    """Print a density curve, where its phases lie, and what ablating their parts did."""
    console = Console(highlight=False)
    if console.width < WIDTH:
        console = Console(highlight=False, width=WIDTH)
    trace, (token, probability) = curve.trace, curve.top[0]
    console.print(
        f"{trace.made['model']}: {len(trace.prompt.ids)} tokens, {trace.edges:,} edges; "
        f"next token {token!r} ({probability:.2f}), entropy {curve.entropy:.2f} nats",
        markup=False,
    )
    console.print(size_table(curve))
    console.print(f"density {curve.density:.3f}; {phases.describe()}", markup=False)
    console.print(
        f"largest logit difference, full mask to untouched model: {curve.logit_gap:.1e}\n"
    )
    for title, frame in (
        ("Layer phases", phases.layer_table()),
        ("What is left when a part of the trace is ablated", ablated),
    ):
        if len(frame):
            console.print(frame_table(title, frame))
    if not len(ablated):
        console.print("no table of ablated parts: the sizes measured do not restore head and tail")


def size_table(curve: DensityCurve) -> Table:
    """One row a size: measures, composition, controls."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in (
        *("s", "edges", "TV", "KL", "head", "tail", "top-1", "nucleus"),
        *("resid", "attn", "MLP", "layer", "random", "inverse"),
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for row in curve.table.to_dict("records"):
        table.add_row(
            f"{row['size']:g}",
            f"{row['edges']:,}",
            *(f"{row[c]:.3f}" for c in ("tv", "kl", "head_error", "tail_error")),
            "yes" if row["top1"] else "no",
            f"{row['nucleus']:.0%}",
            *(f"{row[c]:.0%}" for c in ("residual", "attention", "mlp")),
            "-" if math.isnan(row["mean_layer"]) else f"{row['mean_layer']:.1f}",
            *(f"{row[c]:.3f}" for c in ("random_tv", "inverse_tv")),
        )
    return table


def frame_table(title: str, frame: pd.DataFrame) -> Table:
    """Any small table of a result, under a title."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    for name in frame.columns:
        table.add_column(str(name).replace("_", " "), justify="right", no_wrap=True)
    for row in frame.itertuples(index=False):
        table.add_row(*(_cell(value) for value in row))
    return table


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
