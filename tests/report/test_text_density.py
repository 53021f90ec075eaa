"""The coloured text: all of it is there, nothing of it is markup, and it can be read."""

from __future__ import annotations

import html
import re

import numpy as np
import pandas as pd
import pytest

from strace_lens.model.predictions import TopToken
from strace_lens.report.text_density import (
    colours,
    luminance,
    text_density_html,
    text_density_page,
)
from tests.browser import chromium
from tests.report.test_trace import Page

NAN = float("nan")


def tokens(*texts: str, densities: list[float] | None = None) -> pd.DataFrame:
    given = densities or [NAN, *np.linspace(0.2, 0.9, len(texts) - 1).tolist()]
    return pd.DataFrame(
        {
            "position": range(len(texts)),
            "token": texts,
            "density": given,
            "entropy": [NAN if np.isnan(d) else 1.25 for d in given],
            "probability": [NAN if np.isnan(d) else 0.125 for d in given],
            "alternatives": [
                ()
                if np.isnan(d)
                else (TopToken(text, 0.125, 0.5, True), TopToken(" or", 0.1, 0.0, False))
                for d, text in zip(given, texts, strict=True)
            ],
        }
    )


def test_every_token_is_on_its_colour_with_its_alternatives() -> None:
    page = Page(text_density_html(tokens("The", " cat", " sat"), 0.1))
    styles = [a["style"] for tag, a in page.tags if tag == "span" and a.get("class") == "token"]
    assert styles == [
        f"background:{back};color:{ink}" for back, ink in (colours(d, 0.2, 0.9) for d in (0.2, 0.9))
    ]
    for said in (
        '" cat", token 2',
        "density 0.200, entropy 1.25 nats",
        "gave it 12.5 %",
        "s = 0.1",
    ):
        assert said in page.text
    assert '" or"10 %0 %' in page.text
    assert "the first 1 tokens have too" in page.text


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("\n", '<i aria-hidden="true">↵</i>\n'),
        ("\t", '<i aria-hidden="true">⇥</i>\t'),
        ("\r", '<i aria-hidden="true">␍</i>'),
        ("<0xE6>", "&lt;0xE6&gt;"),
        ("<|endoftext|>", "&lt;|endoftext|&gt;"),
        ("$style", "$style"),
        (" שלום", "\u2068 שלום\u2069"),
    ],
)
def test_odd_tokens_are_shown_as_they_are(token: str, shown: str) -> None:
    block = text_density_html(tokens("a", token, "b"), 0.1)
    assert f'">{shown}<span class="tip">' in block
    assert "<script" not in block
    assert block.count("<span") == block.count("</span>")
    assert html.escape(repr(token)[1:-1], quote=False) in block or shown in block


def test_ink_can_be_read_on_every_colour_and_colours_rise_in_light() -> None:
    lights = []
    for density in np.linspace(0, 1, 101):
        back, ink = colours(float(density), 0.0, 1.0)
        high, low = sorted((luminance(back), luminance(ink)), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5  # WCAG 2, level AA
        lights.append(luminance(back))
    assert lights == sorted(lights)


def test_bounds_put_texts_on_one_scale() -> None:
    one = text_density_html(tokens("a", "b", densities=[NAN, 0.5]), 0.1, bounds=(0.0, 1.0))
    assert f"background:{colours(0.5, 0.0, 1.0)[0]}" in one
    assert "density 0.000" in one
    alone = text_density_html(tokens("a", "b", densities=[NAN, 0.5]), 0.1)
    assert "every token has density 0.500" in alone
    with pytest.raises(ValueError, match="bounds must rise; got 1 and 0"):
        text_density_html(tokens("a", "b"), 0.1, bounds=(1.0, 0.0))
    with pytest.raises(ValueError, match="no token of the text has a density"):
        text_density_html(tokens("a", densities=[NAN]), 0.1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_alternatives_on_hover_and_fetches_nothing(scheme: str, tmp_path) -> None:
    path = tmp_path / "text.html"
    texts = ["The", " cat", "\n", " <b>sat</b>", " down"]
    path.write_text(text_density_page(tokens(*texts), 0.1, "A <title>", "A caption"))
    asked: list[str] = []
    with chromium() as browser:
        page = browser.new_context(color_scheme=scheme).new_page()  # pyright: ignore
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        tip = page.locator(".tip:visible")
        assert tip.count() == 0
        page.locator(".token", has_text="sat").first.hover()
        assert '" <b>sat</b>", token 4' in tip.inner_text()
        page.mouse.move(0, 0)
        page.keyboard.press("Tab")
        assert '" cat", token 2' in tip.inner_text()
        ink, paper = page.evaluate(
            "() => { const s = getComputedStyle(document.querySelector('.tip'));"
            " return [s.color, s.backgroundColor] }"
        )
        values = [tuple(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper)]
        assert (luminance(values[0]) > luminance(values[1])) == (scheme == "dark")  # pyright: ignore
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert asked == [path.as_uri()]
