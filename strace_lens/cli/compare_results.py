"""What `strace-lens compare` writes of a comparison, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path

from strace_lens.cli.common import say
from strace_lens.cli.submission import gaps
from strace_lens.comparison.comparison import COLUMNS, TIMINGS, Comparison
from strace_lens.comparison.places import PAGE, PROJECTION, TABLE, TIMES
from strace_lens.report.compare import comparison_report
from strace_lens.report.summary import summarize_comparison
from strace_lens.report.tables import print_comparison
from strace_lens.utils.disk import write_whole


def write_comparison(found: Comparison, out: Path) -> None:
    """Write the tables and then the page; `compare` writes what each method found."""
    for name, columns in (
        (TABLE, [column for column in COLUMNS if column not in TIMINGS]),
        (TIMES, ["method", *TIMINGS]),
    ):
        write_whole(out / name, found.table[columns].to_csv(index=False).encode())
    if found.projection is not None:
        write_whole(out / PROJECTION, found.projection.to_csv(index=False).encode())
    comparison_report(found, out / PAGE)


def print_results(found: Comparison, out: Path, entries: list[Path] | None, as_json: bool) -> None:
    """Print the table and what was written, or JSON."""
    if as_json:  # the table has them in its head
        for line in found.warnings:
            say(f"warning: {line}")
    for name, reason in found.skipped.items():
        say(f"skipped {name}: {reason}")
    for line in gaps(entries or []):
        say(f"note: {line}")
    if as_json:
        written = {} if entries is None else {"submission": [str(entry) for entry in entries]}
        print(json.dumps({**summarize_comparison(found), **written}, allow_nan=False))
    else:
        print_comparison(found)
        print(f"wrote {PAGE}, {TABLE}, circuits/ and scores/ to {out}")
        for entry in entries or []:
            print(f"wrote {entry}")
