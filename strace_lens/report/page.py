"""What pages are made of: their shell, plotly.js, figures and tables; they work offline."""

from __future__ import annotations

import html
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from string import Template
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from strace_lens.density.curve import DensityCurve
from strace_lens.utils.html_repr import isolated, short

NUMBER: Callable[[float], str] = "{:.3g}".format
_EDGES: Callable[[float], str] = "{:,.0f}".format


def asset(name: str) -> str:
    """The text of a file that pages are made of."""
    return (files("strace_lens.report") / "assets" / name).read_text(encoding="utf-8")


def fill(name: str, **parts: str) -> str:
    """An asset with its places filled with HTML."""
    return Template(asset(name)).substitute(parts)


def page(
    title: str,
    lead: str,
    sections: Mapping[str, Sequence[str]] | None = None,
    *,
    folded: bool = False,
) -> str:
    """One self-contained HTML page with plotly.js inside it (about 5 MB).

    Args:
        title: of the window, as text.
        lead: HTML above the first section.
        sections: the parts of each section, as HTML, by its heading; a section whose parts are all
            empty is left out.
        folded: whether the sections are folded, each to be opened at its heading.
    """
    body = [lead]
    for heading, parts in (sections or {}).items():
        if any(parts):
            text = f"<h2>{html.escape(heading, quote=False)}</h2>"
            body.append(fold(text, parts) if folded else "\n".join([text, *parts]))
    return fill("figures.html", title=html.escape(title), js=get_plotlyjs(), body="\n".join(body))


def fold(heading: str, parts: Iterable[str]) -> str:
    """Parts under a heading that opens and closes them, all as HTML."""
    return "\n".join([f"<details><summary>{heading}</summary>", *parts, "</details>"])


def model_name(curve: DensityCurve) -> str:
    """The name of the model that a curve was measured on."""
    return str(curve.trace.metadata.get("model", "a model without a name"))


def trace_title(curve: DensityCurve) -> str:
    """Model and prompt of a curve as the title of a page, on one line, as text."""
    prompt = curve.trace.prompt
    words = (prompt.text or " ".join(prompt.strings)).split()
    return f"Trace of {model_name(curve)}: {isolated(short(' '.join(words), 60))}"


def figure_html(fig: go.Figure, name: str, caption: str) -> str:
    """A figure under a fixed id, so that the page is the same each time; the caption is HTML."""
    inner = fig.to_html(
        full_html=False,
        include_plotlyjs=False,
        include_mathjax=False,
        div_id=f"figure-{name}",
        default_width="100%",
        default_height=f"{fig.layout.height}px",
        config={"responsive": True, "displaylogo": False},
    )
    return f"<figure>{inner}<figcaption>{caption}</figcaption></figure>"


def drawn(plot: Callable[..., go.Figure], *results: Any, more: str = "", suffix: str = "") -> str:
    """A figure of some results, named after the function that draws it.

    Its caption is what the docstring of that function says before any sections.

    Args:
        plot: draws the figure.
        results: its arguments.
        more: HTML at the end of the caption.
        suffix: of the name, for a second figure of the same kind.
    """
    name = plot.__name__.removeprefix("plot_").replace("_", "-") + suffix
    said, *_ = re.split(r"\n\n\w+:\n", inspect.getdoc(plot) or "")
    caption = html.escape(" ".join(said.split()), quote=False)
    return figure_html(plot(*results), name, f"{caption} {more}".rstrip())


def table_html(
    table: pd.DataFrame, edges: Sequence[str] = ("edges",), *, tall: bool = False
) -> str:
    """A table that scrolls within itself; text is escaped, NaN a dash, `edges` whole numbers.

    A `tall` one has so many rows that it scrolls up and down too.
    """
    shown = table.to_html(
        index=False,
        border=0,
        na_rep="–",
        float_format=NUMBER,
        formatters={c: _EDGES for c in edges if c in table},
    )
    style = "wide tall" if tall else "wide"
    return f'<div class="{style}" tabindex="0">{shown}</div>'  # scrolled by the keyboard too


def facts_html(facts: dict[str, str]) -> str:
    """Names and what they are, both as text, in two columns of a definition list."""
    return "".join(f"<dt>{k}</dt><dd>{html.escape(v)}</dd>" for k, v in facts.items())


def square(colours: Mapping[str, str], name: str) -> str:
    """A square in the colour of a name, as HTML; nothing where it has none."""
    return (
        f'<i class="run" style="background:{colours[name]}"></i>&nbsp;' if name in colours else ""
    )


def paragraphs(lines: Iterable[str]) -> str:
    """Lines of text as HTML, a paragraph each."""
    return "".join(f"<p>{html.escape(line, quote=False)}</p>" for line in lines)


def bullets(lines: Iterable[str], style: str = "") -> str:
    """Lines of text as an HTML list of a class, if there are any."""
    items = "".join(f"<li>{html.escape(line, quote=False)}</li>" for line in lines)
    return f'<ul class="{style}">{items}</ul>' if items else ""


def versions_text(versions: dict[str, str]) -> str:
    """Names and versions of packages, in one line."""
    return ", ".join(f"{k} {v}" for k, v in versions.items()) or "unknown"


def sentence(text: str) -> str:
    """A phrase with a capital and a full stop."""
    return text[:1].upper() + text[1:] + "."
