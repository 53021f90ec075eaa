"""How methods move with the ablation, as tables for a terminal."""

from __future__ import annotations

import itertools

import pandas as pd

from strace_lens.comparison.ablations import ALL_METHODS
from strace_lens.report.tables import cell, frame_table, wide_console


def print_ablations(table: pd.DataFrame) -> None:
    """Print what `across_ablations` found: faithfulness, agreement of edges, order of methods."""
    console = wide_console()
    title = "CMD, the area between faithfulness and 1: found under the row, run under the column"
    console.print(title)
    console.print(frame_table("", faithfulness_cells(table)))
    title = "Rank correlation (Spearman) of a method's edges, found under one ablation and another"
    console.print(title)
    console.print(frame_table("", agreement_cells(table)))
    for line in order_lines(table):
        console.print(line)


def faithfulness_cells(table: pd.DataFrame) -> pd.DataFrame:
    """One row for each method and ablation under which it scored edges."""
    own = table[table["method"] != ALL_METHODS]
    wide = own.pivot(index=["method", "found"], columns="evaluated", values="cmd")
    names = list(dict.fromkeys(own["found"]))
    order = pd.MultiIndex.from_product([list(dict.fromkeys(own["method"])), names])
    return wide.reindex(order)[names].rename_axis(["method", "found"]).reset_index()


def agreement_cells(table: pd.DataFrame) -> pd.DataFrame:
    """One row for each method, one column for each two ablations."""
    own = table[table["method"] != ALL_METHODS]
    names = list(dict.fromkeys(own["found"]))
    rows = []
    for method in dict.fromkeys(own["method"]):
        of = _spearman(table, method)
        pairs = itertools.combinations(names, 2)
        rows.append({"method": method, **{f"{a}, {b}": of[a, b] for a, b in pairs}})
    return pd.DataFrame(rows)


def order_lines(table: pd.DataFrame) -> list[str]:
    """A sentence for each two ablations: how alike they order the methods."""
    order = _spearman(table, ALL_METHODS)
    names = list(dict.fromkeys(table["found"]))
    return [
        f"the methods in the order of their CMD under {a} and under {b}: Spearman "
        f"{cell(order[a, b], '{:.2f}')}"
        for a, b in itertools.combinations(names, 2)
    ]


def _spearman(table: pd.DataFrame, method: str) -> dict[tuple[str, str], float]:
    """The rank correlations of one method, by the ablations under which it was found and run."""
    columns = (table[name].tolist() for name in ("method", "found", "evaluated", "spearman"))
    return {(a, b): value for name, a, b, value in zip(*columns, strict=True) if name == method}
