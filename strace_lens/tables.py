"""Results as tables for a terminal."""

from __future__ import annotations

import fnmatch
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
    console = _console()
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


def print_estimators(table: pd.DataFrame) -> None:
    """Print what `estimator_table` found: fidelity, cost, controls, shape of the traces."""
    console = _console()
    prompts = max(table["prompts"])
    console.print(f"{prompts} prompt{'s' * (prompts != 1)}; brackets: 95 % intervals over them\n")
    for title, columns in _ESTIMATOR_TABLES.items():
        frame = pd.DataFrame({"estimator": table["estimator"]})
        for pattern, shown in columns.items():
            for column in fnmatch.filter(table.columns, pattern):
                at = column.removeprefix(pattern.removesuffix("*"))
                frame[f"{shown}{at}"] = _estimator_cells(table, column)
        console.print(frame_table(title, frame))


_ESTIMATOR_TABLES = {
    "Fidelity, less is better: density, and size from which top-1 is right": {
        "density": "density",
        "density_vs_greedy": "less greedy's",
        "top1_size": "top-1 size",
        "top1_ratio": "over greedy's",
    },
    "TV to the full output, by relative size": {"tv_*": "TV "},
    "Cost of a trace, and spread of density over seeds": {
        "forward": "forward",
        "backward": "backward",
        "seconds": "seconds",
        "seeds": "seeds",
        "density_sd": "sd of density",
    },
    "Controls: lowest TV to a wrong target up to 0.2; TV on a sibling; change of TV under noise": {
        "wrong_tv_mean": "wrong",
        "wrong_tv_min": "worst prompt",
        "sibling_*": "sibling ",
        "noise_*": "noise ",
    },
    "Edges on a path from token to output, size that connects them, share of the compute": {
        "path_share_mean": "on path",
        "path_share_min": "least",
        "connected_size": "connected",
        "compute_*": "compute ",
    },
}
"""Columns of each table and how they are headed; a star stands for every size."""


def _estimator_cells(table: pd.DataFrame, column: str) -> list[str]:
    plain = {"forward": "{:,.0f}", "backward": "{:,.0f}", "seconds": "{:.2f}", "seeds": "{}"}
    shown = plain.get(column, "{:.3f}")
    cells = ["-" if math.isnan(x) else shown.format(x) for x in table[column]]
    if f"{column}_low" not in table:
        return cells
    bounds = zip(cells, table[f"{column}_low"], table[f"{column}_high"], strict=True)
    return [c if math.isnan(low) else f"{c} [{low:.3f}, {high:.3f}]" for c, low, high in bounds]


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


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.width >= WIDTH else Console(highlight=False, width=WIDTH)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
