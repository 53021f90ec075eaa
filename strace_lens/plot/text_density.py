"""A text whose tokens are coloured by their density, as a block of HTML without scripts.

On hover, or on focus by the keyboard, a panel in the corner of the window shows what the model and
a small trace would have written in the token's place.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from string import Template

import numpy as np
import pandas as pd
from plotly.colors import hex_to_rgb, sample_colorscale

from strace_lens.model.predictions import TopToken
from strace_lens.plot.style import percent, quoted
from strace_lens.utils.html_repr import isolated

SCALE = "Cividis"
"""Perceptually uniform, and read alike with and without colour vision (Nuñez et al. 2018)."""

_BLANK = {"\n": "↵", "\r": "␍", "\t": "⇥"}


def text_density_html(
    tokens: pd.DataFrame, small: float, bounds: tuple[float, float] | None = None
) -> str:
    """A text with every token on the colour of its density, a legend, and alternatives on hover.

    Args:
        tokens: of `text_density`.
        small: size of the trace whose probabilities `tokens` has.
        bounds: densities of the first and of the last colour; those of the text by default.

    Returns:
        HTML that needs nothing else and follows the light or dark scheme of its reader.

    Raises:
        ValueError: no token has a density, or bounds that do not rise.
    """
    densities = tokens["density"].to_numpy(dtype=np.float64)
    measured = densities[~np.isnan(densities)]
    if not len(measured):
        raise ValueError("no token of the text has a density; nothing can be coloured")
    low, high = bounds or (float(measured.min()), float(measured.max()))
    if bounds is not None and not low < high:
        raise ValueError(f"bounds must rise; got {low:g} and {high:g}")
    spans = [_token(row, small, low, high) for row in tokens.to_dict("records")]
    return _BLOCK.substitute(
        style=_STYLE,
        legend=_legend(low, high),
        tokens="".join(spans),
        few=len(tokens) - len(measured),
    )


def text_density_page(tokens: pd.DataFrame, small: float, title: str, caption: str) -> str:
    """A page of `text_density_html`, complete in itself.

    Args:
        tokens: of `text_density`.
        small: size of the trace whose probabilities `tokens` has.
        title: of the page, as text.
        caption: what was measured, as text.
    """
    return _PAGE.substitute(
        title=html.escape(title),
        caption=html.escape(caption),
        block=text_density_html(tokens, small),
    )


def _token(row: dict[str, object], small: float, low: float, high: float) -> str:
    shown = _shown(str(row["token"]))
    density = float(row["density"])  # pyright: ignore[reportArgumentType]
    if np.isnan(density):
        return f'<span class="unmeasured">{shown}</span>'
    back, ink = colours(density, low, high)
    return (
        f'<span class="token" tabindex="0" style="background:{back};color:{ink}">{shown}'
        f'<span class="tip">{_tip(row, small)}</span></span>'
    )


def colours(density: float, low: float, high: float) -> tuple[str, str]:
    """Background and ink of a density; the ink, black or white, is that of the higher contrast."""
    place = 0.5 if high <= low else min(1.0, max(0.0, (density - low) / (high - low)))
    (back,) = sample_colorscale(SCALE, [place], colortype="tuple")
    red, green, blue = (round(255 * float(part)) for part in back)
    light = luminance((red, green, blue))
    ink = "#000000" if (light + 0.05) / 0.05 >= 1.05 / (light + 0.05) else "#ffffff"
    return f"#{red:02x}{green:02x}{blue:02x}", ink


def luminance(colour: tuple[int, int, int] | str) -> float:
    """Relative luminance of a colour (WCAG 2)."""
    parts = hex_to_rgb(colour) if isinstance(colour, str) else colour
    linear = [
        part / 255 / 12.92 if part / 255 <= 0.04045 else ((part / 255 + 0.055) / 1.055) ** 2.4
        for part in parts
    ]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def _shown(token: str) -> str:
    """A token as it stands in a text: breaks and tabs get a sign and keep their effect."""
    text = html.escape(isolated(token), quote=False)
    for blank, sign in _BLANK.items():
        kept = "" if blank == "\r" else blank
        text = text.replace(blank, f'<i aria-hidden="true">{sign}</i>{kept}')
    return text


def _tip(row: dict[str, object], small: float) -> str:
    alternatives: Sequence[TopToken] = row["alternatives"]  # pyright: ignore[reportAssignmentType]
    lines = "".join(
        f"<tr{_own(other.token == row['token'])}><td>{quoted(other.token)}</td>"
        f"<td>{_share(other.model)}</td><td>{_share(other.trace)}</td></tr>"
        for other in alternatives
    )
    return (
        f"<b>{quoted(str(row['token']))}</b>, token {int(str(row['position'])) + 1}<br>"
        f"density {row['density']:.3f}, entropy {row['entropy']:.2f} nats<br>"
        f"the model gave it {_share(float(str(row['probability'])))}"
        f"<table><thead><tr><th>instead</th><th>model</th><th>s = {small:g}</th></tr></thead>"
        f"<tbody>{lines}</tbody></table>"
    )


def _share(probability: float) -> str:
    return "&lt; 0.001 %" if 0 < probability < 1e-5 else percent(probability)


def _own(same: bool) -> str:
    return ' class="own"' if same else ""


def _legend(low: float, high: float) -> str:
    stops = np.linspace(0, 1, 11)
    bar = ", ".join(colours(low + stop * (high - low), low, high)[0] for stop in stops)
    if high <= low:
        return f"every token has density {low:.3f}"
    return (
        f"density {low:.3f} <span class='bar' style='background:linear-gradient(to right, {bar})'>"
        f"</span> {high:.3f}"
    )


_STYLE = """
.text-density { color-scheme: light dark; --ink: #222; --paper: #fff; --line: #bbb; --pale: #666;
  color: var(--ink); font: 16px/1.9 system-ui, "Segoe UI", "DejaVu Sans", Arial, sans-serif; }
@media (prefers-color-scheme: dark) {
  .text-density { --ink: #e8e8e8; --paper: #1d1d1f; --line: #555; --pale: #aaa; } }
.text-density .text { white-space: pre-wrap; overflow-wrap: anywhere; margin: .6em 0; }
.text-density .token { border-radius: 3px; padding: 2px 0; cursor: default; }
.text-density .token:hover, .text-density .token:focus { outline: 2px solid var(--ink); }
.text-density .unmeasured { color: var(--pale); }
.text-density i { font-style: normal; opacity: .6; }
.text-density .legend { font-size: 13px; line-height: 1.5; color: var(--pale); }
.text-density .bar { display: inline-block; width: 180px; height: 12px; border-radius: 3px;
  vertical-align: -1px; margin: 0 4px; }
.text-density .tip { display: none; position: fixed; right: 16px; bottom: 16px; z-index: 10;
  max-width: calc(100vw - 32px); box-sizing: border-box; padding: 10px 14px; pointer-events: none;
  white-space: normal; background: var(--paper); color: var(--ink); font-size: 13px;
  line-height: 1.5; border: 1px solid var(--line); border-radius: 6px;
  box-shadow: 0 2px 12px rgba(0, 0, 0, .3); }
.text-density .token:hover .tip, .text-density .token:focus .tip { display: block; }
.text-density .text:hover .token:focus:not(:hover) .tip { display: none; }
.text-density table { border-collapse: collapse; margin-top: 6px;
  font-variant-numeric: tabular-nums; }
.text-density th, .text-density td { padding: 1px 8px 1px 0; text-align: right; border: 0;
  background: none; white-space: pre; color: inherit; font-size: 13px; }
.text-density th:first-child, .text-density td:first-child { text-align: left; }
.text-density th { color: var(--pale); font-weight: normal; }
.text-density .own td { font-weight: bold; }
"""

_BLOCK = Template("""<div class="text-density">
<style>$style</style>
<div class="legend">$legend, from little to much of the model; the first $few tokens have too
little before them. Hover over a token, or reach it by Tab, for what might have stood there.</div>
<div class="text">$tokens</div>
</div>
""")

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
body { max-width: 60rem; margin: 2rem auto; padding: 0 16px 12rem;
  font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", Arial, sans-serif; }
h1 { font-size: 1.3rem; overflow-wrap: anywhere; }
</style>
</head>
<body>
<h1>$title</h1>
<p>$caption</p>
$block
</body>
</html>
""")
