"""Write figures of a page as PNG files with Chromium (plotly's exporter needs more than pip).

python docs/figures.py out/estimators/phases.html docs fidelity compute
python docs/figures.py out/trace.html docs "explorer#s=0.04&curve=1"    # that of the README
"""

from __future__ import annotations

import html
import re
import subprocess
import sys
import tempfile
from pathlib import Path

WIDTH, EXPLORER_HEIGHT = 1100, 860
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--hide-scrollbars", "--force-device-scale-factor=1.5", "--virtual-time-budget=8000"),
)
STYLE = """<style>body { margin: 0; max-width: none; padding: 0; } figure { margin: 0; }
.modebar-container, figcaption { display: none; }</style>"""


def save_figure(page: Path, name: str, path: Path) -> None:
    """Write one figure of a page, the one called `figure-<name>` there, to a PNG file."""
    text = page.read_text(encoding="utf-8")
    before, there, _ = text.partition(f'id="figure-{name}"')
    if not there:
        names = re.findall(r'id="figure-([\w-]+)"', text)
        raise ValueError(f"{page} has no figure {name!r}; it has {', '.join(names)}")
    height = re.findall(r"height: ?(\d+)px", before)[-1]
    head, body = text.split("<body>")
    figure = next(f for f in body.split("<figure>") if there in f).split("</figure>")[0]
    save(f"{head}{STYLE}<body><figure>{figure}</figure></body>", path, int(height))


def save_explorer(page: Path, fragment: str, path: Path) -> None:
    """Write the top of the explorer of a trace's page, as a link with this fragment opens it."""
    found = re.search(r'srcdoc="([^"]*)"', page.read_text(encoding="utf-8"))
    if found is None:
        raise ValueError(f"{page} is no page of strace-lens trace: it holds no explorer")
    save(html.unescape(found[1]), path, EXPLORER_HEIGHT, fragment)


def save(page: str, path: Path, height: int, fragment: str = "") -> None:
    """Write a page, as far as a window shows it, to a PNG file."""
    with tempfile.TemporaryDirectory() as folder:
        alone = Path(folder) / "figure.html"
        alone.write_text(page, encoding="utf-8")
        subprocess.run(
            [
                "chromium",
                *FLAGS,
                f"--user-data-dir={folder}/profile",
                f"--window-size={WIDTH},{height}",
                f"--screenshot={path.resolve()}",
                f"{alone.as_uri()}#{fragment}",
            ],
            check=True,
            capture_output=True,
        )


if __name__ == "__main__":
    for name, _, fragment in (given.partition("#") for given in sys.argv[3:]):
        target = Path(sys.argv[2]) / f"{name}.png"
        if name == "explorer":
            save_explorer(Path(sys.argv[1]), fragment, target)
        else:
            save_figure(Path(sys.argv[1]), name, target)
