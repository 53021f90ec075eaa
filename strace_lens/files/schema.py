"""Whether what a file holds can be a result: the kinds of its values, and what a curve may measure.

The checksum of a file tells damage. These checks tell what was written by something else with a
checksum that is right: a flag given as a text, a total variation of 2, sizes that do not rise.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

import numpy as np

from strace_lens.density.curve import TARGET_COLUMNS, DensityCurve
from strace_lens.measures.sizes import check_sizes

ROUNDING = 1e-6

_RANGES = {
    **dict.fromkeys(("tv", "head_error", "tail_error", "top1", "trace_head_mass"), (0, 1)),
    "target_tv": (0, 1),
    **dict.fromkeys(("random_tv", "inverse_tv", "random_inverse_tv", "nucleus"), (0, 1)),
    **dict.fromkeys(("ablatable_size", "residual", "attention", "mlp"), (0, 1)),
    **dict.fromkeys(("kl", "js", "mean_layer"), (0, np.inf)),
}
"""The columns of a curve whose values have a range."""

_PLAIN = {bool: (bool,), int: (int,), float: (int, float), str: (str,)}

_MAY_BE_NAN = ("random_tv", "inverse_tv", "random_inverse_tv", "mean_layer", "target_recovered")
"""Controls that were left out, the mean layer of no edge, a share of nothing."""


def read_as(value: Any, hint: Any, what: str) -> Any:
    """Make what an annotation says of a value from JSON, if the value and all its parts are that.

    A tuple or a named tuple is made of a list, a dataclass of an object with exactly its fields. A
    boolean is no number.

    Args:
        value: From JSON.
        hint: An annotation: bool, int, float, str, a tuple, a mapping, a union, or a class of
            fields that are annotated so.
        what: What the value is called in the message.

    Raises:
        ValueError: If the value, or a part of it, is something else.
    """
    made: Any = hint
    origin, args, of_fields = typing.get_origin(hint), typing.get_args(hint), is_dataclass(hint)
    fields = typing.get_type_hints(hint) if origin is None and hint not in _PLAIN else {}
    if origin in (typing.Union, types.UnionType):
        (other,) = (each for each in args if each is not type(None))
        return None if value is None else read_as(value, other, what)
    if hint in _PLAIN and type(value) in _PLAIN[hint]:
        return value
    if of_fields and isinstance(value, dict) and {*value} == {*fields}:
        return made(**{name: read_as(value[name], each, name) for name, each in fields.items()})
    if origin is tuple and isinstance(value, list):
        parts = args[:1] * len(value) if args[-1] is ... else args
        if len(parts) == len(value):
            return tuple(read_as(x, each, what) for x, each in zip(value, parts, strict=True))
    if issubclass(origin or made, tuple) and isinstance(value, list) and len(value) == len(fields):
        pairs = zip(value, fields.items(), strict=True)
        return made(*(read_as(part, each, f"{what}.{name}") for part, (name, each) in pairs))
    if origin is not None and issubclass(origin, Mapping) and isinstance(value, dict):
        return value
    raise ValueError(f"its {what} is {value!r:.80}")


def check_curve(curve: DensityCurve) -> None:
    """Refuse a curve that no trace of its graph can have.

    Raises:
        ValueError: If its sizes do not rise in (0, 1] or are not those of its numbers of edges, if
            a value is not finite or lies out of its range, or if another column contradicts it.
    """
    table, sizes = curve.table, check_sizes(curve.table["size"].to_numpy())
    if table["edges"].tolist() != [curve.trace.edge_count(size) for size in sizes]:
        raise ValueError("its sizes and numbers of edges disagree")
    if not len(curve.tops) == len(curve.top_tokens) == len(sizes):
        raise ValueError("it has not the top tokens of every size")
    of_target = curve.target is not None
    known = (curve.target_full is not None, curve.target_empty is not None)
    if known != (of_target, of_target) or any((n in table) != of_target for n in TARGET_COLUMNS):
        raise ValueError("its target and the columns of it disagree")
    for name in table.columns:
        values = table[name].to_numpy()
        if values.dtype.kind not in "bif":
            raise ValueError(f"its column {name!r} holds {values.dtype}, which is no number")
        low, high = _RANGES.get(name, (-np.inf, np.inf))
        within = (low - ROUNDING <= values) & (values <= high + ROUNDING) & np.isfinite(values)
        if name in _MAY_BE_NAN:
            within |= np.isnan(values)
        if not within.all():
            raise ValueError(f"its column {name!r} holds {values[~within][0]}")
    if bool((np.abs(table["head_error"] + table["tail_error"] - table["tv"]) > ROUNDING).any()):
        raise ValueError("the errors of head and tail do not add up to tv")
