"""Equations of the pages as MathML, which browsers draw without a script or a font from elsewhere.

A page holds them as GitHub draws them too: `$x$` within a line, `$$x$$` on lines of their own. The
part of LaTeX that the pages use is read, and no more; an unknown command ends the build.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from re import Match
from xml.etree.ElementTree import Element, SubElement

from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor
from markdown.util import AtomicString

_TOKEN = re.compile(r"\\[a-zA-Z]+|\\[,;{}]|\d+(?:[.,]\d+)*|[^\s]")
_SYMBOLS = {
    **{"alpha": "α", "theta": "θ", "sigma": "σ", "rho": "ρ", "ell": "ℓ", "pi": "π"},
    **{"Delta": "Δ", "partial": "∂", "infty": "∞"},
}
_OPERATORS = {
    **{"cdot": "⋅", "le": "≤", "ge": "≥", "in": "∈", "times": "×", "to": "→", "setminus": "∖"},
    **{"lVert": "‖", "rVert": "‖", "lvert": "|", "rvert": "|", "lfloor": "⌊", "rfloor": "⌋"},
    **{"approx": "≈", "subset": "⊂", "subseteq": "⊆", "dots": "…", "mid": "|", "parallel": "∥"},
    **{"{": "{", "}": "}"},
}
_SPACES = {",": "0.17em", ";": "0.28em", "quad": "1em"}
_FUNCTIONS = {"log", "max", "min", "cos", "ln", "exp"}
_FORMS = {"lVert": "prefix", "lvert": "prefix", "rVert": "postfix", "rvert": "postfix"}
_LARGE = {"sum": "∑", "int": "∫", "prod": "∏"}


def mathml(latex: str, *, block: bool) -> Element:
    """A formula as a `math` element.

    Args:
        latex: letters, numbers, operators, `^`, `_`, groups in braces, `\\frac`, `\\text`,
            `\\mathrm`, `\\left`, `\\right` and the symbols named above.
        block: on a line of its own, with limits above and below a sum.

    Raises:
        ValueError: an unknown command, or braces that do not match.
    """
    math = Element("math", {"display": "block"} if block else {})
    tokens = _Tokens(latex)
    _row(SubElement(math, "mrow"), tokens, block)
    if tokens.next is not None:
        raise ValueError(f"an unexpected {tokens.next!r} in the formula {latex!r}")
    return math


class _Tokens:
    """The tokens of a formula, with the next one in sight."""

    def __init__(self, latex: str) -> None:
        self.latex = latex
        self._left = iter(_pieces(latex))
        self.next: str | None = next(self._left, None)

    def take(self, wanted: str | None = None) -> str:
        token = self.next
        if token is None or wanted not in (None, token):
            raise ValueError(f"{wanted or 'more'} expected, not {token}, in {self.latex!r}")
        self.next = next(self._left, None)
        return token


def _pieces(latex: str) -> Iterator[str]:
    """Tokens; the braces of a text and what is in them are one token, spaces and all."""
    at = 0
    for found in re.finditer(r"\\(?:text|mathrm)(\{[^{}]*\})", latex):
        yield from _TOKEN.findall(latex[at : found.start(1)])
        yield found[1]
        at = found.end()
    yield from _TOKEN.findall(latex[at:])


def _row(parent: Element, tokens: _Tokens, block: bool) -> None:
    while tokens.next not in (None, "}"):
        _scripted(parent, tokens, block)


def _scripted(parent: Element, tokens: _Tokens, block: bool) -> None:
    """One atom with what hangs below and above it."""
    base = _atom(tokens, block)
    scripts: dict[str, Element] = {}
    while tokens.next in ("_", "^"):
        place = tokens.take()
        scripts[place] = _atom(tokens, block)
    limits = block and base.tag == "mo" and base.text in _LARGE.values()
    names = ("under", "over") if limits else ("sub", "sup")
    tag = "m" + "".join(n for n, s in zip(names, "_^", strict=True) if s in scripts)
    if not scripts:
        parent.append(base)
        return
    SubElement(parent, tag).extend([base, *(scripts[s] for s in "_^" if s in scripts)])


def _atom(tokens: _Tokens, block: bool) -> Element:
    token = tokens.take()
    if token == "{":
        group = Element("mrow")
        _row(group, tokens, block)
        tokens.take("}")
        return group
    if token.startswith("\\"):
        return _command(token[1:], tokens, block)
    if token[0].isdigit():
        return _leaf("mn", token)
    if token[0].isalpha():
        return _leaf("mi", token)
    return _leaf("mo", {"-": "−", "'": "′"}.get(token, token))


def _command(name: str, tokens: _Tokens, block: bool) -> Element:
    if name == "frac":
        fraction = Element("mfrac")
        fraction.extend([_atom(tokens, block), _atom(tokens, block)])
        return fraction
    if name in ("text", "mathrm"):
        return _leaf("mtext" if name == "text" else "mi", tokens.take()[1:-1])
    if name in _SPACES:
        return Element("mspace", {"width": _SPACES[name]})
    for known, tag in ((_SYMBOLS, "mi"), (_OPERATORS, "mo"), (_LARGE, "mo")):
        if name in known:
            leaf = _leaf(tag, known[name])
            if name in _FORMS:  # a bar says not by itself whether it opens or closes
                leaf.set("form", _FORMS[name])
            return leaf
    if name in _FUNCTIONS:
        return _leaf("mi", name)
    if name in ("left", "right"):
        bracket = _atom(tokens, block)
        bracket.set("stretchy", "true")
        return bracket
    raise ValueError(f"unknown command \\{name} in {tokens.latex!r}; add it to {__name__}")


def _leaf(tag: str, text: str) -> Element:
    element = Element(tag)
    element.text = AtomicString(text)  # Markdown looks for no emphasis in it
    if text in "()‖|⌊⌋":  # all but those of \\left and \\right keep to the size of the text
        element.set("stretchy", "false")
    return element


class _Formula(InlineProcessor):
    def __init__(self, pattern: str, md: Markdown, *, block: bool) -> None:
        super().__init__(pattern, md)
        self.block = block

    def handleMatch(self, m: Match[str], data: str) -> tuple[Element, int, int]:
        return mathml(m[1], block=self.block), m.start(0), m.end(0)


class Formulas(Extension):
    """Markdown with formulas between dollars; code comes before them, escapes after."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Register both kinds of formula."""
        block = _Formula(r"\$\$(.+?)\$\$", md, block=True)
        inline = _Formula(r"(?<![\w$\\])\$(?=\S)([^$\n]+?)(?<=\S)\$(?!\w)", md, block=False)
        md.inlinePatterns.register(block, "formula-block", 186)
        md.inlinePatterns.register(inline, "formula", 185)
