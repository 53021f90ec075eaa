"""Write figures of a page as PNG files with Chromium (plotly's exporter needs more than pip).

python docs/figures.py out/estimators/phases.html docs fidelity compute
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

WIDTH = 1100
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
    with tempfile.TemporaryDirectory() as folder:
        alone = Path(folder) / "figure.html"
        alone.write_text(f"{head}{STYLE}<body><figure>{figure}</figure></body>", encoding="utf-8")
        subprocess.run(
            [
                "chromium",
                *FLAGS,
                f"--user-data-dir={folder}/profile",
                f"--window-size={WIDTH},{height}",
                f"--screenshot={path.resolve()}",
                alone.as_uri(),
            ],
            check=True,
            capture_output=True,
        )


if __name__ == "__main__":
    for figure in sys.argv[3:]:
        save_figure(Path(sys.argv[1]), figure, Path(sys.argv[2]) / f"{figure}.png")
