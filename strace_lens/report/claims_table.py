"""The table of claims for a terminal and for a page: claims as rows, runs as columns."""

# pandas' types are wider than what it returns here.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportReturnType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from strace_lens.corpus.analyses.claim_rules import (
    CANNOT_TELL,
    CLAIMS,
    HOLDS,
    HOLDS_NOT,
    STATISTICS,
)
from strace_lens.measures.intervals import row_text
from strace_lens.report.page import fold, square

MARKS = {HOLDS: "✓", HOLDS_NOT: "✗", CANNOT_TELL: "?"}
"""What stands for each verdict, so that no reader depends on colours."""

LEGEND = ", ".join(f"{mark} {verdict}" for verdict, mark in MARKS.items())

RUNS_WIDE = 4
"""Runs side by side in a terminal; more make several tables."""

_CLASSES = {HOLDS: "holds", HOLDS_NOT: "fails", CANNOT_TELL: "unknown"}
_FIRST = 44  # characters of the first column in a terminal

_INTRODUCTION = (
    "The six claims of the paper, tested on each run. The verdicts are computed: each statistic "
    "below has a 95 % interval over prompts and a rule that turns the interval into a verdict. A "
    "claim holds if every statistic in bold holds; it does not hold as stated if one of them does "
    "not; otherwise it cannot be told. The other statistics are read beside them and do not decide."
)
_NOTES = (
    "The paper's values are of ten models of 7 to 14B parameters; a size agrees with the paper's "
    "if it is within a factor of ten. Sizes are relative to all edges of the graph. Ablatable "
    "edges are those of the kinds that the run did not keep. Depth is relative, 0 the first layer "
    "and 1 the last. A prompt that does not reach its top token or its head at any measured size "
    "counts with size 1. Nearly all that the head subgraph leaves is attention, so the share of "
    "attention has little room above it. Sparse traces are those up to the size at which "
    "construction of the mean curve starts. Numbers: claims.csv."
)


def print_claims(console: Console, table: pd.DataFrame) -> None:
    """Print the claims with their verdicts, some runs at a time.

    Args:
        console: wide enough for them.
        table: of `claims`.
    """
    runs = table["run"].unique().tolist()
    for first in range(0, len(runs), RUNS_WIDE):
        some = runs[first : first + RUNS_WIDE]
        shown = Table(
            box=box.SIMPLE_HEAD, pad_edge=False, title="The paper's claims", title_justify="left"
        )
        shown.add_column("claim and statistic", width=_FIRST)
        for run in some:
            shown.add_column(Text("\n".join(_heading(table, run))), overflow="fold")
        for claim, verdicts, statistics in _claims(table, some):
            marked = [f"{MARKS[verdict]} {verdict.upper()}" for verdict in verdicts]
            shown.add_row(Text(claim, style="bold"), *marked)
            for name, of_runs in statistics.items():
                star = "*" if STATISTICS[name].decides else " "
                cells = ("\n".join(map(_line, rows)) for rows in of_runs)
                shown.add_row(Text(f" {star} {STATISTICS[name].text}"), *map(Text, cells))
            shown.add_section()
        console.print(shown)
    console.print(f"{LEGEND}; * decides the claim. Rules and the paper's values: claims.csv\n")


def claims_html(table: pd.DataFrame, colours: Mapping[str, str] | None = None) -> str:
    """The claims as the first section of a page: verdicts at a glance, every statistic folded.

    Args:
        table: of `claims`.
        colours: of the runs, where they are told apart by colour.
    """
    runs = table["run"].unique().tolist()
    heads = ""
    for run in runs:
        model, estimator, name = map(html.escape, _heading(table, run))
        mark = square(colours or {}, run)
        heads += (
            f'<th scope="col">{model}<br><strong>{estimator}</strong>'
            f"<small>{mark}{name}</small></th>"
        )
    glance, all_rows = [], []
    for claim, verdicts, statistics in _claims(table, runs):
        start = f'<th scope="row">{html.escape(claim)}</th>'
        whole = "".join(f'<td class="{_CLASSES[v]}">{_bold(v)}</td>' for v in verdicts)
        glance.append(f"<tr>{start}{whole}</tr>")
        all_rows.append(f'<tr class="claim">{start}<td></td>{whole}</tr>')
        for name, of_runs in statistics.items():
            asked = STATISTICS[name]
            text = f"<strong>{asked.text}</strong>" if asked.decides else asked.text
            all_rows.append(
                f'<tr><th scope="row">{text}<small>{asked.rule}</small></th>'
                f"<td>{html.escape(asked.paper)}</td>{''.join(map(_cell_html, of_runs))}</tr>"
            )
    every = f"<th>claim and statistic</th><th>the paper</th>{heads}"
    return (
        f"<h2>The paper's claims</h2><p>{_INTRODUCTION}</p>"
        f"{_table_html(f'<th>claim</th>{heads}', glance)}"
        + fold("<h3>Every statistic</h3>", [f"<p>{_NOTES}</p>", _table_html(every, all_rows)])
    )


Rows = list[dict[Any, Any]]


def _claims(
    table: pd.DataFrame, runs: Sequence[str]
) -> Iterator[tuple[str, list[str], dict[str, list[Rows]]]]:
    """Each claim, the verdict on it in each run, and the rows of each run by statistic.

    A statistic has one row in a run, or one for each other run.
    """
    for number, statement in CLAIMS.items():
        mine = table[table["claim"] == number]
        whole = mine.drop_duplicates("run").set_index("run")["claim_verdict"]
        statistics = {
            str(name): [rows[rows["run"] == run].to_dict("records") for run in runs]
            for name, rows in mine.groupby("statistic", sort=False)
        }
        yield f"{number}. {statement}", [whole[run] for run in runs], statistics


def _heading(table: pd.DataFrame, run: str) -> tuple[str, str, str]:
    """Model, estimator with the kinds kept, and name of a run."""
    row = table[table["run"] == run].iloc[0]
    return row["model"].rpartition("/")[2], f"{row['estimator']}, keep {row['keep']}", run


def _value(row: dict[Any, Any]) -> str:
    return row_text({**row, "mean": row["value"]}, shown=STATISTICS[row["statistic"]].shown)


def _line(row: dict[Any, Any]) -> str:
    other = f"\n  with {row['other']}" if row["other"] else ""
    return f"{MARKS[row['verdict']]} {_value(row)}{other}"


def _table_html(heads: str, rows: Sequence[str]) -> str:
    return (
        f'<div class="wide"><table class="claims"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _bold(verdict: str) -> str:
    return f"<b>{MARKS[verdict]} {verdict}</b>"


def _cell_html(rows: Rows) -> str:
    """Verdict first, then the value and what is to be noted; of claim 6 for each other run."""
    parts = []
    for row in rows:
        other = f"with {row['other']}" if row["other"] else ""
        notes = (other, row["note"], f"{row['prompts']} prompts")
        small = "".join(f"<small>{html.escape(note)}</small>" for note in notes if note)
        parts.append(f"{_bold(row['verdict'])}<br>{_value(row)}{small}")
    verdicts = {row["verdict"] for row in rows}
    of = _CLASSES[verdicts.pop()] if len(verdicts) == 1 else ""
    return f'<td class="{of}">{"<br>".join(parts)}</td>'
