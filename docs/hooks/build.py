"""Hooks of MkDocs: formulas, files from outside docs/, and the folder where examples run.

All examples run in this process and in one temporary folder, or are taken from the build before
(`examples.py`). A model is loaded once in a build, however many pages load it. Pages work without a
network: plotly.js comes from the plotly package.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))

import cells  # noqa: F401  examples import it when it is no longer on the path
import examples
import mathml
from plotly.offline import get_plotlyjs

ROOT = Path(__file__).parents[2]
OUTSIDE = ("CONTRIBUTING.md", "notebooks/*.ipynb", "benchmarks/*.txt")
"""Files of the repository that are pages of the site, or that pages link to."""
PLOTLY = "assets/plotly.js"
KEPT = ("explorer.html",)
"""Files that examples write and pages show."""

_log = logging.getLogger("mkdocs.hooks.build")
_before: list[str] = []
_folder: list[tempfile.TemporaryDirectory[str]] = []
_examples: list[examples.Examples] = []


def on_startup(**_: Any) -> None:
    """Cache `load_model`, wherever it is called from."""
    import strace_lens
    from strace_lens.model import load as models

    strace_lens.load_model = models.load_model = functools.cache(models.load_model)
    assert "strace_lens.cli" not in sys.modules  # the commands must import the cached one


def on_config(config: MkDocsConfig) -> None:
    """Add the formulas."""
    config.markdown_extensions.append(mathml.Formulas())  # type: ignore[arg-type]


def on_pre_build(config: MkDocsConfig) -> None:
    """Change to the folder of the examples, and see whether they have to run."""
    _before.append(os.getcwd())
    _folder.append(tempfile.TemporaryDirectory(prefix="examples-"))
    os.chdir(_folder[-1].name)
    _examples.append(examples.Examples(examples.key_of()))
    examples.use(_examples[-1])
    if _examples[-1].known:
        _log.info("the examples are those of an earlier build; `make clean` lets them run again")


@event_priority(100)  # before mkdocs-jupyter looks for notebooks
def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the files from outside docs/, and plotly.js."""
    for path in (path for pattern in OUTSIDE for path in sorted(ROOT.glob(pattern))):
        name = path.relative_to(ROOT).as_posix()
        files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    files.append(File.generated(config, PLOTLY, content=get_plotlyjs()))


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Point links that leave docs/ to the added files."""
    return re.sub(r"\]\(\.\./(CONTRIBUTING|benchmarks|notebooks)", r"](\1", markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Add plotly.js to pages that have a figure; remove the empty MathJax tag of the notebooks."""
    output = output.replace('<script src=""> </script>', "")
    if "plotly-graph-div" not in output:
        return output
    there = os.path.relpath(PLOTLY, os.path.dirname(page.file.dest_uri) or ".")
    return output.replace("</head>", f'<script src="{there}"></script></head>', 1)


def on_post_build(config: MkDocsConfig) -> None:
    """Write the files that pages show into the site, keep the examples, and leave their folder."""
    kept = Path(config.site_dir) / "examples"
    kept.mkdir(exist_ok=True)
    done = _examples.pop()
    if not done.known:
        done.files |= {name: Path(name).read_text("utf-8") for name in KEPT if Path(name).is_file()}
    for name in KEPT:
        if name in done.files:
            (kept / name).write_text(done.files[name], "utf-8")
        else:
            _log.warning("no example wrote %s, which a page shows", name)
    done.save()
    _leave()


def on_build_error(error: Exception, **_: Any) -> None:
    """Leave the folder of the examples."""
    _leave()


def _leave() -> None:
    if _folder:  # a build that warned ends in an error after its end
        os.chdir(_before.pop())
        _folder.pop().cleanup()
