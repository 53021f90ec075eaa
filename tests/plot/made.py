"""One real curve of a tiny model for every test of figures, and variants of it."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import plotly.graph_objects as go

from strace_lens.density.curve import DensityCurve, density_curve
from strace_lens.density.phases import Phases
from strace_lens.traces.extract import extract
from strace_lens.traces.graph import token_graph
from strace_lens.traces.lens import Lens, read_lens
from tests import tiny

SIZES = (0.001, 0.01, 0.03, 0.1, 0.2, 0.4, 0.7, 1.0)  # the first holds no edge
NO_PHASES = Phases(along_sizes=(), head=None, tail=None)


@functools.cache
def curve(name: str = "llama") -> DensityCurve:
    """A density curve of a tiny model on the tests' prompt."""
    model = tiny.bridge(name)
    return density_curve(model, extract(token_graph(model, tiny.PROMPT)), sizes=SIZES)


@functools.cache
def lens(name: str = "llama") -> Lens:
    """What the nodes and heads of that curve's prompt say."""
    model = tiny.bridge(name)
    return read_lens(model, token_graph(model, tiny.PROMPT))


def with_token(text: str) -> DensityCurve:
    """The curve with one token of its prompt, and every predicted token, replaced by a text."""
    made = curve()
    prompt = made.trace.prompt
    hostile = dataclasses.replace(prompt, strings=(*prompt.strings[:-1], text))
    tops = tuple(((text, p), *rest) for (_, p), *rest in made.tops)
    trace = dataclasses.replace(made.trace, prompt=hostile)
    return dataclasses.replace(made, trace=trace, tops=tops, top=((text, 0.5),))


def other_scripts() -> DensityCurve:
    """The curve on a prompt of scripts that tokens cut within characters, right to left too."""
    strings = (
        "日",
        "<0xE6>",
        "<0x9C>",
        "<0xAC>",
        " ",
        "ש",
        "לו",
        "ם",
        " 👩‍👩‍👧",
        " e\u0301",
        " is",
        "\n",
    )
    made = curve()
    prompt = dataclasses.replace(
        made.trace.prompt, text="日本 שלום 👩‍👩‍👧 e\u0301 is\n", strings=strings
    )
    (_, first), *others = made.top
    tops = tuple(((" שלום", p), *rest) for (_, p), *rest in made.tops)
    trace = dataclasses.replace(made.trace, prompt=prompt)
    return dataclasses.replace(made, trace=trace, tops=tops, top=((" שלום", first), *others))


def bare(rows: int) -> DensityCurve:
    """The first sizes of the curve, without controls."""
    controls = dict.fromkeys(("random_tv", "inverse_tv", "random_inverse_tv"), math.nan)
    table = curve().table.head(rows).assign(**controls)
    tops, top_tokens = curve().tops[:rows], curve().top_tokens[:rows]
    return dataclasses.replace(curve(), table=table, tops=tops, top_tokens=top_tokens)


def named(fig: go.Figure, name: str) -> Any:
    """The only plotly trace of a name."""
    (found,) = [item for item in fig.data if item.name == name]
    return found


def texts(fig: go.Figure) -> list[str]:
    """Every annotation."""
    return [a.text for a in fig.layout.annotations]


def hovers(fig: go.Figure) -> list[str]:
    """Every hover text of scatter traces."""
    return [text for item in fig.data for text in getattr(item, "hovertext", None) or ()]
