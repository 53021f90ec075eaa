"""What every page is made of: a title, what stands first, and sections under their headings."""

from __future__ import annotations

from strace_lens.report.page import page


def test_sections_stand_in_order_under_their_headings() -> None:
    made = page(
        "a < b", "<p>first</p>", {"One & two": ["<p>1</p>", "", "<p>2</p>"], "Three": ["3"]}
    )
    assert "<title>a &lt; b</title>" in made
    body = made.split("<body>")[1].split("</body>")[0]
    assert body.split() == [
        "<p>first</p>",
        *"<h2>One &amp; two</h2>".split(),
        *("<p>1</p>", "<p>2</p>", "<h2>Three</h2>", "3"),
    ]


def test_a_section_of_nothing_is_left_out() -> None:
    assert "<h2>" not in page("t", "", {"None": [], "Empty": ["", ""]})
