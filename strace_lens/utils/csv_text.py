"""CSV text as rows of cells that all have the width of the header."""

from __future__ import annotations

import csv
import io
from pathlib import Path


class CsvError(ValueError):
    """A text is not CSV. The message names the file, the line and what is wrong."""


def csv_rows(text: str, path: str | Path) -> list[tuple[int, list[str]]]:
    """Rows with the line that each begins at, counted from 1; the header first, all as wide as it.

    Raises:
        CsvError: no rows, a quote that is not closed, or a row of another width than the header.
    """
    limit = csv.field_size_limit(len(text) + 1)  # the default refuses texts of 128 KiB
    rows: list[tuple[int, list[str]]] = []
    begins = 1
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        for cells in reader:
            if cells:
                rows.append((begins, cells))
                if len(cells) != len(rows[0][1]):
                    raise CsvError(
                        f"{path}, line {begins}: {len(cells)} cells under a header of "
                        f"{len(rows[0][1])}; quote texts that hold commas"
                    )
            begins = reader.line_num + 1
    except csv.Error as error:
        raise CsvError(f"{path}, line {begins}: not CSV ({error})") from error
    finally:
        csv.field_size_limit(limit)
    if not rows:
        raise CsvError(f"{path} is empty; a CSV begins with the names of its columns")
    return rows
