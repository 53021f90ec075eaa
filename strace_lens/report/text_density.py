"""A text whose tokens are coloured by their density, as a block of HTML without scripts.

On hover, or on focus by the keyboard, a panel in the corner of the window shows what the model and
a small trace predict instead of the token.
"""

from __future__ import annotations

import html
from typing import Any

import numpy as np
import pandas as pd
from plotly.colors import hex_to_rgb, sample_colorscale

from strace_lens.plot.style import percent, quoted
from strace_lens.report.page import asset, fill
from strace_lens.utils.html_repr import isolated

SCALE = "Cividis"
"""Perceptually uniform, and read alike with and without colour vision (Nuñez et al. 2018)."""

_OWN = ' class="own"'
_BLANK = {"\n": "↵", "\r": "␍", "\t": "⇥"}


def text_density_html(
    tokens: pd.DataFrame, small: float, bounds: tuple[float, float] | None = None
) -> str:
    """Colour every token of a text by its density, with a legend, and alternatives on hover.

    Args:
        tokens: the result of `text_density`.
        small: size of the trace whose probabilities `tokens` holds.
        bounds: densities of the first and last colour; by default the range of the text.

    Returns:
        Self-contained HTML that follows the reader's light or dark colour scheme.

    Raises:
        ValueError: no token has a density, or the bounds do not increase.
    """
    densities = tokens["density"].to_numpy(dtype=np.float64)
    measured = densities[~np.isnan(densities)]
    if not len(measured):
        raise ValueError("no token of the text has a density; nothing can be coloured")
    low, high = bounds or (float(measured.min()), float(measured.max()))
    if bounds is not None and not low < high:
        raise ValueError(f"bounds must rise; got {low:g} and {high:g}")
    spans = [_token(row, small, low, high) for row in tokens.to_dict("records")]
    return (
        f'<div class="text-density">\n<style>\n{asset("text.css")}</style>\n'
        f'<div class="legend">{_legend(low, high)}, from little to much of the model; the first '
        f"{len(tokens) - len(measured)} tokens have too little context. Hover over a token, or "
        "move to it with Tab, to see which tokens were predicted there.</div>\n"
        f'<div class="text">{"".join(spans)}</div>\n</div>\n'
    )


def text_density_page(tokens: pd.DataFrame, small: float, title: str, caption: str) -> str:
    """A page of `text_density_html`, complete in itself.

    Args:
        tokens: of `text_density`.
        small: size of the trace whose probabilities `tokens` has.
        title: of the page, as text.
        caption: what was measured, as text.
    """
    return fill(
        "text.html",
        title=html.escape(title),
        caption=html.escape(caption),
        block=text_density_html(tokens, small),
    )


def _token(row: dict[Any, Any], small: float, low: float, high: float) -> str:
    shown = _shown(row["token"])
    if np.isnan(row["density"]):
        return f'<span class="unmeasured">{shown}</span>'
    back, ink = colours(row["density"], low, high)
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


def _tip(row: dict[Any, Any], small: float) -> str:
    lines = "".join(
        f"<tr{_OWN * (other.token == row['token'])}><td>{quoted(other.token)}</td>"
        f"<td>{_share(other.model)}</td><td>{_share(other.trace)}</td></tr>"
        for other in row["alternatives"]
    )
    return (
        f"<b>{quoted(row['token'])}</b>, token {row['position'] + 1}<br>"
        f"density {row['density']:.3f}, entropy {row['entropy']:.2f} nats<br>"
        f"the model gave it {_share(row['probability'])}"
        f"<table><thead><tr><th>instead</th><th>model</th><th>s = {small:g}</th></tr></thead>"
        f"<tbody>{lines}</tbody></table>"
    )


def _share(probability: float) -> str:
    return "&lt; 0.001 %" if 0 < probability < 1e-5 else percent(probability)


def _legend(low: float, high: float) -> str:
    stops = np.linspace(0, 1, 11)
    bar = ", ".join(colours(low + stop * (high - low), low, high)[0] for stop in stops)
    if high <= low:
        return f"every token has density {low:.3f}"
    return (
        f"density {low:.3f} <span class='bar' style='background:linear-gradient(to right, {bar})'>"
        f"</span> {high:.3f}"
    )
