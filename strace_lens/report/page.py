"""The shell of every page: style, plotly.js, figures and tables; it works offline."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from string import Template

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from strace_lens.density.curve import DensityCurve
from strace_lens.utils.html_repr import isolated, short

NUMBER: Callable[[float], str] = "{:.3g}".format
_EDGES: Callable[[float], str] = "{:,.0f}".format


def page(title: str, lead: str, sections: Mapping[str, Sequence[str]] | None = None) -> str:
    """One self-contained HTML page with plotly.js inside it (about 5 MB).

    Args:
        title: of the window, as text.
        lead: HTML above the first section.
        sections: the parts of each section, as HTML, by its heading; a section whose parts are all
            empty is left out.
    """
    body = [lead]
    for heading, parts in (sections or {}).items():
        if any(parts):
            body += [f"<h2>{html.escape(heading, quote=False)}</h2>", *parts]
    return _PAGE.substitute(title=html.escape(title), plotlyjs=get_plotlyjs(), body="\n".join(body))


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


def table_html(table: pd.DataFrame, edges: Sequence[str] = ("edges",)) -> str:
    """A table that scrolls within itself; text is escaped, NaN a dash, `edges` whole numbers."""
    shown = table.to_html(
        index=False,
        border=0,
        na_rep="–",
        float_format=NUMBER,
        formatters={c: _EDGES for c in edges if c in table},
    )
    return f'<div class="wide">{shown}</div>'


def facts_html(facts: dict[str, str]) -> str:
    """Names and what they are, both as text, in two columns of a definition list."""
    return "".join(f"<dt>{k}</dt><dd>{html.escape(v)}</dd>" for k, v in facts.items())


def versions_text(versions: dict[str, str]) -> str:
    """Names and versions of packages, in one line."""
    return ", ".join(f"{k} {v}" for k, v in versions.items()) or "unknown"


def sentence(text: str) -> str:
    """A phrase with a capital and a full stop."""
    return text[:1].upper() + text[1:] + "."


_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", Arial, sans-serif; color: #222;
  max-width: 1200px; margin: 0 auto; padding: 0 20px 40px; }
h1 { font-size: 1.6em; overflow-wrap: anywhere; }
h2 { font-size: 1.25em; margin: 2em 0 .5em; border-bottom: 1px solid #ddd; }
h3 { font-size: 1.05em; margin: 1.5em 0 .25em; }
figure { margin: 1em 0 2em; }
figcaption { color: #444; font-size: .9em; max-width: 80ch; }
.tokens { line-height: 2; overflow-wrap: anywhere; }
.tokens span, code { background: #f2f2f2; border-radius: 3px; padding: 1px 4px;
  font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .9em; white-space: pre; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2em 1.2em; }
dt { color: #555; } dd { margin: 0; overflow-wrap: anywhere; }
.finding { font-size: 1.1em; font-weight: 600; }
iframe { width: 100%; height: min(60rem, 95vh); border: 1px solid #ddd; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .82em; font-variant-numeric: tabular-nums; }
th, td { padding: 3px 6px; text-align: right; }
td { white-space: nowrap; }
th { vertical-align: bottom; border-bottom: 1px solid #222; }
tr:nth-child(even) td { background: #f6f6f6; }
.claims { font-size: .82em; }
.claims th, .claims td, .claims tr:nth-child(even) td { text-align: left; vertical-align: top;
  white-space: normal; background: none; border-bottom: 1px solid #ddd; font-weight: normal; }
.claims thead th { border-bottom: 2px solid #222; vertical-align: bottom; overflow-wrap: anywhere; }
.claims tbody th { min-width: 13em; }
.claims small { display: block; color: #555; }
.claims b { white-space: nowrap; }
.claims .claim th { font-weight: 600; padding: .8em 6px .3em; }
.claims .claim td { padding-top: .8em; }
.claims tr td.holds { background: #d5efe4; }
.claims tr td.fails { background: #fbdfcb; }
.claims tr td.unknown { background: #ececec; }
@media (max-width: 600px) { dl { grid-template-columns: 1fr; } dt { margin-top: .5em; } }
</style>
<script>$plotlyjs</script>
</head>
<body>
$body
</body>
</html>
""")
