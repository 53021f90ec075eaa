"""A measured trace as what the explorer's page reads: JSON, with the edges packed into text.

Edges are packed by rising rank: the flat id of each in three or four byte planes, and of its
importance the upper half of a float32. Planes of like bytes compress well; `assets/unpack.js` is
the way back.
"""

from __future__ import annotations

import base64
import dataclasses
import zlib
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from strace_lens.density.curve import DensityCurve
from strace_lens.density.phases import find_phases
from strace_lens.report.summary import finite
from strace_lens.token_graph.edges import KINDS, hook_name, order_of

_NUMBERS = (
    *("size", "edges", "tv", "kl", "head_error", "tail_error", "nucleus"),
    *(
        "trace_head_mass",
        "random_tv",
        "inverse_tv",
        "random_inverse_tv",
        "ablatable_size",
        *KINDS,
        "mean_layer",
    ),
)


def pack(curve: DensityCurve, most: int) -> dict[str, Any]:
    """A curve and the first edges of its trace as JSON values; what is not finite is None.

    Args:
        curve: a trace measured at every size.
        most: edges to pack at most.
    """
    trace, table = curve.trace, curve.table
    order = order_of(trace.ranks)[:most]
    counts = trace.counts_by_size(table["edges"].tolist())
    facts = ("density", "entropy", "head", "head_mass", "ablation", "seed", "logit_gap")
    return {
        "made": dict(trace.made),
        "tokens": list(trace.prompt.strings),
        "shape": dataclasses.asdict(trace.shape),
        "levels": [hook_name(trace.shape, level) for level in range(trace.shape.levels)],
        "edges": trace.edges,
        "packed": len(order),
        "order": _text(_planes(order)),
        "importance": _packed_importance(curve, order),
        "sizes": [
            {
                **{name: finite(row[name]) for name in _NUMBERS},
                "top1": bool(row["top1"]),
                "top": row["top"][0],
                "beside": [list(token) for token in row["beside"]],
                "counts": count.tolist(),
            }
            for row, count in zip(table.to_dict("records"), counts, strict=True)
        ],
        "keep": list(curve.keep),
        "phases": [dataclasses.asdict(p) for p in find_phases(curve).along_sizes],
        **{name: finite(getattr(curve, name)) for name in facts},
    }


def _packed_importance(curve: DensityCurve, order: Tensor) -> str | None:
    importance = curve.trace.importance
    if importance is None:
        return None
    upper = importance.flat()[order].bfloat16().view(torch.int16).long() & 0xFFFF
    return _text(_planes(upper, planes=2))


def _planes(values: Tensor, planes: int | None = None) -> UInt8[np.ndarray, "plane edge"]:
    """The bytes of whole numbers, lowest first, each place a row of its own."""
    if planes is None:
        planes = 3 if int(values.max()) < 2**24 else 4
    shifts = 8 * torch.arange(planes)[:, None]
    return ((values[None] >> shifts) & 0xFF).to(torch.uint8).numpy()


def _text(planes: UInt8[np.ndarray, "plane edge"]) -> str:
    """Bytes as base64 of a zlib stream."""
    return base64.b64encode(zlib.compress(planes.tobytes(), 9)).decode("ascii")
