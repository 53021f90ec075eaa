"""The site without building it: nothing public is missing, every link leads somewhere.

`make docs` runs the examples; what is here needs no model and a second.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree.ElementTree import fromstring

import pandas as pd
import pytest
import yaml
from typer.main import get_command

import strace_lens as sl
from strace_lens.cli import app
from strace_lens.traces.importance import IMPORTANCES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<![\w$])\$(?=\S)([^$\n]+?)(?<=\S)\$(?!\w)", re.DOTALL)


def hook(name: str) -> ModuleType:
    """A module of docs/hooks, which is no package; skips where the site cannot be built."""
    pytest.importorskip("markdown", reason="the site's packages are not installed")
    pytest.importorskip("latex2mathml", reason="the site's packages are not installed")
    spec = importlib.util.spec_from_file_location(name, DOCS / "hooks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def text_of(page: Path) -> str:
    """A page without its fenced blocks and code in lines: no link or formula is in them."""
    text = re.sub(r"^(```+).*?^\1", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.sub(r"`[^`\n]*`", "", text)


def nav_files(nav: Any) -> list[str]:
    """Every file of the navigation, from its nested lists and dicts."""
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav
    return [file for part in parts for file in nav_files(part)]


def documented() -> dict[str, Any]:
    """What the reference pages name, by dotted path, looked up."""
    found = {}
    for page in sorted((DOCS / "reference").glob("*.md")):
        for path in re.findall(r"^::: (\S+)", page.read_text(encoding="utf-8"), re.M):
            module, _, name = path.rpartition(".")
            assert path not in found, f"{path} is on two pages"
            found[path] = getattr(importlib.import_module(module), name)
    return found


# ------------------------------------------------------------------ what is there


def test_every_public_name_is_on_a_reference_page() -> None:
    on_pages = list(documented().values())
    missing = [n for n in sl.__all__ if not any(getattr(sl, n) is found for found in on_pages)]
    assert missing == []


def test_every_discovery_method_is_on_a_reference_page() -> None:
    on_pages = list(documented().values())
    assert [n for n, method in sl.METHODS.items() if method.find not in on_pages] == []


def test_every_argument_on_a_reference_page_is_a_parameter() -> None:
    """A page is built of the entries of `Args`, and strict builds end at one that is none."""
    wrong = []
    for path, found in documented().items():
        functions = vars(found).items() if inspect.isclass(found) else [("", found)]
        for name, function in functions:
            if not inspect.isfunction(function):
                continue
            said = re.search(r"\n *Args:\n(.+?)(\n\n|\Z)", inspect.getdoc(function) or "", re.S)
            entries = re.findall(r"^    (\S.*?):", said[1] if said else "", re.M)
            known = inspect.signature(function).parameters
            wrong += [(path, name, entry) for entry in entries if entry.lstrip("*") not in known]
    assert wrong == []


def test_every_page_is_in_the_navigation_and_every_entry_is_a_file() -> None:
    entries = nav_files(SITE["nav"])
    assert len(entries) == len(set(entries))
    # The hook brings in notebooks and the like from the root.
    assert [e for e in entries if not (DOCS / e).is_file() and not (ROOT / e).is_file()] == []
    pages = [page.relative_to(DOCS).as_posix() for page in PAGES]
    notebooks = [page.relative_to(ROOT).as_posix() for page in ROOT.glob("notebooks/*.ipynb")]
    assert set(pages + notebooks) - set(entries) == set()


def test_every_command_has_a_page_that_shows_its_help() -> None:
    commands = set(get_command(app).commands)  # pyright: ignore[reportAttributeAccessIssue]
    assert {page.stem for page in DOCS.glob("verbs/*.md")} == commands
    for name in commands:
        page = (DOCS / "verbs" / f"{name}.md").read_text(encoding="utf-8")
        assert f'run("strace-lens {name} --help")' in page


def test_an_example_that_adds_to_the_package_takes_it_back() -> None:
    text = (DOCS / "extend.md").read_text("utf-8")
    added = re.findall(r'^(\w+)\["(\w+)"\] = ', text, re.M)
    added += [("sl.METHODS", key) for key in re.findall(r'^@sl\.method\("(\w+)"', text, re.M)]
    assert {name for name, _ in added} == {"IMPORTANCES", "sl.METHODS"}
    for name, key in added:
        assert f'\ndel {name}["{key}"]\n' in text
        assert key not in {**IMPORTANCES, **sl.METHODS}


# ------------------------------------------------------------------ links


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda p: p.name
)
def test_every_relative_link_leads_to_a_file(page: Path) -> None:
    lost = []
    for target, anchor in re.findall(r"\]\(([^)\s#]*)(#[^)\s]*)?\)", text_of(page)):
        if re.match(r"https?:", target):
            continue
        # Notebooks are pages of the site, linked from docs/ as the site has them.
        places = [page.parent / target, ROOT / target] if "notebooks/" in target else []
        file = next(filter(Path.exists, places or [page.parent / target]), None)
        if file is None or (anchor and target and anchor[1:] not in anchors(file)):
            lost.append(target + anchor)
    assert lost == []


def anchors(page: Path) -> set[str]:
    """The ids of a page's headings, as Markdown's toc makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    plain = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings]
    return {re.sub(r"[-\s]+", "-", heading) for heading in plain}


def test_pages_fetch_nothing_when_they_are_read() -> None:
    assert SITE["theme"]["font"] is False
    assert "extra_javascript" not in SITE
    assert [css for css in SITE["extra_css"] if not (DOCS / css).is_file()] == []
    for page in PAGES:
        assert not re.search(r"<(script|link|img|iframe)\b[^>]*https?:", page.read_text("utf-8"))


# ------------------------------------------------------------------ formulas


@pytest.fixture
def render() -> Callable[[str], str]:
    """Markdown to HTML, with formulas."""
    markdown = pytest.importorskip("markdown", reason="the site's packages are not installed")
    return markdown.Markdown(extensions=[hook("mathml").Formulas()]).convert


def test_formulas_become_mathml_in_a_line_and_on_a_line_of_their_own(render) -> None:
    html = render("so $x_{\\ell,t}$ is\n\n$$\\sum_i \\frac{a_i^2}{3.5}$$")
    inline, block = (fromstring(math) for math in re.findall("<math.*?</math>", html))
    assert (inline.get("display"), block.get("display")) == ("inline", "block")
    assert "".join(inline.itertext()) == "xℓ,t"
    assert "".join(block.itertext()) == "∑iai23.5"
    assert [e.tag.partition("}")[2] for e in block.iter() if "frac" in e.tag] == ["mfrac"]


@pytest.mark.parametrize("latex", [r"\nosuchcommand{2}", r"a \nosuchsymbol b"])
def test_an_unknown_command_ends_the_build(latex: str, render) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(latex))):
        render(f"so ${latex}$ is")


def test_every_formula_of_the_pages_is_read_and_none_is_lost(render) -> None:
    read = 0
    for page in PAGES:
        for block, inline in FORMULA.findall(text_of(page)):
            math = fromstring(render(f"$${block or inline}$$"))
            letters = re.findall(r"(?<![\\a-zA-Z])[a-zA-Z](?![a-zA-Z])", block or inline)
            # Upright letters are those of \mathrm, which are no symbols of their own.
            shown = [e.text or "" for e in math.iter() if e.tag.endswith("}mi") and not e.attrib]
            assert sorted(x for x in shown if re.fullmatch("[a-zA-Z]", x)) == sorted(letters)
            read += 1
    assert read > 40


def test_formulas_keep_out_of_code_and_of_emphasis(render) -> None:
    html = render("`$a_b$` and $c_d$ and $e_f$; 5$ and 6$, \\$g\\$")
    assert "<code>$a_b$</code>" in html
    assert html.count("<math ") == 2
    assert "<em>" not in html
    assert "5$ and 6$, " in html


# ------------------------------------------------------------------ examples


def test_an_example_shows_a_command_and_what_it_prints() -> None:
    shown = hook("cells").run("strace-lens \\\n  --version", lines=1)
    assert shown.splitlines() == [
        "$ strace-lens \\",
        "  --version",
        f"strace-lens {sl.__version__}",
    ]


def test_an_example_that_fails_stops_the_build() -> None:
    with pytest.raises(RuntimeError, match="ended with status 2"):
        hook("cells").run("strace-lens trace --sizes 7 prompt")


def test_a_table_of_an_example_has_no_pandas_marks_and_says_what_it_leaves_out() -> None:
    frame = pd.DataFrame({"head": pd.array([1, None, 3], dtype="Int64"), "tv": [0.12345, 1, 0]})
    html = hook("cells").table(frame, rows=2)
    assert "<td>1</td>" in html
    assert "<td>–</td>" in html
    assert "<td>0.123</td>" in html
    assert "and 1 more rows" in html
    assert "dataframe" not in html


# ------------------------------------------------------------------ examples that need not run


def checkout(root: Path) -> Path:
    """The files of a checkout that examples depend on, one of each kind."""
    files = {
        "strace_lens/verb.py": "x = 1",
        "docs/hooks/cells.py": "",
        "docs/table.csv": "1,2",
        "constraints.txt": "torch==1",
        "docs/page.md": 'Words.\n```python exec="on"\nprint(1)\n```\nMore words.\n',
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, "utf-8")
    return root


@pytest.mark.parametrize(
    ("name", "old", "new", "again"),
    [
        ("docs/page.md", "More words", "Other words", False),
        ("docs/page.md", "print(1)", "print(2)", True),
        ("docs/page.md", 'exec="on"', 'exec="on" session="a"', True),
        ("strace_lens/verb.py", "1", "2", True),
        ("docs/table.csv", "1", "3", True),
        ("constraints.txt", "1", "2", True),
    ],
)
def test_examples_run_again_where_what_they_depend_on_has_changed(
    tmp_path: Path, name: str, old: str, new: str, again: bool
) -> None:
    key_of, root = hook("examples").key_of, checkout(tmp_path)
    before = key_of(root)
    assert key_of(root) == before
    path = root / name
    path.write_text(path.read_text("utf-8").replace(old, new), "utf-8")
    assert (key_of(root) != before) == again


def test_examples_that_ran_are_not_run_again(tmp_path: Path) -> None:
    Examples, store = hook("examples").Examples, tmp_path / "cache" / "outputs.json"
    ran: list[str] = []

    def run(code: str, **options: Any) -> str:
        ran.append(code)
        if code == "fails":
            raise RuntimeError(code)
        return f"{code} {len(ran)}"

    def build(key: str, *codes: str) -> tuple[list[str], Any]:
        examples = Examples(key, store)
        once = examples.instead_of(run)
        shown = [once(code, session="a") for code in codes]
        examples.files["page.html"] = "whole"
        examples.save()
        return shown, examples

    first, _ = build("key", "a", "b", "a")
    assert (first, len(ran)) == (["a 1", "b 2", "a 3"], 3)
    again, known = build("key", "a", "b", "a")
    assert (again, len(ran), known.files) == (first, 3, {"page.html": "whole"})
    assert build("other", "a")[0] == ["a 4"]
    store.write_bytes(store.read_bytes()[:-5])  # torn
    assert build("other", "a")[0] == ["a 5"]
    examples = Examples("failing", store)
    with pytest.raises(RuntimeError):
        examples.instead_of(run)("fails")
    examples.save()
    assert not Examples("failing", store).known
