"""Results as tables for a terminal."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float
from rich import box
from rich.console import Console
from rich.table import Table

from strace_lens.density.causal import read_ablation
from strace_lens.density.curve import DensityCurve
from strace_lens.density.phases import Phases
from strace_lens.density.ways import Way, read_ways

WIDTH = 132


def print_curve(curve: DensityCurve, phases: Phases, ablated: pd.DataFrame) -> None:
    """Print a density curve, its phases, and the effect of ablating their parts."""
    console = wide_console()
    trace, (token, probability) = curve.trace, curve.top[0]
    console.print(
        f"{trace.metadata['model']}: {len(trace.prompt.ids)} tokens, {trace.edges:,} edges; "
        f"next token {token!r} ({probability:.2f}), entropy {curve.entropy:.2f} nats"
    )
    console.print(frame_table("", size_cells(curve)))
    console.print(f"density {curve.density:.3f}; {phases.describe()}")
    console.print(
        f"largest logit difference, full mask to untouched model: {curve.logit_gap:.1e}\n"
    )
    layers = phases.layer_table()
    if len(layers):
        console.print(frame_table("Layer phases", layers))
    if len(ablated):
        title = (
            "What is left when edges of the trace are ablated, early or late in the layers;\n"
            "match: as many others of the same kinds in the same layers"
        )
        console.print(frame_table(title, _ablated_cells(ablated)))
        for sentence in read_ablation(ablated):
            console.print(f"{sentence}\n")
    else:
        console.print("no table of ablated parts: the sizes measured do not restore head and tail")


_ABLATED = {
    "tv": "TV",
    "head_error": "head",
    "tail_error": "tail",
    "matched_tv": "match\nTV",
    "matched_head_error": "match\nhead",
    "matched_tail_error": "match\ntail",
}
"""The measures of `phase_ablation` that 80 columns have room for, and their heads."""


def _ablated_cells(ablated: pd.DataFrame) -> pd.DataFrame:
    parts = [name.removesuffix(" layers") for name in ablated["ablated"]]
    return pd.DataFrame({"ablated": parts, "edges": ablated["edges"]}).assign(
        **{
            head: [_or_dash(x, "{:.3f}") for x in ablated[column]]
            for column, head in _ABLATED.items()
        }
    )


def size_cells(curve: DensityCurve) -> pd.DataFrame:
    """The measures, composition and controls of every size as text, one row a size."""
    table, cells = curve.table, pd.DataFrame()
    for column, (heading, show) in _SIZES.items():
        cells[heading] = [show(value) for value in table[column]]
    return cells


def _number(form: str) -> Callable[[float], str]:
    return lambda value: _or_dash(value, form)


_SIZES: dict[str, tuple[str, Callable[..., str]]] = {
    "size": ("s", _number("{:g}")),
    "edges": ("edges", _number("{:,}")),
    "tv": ("TV", _number("{:.3f}")),
    "kl": ("KL", _number("{:.3f}")),
    "head_error": ("head", _number("{:.3f}")),
    "tail_error": ("tail", _number("{:.3f}")),
    "top1": ("top-1", lambda same: "yes" if same else "no"),
    "nucleus": ("nucleus", _number("{:.0%}")),
    "residual": ("resid", _number("{:.0%}")),
    "attention": ("attn", _number("{:.0%}")),
    "mlp": ("MLP", _number("{:.0%}")),
    "mean_layer": ("layer", _number("{:.1f}")),
    "random_tv": ("random", _number("{:.3f}")),
    "inverse_tv": ("inverse", _number("{:.3f}")),
    "random_inverse_tv": ("rand inv", _number("{:.3f}")),
}
"""The heading and the format of each column of a curve's table that is printed."""


def frame_table(title: str, frame: pd.DataFrame) -> Table:
    """Return a small data frame as a table under a title; numbers get four digits."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    for name in frame.columns:
        table.add_column(str(name).replace("_", " "), justify="right", no_wrap=True)
    for row in frame.itertuples(index=False):
        table.add_row(*(_cell(value) for value in row))
    return table


def wide_console(least: int = WIDTH) -> Console:
    """Return a console that prints text as it is and never folds a table, even if it is narrow.

    Labels, names and prompts may hold square brackets and colons, which are no markup here.
    """
    width = max(least, Console().width)
    return Console(highlight=False, markup=False, emoji=False, width=width)


def _or_dash(value: float | int, shown: str) -> str:
    """Format a number, or return a dash if it is NaN."""
    return "-" if math.isnan(value) else shown.format(value)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return _or_dash(value, "{:.4g}")
    return f"{value:,}" if isinstance(value, int) else str(value)


# ------------------------------------------------------------------ several ways, 80 columns

SHOWN = (1e-4, 1e-3, 4e-3, 1e-2, 2e-2, 4e-2, 0.1, 0.2, 0.4, 0.8)
"""The relative sizes of the short table: those of the default grid where most happens."""

NARROW = 80
_NAMES = {"definition": "as defined", "attention-kept": "attention kept", "tight": "tight (fisher)"}


def print_ways(curves: Mapping[Way, DensityCurve]) -> None:
    """Print a prompt, about ten sizes of each way of measuring it, and what follows from them.

    No line is longer than 80 characters.
    """
    (first, *_) = curves.values()
    trace, (token, probability) = first.trace, first.top[0]
    lines = [
        f"{trace.metadata['model']}: {len(trace.prompt.ids)} tokens, {trace.edges:,} edges",
        f"next token {token!r} ({probability:.2f}), entropy {first.entropy:.2f} nats",
        "",
        *ways_lines(curves),
        "",
    ]
    for sentence in read_ways(curves):
        lines += [*textwrap.wrap(sentence, NARROW, break_on_hyphens=False), ""]
    print("\n".join(lines))


def ways_lines(curves: Mapping[Way, DensityCurve]) -> list[str]:
    """Return a line for each size: TV, top-1 agreement, head and tail error of each way.

    With more than three ways there is no room for the zero before the decimal point.
    """
    wide = 4 if len(curves) <= 3 else 3
    columns = {"TV": wide, "top": 3, "head"[:wide]: wide, "tail"[:wide]: wide}
    width = sum(columns.values()) + len(columns) - 1
    gap = "   " if wide == 4 else "  "
    heads = " ".join(f"{name:>{room}}" for name, room in columns.items())
    names = [f"{_NAMES.get(way.name, way.name)[:width]:^{width}}" for way in curves]
    lines = [
        gap.join([" " * 6, *names]).rstrip(),
        gap.join([f"{'s':>6}", *([heads] * len(curves))]),
        gap.join(["-" * 6, *(["-" * width] * len(curves))]),
    ]
    (first, *_) = curves.values()
    grid = first.table["size"].to_numpy()[~first.table["refined"].to_numpy()]
    for size in _shown(grid):
        cells = [_cells(curve, size, list(columns.values())) for curve in curves.values()]
        lines.append(gap.join([f"{size:>6.4g}", *cells]))
    return lines


def _shown(sizes: Float[np.ndarray, " size"]) -> Sequence[float]:
    """Return the sizes of `SHOWN` that were measured, or ten spread over another grid."""
    there = [size for size in SHOWN if np.isclose(sizes, size, rtol=1e-9, atol=0).any()]
    if len(there) >= len(SHOWN) // 2 or len(sizes) <= len(there):
        return there
    places = np.unique(np.linspace(0, len(sizes) - 1, min(len(SHOWN), len(sizes))).astype(int))
    return sizes[places].tolist()


def _cells(curve: DensityCurve, size: float, widths: Sequence[int]) -> str:
    (place,) = np.flatnonzero(np.isclose(curve.table["size"], size, rtol=1e-9, atol=0))
    row = curve.table.iloc[place]
    values = (row["tv"], "yes" if row["top1"] else "no", row["head_error"], row["tail_error"])
    shown = [v if isinstance(v, str) else _error(v, w) for v, w in zip(values, widths, strict=True)]
    return " ".join(f"{v:>{w}}" for v, w in zip(shown, widths, strict=True))


def _error(value: float, width: int) -> str:
    text = f"{value:.2f}"
    return text if width >= len(text) else text.removeprefix("0")[:width]
