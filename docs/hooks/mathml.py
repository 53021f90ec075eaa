"""Formulas of the pages as MathML, which browsers draw without a script or a font from elsewhere.

A page holds them as GitHub draws them too: `$x$` within a line, `$$x$$` on lines of their own.
"""

from __future__ import annotations

from re import Match

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor

# Only the bars of \left and \right get a side from latex2mathml; others are spaced as operators.
_BARS = {
    **{r"\lvert": r"\left|", r"\rvert": r"\right|"},
    **{r"\lVert": r"\left\|", r"\rVert": r"\right\|"},
}


class _Formula(InlineProcessor):
    def __init__(self, pattern: str, md: Markdown, display: str) -> None:
        super().__init__(pattern, md)
        self.display = display

    def handleMatch(self, m: Match[str], data: str) -> tuple[str, int, int]:
        latex = m[1]
        for bar, stretchy in _BARS.items():
            latex = latex.replace(bar, stretchy)
        formula = convert(latex, display=self.display)
        # latex2mathml passes an unknown command through as text instead of refusing it.
        if "\\" in formula:
            raise ValueError(f"latex2mathml does not know a command of the formula {m[1]!r}")
        return self.md.htmlStash.store(formula), m.start(0), m.end(0)


class Formulas(Extension):
    """Markdown with formulas between dollars; code comes before them, escapes after."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Register both kinds of formula."""
        block = _Formula(r"\$\$(.+?)\$\$", md, "block")
        inline = _Formula(r"(?<![\w$\\])\$(?=\S)([^$\n]+?)(?<=\S)\$(?!\w)", md, "inline")
        md.inlinePatterns.register(block, "formula-block", 186)
        md.inlinePatterns.register(inline, "formula", 185)
