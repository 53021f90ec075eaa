"""Several ways of measuring one prompt as a table that fits a terminal of 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from strace_lens.density.curve import DensityCurve
from strace_lens.density.ways import Way, read_ways

SHOWN = (1e-4, 1e-3, 4e-3, 1e-2, 2e-2, 4e-2, 0.1, 0.2, 0.4, 0.8)
"""Relative sizes of the table: those of the default grid that tell most."""

WIDTH = 80
_NAMES = {"definition": "as defined", "attention-kept": "attention kept", "tight": "tight (fisher)"}


def print_ways(curves: Mapping[Way, DensityCurve]) -> None:
    """Print the prompt, about ten sizes of each way side by side, and what follows from them.

    No line is longer than 80 characters.
    """
    (first, *_) = curves.values()
    trace, (token, probability) = first.trace, first.top[0]
    lines = [
        f"{trace.made['model']}: {len(trace.prompt.ids)} tokens, {trace.edges:,} edges",
        f"next token {token!r} ({probability:.2f}), entropy {first.entropy:.2f} nats",
        "",
        *ways_lines(curves),
        "",
    ]
    for sentence in read_ways(curves):
        lines += [*textwrap.wrap(sentence, WIDTH, break_on_hyphens=False), ""]
    print("\n".join(lines))


def ways_lines(curves: Mapping[Way, DensityCurve]) -> list[str]:
    """Total variation, top-1 agreement, head and tail error of each way, a line a size.

    More than three ways leave no room for the zero before the point.
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
    """The sizes of `SHOWN` that were measured; of another grid, ten spread over it."""
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
