"""What a run says to the vocabulary, packed for the explorer's page.

Numbers keep three digits and attention eight bits of its square root (steps of at most 0.004, finer
towards zero), so that a prompt of 64 tokens takes well under a megabyte.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from strace_lens.report.packed import byte_planes, packed_text
from strace_lens.traces.lens import Lens


def pack_lens(lens: Lens) -> dict[str, Any]:
    """What the explorer shows of nodes and heads, as JSON values; its script reads them back.

    Args:
        lens: of the prompt.
    """
    tokens = sorted(lens.words)
    place = {token: number for number, token in enumerate(tokens)}
    numbers = {
        "words": [lens.words[token] for token in tokens],
        "logits": _rounded(lens.logits),
        "heads": _rounded(lens.heads),
        "mlps": _rounded(lens.mlps),
        "ids": [place[token] for token in lens.ids.flatten().tolist()],
        "probabilities": _rounded(lens.probabilities),
        "written": [place[token] for token in lens.written.flatten().tolist()],
        "added": _rounded(lens.added),
    }
    text = json.dumps(numbers, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    queries, keys = lens.pattern.shape[-2:]
    seen = torch.ones(keys, keys, dtype=torch.bool).tril()[-queries:]
    attention = lens.pattern[..., seen].clamp(0, 1).sqrt().mul(255).round().long()
    return {
        "target": str(lens.target),
        "capped": lens.capped,
        "shown": lens.ids.shape[-1],
        "both": lens.written.shape[-1],
        "numbers": packed_text(text.encode()),
        "rows": queries,
        "attention": packed_text(byte_planes(attention.flatten(), planes=1).tobytes()),
    }


def _rounded(values: Tensor) -> list[float]:
    """Values to three significant digits."""
    return [float(f"{value:.3g}") for value in values.double().flatten().tolist()]
