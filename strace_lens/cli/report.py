"""`strace-lens report`: measured traces on one interactive page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from strace_lens.cli import options as opt
from strace_lens.cli.common import Bar, one_line_errors
from strace_lens.cli.trace import RESULT
from strace_lens.utils.disk import results_folder, write_whole

EXPLORER = "explorer.html"


def report_command(
    results: Annotated[
        list[Path],
        typer.Argument(
            help="Files that `strace-lens trace` or `save` wrote, or folders with a "
            f"{RESULT}; each becomes a panel of the page."
        ),
    ],
    out: Annotated[Path, opt.option("The page to write.")] = Path("out") / EXPLORER,
) -> None:
    """Put traces on one interactive page, with a slider over s.

    The slider updates the drawing, the prediction and the curves. The page opens from disk and
    needs no network.

    Example: strace-lens report out --out explorer.html
    """
    folder = results_folder(out.parent, [out.name])
    with one_line_errors(), folder, Bar() as bar:
        files = [_result(path) for path in results]
        with bar.importing():
            from strace_lens.density.curve import DensityCurve
            from strace_lens.files.results import load
            from strace_lens.report.explorer import explorer
        bar.step("reading")
        curves = [load(file, DensityCurve) for file in files]
        bar.step("drawing")
        page = explorer(curves)
        write_whole(out, page.encode())
        bar.stop()
        print(f"wrote {out}: {len(curves)} trace{'s' * (len(curves) != 1)}, {len(page):,} bytes")


def _result(path: Path) -> Path:
    """Return the file of a result, which may be named by its folder."""
    if not path.is_dir():
        return path
    if (path / RESULT).is_file():
        return path / RESULT
    if (path / "parts").is_dir():
        raise FileNotFoundError(f"{path} is a sweep; for its page run: strace-lens phases {path}")
    raise FileNotFoundError(f"{path} holds no {RESULT}; name what `strace-lens trace` wrote")
